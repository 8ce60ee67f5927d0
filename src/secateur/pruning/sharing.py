"""Independent layers solved side by side: which process solves which, and what it tells others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from secateur.network.layers import Layer
from secateur.pruning.layer_fit import LayerResult, LayerSolution
from secateur.support.group import Group

_STEPS = 30  # products of all rows with the Gram matrix that a fit takes, or so


@dataclass(frozen=True)
class Task:
    """A layer to solve.

    Attributes:
        index: its number.
        solver: the process that solves it.
    """

    index: int
    solver: int


def divided(
    layers: range, costs: Sequence[float], sizes: Sequence[float], processes: int
) -> Iterator[list[Task]]:
    """Windows of consecutive layers whose statistics are held at the same time.

    As many as leave each process with no more of them than the largest layer has. In a window the
    costliest layer goes first, to the process that has least to do until then (Graham, "Bounds on
    multiprocessing timing anomalies", 1969: at most a third longer than the best division).

    Args:
        layers: numbers of the layers, in execution order.
        costs, sizes: what it takes to solve each layer, and the memory of its statistics.
        processes: how many there are; one has one layer at a time.
    """
    largest = max((sizes[index] for index in layers), default=0)
    window: list[Task] = []
    for index in layers:
        more = _packed([*(task.index for task in window), index], costs, processes)
        held = [0.0] * processes
        for task in more:
            held[task.solver] += sizes[task.index]
        if window and (processes == 1 or max(held) > largest):
            yield window
            more = _packed([index], costs, processes)
        window = more
    if window:
        yield window


def _packed(layers: Sequence[int], costs: Sequence[float], processes: int) -> list[Task]:
    load, found = [0.0] * processes, list[Task]()
    for index in sorted(layers, key=lambda index: (-costs[index], index)):
        solver = load.index(min(load))
        load[solver] += costs[index]
        found.append(Task(index, solver))
    return sorted(found, key=lambda task: task.index)


def memory_of(layer: Layer, max_columns: int) -> float:
    """What a layer's statistics take of memory, in numbers."""
    return layer.groups * min(layer.columns, max_columns) ** 2


def cost_of(layer: Layer, max_columns: int) -> float:
    """What a fit takes, in multiply-accumulates, about."""
    columns = min(layer.columns, max_columns)
    return memory_of(layer, max_columns) * columns + _STEPS * layer.weights * columns


def told(group: Group, solver: int, layer: Layer, solution: LayerSolution | None) -> LayerSolution:
    """A layer's solution on all processes.

    Args:
        solver: the process that has it.
        solution: it; None in the others.
    """
    plain = None
    if solution is not None:
        names = [field.name for field in fields(LayerResult) if field.name != "layer"]
        plain = {name: getattr(solution.result, name) for name in names}, solution.changes
    values, changes = group.broadcast(plain, solver) or ({}, [])
    return LayerSolution(LayerResult(layer=layer, **values), changes)
