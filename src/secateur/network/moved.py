"""Constants that are moved about before they are computed with.

Such are the biases of an attention that are looked up in a table by the distance of two
positions, or three vectors put behind each other as one bias. Which places of a table belong to a
channel is found by moving the numbers of these places in the same way.
"""

from __future__ import annotations

import numpy as np

from secateur.network.numbering import NONE, Numbering, Numbers
from secateur.network.ops import (
    Activation,
    Concatenate,
    GetItem,
    Op,
    Reshape,
    Slice,
    Split,
    Take,
    Transpose,
)


class Moved:
    """The places of constants that the numbers of a value come from.

    Args:
        known: what is known of the network.
        name: of the value.
    """

    def __init__(self, known: Numbering, name: str) -> None:
        self.known = known
        self.first: dict[str, int] = {}  # place of each constant among all of them
        self.total = 0
        self.of: dict[str, np.ndarray] = {}  # by value the places, in its shape
        self.places = self._places(name)

    def _places(self, name: str) -> np.ndarray | None:
        """Of a value; None where it is not made of constants alone, or computed."""
        if name not in self.of:
            found = self._constant(name) if self.known.is_constant(name) else self._made(name)
            if found is None:
                return None
            self.of[name] = found
        return self.of[name]

    def _constant(self, name: str) -> np.ndarray | None:
        sizes = self.known.sizes(name)
        if sizes is None:
            return None
        self.first[name] = self.total
        self.total += int(np.prod(sizes))
        return np.arange(self.first[name], self.total).reshape(sizes)

    def _made(self, name: str) -> np.ndarray | None:
        op, sizes = self.known.makers.get(name), self.known.sizes(name)
        if op is None or sizes is None:
            return None
        if isinstance(op, GetItem):
            return self._part(op)
        if not isinstance(op, Activation | Reshape | Transpose | Slice | Take | Concatenate):
            return None
        read = [self._places(of) for of in op.inputs]
        parts = [of for of in read if of is not None]
        if len(parts) < len(read):
            return None
        return self._moved(op, parts, sizes)

    def _moved(self, op: Op, read: list[np.ndarray], sizes: tuple[int, ...]) -> np.ndarray | None:
        x = read[0]
        if isinstance(op, Concatenate):
            return (np.stack if op.stacks else np.concatenate)(read, op.axis)
        if isinstance(op, Take):
            index = self._index(op)
            return None if index is None else x.take(index, op.axis)
        if isinstance(op, Slice):
            found = x.take(range(op.start, op.stop, op.step), op.axis)
            return found if op.keepdims else found.squeeze(op.axis)
        if isinstance(op, Transpose):
            return x.transpose(op.permutation)
        return x.reshape(sizes) if x.size == np.prod(sizes) else None

    def _part(self, op: GetItem) -> np.ndarray | None:
        split = self.known.makers.get(op.input)
        if not isinstance(split, Split) or (x := self._places(split.input)) is None:
            return None
        start = sum(split.lengths[: op.index])
        found = x.take(range(start, start + split.lengths[op.index]), split.axis)
        return found if split.keepdims else found.squeeze(split.axis)

    def _index(self, op: Take) -> np.ndarray | None:
        """The numbers of the places that are taken."""
        (name,) = op.others
        moved = Moved(self.known, name)
        held = [self.known.graph.parameters.get(of) for of in moved.first]
        if moved.places is None or any(of is None for of in held):
            return None
        return np.concatenate([of.numpy().ravel() for of in held if of is not None])[moved.places]


def cut_moved(known: Numbering, name: str, numbers: Numbers) -> None:
    """A value made of constants has an entry for each channel, and so do these constants.

    Args:
        known: what is known of the network.
        name: of the value.
        numbers: of the channels, with as many axes or more.
    """
    moved, why = Moved(known, name), f"computed with {known.called(name)}"
    if moved.places is None:
        return known.fix(numbers, why)
    places = moved.places.reshape((1,) * (numbers.ndim - moved.places.ndim) + moved.places.shape)
    if any(size > own for size, own in zip(numbers.shape, places.shape, strict=True)):
        return known.fix(numbers, why)
    by_place = np.full(moved.total, NONE)
    by_place[places] = np.broadcast_to(numbers, places.shape)
    if (by_place[places] != numbers).any():  # one place for several channels
        return known.fix(numbers, why)
    for source, first in moved.first.items():
        sizes = known.sizes(source) or ()
        own = by_place[first : first + int(np.prod(sizes))].reshape(sizes)
        axis = _axis(own)
        if axis is None:
            known.fix(numbers, why)
        else:
            entries = np.moveaxis(own, axis, 0).reshape(sizes[axis], -1).max(1)
            known.cut(source, axis, "entries", entries)
            others = [1] * len(sizes)
            others[axis] = sizes[axis]
            by_place[first : first + own.size] = np.broadcast_to(
                entries.reshape(others), sizes
            ).ravel()
    for value, held in moved.of.items():
        carried = by_place[held]
        for axis in range(carried.ndim):
            if (carried == carried.take([0], axis)).all():
                carried = carried.take([0], axis)
        known.numbers[value] = carried
    return None


def _axis(numbers: Numbers) -> int | None:
    """The axis along which numbers vary, and no other; NONE stands for any number."""
    for axis in range(numbers.ndim):
        lines = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)
        if ((lines == NONE) | (lines == lines.max(1, keepdims=True))).all():
            return axis
    return None
