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
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.core.precision import widened
from secateur.network.graph import Graph, Norm
from secateur.network.stream import Stream

_LEAST = 1e-2  # variance found, relative to the network's own, at least


@dataclass(frozen=True)
class Adaptation:
    """A network, and the statistics of other images for its BatchNorms.

    Attributes:
        original: the network with its own statistics.
        statistics: the others, by parameter name; none = the network is left as it is.
    """

    original: Graph
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

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
def adapt(graph: Graph, images: Tensor, *, chunk: int) -> Adaptation:
    """Takes the statistics of every BatchNorm on some images, one after the other.

    Each is measured behind those that have been adapted already. A variance counts as 1 % of the
    network's own at least, so that a channel which these images leave dead is not blown up.

    Args:
        graph: the network.
        images: inputs, batch first.
        chunk: images per run of an operation.

    Cost: a forward pass. Memory: the values at the widest cut for all images.
    """
    found: dict[str, Tensor] = {}
    parameters = ChainMap(found, dict(graph.parameters))
    streams = [Stream(graph, parameters, {graph.input: part}) for part in images.split(chunk)]
    for norm in graph.norms:
        for stream in streams:
            stream.advance(norm.op)
        mean, variance = _moments(norm, streams)
        own = graph.parameters[norm.variance]
        found[norm.mean] = mean.to(own)
        found[norm.variance] = torch.maximum(variance.to(own), _LEAST * own)
    return Adaptation(graph, found)


def _moments(norm: Norm, streams: list[Stream]) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel over all images and positions, in the widest format."""
    values = [stream.value(norm.input) for stream in streams]
    axes = [axis for axis in range(values[0].dim()) if axis != 1]
    count = sum(value.numel() // value.shape[1] for value in values)
    # Shifted by the first chunk's mean, so that a spread far from zero loses no digits.
    shift = values[0].mean(axes, keepdim=True)
    total = square = widened(torch.zeros((), device=shift.device))
    for value in values:
        centred = value - shift
        total = total + widened(centred.sum(axes))
        square = square + widened(centred.square().sum(axes))
    mean = total / count
    return mean + shift.flatten(), (square / count - mean.square()).clamp_min(0)
