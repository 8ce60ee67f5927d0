"""Numbers of tokens that look rows of a table up, against the size of the table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from secateur.errors import DataError
from secateur.network.ops import Identity, Op, Reshape, Take, expanded
from secateur.network.samples import Samples, plain
from secateur.support.wording import counted

if TYPE_CHECKING:
    from secateur.network.graph import Graph


def check_numbers(graph: Graph, samples: Samples) -> None:
    """Raises DataError where an input looks up rows that a table does not have.

    Args:
        graph: the network.
        samples: inputs by the graph's names.
    """
    for name, table, rows, least in _lookups(graph):
        numbers = samples.tensors[name]
        wrong = numbers[(numbers >= rows) | (numbers < least)]
        if len(wrong):
            raise DataError(
                f"{plain(name)} holds {int(wrong[0])}, the network looks it up in {table}, which "
                f"has {counted(rows, 'row')}, expected numbers from 0 to {rows - 1}: use the "
                "tokenizer that the network was trained with"
            )


def looks_up(op: Op, graph: Graph, made: Collection[str]) -> bool:
    """Whether an operation takes rows of a table, as those of words, by their numbers."""
    source = next(iter(op.reads), "")
    held = source not in made and source not in graph.inputs
    named = op.operation == "Gather" or op.operation.startswith("embedding")
    return held and (isinstance(op, Take) or named)


def _lookups(graph: Graph) -> Iterator[tuple[str, str, int, int]]:
    """Inputs of the network, the table that each looks up, its rows and the least number."""
    ops = {op.name: op for _, op in expanded(graph.ops)}
    made = ops.keys()
    for op in ops.values():
        table, found = (graph.shapes.get(of) for of in (next(iter(op.reads), ""), op.name))
        if table is None or found is None or len(op.reads) < 2 or not looks_up(op, graph, made):
            continue
        if found.sizes[1 - len(table.sizes) :] != table.sizes[1:]:  # along another axis
            continue
        name = op.reads[1]
        while isinstance(before := ops.get(name), Identity | Reshape):
            name = before.input
        if name in graph.inputs:
            rows = table.sizes[0]
            # ONNX counts negative ones from the end
            yield name, op.reads[0], rows, 0 if op.operation.startswith("embedding") else -rows
