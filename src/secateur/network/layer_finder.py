"""The layers of a network, found among its operations: one pass for every front-end."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from secateur.network.batch_norm import bn_scale_of
from secateur.network.geometry import ConvolutionGeometry, Geometry, LinearGeometry
from secateur.network.layers import (
    DEPTHWISE,
    ON_THE_FLY,
    BiasParameter,
    Layer,
    LayerCall,
    Multiplication,
    activations_product,
)
from secateur.network.lookups import looks_up
from secateur.network.ops import (
    Attention,
    BatchNorm,
    Convolution,
    FusedAttention,
    Identity,
    Linear,
    Op,
    Product,
    Recurrent,
    Reshape,
    Sizes,
    Transpose,
    UnknownShapeError,
    expanded,
)
from secateur.support.wording import counted

if TYPE_CHECKING:
    from secateur.network.graph import Graph

_TINY = 64  # weights


def find_layers(graph: Graph) -> list[Layer]:
    """The layers of a network, in order of the first call."""
    finder = LayerFinder(graph)
    layers = merged(layer for index, op in finder.ops for layer in finder.layers_of(index, op))
    return protected([finder.settled(layer) for layer in layers], finder)


def uncounted(graph: Graph) -> list[str]:
    """Notes on operations whose multiply-accumulates are not known and count as 0."""
    return [
        f"multiply-accumulates of {op.operation} {op.label or op.name} not counted: its shapes are "
        "not known"
        for _, op in expanded(graph.ops)
        if _macs(op, graph) is None
    ]


def _macs(op: Op, graph: Graph) -> int | None:
    """Multiply-accumulates for one image; None where they are not known."""
    try:
        return op.macs(graph.shapes)
    except UnknownShapeError:
        return None


class LayerFinder:
    """Looks at the operations around a layer.

    Attributes:
        graph: the network.
        ops: every operation with its number, the parts of fused ones too.
        makers: the operation that computes a value.
        readers: the operations that read a value, twice those that read it twice.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ops = list(expanded(graph.ops))
        self.makers = {op.name: op for _, op in self.ops}
        self.readers: dict[str, list[Op]] = defaultdict(list)
        for _, op in self.ops:
            for name in op.reads:
                self.readers[name].append(op)

    def first_layers(self, layers: Sequence[Layer]) -> list[Layer]:
        """The layers that read the network's inputs, with no other layer before them.

        Of a network of one input the one that is called first, if it does; of one of several all
        that do, so that the order of the branches does not matter. Behind a table of embeddings
        none does.
        """
        layers = layers if len(self.graph.inputs) > 1 else layers[:1]
        known = {self.graph.ops[call.op].name for layer in layers for call in layer.calls}
        return [layer for layer in layers if self._reads_inputs(layer, known)]

    def _reads_inputs(self, layer: Layer, others: Set[str]) -> bool:
        """Whether a layer's input is computed from the network's, and by none of some others."""
        names, seen, reads = [layer.calls[0].input], set[str](), False
        while names:
            name = names.pop()
            op = self.makers.get(name)
            if name in others:
                return False
            reads = reads or name in self.graph.inputs
            if name in seen or op is None or looks_up(op, self.graph, self.makers.keys()):
                continue
            seen.add(name)
            names += op.reads
        return reads

    def users(self, parameter: str) -> list[Op]:
        """The operations that read a parameter as it is, transposed or in another shape."""
        users: list[Op] = []
        for op in self.readers[parameter]:
            passes_on = isinstance(op, Reshape | Transpose | Identity) and op.input == parameter
            is_output = op.name in self.graph.outputs
            users += self.users(op.name) if passes_on and not is_output else [op]
        return users

    def layers_of(self, index: int, op: Op) -> Iterator[Layer]:
        """The layers that an operation is: several of a recurrent one, one a weight."""
        macs = _macs(op, self.graph)
        if isinstance(op, Multiplication):
            yield self._multiplication(index, op)
        elif isinstance(op, Recurrent):
            for name in op.matrices:
                part = _macs(replace(op, matrices=(name,)), self.graph)
                yield self._dense(op, name, "recurrent layer", part or 0)
        elif isinstance(op, FusedAttention):
            yield self._dense(op, op.weight, op.obstacle, macs or 0)
        elif isinstance(op, Product | Attention) and macs != 0:
            yield self._product(op, macs or 0)

    def settled(self, layer: Layer) -> Layer:
        """A layer with what depends on all of its calls: its bias and the BatchNorm behind it."""
        if layer.obstacle:
            return layer
        norms = [self.batch_norm(self.graph.ops[call.op]) for call in layer.calls]
        calls = tuple(
            replace(call, output=norm.name) if norm else call
            for call, norm in zip(layer.calls, norms, strict=True)
        )
        only = norms[0] if len(norms) == 1 else None
        return replace(
            layer,
            calls=calls,
            bias=self._bias_parameter(layer, only),
            bn_scale=bn_scale_of(norms[0], self.graph.parameters) if norms[0] else None,
            affine=self._affine(layer, only) if len(calls) == 1 else None,
        )

    def batch_norm(self, op: Op) -> BatchNorm | None:
        """The BatchNorm that alone reads a layer's output, where it normalises its outputs."""
        readers = self.readers[op.name]
        norm = readers[0] if len(readers) == 1 and op.name not in self.graph.outputs else None
        if not isinstance(norm, BatchNorm) or norm.input != op.name:
            return None
        if isinstance(op, Linear) and (op.turned or len(self._sizes(op.name)) != 2):
            return None  # it normalises positions, or scales what is no row
        return norm if all(name in self.graph.parameters for name in norm.weights) else None

    def is_free(self, name: str, ops: Sequence[Op]) -> bool:
        """Whether a parameter can be changed, and just these operations read it, each once."""
        if name not in self.graph.parameters or name in self.graph.fixed:
            return False
        readers = sorted(op.name for op in self.users(name))
        return readers == sorted(op.name for op in ops) and name not in self.graph.outputs

    def _multiplication(self, index: int, op: Multiplication) -> Layer:
        why = self._why_left_alone(op)
        macs = _macs(op, self.graph) or 0
        if why:
            return self._dense(op, op.weight, why, macs)
        call = LayerCall(
            op=index,
            input=op.input,
            output=op.name,
            bias=op.bias,
            geometry=_geometry(op),
        )
        return Layer(
            name=self._short(op.weight),
            parameter=op.weight,
            kind="conv" if isinstance(op, Convolution) else "linear",
            shape=self.graph.parameters[op.weight].shape,
            output=self._shown(op),
            macs=macs,
            calls=(call,),
            obstacle=self._why_fixed(op.weight),
        )

    def _why_left_alone(self, op: Multiplication) -> str | None:
        """Why an operation is no layer that could be fitted."""
        if isinstance(op, Convolution) and op.transposed:
            return "transposed convolution"
        if op.obstacle:
            return op.obstacle
        if op.weight not in self.graph.parameters:
            return ON_THE_FLY
        weight, output = self._sizes(op.weight), self._sizes(op.name)
        fits = len(output) == len(weight) if isinstance(op, Convolution) else len(weight) == 2
        if not fits or len(output) < 2:
            return "input without a batch axis"
        return "as many inputs as the values lead to" if 0 in output else None

    def _why_fixed(self, weight: str) -> str | None:
        """Why a weight cannot be changed."""
        if weight in self.graph.fixed:
            return f"weight {self.graph.fixed[weight]}"
        if weight in self.graph.outputs:
            return "weight also used by an output"
        readers = [op for op in self.users(weight) if not self._multiplies_with(op, weight)]
        return f"weight also used by {readers[0].operation}" if readers else None

    def _multiplies_with(self, op: Op, weight: str) -> bool:
        multiplies = isinstance(op, Multiplication) and op.weight == weight and op.obstacle is None
        return multiplies and not (isinstance(op, Convolution) and op.transposed)

    def _product(self, op: Product | Attention, macs: int) -> Layer:
        """A product, named by the largest parameter in a factor that is not made of images."""
        behind = [self._behind.get(name) for name in op.inputs]
        weight = max(filter(None, behind), key=self._count, default=None)
        if weight is None:
            return activations_product(macs)
        return self._dense(op, weight, op.obstacle, macs)

    @cached_property
    def _behind(self) -> dict[str, str | None]:
        """The largest weight that a value is made of, for values that depend on no image."""
        graph = self.graph
        made = {*graph.inputs, *(op.name for _, op in self.ops)}
        read = {name for name in self.readers if name not in made}
        behind: dict[str, str | None] = {name: self._as_weight(name) for name in read}
        for _, op in self.ops:
            if all(name in behind for name in op.reads):
                weights = (behind[name] for name in op.reads)
                behind[op.name] = max(filter(None, weights), key=self._count, default=None)
        return behind

    def _as_weight(self, name: str) -> str | None:
        return name if name in self.graph.constants and len(self._sizes(name)) > 1 else None

    def _count(self, name: str) -> int:
        return math.prod(self._sizes(name))

    def _dense(self, op: Op, weight: str, reason: str, macs: int) -> Layer:
        """A layer that stays dense, and its weight: a constant, or computed on the fly."""
        is_constant = weight in self.graph.constants
        return Layer(
            name=self._short(weight) if is_constant else op.label or op.name,
            parameter=weight if is_constant else None,
            kind=op.operation.split(".")[0],
            shape=torch.Size(self._sizes(weight)),
            output=self._shown(op),
            macs=macs,
            obstacle=reason,
        )

    def _sizes(self, name: str) -> Sizes:
        shape = self.graph.shapes.get(name)
        return () if shape is None else shape.sizes

    def _shown(self, op: Op) -> Sizes:
        shape = self.graph.shapes.get(op.name)
        return () if shape is None else shape.shown

    def _short(self, weight: str) -> str:
        """A weight's name without ".weight", unless another has that name."""
        short = weight.removesuffix(".weight")
        return weight if short in self.graph.constants else short

    def _bias_parameter(self, layer: Layer, norm: BatchNorm | None) -> BiasParameter | None:
        biases = {call.bias for call in layer.calls}
        bias = next(iter(biases))
        if len(biases) > 1:
            return None
        if bias is not None:
            calls = [self.graph.ops[call.op] for call in layer.calls]
            return BiasParameter(bias, 1) if self.is_free(bias, calls) else None
        if norm is None or not self.is_free(norm.mean, [norm]):
            return None
        return BiasParameter(norm.mean, -1)

    def _affine(self, layer: Layer, norm: BatchNorm | None) -> tuple[str, str | None] | None:
        (call,) = layer.calls
        if layer.is_turned:
            return None
        if norm is None:
            op, names = self.graph.ops[call.op], (str(layer.parameter), call.bias)
        elif norm.gamma is None or norm.beta is None:
            return None
        else:
            op, names = norm, (norm.gamma, norm.beta)
        free = all(self.is_free(name, [op]) for name in names if name is not None)
        return names if free else None


def _geometry(op: Multiplication) -> Geometry:
    return op.geometry if isinstance(op, Convolution) else LinearGeometry(turned=op.turned)


def merged(layers: Iterable[Layer]) -> list[Layer]:
    """One layer per weight: its uses together, in order of the first call."""
    by_weight: dict[tuple[str, str | None], Layer] = {}
    for layer in layers:
        key = layer.name, layer.parameter
        first = by_weight.get(key)
        by_weight[key] = layer if first is None else _together(first, layer)
    return list(by_weight.values())


def _together(first: Layer, again: Layer) -> Layer:
    return replace(
        first,
        calls=first.calls + again.calls,
        macs=first.macs + again.macs,
        obstacle=first.obstacle or again.obstacle or _why_not_together(first, again),
    )


def _why_not_together(first: Layer, again: Layer) -> str | None:
    return None if first.is_turned == again.is_turned else "weight also used transposed"


def protected(layers: Sequence[Layer], finder: LayerFinder) -> list[Layer]:
    """Marks what stays dense unless it is asked for: the first layer, depthwise and tiny layers.

    Tiny is a single output of fewer than 64 weights: there is next to nothing to gain, and such
    layers may hold fixed numbers, as the kernel 0..15 does that decodes the boxes of a detector.
    """
    prunable = [layer for layer in layers if layer.obstacle is None]
    reasons = {
        layer.name: f"tiny, one output of {counted(layer.weights, 'weight')}"
        for layer in prunable
        if layer.rows == 1 and layer.weights < _TINY
    }
    reasons |= {layer.name: DEPTHWISE for layer in prunable if _is_depthwise(layer)}
    reasons |= {layer.name: "first layer" for layer in finder.first_layers(prunable)}
    return [replace(layer, protected=reasons.get(layer.name)) for layer in layers]


def _is_depthwise(layer: Layer) -> bool:
    geometry = layer.calls[0].geometry
    return isinstance(geometry, ConvolutionGeometry) and geometry.groups > 1 and layer.shape[1] == 1
