"""By which value of a network it is judged how far a pruned network is from the dense one.

By its first output, as a rule. Where that has no row for each image, by the first output that has
one. Where the values decide how many rows there are (boxes behind a selection or
NonMaxSuppression), and in all outputs, by what the selection is made from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.network.graph import Graph, last_reads, overlay
from secateur.network.samples import Samples

Shapes = Mapping[str, tuple[int, ...]]


def judged(graph: Graph, samples: Samples) -> Graph:
    """The network with the value that it is judged by as its first output.

    Args:
        graph: as traced.
        samples: three or more, or what there is.

    Raises:
        ModelError: the numbers of rows depend on the values everywhere.

    Cost: the network on five samples.
    """
    unsteady = set(graph.unsteady)
    first = graph.outputs[0]
    rows = _rows(graph, samples)
    steady = [name for name in graph.outputs if name in rows and name not in unsteady]
    if first in steady or (not steady and first not in unsteady):
        return graph
    if steady:
        number = graph.outputs.index(steady[0]) + 1
        why = "as many rows as the values lead to" if first in unsteady else "no row for each image"
        note = f"judged by output {number}, for the first has {why}"
        return graph.judged_by(steady[0], note)
    source = _source(graph, rows, unsteady)
    if source is None:
        raise ModelError(
            "the network's outputs have as many rows as the values of the images lead to, and no "
            "value before them has a row for each image, expected one to judge the network by: "
            "pass the part of the network before the selection (NonMaxSuppression)"
        )
    note = f"judged by the value {source.lstrip('%')}, which the outputs are selected from"
    return graph.judged_by(source, note)


def _source(graph: Graph, rows: Shapes, unsteady: set[str]) -> str | None:
    """The largest value that a selection reads; failing that, the last with a row for each."""
    values = [op.name for op in graph.ops if op.name in rows and op.name not in unsteady]
    read = {name for op in graph.ops if op.name in unsteady for name in op.reads}
    chosen = [name for name in values if name in read]
    if not chosen:
        return next(reversed(values), None)
    return max(chosen, key=lambda name: math.prod(rows[name]))


def _rows(graph: Graph, samples: Samples) -> Shapes:
    """The shapes, without the batch, of values with a row of numbers for each image.

    Tried with two images and with three: there may be two rows for another reason.
    """
    two, three = (_shapes(graph, samples.select(slice(count))) for count in (2, 3))
    return {name: shape for name, shape in two.items() if three.get(name) == shape}


@torch.no_grad()
def _shapes(graph: Graph, samples: Samples) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, Any] = dict(samples.tensors)
    names = overlay(values, graph.parameters)
    dead = last_reads(graph)
    for index, op in enumerate(graph.ops):
        value = values[op.name] = graph.run(index, names)
        is_numbers = isinstance(value, Tensor) and value.is_floating_point()
        if is_numbers and value.dim() > 0 and len(value) == len(samples):
            shapes[op.name] = tuple(value.shape[1:])
        for name in dead.get(index, ()):
            del values[name]
    return shapes
