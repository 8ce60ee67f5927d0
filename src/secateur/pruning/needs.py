"""What a run will need of memory, told before it starts."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import OptionError
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.samples import Samples
from secateur.network.store import Spill, ValueStore
from secateur.network.stream import Stream
from secateur.pruning.streams import Inputs
from secateur.support.sizes import size_text
from secateur.support.wording import counted

_MATRICES = 6  # of columns x columns in float32: sums of both folds and their problems, and more


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a run takes.

    Attributes:
        values: all samples' values between layers at the widest place, of the dense and the
            pruned network.
        least: those of one chunk while it is run, which have to be in memory together.
        statistics: of the layer with the most columns, and of its solution.
        model: the weights.
        samples, chunk: how many there are, and how many are run at once.
        noun: what a sample is called.
    """

    values: int
    least: int
    statistics: int
    model: int
    samples: int
    chunk: int
    noun: str

    def text(self, spill: Spill | None) -> str:
        """For people."""
        count = counted(self.samples, self.noun)
        where = ""
        if spill is not None:
            beyond = max(0, self.values - spill.memory)
            where = f", {size_text(beyond)} of them in files" if beyond else ", all in memory"
        return (
            f"memory: {size_text(self.values)} for values between layers ({count}{where}; at "
            f"least {size_text(self.least)} for {counted(min(self.chunk, self.samples), self.noun)}"
            f" at a time), {size_text(self.statistics)} for the widest layer's statistics and "
            f"solution, {size_text(self.model)} for the weights"
        )

    def check(self, spill: Spill) -> None:
        """Refuses a cap that cannot be kept.

        Raises:
            OptionError: it is less than one chunk takes, or the disk has no room for the rest.
        """
        if spill.memory < self.least:
            raise OptionError(
                f"memory is {size_text(spill.memory)}, expected at least {size_text(self.least)}, "
                f"which {counted(min(self.chunk, self.samples), self.noun)} at a time take in the "
                "dense and the pruned network: allow more"
            )
        beyond, free = self.values - spill.memory, shutil.disk_usage(spill.folder).free
        if beyond > free:
            raise OptionError(
                f"memory is {size_text(spill.memory)}, which leaves {size_text(beyond)} of values "
                f"for files in {spill.folder.parent}, where {size_text(free)} are free: expected "
                "room for them; allow more memory, or set TMPDIR to a folder on another disk"
            )


@torch.no_grad()
def needs_of(
    graph: Graph,
    samples: Samples,
    layers: Sequence[Layer],
    *,
    chunk: int,
    inputs: Inputs,
    max_columns: int,
    processes: int = 1,
) -> Needs:
    """What a walk takes. Cost: a forward pass of one chunk.

    Args:
        graph: the dense network.
        samples, layers, chunk, inputs: as in `secateur.pruning.walk`.
        max_columns: see `secateur.pruning.sampling.Sampling`.
        processes: that share the samples; what one of them takes is told.
    """
    layers = [layer for layer in layers if layer.calls]  # others are never fitted
    part = samples[:chunk]
    own = min(len(samples), chunk * -(-len(samples) // chunk // processes))
    store = ValueStore(None, [*graph.parameters.values(), *part.tensors.values()])
    stream = Stream(graph, graph.parameters, store.scope("dense", 0, values=part.inputs()))
    waiting = [0]
    for stop in [*sorted({layer.calls[0].op for layer in layers}), len(graph.ops)]:
        stream.advance(stop)
        waiting.append(store.bytes)
    streams, both = (1, max) if inputs == "dense" else (2, sum)  # one is a layer ahead
    most = max(map(both, itertools.pairwise(waiting)))
    return Needs(
        values=-(-most * own // len(part)),
        least=streams * store.peak,
        statistics=max(
            map(lambda layer: _statistics(graph, layer, max_columns), layers), default=0
        ),
        model=_nbytes(list(graph.parameters.values())),
        samples=own,
        chunk=chunk,
        noun=samples.noun,
    )


def _statistics(graph: Graph, layer: Layer, max_columns: int) -> int:
    weight = graph.parameters.get(str(layer.parameter))
    if weight is None:
        return 0
    groups = len(layer.calls[0].geometry.matrix(weight))
    return _MATRICES * 4 * groups * min(layer.columns, max_columns) ** 2


def _nbytes(tensors: Sequence[Tensor]) -> int:
    """Each memory once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
