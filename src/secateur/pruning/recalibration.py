"""BatchNorm statistics for images that are not like those the network was trained on.

Fractals do not excite a network as photographs do: a channel that photographs drive hard may
hardly move. Its BatchNorm then passes on values of the wrong mean and spread, and the layers
behind it are fitted to inputs that they will never get. So the statistics are taken anew on the
images at hand: every BatchNorm's outputs have mean beta and spread gamma again, as with the
training images. In that network the layers are fitted; afterwards it gets its own statistics
back, which is exact, because fitted weights do not contain them.
Source of the idea: Li et al., "Revisiting batch normalization for practical domain adaptation",
2016 (for adapting networks; here for adapting images to the network).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.core.precision import widened
from secateur.network.graph import Graph, Norm
from secateur.network.samples import Samples
from secateur.network.store import ValueStore
from secateur.network.stream import Stream
from secateur.pruning.execution import Execution

_LEAST = 1e-2  # variance found, relative to the network's own, at least


@dataclass(frozen=True)
class Recalibration:
    """A network, and the statistics of other images for its BatchNorms.

    Attributes:
        original: the network with its own statistics.
        statistics: the others, by parameter name; none = the network is left as it is.
    """

    original: Graph
    statistics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def graph(self) -> Graph:
        """The network with the other statistics."""
        return self.original.changed(self.statistics) if self.statistics else self.original

    def unfold(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes found in `graph`, as changes of the network with its own statistics.

        Weights stay. A bias that went into a mean is moved by as much from the network's own.
        """
        return {
            name: self.original.parameters[name] + (value - self.statistics[name])
            if name in self.statistics
            else value
            for name, value in changes.items()
        }


@torch.no_grad()
def recalibrate(
    graph: Graph, samples: Samples, *, chunk: int, execution: Execution | None = None
) -> Recalibration:
    """Takes the statistics of every BatchNorm on some samples, one after the other.

    Each is measured behind those that have new statistics already. A variance counts as 1 % of the
    network's own at least, so that a channel which these samples leave dead is not blown up.

    Args:
        graph: the network.
        samples: inputs.
        chunk: samples per run of an operation.
        execution: the cap on the memory of the values, and the processes that share the samples.

    Cost: a forward pass. Memory: the values at the widest cut for all samples.
    """
    statistics: dict[str, Tensor] = {}
    parameters = ChainMap(statistics, dict(graph.parameters))
    execution, parts = execution or Execution(), samples.split(chunk)
    given = [tensor for part in parts for tensor in part.tensors.values()]
    store = ValueStore(execution.spill, [*graph.parameters.values(), *given])
    streams = {
        number: Stream(
            graph, parameters, store.scope("dense", number, values=parts[number].inputs())
        )
        for number in execution.group.share(len(parts))
    }
    for norm in graph.norms:
        own = {number: _moments(stream, norm) for number, stream in streams.items()}
        mean, variance = _merged(execution.group.in_order(own, len(parts)))
        original = graph.parameters[norm.variance]
        statistics[norm.mean] = mean.to(original)
        statistics[norm.variance] = torch.maximum(variance.to(original), _LEAST * original)
    return Recalibration(graph, statistics)


class _Moments(NamedTuple):
    """Of one chunk, per channel, in the widest format."""

    values: int
    mean: Tensor
    squares: Tensor  # sum of the squared differences to the mean


def _moments(stream: Stream, norm: Norm) -> _Moments:
    """Runs a chunk to a BatchNorm; the moments of what it gets, over samples and positions."""
    stream.advance(norm.op)
    value = stream.value(norm.input)
    axes = [axis for axis in range(value.dim()) if axis != 1]
    mean = value.mean(axes, keepdim=True)
    centred = value - mean
    count, rest = value.numel() // value.shape[1], widened(centred.sum(axes))
    squares = widened(centred.square().sum(axes)) - rest.square() / count
    return _Moments(count, widened(mean.flatten()) + rest / count, squares)


def _merged(chunks: list[_Moments]) -> tuple[Tensor, Tensor]:
    """Mean and variance over all chunks, added up in their order."""
    count = sum(chunk.values for chunk in chunks)
    mean = _total(chunk.mean * (chunk.values / count) for chunk in chunks)
    squares = _total(
        chunk.squares + chunk.values * (chunk.mean - mean).square() for chunk in chunks
    )
    return mean, (squares / count).clamp_min(0)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)
