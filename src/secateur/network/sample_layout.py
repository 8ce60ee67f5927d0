"""Which sample each output position of a layer belongs to, found by trying.

A layer's positions are numbered as they lie in memory, and most networks keep the samples on the
first axis. Attention in PyTorch does not: it computes on (tokens, samples, channels), and its
output projection on (tokens * samples, channels), a shape that could as well be the windows of
Swin, (samples * windows, ...). Shapes do not tell these apart, so the network does: it is run on
three samples, and again with each of them replaced by another, and the positions that change are
those of the sample replaced. In every layout with an axis of samples

    sample of position p = (p // inner) % samples

where `inner` is the number of positions behind that axis, whatever the number of samples is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.network.geometry import Geometry
from secateur.network.graph import Graph
from secateur.network.samples import Samples
from secateur.network.stream import Stream

_TRIED = 3  # samples of a trial; two could not tell the first axis from the last of two tokens


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the samples lie among the output positions of one call of a layer.

    Attributes:
        inner: positions behind the axis of samples; None where there is no such axis.
        count: positions that belong to each sample; of a constant those that differ.
        constant: whether no position depends on the samples: the layer's input is a parameter,
            a buffer, or made of such. It may be repeated for each sample.
    """

    inner: int | None
    count: int
    constant: bool = False

    def has_samples(self, positions: int, samples: int) -> bool:
        """Whether each of so many positions belongs to one of so many samples."""
        return self.inner is not None and positions == self.count * samples

    def positions(
        self, ranks: Int[Tensor, " some"], total: int, samples: int
    ) -> Int[Tensor, " some"]:
        """Positions by their ranks in the order of the samples (the same where there is none)."""
        if self.inner is None or not self.has_samples(total, samples):
            return ranks
        sample, rest = ranks // self.count, ranks % self.count
        outer, place = rest // self.inner, rest % self.inner
        return (outer * samples + sample) * self.inner + place


Layouts = Mapping[int, Layout]


@torch.no_grad()
def find_layouts(graph: Graph, samples: Samples) -> Layouts:
    """The layout of each call of a layer, by the number of its operation.

    Args:
        graph: the dense network.
        samples: calibration inputs.

    Returns:
        A layout for each call; empty where fewer than two samples differ, so that there is
        nothing to try with.

    Cost: a forward pass of 14 samples. Memory: their values at the widest cut.
    """
    trials = _trials(samples)
    if trials is None:
        return {}
    streams = [Stream(graph, graph.parameters, trial.inputs()) for trial in trials]
    calls = {call.op: call for layer in graph.layers for call in layer.calls}
    layouts: dict[int, Layout] = {}
    for op in sorted(calls):
        for stream in streams:
            stream.advance(op + 1)
        values = [stream.values[graph.ops[op].name] for stream in streams]
        layouts[op] = _layout(values, calls[op].geometry)
    return layouts


def _trials(samples: Samples) -> list[Samples] | None:
    """Three samples, the same with each of them replaced in turn, and two of them."""
    different = _different(samples)
    if len(different) < 2:
        return None
    base = [different[index % len(different)] for index in range(_TRIED)]
    replacements = [different[(index + 1) % len(different)] for index in range(_TRIED)]
    if len(different) == 2:  # base is a, b, a
        replacements = [different[1], different[0], different[1]]
    replaced = [[*base[:i], replacements[i], *base[i + 1 :]] for i in range(_TRIED)]
    return [samples.select(trial) for trial in (base, *replaced, base[:2])]


def _different(samples: Samples) -> list[int]:
    """The first samples that differ from each other, three at most."""
    different: list[int] = []
    for index in range(len(samples)):
        if not any(samples.same(index, other) for other in different):
            different.append(index)
        if len(different) == _TRIED:
            break
    return different


def _layout(values: Sequence[Tensor], geometry: Geometry) -> Layout:
    base, *replaced, fewer = values
    count, less = geometry.count(base), geometry.count(fewer)
    unknown = Layout(inner=None, count=max(1, count // _TRIED))
    if count == 0 or any(other.shape != base.shape for other in replaced):
        return unknown
    changed = [_changed(base, other, geometry) for other in replaced]
    constant = not any(bool(positions.any()) for positions in changed)
    if constant:
        unknown = Layout(inner=None, count=count - less or count, constant=True)
    if count % _TRIED or count - less != count // _TRIED:
        return unknown
    for inner in _divisors(count // _TRIED):
        if _repeats(inner, base, geometry) if constant else _explains(inner, changed):
            return Layout(inner=inner, count=count // _TRIED, constant=constant)
    return unknown


def _changed(one: Tensor, other: Tensor, geometry: Geometry) -> Bool[Tensor, " positions"]:
    every = torch.arange(geometry.count(one), device=one.device)
    before, after = geometry.outputs(one, every), geometry.outputs(other, every)
    unchanged = (before == after) | ((before != before) & (after != after))  # NaN stays NaN
    return (~unchanged).any(-1).any(0)


def _explains(inner: int, changed: Sequence[Bool[Tensor, " positions"]]) -> bool:
    """Whether replacing a sample has changed no position of another one."""
    at = torch.arange(len(changed[0]), device=changed[0].device)
    sample = at.div(inner, rounding_mode="floor") % len(changed)
    return not any(bool(there[sample != index].any()) for index, there in enumerate(changed))


def _repeats(inner: int, value: Tensor, geometry: Geometry) -> bool:
    """Whether a constant is the same for each sample."""
    every = torch.arange(geometry.count(value), device=value.device)
    parts = torch.unflatten(geometry.outputs(value, every), 1, (-1, _TRIED, inner))
    return torch.allclose(parts, parts[:, :, :1].expand_as(parts), equal_nan=True)


def _divisors(number: int) -> Iterator[int]:
    """From the number itself (samples on the first axis) down to 1 (samples on the last)."""
    return (divisor for divisor in range(number, 0, -1) if number % divisor == 0)
