"""Numbers of channels, carried with the values of a network from operation to operation.

Each channel that a layer makes gets a number. An activation hands numbers on, a sum makes those of
its inputs the same, a concatenation puts them behind each other, a reshape rearranges them.

The numbers of a value are an array that broadcasts to the value's shape: after a convolution
(1, channels, 1, 1), in a transformer (1, 1, width) or (1, heads, 1, width of a head).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from secateur.network.disjoint_sets import Sets
from secateur.network.einsum import labelled
from secateur.network.ops import (
    Attention,
    BatchNorm,
    Concatenate,
    Convolution,
    GroupNorm,
    LayerNorm,
    Linear,
    Op,
    Padding,
    ParametricReLU,
    Pointwise,
    Pooling,
    Product,
    Reduction,
    Reshape,
    Sizes,
    Softmax,
    Transpose,
    expanded,
)

if TYPE_CHECKING:
    from secateur.network.graph import Graph

Role = Literal["rows", "columns", "entries"]
Numbers = np.ndarray  # of integers; NONE where a place belongs to no channel

NONE = -1


class Numbering:
    """One pass over a network's operations.

    Attributes:
        sets: which numbers are the same.
        made: the numbers of the channels that each layer makes.
        slices: by parameter, axis and role the numbers along that axis.
        blocks: arrays of numbers, a row for each block.
        reasons: why a number's channel cannot leave.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sets = Sets()
        self.numbers: dict[str, Numbers] = {}  # by value
        self.made: list[Numbers] = []
        self.reasons: dict[int, str] = {}
        self.slices: dict[tuple[str, int, Role], Numbers] = {}
        self.blocks: list[Numbers] = []

    def carry(self) -> Numbering:
        """Carries the numbers through the network."""
        for _, op in expanded(self.graph.ops):
            numbers = self._passed(op)
            if numbers is not None:
                self.numbers[op.name] = numbers
        for name in self.graph.outputs:
            self._fix(self._of(name), "the network's output")
        return self

    def _passed(self, op: Op) -> Numbers | None:
        """The numbers of an operation's value; None = its channels belong to no unit."""
        handler = next((_HANDLERS[kind] for kind in type(op).__mro__ if kind in _HANDLERS), None)
        if handler is None or self._sizes(op.name) is None:
            self._fix_inputs(op, f"read by {op.label or op.operation or op.name}")
            return None
        return handler(self, op)

    # what is known of values

    def _sizes(self, name: str) -> Sizes | None:
        shape = self.graph.shapes.get(name)
        return None if shape is None or 0 in shape.sizes else shape.sizes

    def _of(self, name: str) -> Numbers:
        """The numbers of a value; none of an input, a constant, or behind what stops them."""
        if name in self.numbers:
            return self.numbers[name]
        return np.full((1,) * len(self._sizes(name) or ()), NONE)

    def _along(self, name: str, axis: int) -> Numbers | None:
        """The numbers along one axis of a value; None where they differ along another too."""
        numbers, sizes = self._of(name), self._sizes(name)
        if sizes is None:
            return None
        axis %= len(sizes)
        if any(size > 1 for at, size in enumerate(numbers.shape) if at != axis):
            return None
        return np.broadcast_to(numbers.reshape(-1), sizes[axis])

    # what is found out

    def _fix(self, numbers: Numbers, why: str) -> None:
        for number in np.unique(numbers[numbers != NONE]):
            self.reasons.setdefault(int(number), why)

    def _fix_inputs(self, op: Op, why: str) -> None:
        for name in op.reads:
            self._fix(self._of(name), why)

    def _join(self, one: Numbers, other: Numbers, why: str) -> Numbers:
        """Numbers of one array and of another are the same, place by place.

        Where only one of them has a number it is fixed: the other has channels that stay.
        """
        one, other = np.broadcast_arrays(one, other)
        both = (one != NONE) & (other != NONE)
        pairs = np.stack([one[both], other[both]], -1)
        for first, second in np.unique(pairs.reshape(-1, 2), axis=0):
            self.sets.join(int(first), int(second))
        self._fix(one[(one != NONE) & ~both], why)
        self._fix(other[(other != NONE) & ~both], why)
        return np.where(one != NONE, one, other)

    def _cut(self, parameter: str | None, axis: int, role: Role, numbers: Numbers) -> None:
        """A parameter has a part in these numbers, one for each index along an axis."""
        if parameter is None or (numbers == NONE).all():
            return
        shape = self.graph.shapes.get(parameter)
        if parameter not in self.graph.parameters or shape is None:
            return self._fix(numbers, f"{parameter} is computed")
        if parameter in self.graph.fixed:
            return self._fix(numbers, f"{parameter}: {self.graph.fixed[parameter]}")
        key = parameter, axis % len(shape.sizes), role
        if key in self.slices:  # a parameter that is used more than once
            numbers = self._join(self.slices[key], numbers, f"{parameter} is used elsewhere too")
        self.slices[key] = numbers
        return None

    # operations

    def convolution(self, op: Convolution) -> Numbers | None:
        """New channels; a depthwise convolution hands on those that it reads."""
        weight, sizes = self.graph.shapes[op.weight].sizes, self._sizes(op.name) or ()
        axis = len(sizes) - (len(weight) - 2) - 1
        groups = op.geometry.groups
        out, into = weight[0], weight[1]
        if op.transposed:
            out, into = weight[1] * groups, weight[0] // groups
        read = self._along(op.input, axis)
        if read is None:
            return self._stop(op, "a convolution of channels that are not side by side")
        depthwise = groups > 1 and into == 1
        if op.transposed and groups > 1 and not (depthwise and out == groups):
            return self._stop(op, "a transposed convolution of groups")
        if depthwise:
            made = np.repeat(read, out // groups)
            self._cut(op.weight, 0, "entries", made)
        else:
            self._grouped(read, groups)
            made = self._made(out)
            self._grouped(made, groups)
            rows, columns = (1, 0) if op.transposed else (0, 1)
            self._cut(op.weight, rows, "rows", made)
            self._cut(op.weight, columns, "columns", read[:into])
        return self._layer(op, read, made, axis)

    def linear(self, op: Linear) -> Numbers | None:
        """New channels on the last axis."""
        sizes, read = self._sizes(op.name), self._along(op.input, -1)
        if read is None or not sizes:
            return self._stop(op, "a linear layer of channels that are not side by side")
        made = self._made(sizes[-1])
        self._cut(op.weight, 0, "rows", made)
        self._cut(op.weight, 1, "columns", read)
        return self._layer(op, read, made, -1)

    def _layer(self, op: Convolution | Linear, read: Numbers, made: Numbers, axis: int) -> Numbers:
        """What a layer gives: its channels along an axis, fixed where it has an obstacle."""
        self._cut(op.bias, 0, "entries", made)
        if op.obstacle:
            self._fix(read, op.obstacle)
            self._fix(made, op.obstacle)
        shape = [1] * len(self._sizes(op.name) or ())
        shape[axis] = len(made)
        return made.reshape(shape)

    def batch_norm(self, op: BatchNorm) -> Numbers | None:
        """Hands channels on; its parameters have an entry for each."""
        read = self._along(op.input, 1)
        if read is None:
            return self._stop(op, "a BatchNorm of channels that are not side by side")
        for name in (op.gamma, op.beta, op.mean, op.variance):
            self._cut(name, 0, "entries", read)
        return self._of(op.input)

    def layer_norm(self, op: LayerNorm) -> Numbers | None:
        """Hands on what it does not normalise over."""
        axes = range(-op.axes, 0)
        return self._unless(op, axes, "a LayerNorm normalises over it")

    def group_norm(self, op: GroupNorm) -> Numbers | None:
        """Hands channels on where each is normalised by itself."""
        sizes, read = self._sizes(op.input), self._along(op.input, 1)
        if read is None or sizes is None or op.groups != sizes[1]:
            return self._stop(op, "a GroupNorm normalises over groups of it")
        for name in (op.gamma, op.beta):
            self._cut(name, 0, "entries", read)
        return self._of(op.input)

    def pointwise(self, op: Pointwise) -> Numbers | None:
        """Inputs are joined place by place; constants have an entry for each channel."""
        constants = [name for name in op.inputs if name in self.graph.parameters]
        values = [name for name in op.inputs if name not in self.graph.parameters]
        rank = max((len(self._sizes(name) or ()) for name in op.inputs), default=0)
        found: Numbers | None = None
        for name in values:
            own = self._widened(name, rank)
            found = own if found is None else self._join(found, own, f"added to {name}")
        if found is None:
            return None
        for name in constants:
            self._constant(name, found)
        return found

    def _widened(self, name: str, rank: int) -> Numbers:
        """A value's numbers with as many axes as a result has."""
        numbers, own = self._of(name), self._sizes(name) or ()
        return numbers.reshape((1,) * (rank - len(own)) + numbers.shape)

    def _constant(self, name: str, numbers: Numbers) -> None:
        sizes = self._sizes(name)
        if sizes is None:
            return self._fix(numbers, f"computed with {name}")
        sizes = (1,) * (numbers.ndim - len(sizes)) + sizes
        axes = [at for at, size in enumerate(numbers.shape) if size > 1 and sizes[at] > 1]
        if not axes:
            return None
        if len(axes) > 1 or any(size > 1 for at, size in enumerate(numbers.shape) if at != axes[0]):
            return self._fix(numbers, f"computed with {name}")
        axis = axes[0] - numbers.ndim
        return self._cut(name, axis, "entries", numbers.reshape(-1))

    def parametric_relu(self, op: ParametricReLU) -> Numbers | None:
        """Hands channels on; the slope has an entry for each, or is the same for all."""
        read, slope = self._along(op.input, 1), self.graph.shapes.get(op.slope)
        if read is None or slope is None:
            return self._stop(op, "a PReLU of channels that are not side by side")
        if slope.sizes != (1,):
            self._cut(op.slope, 0, "entries", read)
        return self._of(op.input)

    def pooling(self, op: Pooling) -> Numbers | None:
        """Hands channels (axis 1) on."""
        rank = len(self._sizes(op.input) or ())
        return self._unless(op, range(2, rank), "pooling mixes it")

    def reduction(self, op: Reduction) -> Numbers | None:
        """Hands on what it does not reduce."""
        numbers = self._unless(op, op.axes, "a mean or a sum over it")
        if numbers is None or op.keepdims:
            return numbers
        rank = numbers.ndim
        return numbers.squeeze(tuple(axis % rank for axis in op.axes))

    def padding(self, op: Padding) -> Numbers | None:
        """Hands on what it does not pad."""
        return self._unless(op, op.axes, "padding along it")

    def softmax(self, op: Softmax) -> Numbers | None:
        """Hands on what it does not sum over."""
        return self._unless(op, (op.axis,), "a softmax over it")

    def concatenate(self, op: Concatenate) -> Numbers | None:
        """Puts channels behind each other."""
        sizes = self._sizes(op.name) or ()
        axis = op.axis % len(sizes)
        parts: list[Numbers] = []
        for name in op.inputs:
            own = self._sizes(name)
            if own is None:
                return self._stop(op, f"put together with {name}")
            shape = list(self._of(name).shape)
            shape[axis] = own[axis]
            parts.append(np.broadcast_to(self._of(name), shape))
        if all((part == NONE).all() for part in parts):
            return None
        shapes = [part.shape[:axis] + part.shape[axis + 1 :] for part in parts]
        common = np.broadcast_shapes(*shapes)
        wide = [
            np.broadcast_to(part, (*common[:axis], part.shape[axis], *common[axis:]))
            for part in parts
        ]
        joined = np.concatenate(wide, axis)
        elsewhere = any(size > 1 for at, size in enumerate(joined.shape) if at != axis)
        if not elsewhere or any(_varies(part, axis) for part in parts):
            return joined
        first = wide[0].take([0], axis)  # along another axis than the channels'
        for part in wide[1:]:
            first = self._join(first, part.take([0], axis), "put together with what stays")
        return first

    def reshape(self, op: Reshape) -> Numbers | None:
        """The same numbers in another shape; what splits them makes blocks."""
        sizes, before = self._sizes(op.name), self._sizes(op.input)
        numbers = self._of(op.input)
        if sizes is None or before is None or math.prod(sizes) != math.prod(before):
            return self._stop(op, "a change of shape that depends on the values")
        if (numbers == NONE).all():
            return None
        shaped = np.broadcast_to(numbers, before).reshape(sizes)
        for axis in range(len(sizes)):
            if not _varies(shaped, axis):
                shaped = shaped.take([0], axis)
        varied = [size for size in shaped.shape if size > 1]
        if len(varied) == 2:
            self.blocks.append(shaped.reshape(varied))
        elif len(varied) == 1:
            self._merged(shaped.reshape(-1))
        elif len(varied) > 2:
            return self._stop(op, "a change of shape into more than two axes")
        return shaped

    def _merged(self, numbers: Numbers) -> None:
        """Blocks side by side in another order lose the same of their channels, as in a shuffle."""
        for blocks in self.blocks:
            flat = blocks.reshape(-1)
            if not np.array_equal(flat, numbers) and np.array_equal(
                np.sort(flat), np.sort(numbers)
            ):
                for other in blocks[1:]:
                    self._join(blocks[0], other, "shuffled with what stays")

    def transpose(self, op: Transpose) -> Numbers | None:
        """Axes in another order."""
        return self._of(op.input).transpose(op.permutation)

    def product(self, op: Product) -> Numbers | None:
        """What is summed over is joined; other axes are handed on."""
        names, result = labelled(op.equation, [len(self._sizes(of) or ()) for of in op.inputs])
        if any(name in self.graph.parameters for name in op.inputs):
            return self._stop(op, op.obstacle)
        return self._contracted(op, [*zip(op.inputs, names, strict=True)], result)

    def _contracted(
        self, op: Op, factors: Sequence[tuple[str, Sequence[str]]], result: Sequence[str]
    ) -> Numbers | None:
        """Joins the factors' numbers along the axes that they share; those of one go on."""
        every = list(dict.fromkeys(label for _, labels in factors for label in labels))
        wide = [_spread(self._of(name), labels, every) for name, labels in factors]
        summed = {label for label in every if label not in result}
        found: Numbers | None = None
        for numbers in wide:
            along = [label for at, label in enumerate(every) if numbers.shape[at] > 1]
            if not along:
                continue
            if found is not None and found.shape != numbers.shape:
                return self._stop(op, "a product of channels with others")
            found = numbers if found is None else self._join(found, numbers, "a product")
            if summed & {*along} and len(wide) < 2:
                return self._stop(op, "a sum over it")
        if found is None:
            return None
        varying = {label for at, label in enumerate(every) if found.shape[at] > 1}
        if varying & summed:
            alone = [of for of in wide if of.shape != found.shape and (of == NONE).all()]
            if alone:  # the other factor has channels there that stay
                self._fix(found, "a product with what stays")
            return None
        order = [every.index(label) for label in result]
        kept = found.transpose([*order, *(at for at in range(found.ndim) if at not in order)])
        return kept.reshape(kept.shape[: len(order)])

    def attention(self, op: Attention) -> Numbers | None:
        """Queries and keys are joined along their width; the values' channels go on."""
        if len(op.inputs) < 3 or any(of in self.graph.parameters for of in op.inputs):
            return self._stop(op, op.obstacle)
        query, key, value = (self._of(name) for name in op.inputs[:3])
        if query.shape[:-1] != key.shape[:-1] or any(
            of.shape[-2] > 1 for of in (query, key, value)
        ):
            return self._stop(op, "an attention whose heads are not alike")
        joined = self._join(query, key, "multiplied with what stays")
        if op.scale is None:
            self._fix(joined, "the attention divides by the root of their number")
        for name in op.inputs[3:]:
            self._fix(self._of(name), "a mask of an attention")
        return value

    # helpers of operations

    def _stop(self, op: Op, why: str) -> None:
        self._fix_inputs(op, why)

    def _unless(self, op: Op, axes: Iterable[int], why: str) -> Numbers | None:
        """The input's numbers, unless they differ along one of some axes."""
        numbers = self._of(op.input)
        if any(numbers.shape[axis] > 1 for axis in axes if -numbers.ndim <= axis < numbers.ndim):
            return self._stop(op, why)
        return numbers

    def _made(self, count: int) -> Numbers:
        made = self.sets.fresh(count)
        self.made.append(made)
        return made

    def _grouped(self, numbers: Numbers, groups: int) -> None:
        """Groups of a convolution lose the same of their channels."""
        first, *others = np.split(numbers, groups)
        for other in others:
            self._join(first, other, "groups of a convolution")


def _varies(numbers: Numbers, axis: int) -> bool:
    return numbers.shape[axis] > 1 and bool((numbers != numbers.take([0], axis)).any())


def _spread(numbers: Numbers, labels: Sequence[str], every: Sequence[str]) -> Numbers:
    """An array with an axis for each of all labels, in their order."""
    order = sorted(range(len(labels)), key=lambda at: every.index(labels[at]))
    held = numbers.transpose(order)
    shape = dict(zip((labels[at] for at in order), held.shape, strict=True))
    return held.reshape([shape.get(label, 1) for label in every])


_HANDLERS: Mapping[type[Op], Callable[..., Numbers | None]] = {
    Convolution: Numbering.convolution,
    Linear: Numbering.linear,
    BatchNorm: Numbering.batch_norm,
    LayerNorm: Numbering.layer_norm,
    GroupNorm: Numbering.group_norm,
    Pointwise: Numbering.pointwise,
    ParametricReLU: Numbering.parametric_relu,
    Pooling: Numbering.pooling,
    Reduction: Numbering.reduction,
    Padding: Numbering.padding,
    Softmax: Numbering.softmax,
    Concatenate: Numbering.concatenate,
    Reshape: Numbering.reshape,
    Transpose: Numbering.transpose,
    Product: Numbering.product,
    Attention: Numbering.attention,
}
