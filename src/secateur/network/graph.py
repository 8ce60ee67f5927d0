"""What a front-end turns a model into: operations in execution order, and its layers.

The walk, the allocation and the report know a network only through this module, so that a new
front-end brings its own `Graph` and nothing else changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.network.geometry import Convolution, Geometry

if TYPE_CHECKING:
    from secateur.network.folding import Folding

ACTIVATIONS = "(products of activations)"  # the line for all of them together

ON_THE_FLY = "weight computed on the fly"  # how the obstacle of such layers begins

_TINY = 64  # weights


@dataclass(frozen=True)
class Op:
    """One operation: runs when all it reads is there, and writes one value under its name."""

    name: str
    reads: tuple[str, ...]


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
        return self.weights // self.shape[0]


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
class Norm:
    """A BatchNorm: the op, the value that it reads, and the parameters that hold its statistics."""

    op: int
    input: str
    mean: str
    variance: str


class Graph(Protocol):
    """A network that can be run op by op.

    Attributes:
        ops: in execution order.
        input: name of the value that holds the images.
        outputs: names of the values that the network returns; for the first see
            `secateur.network.judging`.
        parameters: weights, biases, buffers and constants by name.
        layers: in order of the first call.
        norms: BatchNorms that alone hold their statistics, in execution order.
        unsteady: names of values whose shapes depend on more than the number of images, as after a
            selection or NonMaxSuppression.
        has_gradients: whether operations can be differentiated by PyTorch.
        notes: what a reader of the report should know.
    """

    has_gradients: ClassVar[bool]

    @property
    def ops(self) -> Sequence[Op]: ...  # noqa: D102
    @property
    def input(self) -> str: ...  # noqa: D102
    @property
    def outputs(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def parameters(self) -> Mapping[str, Tensor]: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[Layer]: ...  # noqa: D102
    @property
    def norms(self) -> Sequence[Norm]: ...  # noqa: D102
    @property
    def unsteady(self) -> Collection[str]: ...  # noqa: D102
    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102

    def judged_by(self, name: str, note: str) -> Graph:
        """The same network with a value before its outputs, by which it is judged, and a note."""
        ...

    def changed(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The same network with some parameters replaced."""
        ...

    def folded(self) -> Folding:
        """The same function with BatchNorms in the layers before them, and the way back."""
        ...

    def run(self, index: int, values: Mapping[str, Any]) -> Any:
        """Runs op number `index`; `values` holds activations and parameters by name."""
        ...


def alone(norms: Sequence[Norm], parameters: Mapping[str, Tensor]) -> list[Norm]:
    """Those whose statistics are parameters that no other of them reads."""
    readers = Counter(name for norm in norms for name in (norm.mean, norm.variance))
    return [
        norm
        for norm in norms
        if all(readers[name] == 1 and name in parameters for name in (norm.mean, norm.variance))
    ]


def merged(layers: Iterable[Layer]) -> list[Layer]:
    """One layer per weight: its uses together, in order of the first call."""
    found: dict[tuple[str, str | None], Layer] = {}
    for layer in layers:
        key = layer.name, layer.parameter
        known = found.get(key)
        found[key] = layer if known is None else _together(known, layer)
    return list(found.values())


def _together(known: Layer, again: Layer) -> Layer:
    return replace(
        known,
        calls=known.calls + again.calls,
        macs=known.macs + again.macs,
        obstacle=known.obstacle or again.obstacle,
    )


def protected(layers: Sequence[Layer]) -> list[Layer]:
    """Marks what stays dense unless it is asked for: the first layer, depthwise and tiny layers.

    Tiny is a single output of fewer than 64 weights: there is next to nothing to gain, and such
    layers may hold fixed numbers, as the kernel 0..15 does that decodes the boxes of a detector.
    """
    prunable = [layer for layer in layers if layer.obstacle is None]
    reasons = {
        layer.name: f"tiny, one output of {layer.weights} weights"
        for layer in prunable
        if layer.shape[0] == 1 and layer.weights < _TINY
    }
    reasons |= {layer.name: "depthwise" for layer in prunable if _is_depthwise(layer)}
    if prunable:
        reasons[prunable[0].name] = "first layer"
    return [replace(layer, protected=reasons.get(layer.name)) for layer in layers]


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
        total = max(1, sum(layer.weights for layer in layers))
        stuck = [layer for layer in layers if layer.obstacle is not None]
        computed = [of for of in stuck if str(of.obstacle).startswith(ON_THE_FLY)]
        return cls(*(sum(of.weights for of in held) / total for held in (stuck, computed)))


def _is_depthwise(layer: Layer) -> bool:
    geometry = layer.calls[0].geometry
    return isinstance(geometry, Convolution) and geometry.groups > 1 and layer.shape[1] == 1


def last_reads(graph: Graph) -> dict[int, tuple[str, ...]]:
    """The values that nothing reads after op i, by i; outputs are never dropped."""
    last = {graph.input: 0}
    for index, op in enumerate(graph.ops):
        last |= dict.fromkeys((op.name, *op.reads), index)
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in graph.outputs and name not in graph.parameters:
            dead.setdefault(index, []).append(name)
    return {index: tuple(names) for index, names in dead.items()}
