"""BatchNorms in the layers before them, for as long as layers are fitted.

While it is fitted a network is run as it will be deployed, each BatchNorm multiplied into the layer
that it alone follows; afterwards the new weights and biases go back to where they came from:

    W' = W * bn_scale,  b' = (b - mean) * bn_scale + beta
    bn_scale = gamma / sqrt(variance + epsilon)

This saves the BatchNorms' time, and a module and the file made of it are the same numbers to the
last bit (see `batch_norm`). That matters more than it seems: which of two weights goes may hang on
a rounding, and a layer's mask on that (see "How reproducible a mask is" in docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.network.batch_norm import FoldedLayer, fold_layer
from secateur.network.geometry import per_output
from secateur.network.graph import Graph
from secateur.network.layer_finder import LayerFinder
from secateur.network.layers import BiasParameter, Layer, Multiplication
from secateur.network.ops import BatchNorm, Op


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A layer with a BatchNorm in it.

    Attributes:
        weight: name of its weight, the same with the BatchNorm and without.
        bias: name of its bias with the BatchNorm in it.
        bn_scale: what each output's weights were multiplied by, nowhere 0.
        bias_parameter: where a change of the bias can go before the BatchNorm, in the network as it
            was.
        offset: name of the BatchNorm's offset, if nothing else reads it: a change goes there, as
            it is, sooner than there, for which it is divided by the scale.
    """

    weight: str
    bias: str
    bn_scale: Float[Tensor, " out"]
    bias_parameter: BiasParameter
    offset: str | None = None


@dataclass(frozen=True)
class Folding:
    """A network, and the same function with BatchNorms in the layers before them.

    Attributes:
        original: the network as it was.
        graph: the one to fit layers in.
        folds: the layers that differ.
    """

    original: Graph
    graph: Graph
    folds: Sequence[Fold] = ()

    def unfold(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes found in `graph`, as changes of the network as it was.

        Zeros stay zeros, and weights that were not changed stay what they were to the last bit.
        """
        unfolded = dict(changes)
        for fold in self.folds:
            if (weight := unfolded.get(fold.weight)) is not None:
                dense = self.graph.parameters[fold.weight]
                original = self.original.parameters[fold.weight]
                new = weight / per_output(fold.bn_scale, weight) + 0.0  # zeros without a sign
                # Weights too small for the folded layer are zeros there, and may be meant to be.
                unchanged = (weight == dense) & ((weight != 0) | (original == 0))
                unfolded[fold.weight] = torch.where(unchanged, original, new)
            if (bias := unfolded.pop(fold.bias, None)) is not None:
                change = bias - self.graph.parameters[fold.bias]
                name, place = fold.offset, fold.bias_parameter
                if name is None:
                    name, change = place.name, place.sign * change / fold.bn_scale
                unfolded[name] = self.original.parameters[name] + change
        return unfolded


def fold(graph: Graph) -> Folding:
    """A network with BatchNorms in the layers that they alone follow, where there is a way back.

    A folded layer writes the value that its BatchNorm wrote; the BatchNorm is gone.
    """
    finder = LayerFinder(graph)
    parameters, folds = dict(graph.parameters), list[Fold]()
    rounding = dict(graph.rounding)
    merged: dict[str, Op | None] = {}  # what comes in the place of an operation, by its value
    for layer in graph.layers:
        norm, new = _foldable(layer, finder)
        if norm is None or new is None or layer.bias is None:
            continue
        op = cast(Multiplication, graph.ops[layer.calls[0].op])
        bias = op.bias or _fresh(f"{layer.name}.bias", parameters)
        parameters |= {op.weight: new.weight, bias: new.bias}
        if op.weight in rounding:
            rounding[op.weight] = _rounding_folded(rounding[op.weight], new.bn_scale)
        merged |= {op.name: replace(op, name=norm.name, bias=bias), norm.name: None}
        offset = norm.beta if norm.beta and finder.is_free(norm.beta, [norm]) else None
        folds.append(
            Fold(
                weight=op.weight,
                bias=bias,
                bn_scale=new.bn_scale,
                bias_parameter=layer.bias,
                offset=offset,
            )
        )
    if not folds:
        return Folding(graph, graph)
    ops = [new for op in graph.ops if (new := merged.get(op.name, op)) is not None]
    folded = replace(graph, ops=ops, parameters=parameters, rounding=rounding)
    return Folding(graph, folded, folds)


def _rounding_folded(
    rounding: Callable[[Tensor], Tensor], bn_scale: Float[Tensor, " out"]
) -> Callable[[Tensor], Tensor]:
    """How a weight with a BatchNorm in it is rounded: as it is stored without."""

    def rounded(weight: Tensor) -> Tensor:
        scale = per_output(bn_scale, weight)
        return rounding(weight / scale) * scale

    return rounded


def _foldable(layer: Layer, finder: LayerFinder) -> tuple[BatchNorm | None, FoldedLayer | None]:
    """The BatchNorm behind a layer, and the layer's new parameters; None where there are none."""
    if layer.obstacle or len(layer.calls) != 1 or layer.bias is None:
        return None, None
    (call,), parameters = layer.calls, finder.graph.parameters
    norm = finder.batch_norm(finder.graph.ops[call.op])
    if norm is None:
        return None, None
    return norm, fold_layer(str(layer.parameter), call.bias, norm, parameters)


def _fresh(name: str, taken: Mapping[str, Tensor]) -> str:
    while name in taken:
        name += "_"
    return name
