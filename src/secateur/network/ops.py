"""Operations of a network, typed: what both front-ends translate into.

An operation computes one value from others by a function that its front-end gives it. What it *is*
(a convolution, a sum, a change of shape) is said by its type, so that every pass over a network is
written once: finding layers, folding BatchNorms, counting multiply-accumulates, coupling channels.
What no type describes is `Opaque`: it runs like the others, and passes stop at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.network.einsum import einsum_macs
from secateur.network.geometry import ConvolutionGeometry

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """The shape of a value.

    Attributes:
        sizes: for one image; 0 where the values decide, as behind a selection.
        growing: whether each axis grows with the number of images; none does where this is empty.
    """

    sizes: Sizes
    growing: tuple[bool, ...] = ()

    @property
    def shown(self) -> Sizes:
        """The sizes with 0 for axes that grow."""
        growing = self.growing or (False,) * len(self.sizes)
        return tuple(0 if grows else size for size, grows in zip(self.sizes, growing, strict=True))


Shapes = Mapping[str, Shape]


class UnknownShapeError(Exception):
    """The shape of a value is not known."""


def _sizes(shapes: Shapes, name: str, axes: int = 0) -> Sizes:
    """The sizes of a value that has at least so many axes."""
    shape = shapes.get(name)
    if shape is None or 0 in shape.sizes or len(shape.sizes) < axes:
        raise UnknownShapeError(name)
    return shape.sizes


def _not_alone(*values: Any) -> Any:
    raise RuntimeError("a part of a fused operation does not run alone")


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation.

    Attributes:
        name: of the value that it writes.
        inputs: the values that it computes with, in their order.
        others: further values that it reads, such as sizes.
        compute: gives the value; takes what `reads` names, in that order, and changes none of it.
        operation: what its framework calls it, such as "conv2d.default" or "Conv".
        label: which one it is, for messages: a module's or a node's name.
    """

    name: str
    inputs: tuple[str, ...]
    others: tuple[str, ...] = ()
    compute: Callable[..., Any] = field(default=_not_alone, compare=False, repr=False)
    operation: str = ""
    label: str = ""

    @property
    def input(self) -> str:
        """The first of the inputs."""
        return self.inputs[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """Parameters that make it a layer or a normalisation, in the order that it takes them."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All values that it needs."""
        return (*self.inputs, *self.weights, *self.others)

    def run(self, values: Mapping[str, Any]) -> Any:
        """The value, computed; `values` holds activations and parameters by name."""
        return self.compute(*(values[name] for name in self.reads))

    def macs(self, shapes: Shapes) -> int:
        """Multiply-accumulates for one image: of products that sum, as in matrices.

        Raises:
            UnknownShapeError: a shape that they depend on is not known.
        """
        return 0


def _present(*names: str | None) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)


# layers


@dataclass(frozen=True, kw_only=True)
class Convolution(Op):
    """A convolution of (batch, chan, spatial...) with a weight of (out, chan / groups, kernel...).

    Attributes:
        weight, bias: values by name; no bias = None.
        geometry: kernel, stride, padding, dilation and groups.
        transposed: whether it is a transposed one, whose weight is (chan, out / groups, kernel...).
        obstacle: why the front-end leaves it as it is; None = it can be run with another weight.
    """

    weight: str
    bias: str | None = None
    geometry: ConvolutionGeometry
    transposed: bool = False
    obstacle: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Weight and bias."""
        return _present(self.weight, self.bias)

    def macs(self, shapes: Shapes) -> int:
        """The whole weight for each place of the output, of a transposed one of the input."""
        weight = _sizes(shapes, self.weight, 2)
        axes = len(weight) - 2
        places = _sizes(shapes, self.input if self.transposed else self.name, axes + 1)
        batch, places = places[: -axes - 1], places[len(places) - axes :]
        return math.prod(batch) * math.prod(places) * math.prod(weight)


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """The last axis multiplied with a weight of (out, in).

    Attributes:
        weight, bias: values by name; no bias = None.
        obstacle: why the front-end leaves it as it is; None = it can be run with another weight.
    """

    weight: str
    bias: str | None = None
    obstacle: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Weight and bias."""
        return _present(self.weight, self.bias)

    def macs(self, shapes: Shapes) -> int:
        """Each output is a sum over the last axis of the input."""
        return math.prod(_sizes(shapes, self.name)) * _sizes(shapes, self.input, 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Recurrent(Op):
    """An LSTM, GRU or RNN, or a cell of one.

    Attributes:
        matrices: its weights by name, each used once a step.
    """

    matrices: tuple[str, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """The matrices."""
        return self.matrices

    def steps(self, shapes: Shapes) -> int:
        """How often each weight is used."""
        return math.prod(_sizes(shapes, self.input)[:-1])

    def macs(self, shapes: Shapes) -> int:
        """Each weight once a step."""
        return self.steps(shapes) * sum(math.prod(_sizes(shapes, name)) for name in self.matrices)


@dataclass(frozen=True, kw_only=True)
class Product(Op):
    """Values multiplied and summed, as `torch.einsum` says it.

    Attributes:
        equation: with a label for each axis, such as "...ij,...jk->...ik".
        obstacle: why it stays as it is where a factor is a parameter.
    """

    equation: str
    obstacle: str = "matrix product with a parameter"

    def macs(self, shapes: Shapes) -> int:
        """From left to right."""
        return einsum_macs(self.equation, [_sizes(shapes, name) for name in self.inputs])


@dataclass(frozen=True, kw_only=True)
class Attention(Op):
    """softmax(scale query key^T) value; the inputs are these three: (..., positions, width).

    Attributes:
        scale: the factor; None = one over the root of the queries' width.
        heads: of the queries, where they lie side by side in the width; 1 = they have an axis.
        obstacle: why it stays as it is where one of them is a parameter, or heads lie so.
    """

    scale: float | None = None
    heads: int = 1
    obstacle: str = "matrix product with a parameter"

    def macs(self, shapes: Shapes) -> int:
        """Queries with keys, and weights with values, in as many heads as the queries have."""
        if len(self.inputs) < 3:
            raise UnknownShapeError(self.name)
        query, key, value = (_sizes(shapes, name, 2) for name in self.inputs[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@dataclass(frozen=True, kw_only=True)
class FusedAttention(Op):
    """Attention whose queries, keys and values are made of one input, (batch, positions, width).

    Attributes:
        weight: makes all three: (width, all of their widths).
        widths: of queries, keys and values; None = a third of the weight's each.
        obstacle: why it stays as it is.
    """

    weight: str
    widths: tuple[int, int, int] | None = None
    obstacle: str

    @property
    def weights(self) -> tuple[str, ...]:
        """The weight."""
        return (self.weight,)

    def macs(self, shapes: Shapes) -> int:
        """What makes the three, queries with keys, and weights with values."""
        *batch, positions, width = _sizes(shapes, self.input, 2)
        made = _sizes(shapes, self.weight, 1)[-1]
        query, _, value = self.widths or (made // 3,) * 3
        return math.prod(batch) * positions * (width * made + positions * (query + value))


# normalisations


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Op):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, per channel (axis 1), both given.

    Attributes:
        gamma, beta: values by name; None = 1 and 0.
        mean, variance: values by name.
        epsilon: added to the variance.
    """

    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    epsilon: float

    @property
    def weights(self) -> tuple[str, ...]:
        """Gamma and beta where there are such, mean, variance."""
        return _present(self.gamma, self.beta, self.mean, self.variance)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Op):
    """Normalised over the last axes of each position.

    Attributes:
        gamma, beta: values by name; None = 1 and 0.
        axes: how many axes.
    """

    gamma: str | None = None
    beta: str | None = None
    axes: int

    @property
    def weights(self) -> tuple[str, ...]:
        """Gamma and beta where there are such."""
        return _present(self.gamma, self.beta)


@dataclass(frozen=True, kw_only=True)
class GroupNorm(Op):
    """Normalised over groups of channels (axis 1) of each image.

    Attributes:
        gamma, beta: values by name, per channel; None = 1 and 0.
        groups: how many.
    """

    gamma: str | None = None
    beta: str | None = None
    groups: int

    @property
    def weights(self) -> tuple[str, ...]:
        """Gamma and beta where there are such."""
        return _present(self.gamma, self.beta)


# what hands channels on


@dataclass(frozen=True, kw_only=True)
class Pointwise(Op):
    """Each number of the result is a function of those at its place; inputs are broadcast."""


@dataclass(frozen=True, kw_only=True)
class Activation(Pointwise):
    """A function of one input, number by number: ReLU, sigmoid, a factor."""


@dataclass(frozen=True, kw_only=True)
class ParametricReLU(Op):
    """x where it is positive, else slope * x.

    Attributes:
        slope: a value by name, per channel (axis 1), or one number for all.
    """

    slope: str

    @property
    def weights(self) -> tuple[str, ...]:
        """The slope."""
        return (self.slope,)


@dataclass(frozen=True, kw_only=True)
class Identity(Activation):
    """The value as it is."""


@dataclass(frozen=True, kw_only=True)
class Scale(Activation):
    """The value times a number, or divided by it."""


@dataclass(frozen=True, kw_only=True)
class Add(Pointwise):
    """The sum of two inputs, or more."""


@dataclass(frozen=True, kw_only=True)
class Multiply(Pointwise):
    """The product of two inputs, number by number."""


@dataclass(frozen=True, kw_only=True)
class Pooling(Op):
    """Each channel (axis 1) by itself made smaller or larger along the axes behind it."""


@dataclass(frozen=True, kw_only=True)
class Reduction(Op):
    """A mean, sum, maximum or minimum over some axes.

    Attributes:
        axes: which.
        keepdims: whether they stay, with size 1.
    """

    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, kw_only=True)
class Padding(Op):
    """Made longer, or shorter, at the ends of some axes.

    Attributes:
        axes: which.
        before, after: places that are added along each of them; negative where they are cut off.
        constant: whether what is added is one number.
    """

    axes: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    constant: bool


@dataclass(frozen=True, kw_only=True)
class Concatenate(Op):
    """Inputs one behind the other.

    Attributes:
        axis: along which.
        stacks: whether that is a new axis, along which each of them has one place.
    """

    axis: int
    stacks: bool = False


@dataclass(frozen=True, kw_only=True)
class Reshape(Op):
    """The same numbers in the same order in another shape."""


@dataclass(frozen=True, kw_only=True)
class Expand(Op):
    """The value again and again along axes where it has one place, or that are new."""


@dataclass(frozen=True, kw_only=True)
class Repeat(Op):
    """Each place along an axis several times, one behind the other.

    Attributes:
        axis: which, counted from the first one.
        times: how often.
    """

    axis: int
    times: int


@dataclass(frozen=True, kw_only=True)
class Slice(Op):
    """A part of the value along one axis.

    Attributes:
        axis: which, counted from the first one.
        start, stop, step: as in `range`, none of them negative.
        keepdims: whether the axis stays; without it one place is taken.
    """

    axis: int
    start: int
    stop: int
    step: int = 1
    keepdims: bool = True


@dataclass(frozen=True, kw_only=True)
class Split(Op):
    """Parts behind each other along one axis; `GetItem` takes them out.

    Attributes:
        axis: which, counted from the first one.
        lengths: of the parts.
        keepdims: whether the axis stays; without it each part is one place.
    """

    axis: int
    lengths: tuple[int, ...]
    keepdims: bool = True


@dataclass(frozen=True, kw_only=True)
class Insert(Op):
    """The first input, with the second in place of a part of it along one axis.

    Attributes:
        axis: which, counted from the first one.
        start, stop: of the part.
    """

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Take(Op):
    """Places along one axis, by their numbers, which are another value; some may be taken twice.

    Attributes:
        axis: which, counted from the first one.
        rank: how many axes the result has in its place.
    """

    axis: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class Scan(Op):
    """Numbers along some axes moved, or computed from each other: rolled, flipped, summed up.

    Attributes:
        axes: which.
    """

    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SizesOf(Op):
    """The sizes of a value, or one of them.

    Attributes:
        axes: those that are computed with, as numbers; others only give shapes to values.
    """

    axes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Transpose(Op):
    """The axes in another order.

    Attributes:
        permutation: by the new number of an axis its old one.
    """

    permutation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Softmax(Op):
    """exp(x) / sum of exp(x), or its logarithm.

    Attributes:
        axis: along which it sums.
    """

    axis: int


@dataclass(frozen=True, kw_only=True)
class GetItem(Op):
    """One of several values that an operation gives together.

    Attributes:
        index: which.
    """

    index: int


@dataclass(frozen=True, kw_only=True)
class Opaque(Op):
    """Anything else."""


@dataclass(frozen=True, kw_only=True)
class Fused(Op):
    """Several operations run as one: it gives its value, or several that `GetItem` takes apart.

    Attributes:
        parts: what it is made of; they do not run alone.
    """

    parts: tuple[Op, ...]


def expanded(ops: Sequence[Op]) -> Iterator[tuple[int, Op]]:
    """Every operation and its number, with the parts of a fused one in place of it."""
    fused = {op.name for op in ops if isinstance(op, Fused)}
    for index, op in enumerate(ops):
        if isinstance(op, Fused):
            yield from ((index, part) for part in op.parts)
        elif not (isinstance(op, GetItem) and op.input in fused):
            yield index, op
