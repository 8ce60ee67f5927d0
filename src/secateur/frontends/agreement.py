"""Whether a file's layers, run one after the other, give what the whole file gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.network.graph import Graph
from secateur.network.ops import Sizes
from secateur.network.samples import Samples
from secateur.network.stream import Stream

AGREEMENT = 1e-3  # largest difference of graph and file, relative to the largest output


@torch.no_grad()
def outputs_of(graph: Graph, samples: Samples) -> list[Any]:
    """What a graph gives for samples by the names of its inputs."""
    stream = Stream(graph, graph.parameters, samples.inputs())
    stream.advance(len(graph.ops))
    return [stream.value(name) for name in graph.outputs]


def difference(
    graph: Graph, names: Sequence[str], samples: Samples, own: Mapping[str, Tensor | None]
) -> float:
    """The largest difference to a file's own outputs, as a share of the largest of them.

    Args:
        graph: of the file; its outputs have the samples first.
        names: of these outputs in the file.
        samples: by the names of the graph's inputs.
        own: the file's outputs by name; None for what is no tensor of numbers.

    Raises:
        ModelError: one of the graph's outputs has another shape.
    """
    worst = 0.0
    outputs = zip(names, graph.outputs, outputs_of(graph, samples), strict=True)
    for name, new, got in outputs:
        want = own[name]
        if want is None or not want.is_floating_point() or want.numel() == 0:
            continue
        axes = [0] if new == name else range(1, want.dim())  # where the file has the samples
        rows = [want.movedim(axis, 0)[: len(got)].to(got.device) for axis in axes]
        differences = [float((of - got).abs().max()) for of in rows if of.shape == got.shape]
        if differences:
            worst = max(worst, min(differences) / max(1.0, float(want.abs().max())))
        elif name not in graph.unsteady:  # there a score may be on the edge of a selection
            raise ModelError(f"output {name} has shape {tuple(got.shape)}, not {tuple(want.shape)}")
    return worst


def growing(one: Sizes, more: Sizes | None, *, fixed: bool) -> tuple[bool, ...]:
    """Which axes of a value grow with the number of samples: the first, where nothing is known.

    Args:
        one: its shape for one sample.
        more: for several; None = not known.
        fixed: whether it depends on constants only.
    """
    if more is None:
        return tuple(axis == 0 and not fixed for axis in range(len(one)))
    return tuple(a != b for a, b in zip(one, (*more, *one[len(more) :]), strict=False))
