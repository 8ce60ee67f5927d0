"""The dense and the pruned network side by side, chunk by chunk, and what they give to a fit.

A chunk is a few samples, as many as are run at once. It is the unit of work: what is computed of a
chunk depends on its samples and on the parameters only, so that chunks may be computed in any
order, and by any of the processes of a `Group`: each has its own. The values that the operations
ahead will read are in a `ValueStore`. A few chunks that follow each other are a bundle, which one
process has: their rows are multiplied together, which takes less time than chunk by chunk.
"""

from __future__ import annotations

import bisect
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from secateur.network.graph import Graph
from secateur.network.layers import Layer, LayerCall
from secateur.network.ops import expanded
from secateur.network.sample_layout import Layout, Layouts, find_layouts
from secateur.network.samples import Samples
from secateur.network.store import ValueStore
from secateur.network.stream import Stream
from secateur.pruning.execution import Execution
from secateur.pruning.sampling import Draw
from secateur.support.free_memory import give_back

Inputs = Literal["pruned", "dense"]

_BUNDLE = 32  # samples in a bundle, or so; a chunk may hold more


class Bundle(NamedTuple):
    """Some chunks.

    Attributes:
        number: of the bundle, in the order of its chunks.
        chunks: their numbers.
    """

    number: int
    chunks: range


def bundled(chunks: int, samples: int) -> list[Bundle]:
    """All chunks in bundles, whatever number of processes there are: results depend on them.

    Args:
        chunks: how many there are.
        samples: in each but the last.
    """
    each = max(1, _BUNDLE // samples)
    starts = enumerate(range(0, chunks, each))
    return [Bundle(number, range(at, min(at + each, chunks))) for number, at in starts]


class SampledPositions(NamedTuple):
    """Some output positions of a chunk: (groups, positions, columns or rows)."""

    inputs: Tensor
    dense_inputs: Tensor
    outputs: Tensor  # less the bias
    middle: int  # where those of the second fold begin
    patches: Tensor  # which of them are stored
    is_dense: bool  # the inputs are those of the dense network


@dataclass(frozen=True, kw_only=True)
class LayerChunk:
    """What a layer's fit needs of one chunk at one call.

    Attributes:
        call: the call.
        layout: which position belongs to which sample; None where nothing is known.
        first, samples: the chunk's first sample, and how many it has.
        inputs, outputs: what the layer gets, and what it should give.
        dense_inputs: what it gets in the dense network.
        bias: what the outputs hold that the weights do not make.
        mask: which positions of each sample are real, (samples, positions); None = all are.
    """

    call: LayerCall
    layout: Layout | None
    first: int
    samples: int
    inputs: Tensor
    outputs: Tensor
    dense_inputs: Tensor
    bias: Tensor | None
    mask: Tensor | None = None

    @property
    def positions(self) -> int:
        """How many output positions there are."""
        return self.call.geometry.count(self.outputs)

    @property
    def has_samples(self) -> bool:
        """Whether the positions are known to belong to the samples, each to one."""
        return self.layout is not None and self.layout.has_samples(self.positions, self.samples)

    @property
    def is_shared(self) -> bool:
        """Whether it is a constant that is there once for all samples."""
        return self.layout is not None and self.layout.constant and not self.has_samples

    def sample(self, positions: Draw, patches: Draw | None) -> SampledPositions:
        """Positions of all samples: first those of even numbers, which are one of the folds.

        Args:
            positions: which output positions to take of each sample.
            patches: which of these to store.
        """
        geometry, shape = self.call.geometry, self.outputs.shape
        sample, at = self._chosen(self._own(positions))
        odd = (self.first + sample) % 2
        order = odd.argsort(stable=True)
        chosen = at[order].to(self.outputs.device)
        x = geometry.inputs(self.inputs, chosen, shape)
        inputs_alike = self.dense_inputs is self.inputs
        dense = x if inputs_alike else geometry.inputs(self.dense_inputs, chosen, shape)
        y = geometry.outputs(self.outputs, chosen)
        y = y if self.bias is None else y - geometry.rows(self.bias).unsqueeze(1)
        stored = sample[:0] if patches is None else _within(sample, self._own(patches))
        middle = len(odd) if self.is_shared else int((odd == 0).sum())
        patch = order.argsort()[stored].to(x.device)
        return SampledPositions(x, dense, y, middle, patch, is_dense=inputs_alike)

    def _own(self, draw: Draw) -> Draw:
        """The part of a choice that is about this chunk: by sample, where these are known."""
        if self.is_shared:  # and counts with the first sample
            return (draw if self.first == 0 else draw.part(0, 0)).merged()
        part = draw.part(self.first, self.samples)
        return part.merged() if self.positions % self.samples else part

    @property
    def _real(self) -> Tensor | None:
        """Which of each sample's positions are real, if the layer has those of the mask."""
        if self.mask is None or not self.has_samples or self.layout is None:
            return None
        return self.mask if self.mask.shape[1] == self.layout.count else None

    def _chosen(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The sample of each position that is taken, counted from the chunk's first, and where."""
        each = self.positions // len(draw.counts)
        real = self._real
        sample, place = draw.choose(each if real is None else real.sum(1))
        if real is not None:
            place = real.long().argsort(dim=1, descending=True, stable=True)[sample, place]
        ranks = sample * each + place
        if self.layout is None or self.is_shared:
            return sample, ranks
        return sample, self.layout.positions(ranks, self.positions, self.samples)


def _within(sample: Tensor, draw: Draw) -> Tensor:
    """Numbers of some of the items that lie in the order of their samples."""
    counts = sample.bincount(minlength=len(draw.counts))
    chosen, rank = draw.choose(counts)
    return (counts.cumsum(0) - counts)[chosen] + rank


class DualStream:
    """The values of the dense network and of the network as pruned so far, for all samples.

    Attributes:
        changes: the pruned network's parameters where they differ; whoever solves a layer adds to
            them before the streams go on.
        layouts: which position belongs to which sample, by the number of the call's operation.
        group: the processes that have the bundles of chunks, each its own.
        bundles: all of them.
        own: numbers of the chunks that this process has.
        store: the values of those of this process.
        sizes: samples in each chunk.
        masks: which positions of these are real, where the samples have an attention mask.
        masked: the values that depend on inputs that the mask is about.
    """

    def __init__(
        self,
        graph: Graph,
        samples: Samples,
        *,
        chunk: int,
        inputs: Inputs,
        layouts: Layouts | None = None,
        execution: Execution | None = None,
    ) -> None:
        """Begins at the first operation.

        Args:
            graph: the dense network.
            samples: what it is run on.
            chunk: samples per run of an operation.
            inputs: whether layers get the "pruned" network's inputs, or the "dense" one's, and
                there is no pruned stream.
            layouts: as `find_layouts` finds them; None = they are found here.
            execution: the cap on the memory of the values, and the processes that share the
                chunks; None = no cap, and this process alone.
        """
        execution = execution or Execution()
        self.group = execution.group
        self.graph, self.inputs, self.samples = graph, inputs, len(samples)
        self.changes: dict[str, Tensor] = {}
        self.layouts = find_layouts(graph, samples) if layouts is None else layouts
        parts = samples.split(chunk)
        given = [tensor for part in parts for tensor in part.tensors.values()]
        self.store = ValueStore(execution.spill, [*graph.parameters.values(), *given])
        self.sizes = [len(part) for part in parts]
        self.masks = [None if part.mask is None else part.mask.cpu() for part in parts]
        self.masked = _read_from(graph, samples.masked_inputs())
        self.bundles = bundled(len(parts), max(self.sizes, default=1))
        mine = self.group.share(len(self.bundles))
        self.own = [number for at in mine for number in self.bundles[at].chunks]
        self.dense = {number: self.stream("dense", number, parts[number]) for number in self.own}
        self.pruned: dict[int, Stream] = {}
        self._pruned_parameters = ChainMap(self.changes, dict(graph.parameters))
        self._stops = sorted({layer.calls[0].op for layer in graph.layers if layer.calls})

    def stream(self, name: str, number: int, part: Samples) -> Stream:
        """A stream of the dense network at the first operation, whose values are in the store.

        Args:
            name, number: of the stream and the chunk, not used before.
            part: what it is run on.
        """
        values = self.store.scope(name, number, values=part.inputs())
        return Stream(self.graph, self.graph.parameters, values)

    def run_to(self, layer: Layer, *, again: bool = False) -> LayerChunks:
        """What a layer's fit needs, for the streams have not gone past an earlier one's call.

        Args:
            layer: a later one than those before.
            again: whether the chunks will be asked for more than once; holds the dense inputs.
        """
        give_back()  # what the layer before has left
        return LayerChunks(self, layer, again)

    def pass_by(self, layer: Layer) -> None:
        """Runs the streams to a layer that was solved before, as its fit has run them.

        Its new parameters are added afterwards, so that nothing before it is run with them.
        """
        for number in self.own:
            self.dense[number].advance(layer.calls[0].op)
            self._pruned_stream(number).advance(layer.calls[0].op)

    def outputs(self) -> tuple[Tensor | None, Tensor | None]:
        """Runs the streams to the end.

        Returns:
            The dense and the pruned network's first output for all samples; None where it has no
            row for each of them, or there is no pruned stream.
        """
        return self._first_outputs(self.dense), self._first_outputs(self.pruned)

    def _first_outputs(self, streams: Mapping[int, Stream]) -> Tensor | None:
        for stream in streams.values():
            stream.advance(len(self.graph.ops))
        own = {number: of.values[self.graph.outputs[0]] for number, of in streams.items()}
        first = self.group.in_order(own, len(self.sizes)) if self._has(streams) else []
        rows = [len(part) if isinstance(part, Tensor) and part.dim() else 0 for part in first]
        return torch.cat(first) if rows == self.sizes else None

    def _has(self, streams: Mapping[int, Stream]) -> bool:
        """Whether there are such streams, in whatever process."""
        return any(self.group.gather(bool(streams)))

    def chunk(self, layer: Layer, number: int, *, again: bool) -> Iterator[LayerChunk]:
        """Runs both streams of a chunk of this process to each call of a layer."""
        dense, op = self.dense[number], layer.calls[0].op
        dense.advance(op)
        pruned = self._pruned_stream(number)
        pruned.advance(op)
        keep = {layer.calls[0].input, str(layer.calls[0].bias)} if again else ()
        first, *others = layer.calls
        found = self._layer_chunk(layer, number, 0, dense, pruned, keep)
        if not (others or again):
            dense.advance(self._next_stop(first.op))  # what meets before it takes less room then
        yield found
        del found
        if not others:
            return
        # Later calls of a shared weight: run ahead with the weights as they are now, and come back.
        ahead = dense.fork(dense.parameters)
        twin = ahead if pruned is dense else pruned.fork(pruned.parameters)
        for index, call in enumerate(others, 1):
            ahead.advance(call.op)
            twin.advance(call.op)
            yield self._layer_chunk(layer, number, index, ahead, twin)

    def _next_stop(self, op: int) -> int:
        """The operation of the next layer, whose inputs may be asked for; or the end."""
        at = bisect.bisect_right(self._stops, op)
        return self._stops[at] if at < len(self._stops) else len(self.graph.ops)

    def _pruned_stream(self, number: int) -> Stream:
        """The pruned stream of a chunk; it leaves the dense one before the first layer."""
        if self.inputs == "dense":
            return self.dense[number]
        if number not in self.pruned:
            values = self.store.scope("pruned", number)
            self.pruned[number] = self.dense[number].fork(self._pruned_parameters, values)
        return self.pruned[number]

    def _layer_chunk(
        self,
        layer: Layer,
        number: int,
        index: int,
        dense: Stream,
        pruned: Stream,
        keep: Collection[str] = (),
    ) -> LayerChunk:
        call = layer.calls[index]
        inputs, dense_inputs = pruned.value(call.input), dense.value(call.input)
        bias = None if call.bias is None else dense.value(call.bias)
        dense.advance(call.op + 1, keep)
        return LayerChunk(
            call=call,
            layout=self.layouts.get(call.op),
            first=sum(self.sizes[:number]),
            samples=self.sizes[number],
            inputs=inputs,
            outputs=dense.values[self.graph.ops[call.op].name],
            dense_inputs=dense_inputs,
            bias=bias,
            mask=self.masks[number] if call.input in self.masked else None,
        )


def _read_from(graph: Graph, inputs: Collection[str]) -> set[str]:
    """Some inputs, and all values that are computed from one of them."""
    found = set(inputs)
    for _, op in expanded(graph.ops) if found else ():
        if not found.isdisjoint(op.reads):
            found.add(op.name)
    return found


class LayerChunks:
    """What a layer's fit needs, computed chunk by chunk as it is asked for.

    Attributes:
        layer: the layer.
        samples: how many there are in all chunks.
        group: the processes that have them.
        bundles: of the chunks, one process having each.
    """

    def __init__(self, streams: DualStream, layer: Layer, again: bool) -> None:
        self.layer, self.samples, self.group = layer, streams.samples, streams.group
        self.layouts = [streams.layouts.get(call.op) for call in layer.calls]
        self.bundles = streams.bundles
        self._streams, self._again = streams, again

    def of(self, number: int) -> Iterator[LayerChunk]:
        """A chunk of this process at each call."""
        return self._streams.chunk(self.layer, number, again=self._again)
