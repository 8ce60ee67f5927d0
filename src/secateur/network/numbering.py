"""Numbers of channels: what is known of them while they are carried through a network.

Each channel that a layer makes gets a number. An activation hands numbers on, a sum makes those of
its inputs the same, a concatenation puts them behind each other, a reshape rearranges them.

The numbers of a value are an array that broadcasts to the value's shape: after a convolution
(1, channels, 1, 1), in a transformer (1, 1, width) or (1, heads, 1, width of a head). How each
operation carries them is in `secateur.network.carrying`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from secateur.network.disjoint_sets import Sets
from secateur.network.ops import (
    Add,
    Convolution,
    Expand,
    GetItem,
    Identity,
    Linear,
    Multiply,
    Op,
    Repeat,
    Reshape,
    Scale,
    Sizes,
    Slice,
    Split,
    Transpose,
    expanded,
)

if TYPE_CHECKING:
    from secateur.network.graph import Graph

Role = Literal["rows", "columns", "entries"]
Numbers = np.ndarray  # of integers; NONE where a place belongs to no channel

NONE = -1
_KEEP_SUMS = (Reshape, Transpose, Slice, GetItem, Split, Identity, Expand, Repeat, Scale, Add)


@dataclass(frozen=True)
class Meeting:
    """Queries and keys, of which each channel of the one is multiplied with one of the other.

    Attributes:
        queries, keys: the numbers that each was made with.
        divides: whether the operation divides by the root of their number.
        linear: whether nothing but factors lies between the layers that make them and here.
    """

    queries: frozenset[int]
    keys: frozenset[int]
    divides: bool
    linear: bool


class Numbering:
    """What a pass over a network's operations has found.

    Attributes:
        whole: whether blocks, such as the heads of an attention, are one channel each.
        numbers: by value.
        makers: the operations by the values that they give.
        sets: which numbers are the same.
        made: the numbers of the channels that each layer makes.
        slices: by parameter, axis and role the numbers along that axis.
        blocks: arrays of numbers, a row for each block.
        alike: arrays of numbers, a row for each of several parts that keep one size.
        tied: arrays of numbers of blocks, in parts of one value, that keep one size.
        meetings: queries and keys.
        heads: numbers that stand for whole heads.
        reasons: why a number's channel cannot leave.
    """

    def __init__(self, graph: Graph, *, whole: bool = False) -> None:
        self.graph, self.whole = graph, whole
        self.sets = Sets()
        self.numbers: dict[str, Numbers] = {}
        self.makers: dict[str, Op] = {op.name: op for _, op in expanded(graph.ops)}
        self.made: list[Numbers] = []
        self.reasons: dict[int, str] = {}
        self.slices: dict[tuple[str, int, Role], Numbers] = {}
        self.blocks: list[Numbers] = []
        self.alike: list[Numbers] = []
        self.tied: list[Numbers] = []
        self.meetings: list[Meeting] = []
        self.heads: set[int] = set()

    # what is known of values

    def sizes(self, name: str) -> Sizes | None:
        """Of a value for one image; None where they are not known."""
        shape = self.graph.shapes.get(name)
        return None if shape is None or 0 in shape.sizes else shape.sizes

    def of(self, name: str) -> Numbers:
        """The numbers of a value; none of an input, a constant, or behind what stops them."""
        if name in self.numbers:
            return self.numbers[name]
        return np.full((1,) * len(self.sizes(name) or ()), NONE)

    def along(self, name: str, axis: int) -> Numbers | None:
        """The numbers along one axis of a value; None where they differ along another too."""
        numbers, sizes = self.of(name), self.sizes(name)
        if sizes is None:
            return None
        axis %= len(sizes)
        if any(size > 1 for at, size in enumerate(numbers.shape) if at != axis):
            return None
        return np.broadcast_to(numbers.reshape(-1), sizes[axis])

    def is_constant(self, name: str) -> bool:
        """Whether a value is held by the network: a parameter, or another constant."""
        return name in self.graph.parameters or name in self.graph.constants

    def source(self, name: str) -> str | None:
        """The constant that a value is, in the same shape or another; None where it is none."""
        while not self.is_constant(name):
            op = self.makers.get(name)
            if not isinstance(op, Reshape | Identity):
                return None
            name = op.input
        return name

    def called(self, name: str) -> str:
        """A value in the user's terms."""
        if name in self.graph.inputs:
            return "the network's input"
        op = self.makers.get(name)
        return f"the output of {op.label or op.operation}" if op else name

    # what is found out

    def fix(self, numbers: Numbers, why: str) -> None:
        """Channels that cannot leave; the first reason is kept."""
        for number in np.unique(numbers[numbers != NONE]):
            self.reasons.setdefault(int(number), why)

    def fix_inputs(self, op: Op, why: str) -> None:
        """All that an operation reads cannot leave."""
        for name in op.reads:
            self.fix(self.of(name), why)

    def join(self, one: Numbers, other: Numbers, why: str) -> Numbers:
        """Numbers of one array and of another are the same, place by place.

        Where only one of them has a number it is fixed: the other has channels that stay.
        """
        one, other = np.broadcast_arrays(one, other)
        both = (one != NONE) & (other != NONE)
        pairs = np.stack([one[both], other[both]], -1)
        for first, second in np.unique(pairs.reshape(-1, 2), axis=0):
            self.sets.join(int(first), int(second))
        self.fix(one[(one != NONE) & ~both], why)
        self.fix(other[(other != NONE) & ~both], why)
        return np.where(one != NONE, one, other)

    def by_row(self, numbers: Numbers, axes: Iterable[int]) -> Numbers:
        """Numbers that are the same along all axes but some, where they vary along one of these.

        Elsewhere they are as they were.
        """
        rank = numbers.ndim
        kept = {axis % rank for axis in axes}
        rest = [at for at, size in enumerate(numbers.shape) if size > 1 and at not in kept]
        if not rest or not any(numbers.shape[axis] > 1 for axis in kept):
            return numbers
        rows = np.moveaxis(numbers, rest, range(-len(rest), 0))
        for row in rows.reshape(-1, int(np.prod(rows.shape[-len(rest) :]))):
            self.join(row[:1], row, "leaves as a whole, with what stays")
        for axis in rest:
            numbers = numbers.take([0], axis)
        self.heads.update(int(number) for number in numbers.ravel() if number != NONE)
        return numbers

    def meet(self, query: str, key: str, *, divides: bool) -> None:
        """Two values are multiplied and summed over their channels."""
        numbers = [frozenset(map(int, np.unique(self.of(name)))) - {NONE} for name in (query, key)]
        linear = all(map(self._is_linear, (query, key)))
        if divides and not linear:
            why = "the attention divides by the root of their number"
            for name in (query, key):
                self.fix(self.of(name), why)
        self.meetings.append(Meeting(*numbers, divides=divides, linear=linear))

    def _is_linear(self, name: str) -> bool:
        """Whether only factors and constants that are added come between a layer and a value."""
        op = self.makers.get(name)
        while op is not None and not isinstance(op, Linear | Convolution):
            others = op.inputs[1:]
            scaled = isinstance(op, Multiply) and all(
                math.prod(self.sizes(of) or (0,)) == 1 for of in others
            )
            if not (isinstance(op, _KEEP_SUMS) or scaled) or not all(map(self.source, others)):
                return False
            op = self.makers.get(op.input)
        return isinstance(op, Linear) or (op is not None and op.geometry.groups == 1)

    def cut(self, parameter: str | None, axis: int, role: Role, numbers: Numbers) -> None:
        """A parameter has a part in these numbers, one for each index along an axis."""
        if parameter is None or (numbers == NONE).all():
            return
        shape = self.graph.shapes.get(parameter)
        if shape is None:
            return self.fix(numbers, f"{self.called(parameter)} is not a constant")
        held = parameter in self.graph.parameters
        if not (held or (role != "columns" and self.is_constant(parameter))):
            self.fix(numbers, f"{self.called(parameter)} is computed, or of a layer that stays")
        if parameter in self.graph.fixed:
            self.fix(numbers, f"{parameter}: {self.graph.fixed[parameter]}")
        key = parameter, axis % len(shape.sizes), role
        if key in self.slices:  # a parameter that is used more than once
            numbers = self.join(self.slices[key], numbers, f"{parameter} is used elsewhere too")
        self.slices[key] = numbers
        return None
