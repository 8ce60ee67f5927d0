"""Channel alignment: outputs of equal range between two convolutions, the function unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.network.geometry import ConvolutionGeometry, per_output
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.samples import Samples
from secateur.network.stream import Stream
from secateur.support.group import Group
from secateur.support.settings import Range, check_settings, more_than

_NORMAL = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Alignment:
    """What aligning a network changed.

    Attributes:
        changes: new values by parameter name.
        pairs: names of the layers aligned, (first, second).
    """

    changes: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChannelAlignment:
    """Equalises the ranges of the channels between a convolution and the next one.

    Applies to a convolution (with its bias or BatchNorm) whose output y is read, as it is, by one
    other convolution only, and this has one group, stride 1 and no padding::

        low, high = quantiles of y per channel and image, median over the images
        scale     = (high - low) / median over channels of (high - low), within `limits`
        y        <- (y - (low + high) / 2) / scale

    and the second convolution multiplies its columns by the scale and takes the shift into its
    bias. The network's function stays the same; the magnitudes of the weights on both sides now
    reflect what they contribute. There is no shift if a side has no place
    for a bias.
    Source: arXiv 2104.15023, section 3.1, and its release in OpenVINO POT (quantiles 1e-4 and
    1 - 1e-4, limits 1e-2 and 1e2).

    Attributes:
        quantile: of the outputs that the range leaves out at each end.
        limits: least and greatest scale.
    """

    name: ClassVar[str] = "channel-alignment"
    summary: ClassVar[str] = (
        "Before that, the channels between neighbouring convolutions were brought to the same "
        "range."
    )

    quantile: float = 1e-4
    limits: tuple[float, float] = (1e-2, 1e2)

    def __post_init__(self) -> None:
        check_settings(
            self,
            quantile=Range(low=0, high=0.5, open_high=True),
            limits=more_than(0).rising(count=2),
        )

    def align(
        self, graph: Graph, samples: Samples, *, chunk: int, group: Group | None = None
    ) -> Alignment:
        """Aligns every pair of convolutions that allows it; `group` shares the samples.

        Cost: one forward pass and a sort of each pair's values.
        """
        pairs = list(pairs_to_align(graph))
        if not pairs:
            return Alignment()
        middle = [first.calls[0].output for first, _ in pairs]
        ranges = self._ranges(graph, samples, middle, chunk, group or Group())
        parameters = dict(graph.parameters)
        for (first, second), (low, high) in zip(pairs, ranges, strict=True):
            scale = self._scale(low, high)
            shift = (low + high) / 2 if _can_shift(first, second) else torch.zeros_like(low)
            _divide(parameters, first, scale, shift)
            _multiply(parameters, second, scale, shift)
        changes = {
            name: new for name, new in parameters.items() if new is not graph.parameters[name]
        }
        names = tuple((first.name, second.name) for first, second in pairs)
        return Alignment(changes, names)

    def _scale(self, low: Tensor, high: Tensor) -> Float[Tensor, " chan"]:
        width = (high - low).clamp_min(_NORMAL)
        return (width / width.median()).clamp(*self.limits)

    def _ranges(
        self, graph: Graph, samples: Samples, names: list[str], chunk: int, group: Group
    ) -> list[tuple[Float[Tensor, " chan"], Float[Tensor, " chan"]]]:
        """Low and high quantiles per channel of some values, medians over the samples."""
        ends = torch.tensor([self.quantile, 1 - self.quantile], device=samples.device)
        parts = samples.split(chunk)
        own = {
            number: {
                name: _quantiles(value, ends)
                for name, value in _values(graph, parts[number], names)
            }
            for number in group.share(len(parts))
        }
        every = group.in_order(own, len(parts))
        medians = (torch.cat([of[name] for of in every], 1).median(1).values for name in names)
        return [(low, high) for low, high in medians]


def _quantiles(value: Tensor, ends: Tensor) -> Float[Tensor, "ends batch chan"]:
    """Per image and channel; in parts, because torch.quantile takes 16 million values at most."""
    rows = value.flatten(2).flatten(0, 1)  # batch * chan, places
    parts = torch.split(rows, max(1, 2**23 // rows.shape[1]))
    quantiles = torch.cat([part.quantile(ends, dim=1) for part in parts], 1)
    return torch.unflatten(quantiles, 1, value.shape[:2])


def pairs_to_align(graph: Graph) -> Iterator[tuple[Layer, Layer]]:
    """Convolutions that follow each other with nothing but a BatchNorm between them."""
    readers = Counter(name for op in graph.ops for name in op.reads)
    by_output = {
        layer.calls[0].output: layer for layer in graph.layers if layer.affine and _is_single(layer)
    }
    for second in graph.layers:
        if not _is_single(second) or not _is_plain(second):
            continue
        first = by_output.get(second.calls[0].input)
        if first is not None and readers[second.calls[0].input] == 1:
            yield first, second


def _can_shift(first: Layer, second: Layer) -> bool:
    return second.bias is not None and first.affine is not None and first.affine[1] is not None


def _is_single(layer: Layer) -> bool:
    return layer.kind == "conv" and layer.obstacle is None and len(layer.calls) == 1


def _is_plain(layer: Layer) -> bool:
    geometry = layer.calls[0].geometry
    return (
        isinstance(geometry, ConvolutionGeometry)
        and geometry.groups == 1
        and all(step == 1 for step in geometry.stride)
        and not any(pad for both in geometry.padding for pad in both)
    )


def _values(graph: Graph, part: Samples, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Some of a network's values for a chunk of samples."""
    stream = Stream(graph, graph.parameters, part.inputs())
    ops = {op.name: index for index, op in enumerate(graph.ops)}
    with torch.no_grad():
        for name in sorted(names, key=ops.__getitem__):
            stream.advance(ops[name] + 1)
            yield name, stream.values[name]


def _divide(parameters: dict[str, Tensor], layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """y <- (y - shift) / scale, in the parameters that give a layer's output its scale."""
    assert layer.affine is not None
    weight, bias = layer.affine
    parameters[weight] = parameters[weight] / per_output(scale, parameters[weight])
    if bias is not None:
        parameters[bias] = (parameters[bias] - shift) / scale


def _multiply(parameters: dict[str, Tensor], layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """The inverse in the layer that reads y: columns times the scale, the shift into its bias."""
    assert layer.parameter is not None
    old = parameters[layer.parameter]
    if layer.bias is not None:
        moved = torch.einsum("oi,i->o", old.flatten(2).sum(2), shift)
        parameters[layer.bias.name] = parameters[layer.bias.name] + layer.bias.sign * moved
    parameters[layer.parameter] = old * scale.view(1, -1, *[1] * (old.dim() - 2))
