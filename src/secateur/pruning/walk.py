"""One pass over the network with two streams, dense and pruned, that solves each layer on arrival.

`walk` runs the operations in order and carries the values of the dense network and of the network
as pruned so far. At a layer it gathers sums over the inputs and the dense outputs, solves the
layer, and the pruned stream goes on through the new weights: every layer is fitted to the inputs
that it will really get and to the outputs it should have given, so later layers compensate for the
errors of earlier ones.

Peak memory: all samples' live values before a layer, of the pruned network, and before the next
one, of the dense network, where both together are most (of one network until the first pruned
layer and with `inputs="dense"`), plus for the widest layer 5 * cols^2 * 4 bytes (ResNet-50,
measured: 4.6): the sums of both folds and their problems, later the whole problem, its damped
copy and a factor of that. A value is dropped after its last reader. Samples are run in chunks.
Methods that train on patches add patches * (cols + rows) * 4 bytes for each of a few layers at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.core.methods import Method
from secateur.core.patterns import Pattern
from secateur.errors import NumericalError
from secateur.network.couplings import Removed
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.sample_layout import Layouts
from secateur.network.samples import Samples
from secateur.pruning.execution import Execution
from secateur.pruning.finished import (
    outputs_before,
    solved_before,
    write_outputs,
    write_solution,
)
from secateur.pruning.layer_fit import LayerFit, LayerResult, LayerSolution, Survey, is_wide
from secateur.pruning.reconstruction import ReconstructionResult
from secateur.pruning.sampling import Sampling
from secateur.pruning.sharing import Task, cost_of, divided, memory_of
from secateur.pruning.streams import DualStream, Inputs
from secateur.pruning.workers import LayerWorkers
from secateur.support.group import Group


@dataclass(frozen=True)
class WalkResult:
    """The result of a walk.

    Attributes:
        changes: new values by parameter name.
        results: one per layer, in execution order.
        stages: new values after each stage of a method that improves another's solution, the
            last one equal to `changes`; only that one when layers differ in their stages.
        dense, pruned: the network's first output for all samples; None where it has no row for
            each of them; `pruned` also when no pruned stream was run, or the network was changed
            after it.
        reconstruction: what training blocks did, where they were trained.
        previous: what the network was pruned to on the way, where its schedule had such a target.
        notes: what a reader of the report should know of the whole.
        kept: non-zero weights that each layer was to have.
        target: what was asked for.
        removed: channels that leave; the columns that read them are zero.
    """

    changes: dict[str, Tensor]
    results: list[LayerResult]
    stages: list[dict[str, Tensor]]
    dense: Tensor | None
    pruned: Tensor | None
    reconstruction: ReconstructionResult | None = None
    previous: Sequence[str] = ()
    notes: Sequence[str] = ()
    kept: Sequence[int] = ()
    target: Any = None
    removed: Removed = ()


def walk(
    graph: Graph,
    samples: Samples,
    layers: Sequence[Layer],
    kept: Sequence[int],
    *,
    method: Method,
    pattern: Pattern,
    inputs: Inputs = "pruned",
    start: Mapping[str, Tensor] | None = None,
    survey: Survey | None = None,
    sampling: Sampling | None = None,
    layouts: Layouts | None = None,
    chunk: int = 32,
    on_layer: Callable[[LayerResult], Any] = lambda result: None,
    execution: Execution | None = None,
) -> WalkResult:
    """Solves the layers in execution order in one pass over the network.

    Args:
        graph: the dense network.
        samples: calibration inputs, where the network is run.
        layers: the layers to prune, in execution order.
        kept: non-zero weights to leave in each of them.
        method, pattern: which zeros, and what the other weights become.
        inputs: "pruned" fits a layer to the inputs it will get, "dense" (the paper) to those
            of the dense network, each layer on its own.
        start: weights by parameter name that methods start from (and damp to) in place of the
            dense ones; the outputs to come close to are the dense network's all the same.
        survey: what is to be found out about the layers besides; None = nothing.
        sampling: how many output positions are used; None = the defaults.
        layouts: which position belongs to which sample, as `find_layouts` finds it; None = it is
            found out here.
        chunk: samples per run of an operation. It is a part of what is computed: convolutions
            round in another way in batches of another size.
        on_layer: called after each layer.
        execution: its journal has the layers that were solved before, and is told of those solved
            here; its processes share the samples, and the layers where these are independent.

    Returns:
        The new parameters and what happened, layer by layer, in all processes.

    Raises:
        NumericalError: values become NaN or infinite, or a layer cannot be solved; names it.
    """
    sampling, execution = sampling or Sampling(), execution or Execution()
    results: list[LayerResult] = []
    stages: list[list[dict[str, Tensor]]] = []
    changes: dict[str, Tensor] = {}
    surveyed = None if survey is None else [list(of) for of in survey.kept]
    chapter = execution.journal.chapter("walk", kept=list(kept), surveyed=surveyed)

    def take(solution: LayerSolution) -> None:
        changes.update(solution.changes[-1])
        stages.append(solution.changes)
        results.append(solution.result)
        on_layer(solution.result)

    def finish(solution: LayerSolution) -> None:
        write_solution(chapter, len(results), solution)
        take(solution)

    before = [solution for solution, _ in solved_before(chapter, layers)]
    if (outputs := outputs_before(chapter)) is not None:
        for solution in before:
            take(solution)
        return WalkResult(changes, results, _by_stage(stages), *outputs)
    group = execution.group
    tasks = _tasks(layers, len(before), sampling, group) if inputs == "dense" else ()
    with (
        torch.no_grad(),
        LayerWorkers(method, inputs, samples.device, finish, group, tasks) as workers,
    ):
        streams = DualStream(
            graph, samples, chunk=chunk, inputs=inputs, layouts=layouts, execution=execution
        )
        changes = streams.changes
        for index, (layer, count) in enumerate(zip(layers, kept, strict=True)):
            if index < len(before):
                streams.pass_by(layer)
                take(before[index])
                continue
            chunks = streams.run_to(layer, again=is_wide(layer, sampling))
            fit = LayerFit(
                graph, chunks, index=index, sampling=sampling, start=start or {}, survey=survey
            )
            workers.solve(fit, pattern, count)
        workers.finish()
        dense, pruned = streams.outputs()
    for output in (dense, pruned):
        if output is not None and not output.isfinite().all():
            raise NumericalError(
                "the network's outputs are NaN or Inf, expected finite numbers: "
                "check the images' scaling and the weights after the last pruned layer"
            )
    write_outputs(chapter, (dense, pruned))
    return WalkResult(changes, results, _by_stage(stages), dense, pruned)


def _tasks(
    layers: Sequence[Layer], first: int, sampling: Sampling, group: Group
) -> list[list[Task]]:
    """Which process solves which of independent layers; those too wide for one piece come alone."""
    at, costs = sampling.max_columns, [cost_of(of, sampling.max_columns) for of in layers]
    sizes = [memory_of(of, at) for of in layers]
    return list(divided(range(first, len(layers)), costs, sizes, group.size))


def _by_stage(stages: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """The network's changes stage by stage, where all layers went through as many."""
    if len({len(changes) for changes in stages}) != 1:
        stages = [changes[-1:] for changes in stages]
    return [
        {name: value for changes in stage for name, value in changes.items()}
        for stage in zip(*stages, strict=True)
    ]


@torch.no_grad()
def first_output(
    graph: Graph, samples: Samples, *, chunk: int, execution: Execution | None = None
) -> Tensor | None:
    """The network's first output for all samples; None where it has no row for each of them."""
    streams = DualStream(
        graph, samples, chunk=chunk, inputs="dense", layouts={}, execution=execution
    )
    return streams.outputs()[0]
