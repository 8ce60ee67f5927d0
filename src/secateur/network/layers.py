"""Layers: weights, with the operations that multiply by them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.network.geometry import ConvolutionGeometry, Geometry, LinearGeometry
from secateur.network.ops import Convolution, Linear

Multiplication = Convolution | Linear

ACTIVATIONS = "(products of activations)"  # the line for all of them together

ON_THE_FLY = "weight computed on the fly"  # how the obstacle of such layers begins

DEPTHWISE = "depthwise"


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: which op, what it reads, its geometry, the bias it adds.

    `output` names the value that comes out, after a following BatchNorm where there is one.
    """

    op: int
    input: str
    geometry: Geometry
    output: str
    bias: str | None = None


@dataclass(frozen=True)
class BiasParameter:
    """Where a fitted change of the bias goes: a parameter, and with which sign."""

    name: str
    sign: Literal[1, -1]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A weight that is multiplied with activations.

    Attributes:
        name: the parameter's name without ".weight", as in the state dict.
        parameter: the weight's full name; None for one computed on the fly.
        kind: "conv" or "linear" when it can be pruned, else the operation's name.
        shape: the weight's shape; empty where there is no weight.
        output: shape of the (first) output, 0 for the batch axis.
        macs: multiply-accumulates per image, all calls together.
        calls: in execution order.
        bias: where a fitted bias goes; None when there is no place for one.
        bn_scale: gamma / sqrt(variance + epsilon) of a following BatchNorm, per output; None = 1.
        affine: parameters that scale and shift the output and nothing else: the BatchNorm's
            weight and bias, or the layer's own (whose bias may be None); None when shared.
        obstacle: why it cannot be pruned; None when it can.
        protected: why it is not pruned unless asked for; None when it is.
    """

    name: str
    parameter: str | None
    kind: str
    shape: torch.Size
    output: tuple[int, ...] = ()
    macs: int = 0
    calls: tuple[LayerCall, ...] = ()
    bias: BiasParameter | None = None
    bn_scale: Float[Tensor, " out"] | None = None
    affine: tuple[str, str | None] | None = None
    obstacle: str | None = None
    protected: str | None = None

    @property
    def weights(self) -> int:
        """How many weights."""
        return math.prod(self.shape) if self.shape else 0

    @property
    def columns(self) -> int:
        """Inputs per output."""
        return self.weights // self.rows

    @property
    def rows(self) -> int:
        """How many outputs."""
        return self.shape[1 if self.is_turned else 0]

    @property
    def groups(self) -> int:
        """Independent groups of its channels; 1 for all but grouped convolutions."""
        geometry = self.calls[0].geometry if self.calls else None
        return geometry.groups if isinstance(geometry, ConvolutionGeometry) else 1

    @property
    def inputs(self) -> int:
        """Input channels of each group: columns without the taps of a kernel."""
        geometry = self.calls[0].geometry if self.calls else None
        taps = math.prod(geometry.kernel) if isinstance(geometry, ConvolutionGeometry) else 1
        return self.columns // taps

    @property
    def is_turned(self) -> bool:
        """Whether the weight is held as (in, out)."""
        geometry = self.calls[0].geometry if self.calls else None
        return isinstance(geometry, LinearGeometry) and geometry.turned


def activations_product(macs: int) -> Layer:
    """The line for products of activations with each other, as in attention; has no weights.

    One line for the whole network, once `merged`: those of a transformer would be two in each
    block, with nothing to choose between them.
    """
    return Layer(
        name=ACTIVATIONS,
        parameter=None,
        kind="product",
        shape=torch.Size(()),
        macs=macs,
        obstacle="no weights: activations multiplied with each other, as in attention",
    )


@dataclass(frozen=True)
class Shares:
    """Shares of a network's weights, of all layers together.

    Attributes:
        stuck: in layers that cannot be pruned.
        computed: in those among them whose weight is computed in each run.
    """

    stuck: float
    computed: float

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Shares:
        """Of a network; what multiplies a vector only is a norm of a weight that counts already."""
        layers = [layer for layer in layers if layer.kind not in ("mv", "dot", "vdot")]
        total = max(1, _weights(layers))
        stuck = [layer for layer in layers if layer.obstacle is not None]
        computed = [layer for layer in stuck if str(layer.obstacle).startswith(ON_THE_FLY)]
        return cls(_weights(stuck) / total, _weights(computed) / total)


def _weights(layers: Iterable[Layer]) -> int:
    return sum(layer.weights for layer in layers)
