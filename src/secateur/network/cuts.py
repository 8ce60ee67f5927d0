"""A network cut into blocks, wherever a single value passes from one part to the next.

Beside it there may be values that no layer has a part in, such as the mask that every attention of
an encoder reads: they are the same whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor

from secateur.core.outputs import counts_positions, rows_of
from secateur.core.precision import widened
from secateur.network.graph import Graph, overlay
from secateur.network.layers import Layer
from secateur.network.mapped import MappedValues
from secateur.network.samples import Samples
from secateur.network.stream import Stream


@dataclass(frozen=True)
class Block:
    """The operations from one cut of the network to the next, or to its end.

    Attributes:
        graph: the network.
        inputs: the value at the cut before it, or the network's inputs.
        outputs: the value at the cut after it, or the network's outputs; and what is `carried`.
        carried: which of the outputs no layer has a part in, such as attention masks.
        first, stop: its operations.
        sizes: earlier operations that give sizes, which depend on the number of samples.
        example: a sample of the network's inputs, of which only the shapes matter.
        layers: the pruned ones among its own.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    carried: frozenset[str]
    first: int
    stop: int
    sizes: tuple[int, ...]
    example: Samples
    layers: tuple[Layer, ...]

    def values(self, parameters: Mapping[str, Tensor], x: Samples) -> Samples:
        """The outputs; other values are dropped as soon as nothing reads them any more."""
        stream = self._before.fork(parameters)
        blank = self.example.to(x.device).blank(len(x))  # only their number matters
        given = x.inputs() if x.tensors.keys() <= {*self.graph.inputs} else x.tensors
        stream.values.update({**blank.tensors, **given})
        names = overlay(stream.values, parameters)
        for index in self.sizes:
            stream.values[self.graph.ops[index].name] = self.graph.run(index, names)
        stream.advance(self.stop)
        return Samples({name: stream.values[name] for name in self.outputs})

    @cached_property
    def _before(self) -> Stream:
        """A stream at the block's first operation, without values."""
        return Stream(self.graph, {}, {}, self.first)

    @torch.no_grad()
    def run(
        self,
        parameters: Mapping[str, Tensor],
        x: Samples,
        chunk: int,
        mapped: MappedValues | None = None,
    ) -> Samples:
        """The outputs for all samples, so many at a time, where `mapped` puts them."""
        place = mapped or MappedValues(None)
        return place.joined(x, chunk, lambda part: self.values(parameters, part))


@dataclass
class Cuts:
    """Where a network can be cut.

    Attributes:
        sizes: operations that give sizes (no tensors, of sizes only).
        shapes: by the number of operations before a cut, the name of the one value, batch first,
            that is all the later ones read, and its shape without the batch. They may also read
            what no layer has a part in, which is the same in the pruned network.
        carried: by the same number, the names of these.
        outputs: those of the network that have a row for each sample.
    """

    sizes: list[int] = field(default_factory=list[int])
    shapes: dict[int, tuple[str, tuple[int, ...]]] = field(
        default_factory=dict[int, tuple[str, tuple[int, ...]]]
    )
    carried: dict[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    outputs: list[str] = field(default_factory=list[str])


def blocks(graph: Graph, samples: Samples, layers: Sequence[Layer], least: int) -> Iterator[Block]:
    """Blocks of at least so many pruned layers, which together hold all of these.

    A block ends behind a layer's BatchNorm, and behind what follows it and leaves the shape as it
    is (an activation, say), but before the next pruned layer. The last one ends at the first cut
    behind the last layer, or where there is none with all of the network's outputs.

    Args:
        graph: the network.
        samples: some of them are run.
        layers: the pruned layers, in execution order.
        least: how many of them.
    """
    cuts = find_cuts(graph, samples)
    numbers = {op.name: index for index, op in enumerate(graph.ops)}
    first, inputs, waiting = 0, tuple(graph.inputs), list(layers)
    example = samples.select(slice(1))

    def block(stop: int, outputs: Sequence[str], inside: Sequence[Layer]) -> Block:
        carried = cuts.carried.get(stop, ())
        return Block(
            graph=graph,
            inputs=inputs,
            outputs=(*outputs, *carried),
            carried=frozenset(carried),
            first=first,
            stop=stop,
            sizes=tuple(index for index in cuts.sizes if index < first),
            example=example,
            layers=tuple(inside),
        )

    def whole(stop: int) -> bool:
        """Whether none of the layers is begun before a cut and ends behind it."""
        return not any(
            layer.calls[0].op < stop <= numbers[layer.calls[0].output] for layer in waiting
        )

    stops = [stop for stop in cuts.shapes if whole(stop)]
    for stop, following in zip(stops, [*stops[1:], 0], strict=False):
        name, shape = cuts.shapes[stop]
        inside = [layer for layer in waiting if layer.calls[-1].op < stop]
        later = [layer for layer in waiting if layer.calls[-1].op >= stop]
        if not inside or (len(inside) < least and later):
            continue
        goes_on = following > 0 and cuts.shapes[following][1] == shape
        if later and goes_on and all(layer.calls[0].op >= following for layer in later):
            continue
        yield block(stop, [name], inside)
        first, inputs, waiting = stop, (name, *cuts.carried[stop]), later
    if waiting and cuts.outputs:
        yield block(len(graph.ops), cuts.outputs, waiting)


def find_cuts(graph: Graph, samples: Samples) -> Cuts:
    """Where a network can be cut: tried with two samples and with three.

    A value may have two rows for another reason than that there are two samples.
    """
    some = [number % len(samples) for number in range(3)]  # the same ones again if fewer
    two, three = (_cuts(graph, samples.select(some[:count])) for count in (2, 3))
    shapes = {
        stop: cut
        for stop, cut in two.shapes.items()
        if three.shapes.get(stop) == cut and three.carried[stop] == two.carried[stop]
    }
    outputs = [name for name in two.outputs if name in three.outputs]
    return Cuts(two.sizes, shapes, two.carried, outputs)


@torch.no_grad()
def _cuts(graph: Graph, samples: Samples) -> Cuts:
    """What looks like a cut with so many samples."""
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        last |= dict.fromkeys(op.reads, index)
    last |= dict.fromkeys(graph.outputs, len(graph.ops))
    inputs = set(graph.inputs)
    values: dict[str, Any] = {**samples.inputs()}
    names = overlay(values, graph.parameters)
    cuts = Cuts()
    made_of_sizes, alive = set(inputs), set(inputs)
    apart = inputs | set(graph.parameters) - {str(layer.parameter) for layer in graph.layers}
    for index, op in enumerate(graph.ops):
        value = values[op.name] = graph.run(index, names)
        if apart.issuperset(op.reads):
            apart.add(op.name)
        if not isinstance(value, Tensor | tuple | list) and made_of_sizes.issuperset(op.reads):
            cuts.sizes.append(index)
            made_of_sizes.add(op.name)
        else:
            alive.add(op.name)
        if op.name in graph.outputs and _has_rows(value, samples):
            cuts.outputs.append(op.name)
        for name in [name for name in values if last.get(name, -1) <= index]:
            if name not in made_of_sizes:
                del values[name]
        alive = {name for name in alive if last.get(name, -1) > index}
        tensors = {
            name for name in alive if name not in inputs or _is_read(graph, name, index, cuts)
        }
        others = tensors - {op.name}
        carried = all(name in apart and _is_rows(values[name], samples) for name in others)
        if carried and op.name in tensors and _has_rows(value, samples) and value.dim() > 1:
            cuts.shapes[index + 1] = op.name, tuple(value.shape[1:])
            cuts.carried[index + 1] = tuple(sorted(others))
    return cuts


def _has_rows(value: Any, samples: Samples) -> TypeGuard[Tensor]:
    """Whether a value has a row of floating-point numbers for each sample."""
    return _is_rows(value, samples) and value.is_floating_point()


def _is_rows(value: Any, samples: Samples) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(samples)


def _is_read(graph: Graph, name: str, after: int, cuts: Cuts) -> bool:
    """Whether a later operation reads an input for more than the number of samples."""
    return any(
        name in op.reads and index not in cuts.sizes
        for index, op in enumerate(graph.ops)
        if index > after
    )


def network_errors(
    graph: Graph, samples: Samples, candidates: Sequence[Mapping[str, Tensor]], chunk: int
) -> list[float]:
    """How far networks' outputs are from the dense one's.

    Args:
        graph: the dense network.
        samples: to judge on.
        candidates: parameters that differ, by name.
        chunk: samples at once.

    Returns:
        The squared error of each, relative to the outputs' variance; the mean over the outputs
        with a row of floating-point numbers for each sample, or, failing these, over all that are
        numbers.
    """

    @torch.no_grad()
    def run(parameters: Mapping[str, Tensor], part: Samples) -> list[Any]:
        stream = Stream(graph, parameters, part.inputs())
        stream.advance(len(graph.ops))
        return [stream.values[name] for name in graph.outputs]

    dense = dict(graph.parameters)
    moments = squares = torch.zeros(())
    rows: list[int] = []
    for part in samples.split(chunk):
        expected = run(dense, part)
        rows = rows or [index for index, value in enumerate(expected) if _has_rows(value, part)]
        expected = _numbers(expected, rows, part.mask)
        moments = moments + _sums([[len(y), y.sum(), y @ y] for y in expected])
        outputs = [
            _numbers(run({**dense, **changes}, part), rows, part.mask) for changes in candidates
        ]
        squares = squares + _sums(
            [
                [(b - a).square().sum() for a, b in zip(expected, row, strict=True)]
                for row in outputs
            ]
        )
    count, total, square = moments.unbind(-1)
    variance = (square / count - (total / count).square()).clamp_min(1e-300)
    return [float(error) for error in (squares / count / variance).mean(-1)]


def _sums(rows: Sequence[Sequence[Any]]) -> Tensor:
    """Sums of a chunk as a table on the CPU, where there is float64."""
    return torch.tensor([[float(total) for total in row] for row in rows], dtype=torch.float64)


def _numbers(
    values: Sequence[Any], rows: Sequence[int], mask: Tensor | None = None
) -> list[Tensor]:
    """Some of the outputs, or, where none are named, all that are floating-point; no padding."""
    chosen = [values[index] for index in rows] or values
    return [
        widened(rows_of(value, mask) if counts_positions(value, mask) else value).flatten()
        for value in chosen
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
