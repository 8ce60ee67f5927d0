"""One pass over the network that takes channels from the layers that read them.

As in `secateur.pruning.walk` each layer is fitted to the inputs that it will really get and to the
outputs that it should have given. Shapes stay as they are: of a channel that leaves the columns
that read it become zero.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.core.group_elimination import Reader
from secateur.core.methods import Method
from secateur.core.patterns import Unstructured
from secateur.core.problem import Problem
from secateur.network.graph import Graph
from secateur.network.sample_layout import Layouts
from secateur.network.samples import Samples
from secateur.pruning.channels.curves import (
    ChannelStudy,
    dimensions_left,
    kept_columns,
    removal_order,
)
from secateur.pruning.channels.space import ChannelSpace
from secateur.pruning.execution import Execution
from secateur.pruning.finished import (
    outputs_before,
    solved_before,
    write_outputs,
    write_solution,
)
from secateur.pruning.layer_fit import LayerFit, LayerSolution, is_wide
from secateur.pruning.sampling import Sampling
from secateur.pruning.sharing import told
from secateur.pruning.streams import DualStream, Inputs
from secateur.pruning.walk import WalkResult


def channel_walk(
    graph: Graph,
    samples: Samples,
    space: ChannelSpace,
    counts: Sequence[int],
    study: ChannelStudy,
    *,
    method: Method,
    damping: float,
    inputs: Inputs = "pruned",
    sampling: Sampling,
    layouts: Layouts | None = None,
    chunk: int,
    on_layer: Callable[[str], Any] = lambda name: None,
    execution: Execution | None = None,
) -> tuple[WalkResult, list[list[int]]]:
    """Removes so many units of each coupling, and fits all layers.

    Where one layer alone reads a coupling, its units are chosen on what it gets in the pruned
    network. Where several do, the first comes before the others are known: they are taken in the
    study's order. Dimensions of queries and keys leave the layers that make them.

    Args:
        graph, samples, inputs, sampling, layouts, chunk: as in `secateur.pruning.walk`.
        space: what can leave.
        counts: units of each coupling that are to leave.
        study: what is known of each coupling in the dense network.
        method: fits the columns that stay.
        damping: relative damping of elimination.
        on_layer: called with each layer's name.
        execution: its journal has the layers that were solved before, and is told of those solved
            here; its processes share the samples.

    Returns:
        The new parameters and what happened, and which units of each coupling are gone.
    """
    gone: dict[int, list[int]] = {
        number: list(study.orders[number][:count])
        for number, count in enumerate(counts)
        if len(space.removable[number].readers) != 1
    }
    results: list[LayerSolution] = []
    execution = execution or Execution()
    chapter = execution.journal.chapter("walk", counts=list(counts))
    before = list(solved_before(chapter, space.layers))
    outputs = outputs_before(chapter)
    group = execution.group
    solver = group.size - 1  # which has no more chunks than others
    with torch.no_grad():
        streams = DualStream(
            graph, samples, chunk=chunk, inputs=inputs, layouts=layouts, execution=execution
        )
        for number, layer in enumerate(space.layers):
            if number < len(before):
                if outputs is None:
                    streams.pass_by(layer)
                solved, chosen = before[number]
                gone.update(chosen)
            else:
                chunks = streams.run_to(layer, again=is_wide(layer, sampling))
                fit = LayerFit(graph, chunks, index=number, sampling=sampling, start={})
                known = {*gone}
                found = _solved(fit, space, number, counts, gone, study, method, damping, solver)
                solved = told(group, solver, layer, found)
                chosen = {index: units for index, units in gone.items() if index not in known}
                chosen = group.broadcast(chosen, solver)
                gone.update(chosen)
                write_solution(chapter, number, solved, chosen)
            streams.changes.update(solved.changes[-1])
            weights = ChainMap(streams.changes, dict(graph.parameters))
            streams.changes.update(_without_dimensions(space, study, counts, number, weights))
            results.append(solved)
            on_layer(layer.name)
        if outputs is None:
            outputs = streams.outputs()
            write_outputs(chapter, outputs)
    walked = WalkResult(
        streams.changes,
        [of.result for of in results],
        [dict(streams.changes)],
        *outputs,
    )
    return walked, [gone.get(number, []) for number in range(len(counts))]


def _solved(
    fit: LayerFit,
    space: ChannelSpace,
    number: int,
    counts: Sequence[int],
    gone: dict[int, list[int]],
    study: ChannelStudy,
    method: Method,
    damping: float,
    solver: int,
) -> LayerSolution | None:
    """A layer's solution without the channels that leave; adds those chosen here to `gone`.

    None in processes other than the solver.
    """
    if fit.in_blocks:
        return fit.solve(method, Unstructured(), fit.layer.weights, solver)
    problem = fit.problem(method, solver=solver)
    if problem is None:
        return None
    for index, _ in space.read_by.get(number, ()):
        if index not in gone:
            gone[index] = _chosen(
                problem, space, number, index, counts[index], gone, damping, study
            )
    columns = [reader.of(gone[index]) for index, reader in space.read_by.get(number, ())]
    pattern = kept_columns(problem.columns, columns)
    return fit.solve_problem(problem, method, pattern, problem.present)


def _chosen(
    problem: Problem,
    space: ChannelSpace,
    layer: int,
    index: int,
    count: int,
    gone: Mapping[int, Sequence[int]],
    damping: float,
    study: ChannelStudy,
) -> list[int]:
    """Units of a coupling chosen on the inputs of the layer that alone reads it."""
    if not count:
        return []
    others = [of.of(gone[at]) for at, of in space.read_by[layer] if at in gone]
    columns = next(of.columns for at, of in space.read_by[layer] if at == index)
    reader = Reader(problem=problem, columns=columns, absent=torch.cat(others) if others else None)
    return removal_order(
        space.removable[index], [reader], study.mixings.get(index), damping=damping, count=count
    )


def _without_dimensions(
    space: ChannelSpace,
    study: ChannelStudy,
    counts: Sequence[int],
    layer: int,
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Parameters of a layer that makes queries or keys, with the dimensions that are left."""
    changed: dict[str, Tensor] = {}
    for number, mixing in study.mixings.items():
        removable, count = space.removable[number], counts[number]
        if count and layer in (removable.met or ()):
            left = dimensions_left(removable, count)
            name = str(space.layers[layer].parameter)
            changed |= mixing.changes({**parameters, **changed}, left=left, only=name)
    return changed
