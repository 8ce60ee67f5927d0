"""The sizes that the values of a network have without some of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateur.errors import ModelError
from secateur.network.carrying import carry
from secateur.network.couplings import Removed, check_removed, gone
from secateur.network.numbering import NONE
from secateur.network.ops import Op, Padding, Sizes, Split

if TYPE_CHECKING:
    from secateur.network.graph import Graph


class Narrowing:
    """A network's values without some units: what is left along each of their axes.

    Args:
        graph: the whole network.
        removed: units of its couplings.

    Raises:
        ModelError: units cannot leave, or are not of this network.
    """

    def __init__(self, graph: Graph, removed: Removed) -> None:
        check_removed(removed)
        self.graph, self.known = graph, carry(graph)
        self.heads = carry(graph, whole=True)
        self.gone = self._gone(removed)
        self.heads_gone = self._heads_gone(removed)

    def _gone(self, removed: Removed) -> set[int]:
        """The numbers that leave, each as the first of its set."""
        numbers: set[int] = set()
        for coupling, units in removed:
            for part in coupling.slices:
                key = part.parameter, part.axis, part.role
                held = self.known.slices.get(key)
                if held is None and coupling.whole and key in self.heads.slices:
                    continue  # behind what no single dimension passes
                if held is None:
                    raise ModelError(
                        f"a coupling has a part in {part.parameter}, which this network does not "
                        "have: find the couplings of the network that is made smaller"
                    )
                numbers.update(int(held[at]) for unit in units for at in part.indices[unit])
        return {self.known.sets.find(number) for number in numbers - {NONE}}

    def _heads_gone(self, removed: Removed) -> set[int]:
        """The same in numbers of whole heads: those that have no part left."""
        cut, left, found = gone(removed), set[int](), set[int]()
        for (parameter, axis, _), numbers in self.heads.slices.items():
            indices = {*cut.get(parameter, {}).get(axis, ())}
            for at, number in enumerate(numbers):
                (found if at in indices else left).add(self.heads.sets.find(int(number)))
        return found - left

    def kept(self, name: str) -> list[np.ndarray]:
        """By axis of a value whether each of its places is left.

        Raises:
            ModelError: what is left of it has no shape.
        """
        numbers, leaves = self.known.of(name), self.leaves
        if (numbers == NONE).all():  # such as the weights of an attention, of which heads leave
            numbers, leaves = self.heads.of(name), self._head_leaves
        leaving = np.vectorize(leaves, otypes=[bool])(numbers)
        kept = [np.ones(size, bool) for size in numbers.shape]
        if leaving.any():
            for axis in range(leaving.ndim):
                others = tuple(at for at in range(leaving.ndim) if at != axis)
                whole = leaving.all(others)
                if not whole.all():
                    kept[axis] = ~whole
            rest = leaving[np.ix_(*kept)]
            if rest.any():
                self._narrow_last(name, rest, kept)
        sizes = self.graph.shapes[name].sizes
        return [np.broadcast_to(of, size) for of, size in zip(kept, sizes, strict=True)]

    def _narrow_last(self, name: str, rest: np.ndarray, kept: list[np.ndarray]) -> None:
        """Rows along the last axis that each lose as many: the first places stand for those left.

        Which of them leave differs from row to row, such as the dimensions of heads.
        """
        axis = max(at for at, size in enumerate(rest.shape) if size > 1)
        left = {int(count) for count in (~rest).sum(axis).ravel()}
        if len(left) != 1:
            raise ModelError(
                f"what is left of {self.known.called(name)} has no shape: {sorted(left)} channels "
                "in its blocks, expected as many in each: remove as many of each"
            )
        places = np.flatnonzero(kept[axis])
        kept[axis] = np.isin(np.arange(len(kept[axis])), places[: left.pop()])

    def leaves(self, number: int) -> bool:
        """Whether the channel of a number leaves."""
        return number != NONE and self.known.sets.find(int(number)) in self.gone

    def _head_leaves(self, number: int) -> bool:
        return number != NONE and self.heads.sets.find(int(number)) in self.heads_gone

    def sizes(self, name: str) -> Sizes:
        """Of a value for one image; as they are where nothing is known of it."""
        if name not in self.known.numbers and name not in self.heads.numbers:
            return self.graph.shapes[name].sizes
        return tuple(int(kept.sum()) for kept in self.kept(name))

    def lengths(self, op: Split) -> tuple[int, ...]:
        """What is left of each part of a split."""
        ends = np.cumsum(op.lengths)
        kept = self.kept(op.input)[op.axis]
        parts: Sequence[np.ndarray] = np.split(kept, ends[:-1])
        return tuple(int(part.sum()) for part in parts)

    def padded(self, op: Padding) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is left of the places that are added before and behind, by axis."""
        if self.sizes(op.name) == self.graph.shapes[op.name].sizes:
            return op.before, op.after
        before, after = list(op.before), list(op.after)
        for at, axis in enumerate(op.axes):
            kept = self.kept(op.name)[axis]
            size = len(kept)
            if before[at] > 0:
                before[at] = int(kept[: before[at]].sum())
            if after[at] > 0:
                after[at] = int(kept[size - after[at] :].sum())
        return tuple(before), tuple(after)

    def bound(self, op: Op, axis: int, place: int) -> int:
        """Where a place along an axis of an operation's input is, counted in what is left."""
        return int(self.kept(op.input)[axis][:place].sum())


def mended(entry: int, change: tuple[int, int] | None, name: str) -> int:
    """An entry of a shape: 0, -1 and 1 follow by themselves, others as sizes of several samples."""
    if change is None or entry < 2 or change[0] == change[1]:
        return entry
    if entry % change[0]:
        raise ModelError(
            f"{name} makes an axis of {entry} places of {change[0]} channels, expected a multiple: "
            "its shape cannot be mended; leave its channels in"
        )
    return entry // change[0] * change[1]
