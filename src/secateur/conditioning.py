"""The network as its layers are fitted: channels aligned and put in order, BatchNorms folded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from secateur.errors import ModelError
from secateur.hardware.paying import not_paying, pays_nowhere
from secateur.network.folding import Folding, fold
from secateur.network.graph import Graph
from secateur.options import Options
from secateur.pruning.alignment import Alignment
from secateur.pruning.execution import Execution
from secateur.pruning.layer_selection import select_layers
from secateur.pruning.permutation import ChannelPermutation, Permutation
from secateur.pruning.recalibration import Recalibration, recalibrate
from secateur.pruning.recipe import Recipe
from secateur.pruning.targets import Sparsity
from secateur.tracing import Traced


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """The network as its layers are fitted.

    Attributes:
        aligned: its channels, as the recipe says.
        permutation: their order, as it suits the pattern.
        recalibration: its BatchNorm statistics, taken anew or not.
        folding: BatchNorms folded into the layers before them.
    """

    aligned: Alignment
    permutation: Permutation
    recalibration: Recalibration
    folding: Folding


def condition(
    traced: Traced, options: Options, synthetic: bool, chunk: int, execution: Execution
) -> Conditioned:
    """Aligns channels, puts them in order, recalibrates BatchNorms, and folds them."""
    graph, aligned, recipe = traced.graph, Alignment(), options.recipe
    if recipe.alignment is not None:
        group = execution.group
        aligned = recipe.alignment.align(graph, traced.samples, chunk=chunk, group=group)
    graph = graph.changed(aligned.changes) if aligned.changes else graph
    permutation = in_order(graph, traced, options, chunk)
    graph = graph.changed(permutation.changes) if permutation.changes else graph
    if {"all": True, "none": False}.get(recipe.recalibration, synthetic):
        recalibration = recalibrate(graph, traced.samples, chunk=chunk, execution=execution)
    else:
        recalibration = Recalibration(graph)
    return Conditioned(
        aligned=aligned,
        permutation=permutation,
        recalibration=recalibration,
        folding=fold(recalibration.graph),
    )


def in_order(graph: Graph, traced: Traced, options: Options, chunk: int) -> Permutation:
    """Puts channels in the order that suits the pattern, where the recipe says so."""
    recipe, target = options.recipe, options.target
    permutation = permuting(recipe)
    if permutation is None:
        return Permutation()
    dense = dense_layers(graph, options)
    layers = select_layers(graph.layers, options.include, dense, recipe.pattern)
    zeros = target.value if isinstance(target, Sparsity) else 0.5
    return permutation.permute(
        graph, traced.samples, layers, recipe.pattern, zeros=zeros, chunk=chunk
    )


def permuting(recipe: Recipe) -> ChannelPermutation | None:
    """What puts channels in order; None where the recipe has none, or order changes nothing."""
    found = recipe.permutation
    return found if found is not None and found.suits(recipe.pattern) else None


def dense_layers(graph: Graph, options: Options) -> Collection[str] | None:
    """Names and globs of layers to leave dense: the call's, and those where zeros would not pay.

    Raises:
        ModelError: zeros would pay in no layer.
    """
    asked = [options.exclude] if isinstance(options.exclude, str) else [*(options.exclude or ())]
    if options.runtime is None or options.include is not None or options.measures:
        return asked or None
    if reason := pays_nowhere(graph.layers, options.runtime):
        raise ModelError(
            f"zeros would bring nothing on {options.runtime} ({reason}), expected at least one "
            "layer in which they do: choose another runtime, or name layers in include="
        )
    return [*asked, *not_paying(graph.layers, options.runtime)] or None
