"""What each step of a recipe contributed: the network after each of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from secateur.core.methods import Magnitude, stages
from secateur.core.patterns import Unstructured
from secateur.network.graph import Graph
from secateur.pruning.alignment import Alignment
from secateur.pruning.layer_fit import folded_weight
from secateur.pruning.permutation import Permutation
from secateur.pruning.run import Changes, PruningRun, ignore
from secateur.pruning.targets import Target
from secateur.pruning.walk import WalkResult
from secateur.support.choices import name_of


def contributions(
    run: PruningRun,
    walked: WalkResult,
    target: Target,
    original: Graph,
    aligned: Alignment,
    permutation: Permutation,
) -> dict[str, Changes]:
    """Parameters after each step, cumulatively; empty for a recipe of one step.

    Each step names all parameters that the whole recipe changes, so that any network that
    the recipe has gone through can be made from any other.

    With several walks the steps before the last are taken straight at the target, so that
    each differs from the one before by that step alone. What earlier walks and reconstruction
    do counts with the last step.

    Args:
        run: the recipe, as it was carried out.
        walked: what its `prune_to` returned.
        target: what that was given.
        original: the network before it was aligned.
        aligned: what aligning it changed.
        permutation: what changing the order of its channels changed.
    """
    before = {**aligned.changes, **permutation.changes}
    methods = list(stages(run.recipe.method))
    names = [name_of(method) for method in methods]
    steps = walked.stages
    if len(names) > 1 and len(run.schedule(target)) > 1:
        recipe = replace(run.recipe, method=methods[-2], schedule=(0.0,), reconstruction=None)
        straight = replace(run, recipe=recipe, on_layer=ignore)
        steps = [*straight.prune_to(target).stages, walked.stages[-1]]
    if len(steps) != len(names):  # a method that does not tell its steps
        return {}
    cumulative = {name: {**before, **changes} for name, changes in zip(names, steps, strict=True)}
    if aligned.pairs and isinstance(methods[0], Magnitude):
        cumulative = {
            "channel-alignment" if k == "magnitude" else k: v for k, v in cumulative.items()
        }
        cumulative = {"magnitude": _magnitude(run, original, target), **cumulative}
    if len(cumulative) < 2:
        return {}
    changed = {**before, **walked.changes}
    dense = {name: original.parameters[name] for name in changed}
    return {name: {**dense, **changes} for name, changes in cumulative.items()}


def _mask(run: PruningRun, sizes: Tensor, kept: int) -> Tensor:
    """The pattern's mask of the largest weights; all of a layer that stays dense."""
    there = int((sizes > 0).sum())
    pattern = Unstructured() if kept >= there else run.recipe.pattern
    return pattern.mask(torch.where(sizes > 0, sizes, -1.0), min(kept, there))


def _magnitude(run: PruningRun, original: Graph, target: Target) -> Changes:
    """Magnitude pruning without alignment: the network that the first step starts from."""
    chosen = {layer.name for layer in run.layers}
    layers = [layer for layer in original.layers if layer.name in chosen]
    changes: Changes = {}
    fitted = run.fit_allocation_to(original, layers, {})
    for layer, kept in zip(layers, run.kept(fitted, target), strict=True):
        name, geometry = str(layer.parameter), layer.calls[0].geometry
        mask = _mask(run, folded_weight(original, layer).abs(), kept)
        matrix = geometry.matrix(original.parameters[name]) * mask
        changes[name] = geometry.weight(matrix, layer.shape)
    return changes
