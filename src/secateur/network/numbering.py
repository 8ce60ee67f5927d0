"""Numbers of channels: what is known of them while they are carried through a network.

Each channel that a layer makes gets a number. An activation hands numbers on, a sum makes those of
its inputs the same, a concatenation puts them behind each other, a reshape rearranges them.

The numbers of a value are an array that broadcasts to the value's shape: after a convolution
(1, channels, 1, 1), in a transformer (1, 1, width) or (1, heads, 1, width of a head). How each
operation carries them is in `secateur.network.carrying`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from secateur.network.disjoint_sets import Sets
from secateur.network.ops import Identity, Op, Reshape, Sizes, expanded

if TYPE_CHECKING:
    from secateur.network.graph import Graph

Role = Literal["rows", "columns", "entries"]
Numbers = np.ndarray  # of integers; NONE where a place belongs to no channel

NONE = -1


class Numbering:
    """What a pass over a network's operations has found.

    Attributes:
        numbers: by value.
        makers: the operations by the values that they give.
        sets: which numbers are the same.
        made: the numbers of the channels that each layer makes.
        slices: by parameter, axis and role the numbers along that axis.
        blocks: arrays of numbers, a row for each block.
        alike: arrays of numbers, a row for each of several parts that keep one size.
        reasons: why a number's channel cannot leave.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sets = Sets()
        self.numbers: dict[str, Numbers] = {}
        self.makers: dict[str, Op] = {op.name: op for _, op in expanded(graph.ops)}
        self.made: list[Numbers] = []
        self.reasons: dict[int, str] = {}
        self.slices: dict[tuple[str, int, Role], Numbers] = {}
        self.blocks: list[Numbers] = []
        self.alike: list[Numbers] = []

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
