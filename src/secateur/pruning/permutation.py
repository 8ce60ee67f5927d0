"""Channels in an order in which a pattern costs less, the network's function unchanged.

Where channels can leave a network they can also change places: the rows that make them, their
entries in normalisations and the columns that read them move along
(`secateur.network.couplings`). Patterns along input channels, such as 2:4, look at neighbouring
columns, so that the order decides how much of a layer they keep.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.column_order import OrderProblem, find_order
from secateur.core.patterns import NM, Block, Pattern
from secateur.network.couplings import Coupling, alike, can_be_reordered, find_couplings, reordered
from secateur.network.graph import Graph
from secateur.network.layers import Layer, LayerCall
from secateur.network.samples import Samples
from secateur.network.stream import Stream
from secateur.pruning.channels.space import unit_columns
from secateur.pruning.layer_fit import folded_weight
from secateur.support.choices import name_of
from secateur.support.settings import Range, at_least, check_settings
from secateur.support.wording import counted

_SAME = 1e-3  # of outputs, relative to their norm, before and after
_ROUNDING = 1e-9  # of the saliency of all weights: a gain that is none
_TRIED = 2  # samples on which outputs are compared
_STEPS = 4  # of each factor of two, to which mean squares are rounded

Orderable = NM | Block
Saliency = Float[Tensor, "groups rows cols"]


@dataclass(frozen=True)
class Permutation:
    """What another order of channels changed.

    Attributes:
        changes: new values by parameter name.
        notes: what a reader of the report should know.
    """

    changes: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    notes: tuple[str, ...] = ()


def is_orderable(pattern: Pattern) -> TypeGuard[Orderable]:
    """Whether the order of a layer's inputs matters for a pattern, and that of its outputs not."""
    return isinstance(pattern, NM | Block) and pattern.unit[0] == 1 < pattern.unit[1]


@dataclass(frozen=True, kw_only=True)
class ChannelPermutation:
    """Orders the channels between layers so that a pattern along input channels keeps more.

    For each coupling of channels that can leave the network, columns are exchanged between the
    pattern's blocks as long as the pattern keeps more of the saliency

        s_ij = w_ij^2 E[x_j^2]

    of all layers that read them, w with a following BatchNorm's scale, x in the dense network.
    Inputs and outputs of the network, and channels that are fixed for another reason, stay where
    they are; channels of an attention's heads stay in their heads. For patterns n:m, and for
    blocks of one row if asked for; nothing happens for others.
    Source: Pool and Yu, "Channel permutations for N:M sparsity", NeurIPS 2021, with w_ij^2 alone.

    Attributes:
        least_gain: what another order must keep of the saliency that the pattern removes in the
            present one, as a share; otherwise channels stay where they are.
        rows: that a search looks at, of all layers that read the channels together; more are
            thinned out evenly.
        blocks: whether for blocks of one row too. MiniLM with 60 % zeros in blocks of 1x4 lost
            as much with it as without, and the call took a sixth longer.
    """

    name: ClassVar[str] = "channel-permutation"
    summary: ClassVar[str] = (
        "Channels between layers were put in an order in which the pattern removes less."
    )

    least_gain: float = 0.01
    rows: int = 4096
    blocks: bool = False

    def __post_init__(self) -> None:
        check_settings(self, least_gain=Range(low=0, high=1, open_high=True), rows=at_least(1))

    def suits(self, pattern: Pattern) -> TypeGuard[Orderable]:
        """Whether channels are put in order for a pattern."""
        return is_orderable(pattern) and (self.blocks or not isinstance(pattern, Block))

    @torch.no_grad()
    def permute(
        self,
        graph: Graph,
        samples: Samples,
        layers: Sequence[Layer],
        pattern: Pattern,
        *,
        chunk: int,
        zeros: float = 0.5,
    ) -> Permutation:
        """Orders the channels that some layers read.

        Args:
            graph: the dense network.
            samples: calibration inputs.
            layers: those that get the pattern.
            pattern: of zeros.
            chunk: samples per run of an operation.
            zeros: share of its weights that a layer loses in blocks; n:m says that itself.

        Returns:
            What changed; nothing for patterns that do not depend on the order.

        Cost: one forward pass, and the search: rows * channels^2 for each coupling.
        """
        if not self.suits(pattern):
            return Permutation()
        chosen = {str(layer.parameter): layer for layer in layers}
        found = [of for of in find_couplings(graph) if can_be_reordered(of, graph)]
        found = [of for of in found if any(part.parameter in chosen for part in of.of("columns"))]
        if not found:
            return Permutation()
        saliency = saliencies(graph, samples, layers, chunk)
        readings = [_Reading.of(of, chosen, saliency, pattern, zeros) for of in found]
        orders = [of.ordered(self) for of in readings if of is not None]
        return _made(graph, samples, [of for of in orders if of.gain > 0], name_of(pattern))


@dataclass(frozen=True, kw_only=True)
class _Order:
    """An order of a coupling's units; what the pattern would have removed, and what less."""

    coupling: Coupling
    order: list[int]
    readers: Collection[str]
    lost: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How layers in the pattern read the units of a coupling.

    Attributes:
        coupling: the units.
        parts: by layer the saliencies of all rows, taps and groups.
        blocks: which units lie in each of the pattern's blocks.
        pattern: of zeros.
        zeros: share of weights to lose.
    """

    coupling: Coupling
    parts: Mapping[str, Float[Tensor, "rows units"]]
    blocks: Int[Tensor, "blocks members"]
    pattern: Orderable
    zeros: float

    @classmethod
    def of(
        cls,
        coupling: Coupling,
        layers: Mapping[str, Layer],
        saliency: Mapping[str, Saliency],
        pattern: Orderable,
        zeros: float,
    ) -> _Reading | None:
        """None where blocks hold a single unit, or others too, or not the same in all layers."""
        parts: dict[str, Tensor] = {}
        found: list[Tensor | None] = []
        for part in coupling.of("columns"):
            if part.parameter in layers:
                columns = unit_columns(layers[part.parameter], part)
                found.append(blocks_of_units(columns, pattern.unit[1]))
                own = saliency[part.parameter]
                read = own[:, :, columns.to(own.device)]  # groups, rows, units, taps
                parts[part.parameter] = read.movedim(2, -1).flatten(0, -2)
        blocks = found[0]
        if blocks is None or not all(of is not None and torch.equal(of, blocks) for of in found):
            return None
        blocks = blocks.to(next(iter(parts.values())).device)
        return cls(coupling=coupling, parts=parts, blocks=blocks, pattern=pattern, zeros=zeros)

    def ordered(self, settings: ChannelPermutation) -> _Order:
        """The best order found; no gain where the units stay in theirs."""
        every = torch.cat([*self.parts.values()])
        step = -(-len(every) // settings.rows)
        thresholds = torch.cat([self._threshold(part) for part in self.parts.values()])
        problem = OrderProblem(
            pattern=self.pattern,
            saliency=every[::step],
            threshold=thresholds[::step],
            blocks=self.blocks,
            alike=torch.tensor(alike(self.coupling), device=every.device),
        )
        order = find_order(problem)
        before = self._kept(torch.arange(len(order), device=order.device))
        total = float(every.double().sum())
        lost, gain = total - before, self._kept(order) - before
        pays = gain > max(settings.least_gain * lost, _ROUNDING * total)
        return _Order(
            coupling=self.coupling,
            order=[int(unit) for unit in order],
            readers=self.parts.keys(),
            lost=lost,
            gain=gain if pays else 0.0,
        )

    def _threshold(self, part: Float[Tensor, "rows units"]) -> Float[Tensor, " rows"]:
        """The sum that the smallest of a layer's blocks that stay exceeds."""
        sums = part[:, self.blocks].sum(-1).flatten()
        place = min(max(round(self.zeros * len(sums)), 1), len(sums))
        return sums.kthvalue(place).values.expand(len(part))

    def _kept(self, order: Int[Tensor, " units"]) -> float:
        """The saliency that the pattern keeps, with the same zeros in each layer."""
        share = self.pattern.share or 1 - self.zeros
        kept = 0.0
        for part in self.parts.values():
            saliency = part[:, order][:, self.blocks.flatten()].unsqueeze(0)
            mask = self.pattern.mask(saliency.sqrt(), round(share * saliency.numel()))
            kept += float(saliency[mask].double().sum())
        return kept


def blocks_of_units(
    columns: Int[Tensor, "units taps"], members: int
) -> Int[Tensor, "blocks members"] | None:
    """Which units lie in each block of neighbouring columns, the same at every tap.

    Returns:
        Their numbers, or None: a block holds one unit twice, or columns of others; a unit has
        fewer columns than another; or blocks differ from tap to tap.
    """
    if len(columns) % members or len(columns) == members or bool((columns < 0).any()):
        return None
    by_tap = torch.stack([_blocks(of // members, members) for of in columns.unbind(1)])
    numbers = (columns // members).mT[torch.arange(len(by_tap)).view(-1, 1, 1), by_tap]
    is_one = bool((numbers == numbers[..., :1]).all())  # each row of a tap is in one block
    distinct = all(len({*map(int, of)}) == len(of) for of in numbers[..., 0])
    return by_tap[0] if is_one and distinct and bool((by_tap == by_tap[0]).all()) else None


def _blocks(numbers: Int[Tensor, " units"], members: int) -> Int[Tensor, "blocks members"]:
    """Units by the number of their block, blocks in the order of their first unit."""
    blocks = torch.argsort(numbers, stable=True).view(-1, members)
    return blocks[torch.argsort(blocks[:, 0])]


def saliencies(
    graph: Graph, samples: Samples, layers: Sequence[Layer], chunk: int
) -> dict[str, Saliency]:
    """w_ij^2 E[x_j^2] of layers, by parameter; padding is left out.

    Mean squares are rounded to quarters of a factor of two: a module and its ONNX file, whose
    values differ in the last digits, get the same order.

    Cost: a forward pass.
    """
    sums: dict[str, Tensor] = {}
    for part in samples.split(chunk):
        for layer, value in _inputs(graph, part, layers):
            name = str(layer.parameter)
            found = _squares(layer, value, part.mask) * len(part)
            sums[name] = sums[name] + found if name in sums else found
    return {
        str(layer.parameter): folded_weight(graph, layer).float().square()
        * _by_column(layer, _rounded(sums[str(layer.parameter)] / len(samples)))
        for layer in layers
    }


def _inputs(graph: Graph, part: Samples, layers: Sequence[Layer]) -> Iterator[tuple[Layer, Tensor]]:
    """What layers read, call by call."""
    stream = Stream(graph, graph.parameters, part.inputs())
    calls: list[tuple[Layer, LayerCall]] = [(of, call) for of in layers for call in of.calls]
    for layer, call in sorted(calls, key=lambda of: of[1].op):
        stream.advance(call.op)
        yield layer, stream.value(call.input)


def _squares(layer: Layer, value: Tensor, mask: Tensor | None) -> Float[Tensor, " chan"]:
    """The mean square of each channel of what a layer reads."""
    last = value.movedim(1, -1) if layer.kind == "conv" else value
    if mask is not None and last.shape[:-1] == mask.shape:
        last = last[mask]
    return last.flatten(0, -2).float().square().mean(0)


def _rounded(values: Tensor) -> Tensor:
    return torch.exp2((values.log2() * _STEPS).round() / _STEPS)


def _by_column(layer: Layer, channels: Float[Tensor, " chan"]) -> Float[Tensor, "groups 1 cols"]:
    taps = layer.columns // layer.inputs
    return channels.view(layer.groups, 1, layer.inputs).repeat(1, 1, taps)


def _made(graph: Graph, samples: Samples, orders: Sequence[_Order], pattern: str) -> Permutation:
    """The network with units in their orders, if it gives the same on a few samples."""
    changes = reordered(graph.parameters, [(of.coupling, of.order) for of in orders])
    if not changes:
        return Permutation()
    if not _is_same(graph, graph.changed(changes), samples.select(slice(_TRIED))):
        note = (
            "channels kept their order: the network gave other outputs with them in the order "
            f"that suits the pattern {pattern}"
        )
        return Permutation(notes=(note,))
    readers = {name for of in orders for name in of.readers}
    share = sum(of.gain for of in orders) / sum(of.lost for of in orders)
    note = (
        f"the input channels of {counted(len(readers), 'layer')} were put in an order in which the "
        f"pattern {pattern} removes {share:.0%} less of them, by their weights' squares times "
        "those of the inputs"
    )
    return Permutation(changes, (note,))


def _is_same(one: Graph, other: Graph, samples: Samples) -> bool:
    """Whether two networks give the same for some samples, to rounding."""
    pairs = zip(_outputs(one, samples), _outputs(other, samples), strict=True)
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= _SAME * float(a.abs().max())
        for a, b in pairs
    )


def _outputs(graph: Graph, samples: Samples) -> list[Tensor]:
    stream = Stream(graph, graph.parameters, samples.inputs())
    stream.advance(len(graph.ops))
    values = [stream.value(name) for name in graph.outputs]
    return [of.double() for of in values if isinstance(of, Tensor) and of.numel()]
