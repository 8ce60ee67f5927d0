"""By which value of a network it is judged how far a pruned network is from the dense one.

By its first output, as a rule, or by the one that is asked for. Where the first has no row for each
image, by the first output that has one. Where the values decide how many rows there are (boxes
behind a selection or NonMaxSuppression), and in all outputs, by what the selection is made from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.core.outputs import Judge, check_judge, judge_of
from secateur.errors import ModelError, OptionError
from secateur.network.graph import Graph, last_reads, overlay
from secateur.network.returned import asked_output
from secateur.network.samples import Samples


@dataclass(frozen=True)
class _Value:
    """A value with a row of numbers for each sample.

    Attributes:
        shape: without the batch.
        judge: what it would be judged by.
    """

    shape: tuple[int, ...]
    judge: Judge


Values = Mapping[str, _Value]


def judged(
    graph: Graph,
    samples: Samples,
    *,
    output: str | int | None = None,
    judge: Judge | None = None,
) -> Graph:
    """The network with the value that it is judged by as its first output, and by what.

    Args:
        graph: as traced.
        samples: three or more, or what there is.
        output: name or number of the output; None = see above.
        judge: what it is judged by; None = see `secateur.core.outputs.judge_of`.

    Raises:
        ModelError: the numbers of rows depend on the values everywhere.
        OptionError: there is no such output, or it has no row for each sample, or another shape
            than what it is to be judged by.

    Cost: the network on five samples.
    """
    values = _values(graph, samples)
    name, notes = _chosen(graph, values, output)
    value = values.get(name)
    if judge is not None and value is not None:
        check_judge(judge, (len(samples), *value.shape))
    return graph.judged_by(name, judge or (value and value.judge), notes)


def _chosen(graph: Graph, values: Values, asked: str | int | None) -> tuple[str, list[str]]:
    """The value to judge by, and a note where that is not the first output."""
    unsteady = set(graph.unsteady)
    steady = [name for name in graph.outputs if name in values and name not in unsteady]
    if asked is not None:
        number = output_number(graph, asked)
        if graph.outputs[number] not in steady:
            raise OptionError(
                f"output is {asked!r}, which has no row of numbers for each sample, expected one "
                "that has: choose another, or leave it out"
            )
        return graph.outputs[number], [f"judged by output={asked!r}, as was asked for"]
    first = graph.outputs[0]
    if first in steady or (not steady and first not in unsteady):
        return first, []
    if steady:
        option = _option(graph, graph.outputs.index(steady[0]))
        why = "as many rows as the values lead to" if first in unsteady else "no row for each image"
        return steady[0], [f"judged by {option}, for the first has {why}"]
    source = _source(graph, values, unsteady)
    if source is None:
        raise ModelError(
            "the network's outputs have as many rows as the values of the images lead to, and no "
            "value before them has a row for each image, expected one to judge the network by: "
            "pass the part of the network before the selection (NonMaxSuppression)"
        )
    value = source.lstrip("%")
    return source, [f"judged by the value {value}, which the outputs are selected from"]


def output_number(graph: Graph, asked: str | int) -> int:
    """The number of the output that is asked for; OptionError if there is none."""
    return asked_output(asked, graph.output_names or [""] * len(graph.outputs))


def _option(graph: Graph, number: int) -> str:
    """How an output is asked for: by its name, if it has one."""
    name = graph.output_names[number] if graph.output_names else ""
    return f"output={name!r}" if name and not name.isdecimal() else f"output={number}"


def _source(graph: Graph, rows: Values, unsteady: set[str]) -> str | None:
    """The largest value that a selection reads; failing that, the last with a row for each."""
    values = [op.name for op in graph.ops if op.name in rows and op.name not in unsteady]
    read = {name for op in graph.ops if op.name in unsteady for name in op.reads}
    chosen = [name for name in values if name in read]
    if not chosen:
        return next(reversed(values), None)
    return max(chosen, key=lambda name: math.prod(rows[name].shape))


def _values(graph: Graph, samples: Samples) -> Values:
    """The values with a row of numbers for each sample.

    Tried with two samples and with three: there may be two rows for another reason.
    """
    two, three = (_run(graph, samples.select(slice(count))) for count in (2, 3))
    return {
        name: value
        for name, value in three.items()
        if name in two and two[name].shape == value.shape
    }


@torch.no_grad()
def _run(graph: Graph, samples: Samples) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    values: dict[str, Any] = {**samples.inputs()}
    names = overlay(values, graph.parameters)
    called = dict(zip(graph.outputs, graph.output_names, strict=False))
    dead = last_reads(graph)
    for index, op in enumerate(graph.ops):
        value = values[op.name] = graph.run(index, names)
        is_numbers = isinstance(value, Tensor) and value.is_floating_point()
        if is_numbers and value.dim() > 0 and len(value) == len(samples):
            judge = judge_of(value, name=called.get(op.name, ""))
            found[op.name] = _Value(tuple(value.shape[1:]), judge)
        for name in dead.get(index, ()):
            del values[name]
    return found
