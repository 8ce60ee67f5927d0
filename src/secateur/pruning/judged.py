"""The dense network on samples held back: how far its outputs move when parameters change."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from secateur.core.distance import relative_error
from secateur.network.graph import Graph
from secateur.network.samples import Samples
from secateur.network.stream import Stream
from secateur.pruning.streams import DualStream


class Judged:
    """Runs the dense network on samples that nothing is fitted to, from an operation on.

    Attributes:
        graph: with the output first that it is judged by.
        runs: of chunks of the samples.
        weights: which positions of each chunk count; None = all.
    """

    def __init__(
        self, graph: Graph, runs: Sequence[Stream], weights: Sequence[Tensor] | None = None
    ) -> None:
        self.graph, self.runs, self.weights = graph, runs, weights

    @classmethod
    def beside(cls, streams: DualStream, samples: Samples, *, chunk: int) -> Judged:
        """Of the network that some streams run, with its values in their store."""
        parts = samples.split(chunk)
        streams.store.exempt(tensor for part in parts for tensor in part.tensors.values())
        runs = [streams.stream("judging", number, part) for number, part in enumerate(parts)]
        masks = [part.mask for part in parts]
        return cls(streams.graph, runs, [of for of in masks if of is not None] or None)

    @cached_property
    def dense(self) -> list[Tensor]:
        """The dense network's outputs; not run before they are asked for."""
        return self._outputs({})

    @torch.no_grad()
    def loss(self, op: int, changes: Mapping[str, Tensor]) -> float:
        """Error of the network's outputs with other parameters.

        Args:
            op: number of the first operation that reads one of them; never smaller than before.
            changes: the parameters, by name.
        """
        for run in self.runs:
            run.advance(op)
        return relative_error(self.dense, self._outputs(changes), self.graph.judge, self.weights)

    def _outputs(self, changes: Mapping[str, Tensor]) -> list[Tensor]:
        """The network's first output, chunk by chunk."""
        parameters = ChainMap(dict(changes), dict(self.graph.parameters))
        outputs: list[Tensor] = []
        for run in self.runs:
            ahead = run.fork(parameters)
            ahead.advance(len(self.graph.ops))
            outputs.append(torch.as_tensor(ahead.values[self.graph.outputs[0]]))
        return outputs
