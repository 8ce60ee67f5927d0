"""Operations with weights: layers, products of values, and normalisations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.network.einsum import einsum_macs
from secateur.network.geometry import ConvolutionGeometry
from secateur.network.ops.base import Op, Shapes, UnknownShapeError, present, sizes_of


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
        return present(self.weight, self.bias)

    def macs(self, shapes: Shapes) -> int:
        """The whole weight for each place of the output, of a transposed one of the input."""
        weight = sizes_of(shapes, self.weight, 2)
        axes = len(weight) - 2
        places = sizes_of(shapes, self.input if self.transposed else self.name, axes + 1)
        batch, places = places[: -axes - 1], places[len(places) - axes :]
        return math.prod(batch) * math.prod(places) * math.prod(weight)


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """The last axis multiplied with a weight of (out, in).

    Attributes:
        weight, bias: values by name; no bias = None.
        turned: whether the weight is held as (in, out).
        obstacle: why the front-end leaves it as it is; None = it can be run with another weight.
    """

    weight: str
    bias: str | None = None
    turned: bool = False
    obstacle: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Weight and bias."""
        return present(self.weight, self.bias)

    def macs(self, shapes: Shapes) -> int:
        """Each output is a sum over the last axis of the input."""
        return math.prod(sizes_of(shapes, self.name)) * sizes_of(shapes, self.input, 1)[-1]


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
        return math.prod(sizes_of(shapes, self.input)[:-1])

    def macs(self, shapes: Shapes) -> int:
        """Each weight once a step."""
        return self.steps(shapes) * sum(math.prod(sizes_of(shapes, name)) for name in self.matrices)


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
        return einsum_macs(self.equation, [sizes_of(shapes, name) for name in self.inputs])


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
        query, key, value = (sizes_of(shapes, name, 2) for name in self.inputs[:3])
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
        *batch, positions, width = sizes_of(shapes, self.input, 2)
        made = sizes_of(shapes, self.weight, 1)[-1]
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
        return present(self.gamma, self.beta, self.mean, self.variance)


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
        return present(self.gamma, self.beta)


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
        return present(self.gamma, self.beta)
