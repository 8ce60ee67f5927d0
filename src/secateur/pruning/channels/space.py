"""The channels that can leave a network, and the layers that read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.network.couplings import Coupling, Removed, Slices
from secateur.network.layers import Layer
from secateur.pruning.layer_fit import is_wide
from secateur.pruning.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class ReadColumns:
    """The columns with which a layer reads the units of a coupling.

    Attributes:
        layer: its number among the layers of the space.
        columns: of each unit in the layer's matrix; -1 where a unit has fewer than others.
    """

    layer: int
    columns: Int[Tensor, "units taps"]

    def of(self, units: Sequence[int]) -> Int[Tensor, " columns"]:
        """The columns of some units."""
        columns = self.columns[list(units)].flatten()
        return columns[columns >= 0]


@dataclass(frozen=True, kw_only=True)
class Removable:
    """Channels that can leave.

    Attributes:
        name: of the layers that make them.
        coupling: what goes together.
        readers: the layers that read them, in execution order.
        met: of queries and keys the numbers of the layers that make the ones and the others.
    """

    name: str
    coupling: Coupling
    readers: tuple[ReadColumns, ...]
    met: tuple[int, int] | None = None

    @property
    def units(self) -> int:
        """How many there are."""
        return self.coupling.units

    @property
    def step(self) -> int:
        """How many leave at a time at least: one of each block."""
        return max(1, len(self.coupling.blocks))

    @property
    def fewest(self) -> int:
        """How many stay at least: one of each share, as many of each block."""
        return self.step * max(1, len(self.coupling.shares))

    @property
    def layers(self) -> list[int]:
        """The layers whose statistics tell which units should go, in execution order."""
        return sorted({*(reader.layer for reader in self.readers), *(self.met or ())})

    @property
    def read_blocks(self) -> list[tuple[int, ...]]:
        """Blocks of units that layers read; others are queries and keys."""
        return [block for block in self.coupling.blocks if self.coupling.read & {*block}]


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """Channels that cannot leave, and why."""

    name: str
    units: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ChannelSpace:
    """What can be removed from a network, channel by channel.

    Attributes:
        layers: those that are fitted, in execution order.
        removable: what can leave, in the order of the first reader.
        stuck: what cannot.
    """

    layers: Sequence[Layer]
    removable: Sequence[Removable]
    stuck: Sequence[Stuck]

    @cached_property
    def read_by(self) -> Mapping[int, list[tuple[int, ReadColumns]]]:
        """By layer the numbers of the couplings that it reads, and its columns for each.

        Whole heads come before their dimensions.
        """
        found: dict[int, list[tuple[int, ReadColumns]]] = {}
        ordered = sorted(enumerate(self.removable), key=lambda of: not of[1].coupling.whole)
        for number, removable in ordered:
            for reader in removable.readers:
                found.setdefault(reader.layer, []).append((number, reader))
        return found


def find_space(
    couplings: Sequence[Coupling],
    layers: Sequence[Layer],
    *,
    sampling: Sampling,
    excluded: Collection[str] = (),
    included: Collection[str] | None = None,
) -> ChannelSpace:
    """What can be removed, with the layers chosen.

    Args:
        couplings: of the network as it was traced.
        layers: to fit.
        sampling: tells which layers are too wide.
        excluded: weights of layers that neither lose channels nor columns.
        included: weights of layers whose channels may leave; None = of all.
    """
    finder = _Finder(layers, sampling, excluded, included)
    found = [(finder.name(of), of, finder.why_stuck(of)) for of in couplings]
    removable = [
        Removable(name=name, coupling=of, readers=finder.readers(of), met=finder.met(of))
        for name, of, why in found
        if why is None
    ]
    removable.sort(key=lambda of: of.layers[0])
    stuck = [Stuck(name=name, units=of.units, reason=why) for name, of, why in found if why]
    return ChannelSpace(layers=layers, removable=removable, stuck=stuck)


class _Finder:
    """Looks at couplings one by one."""

    def __init__(
        self,
        layers: Sequence[Layer],
        sampling: Sampling,
        excluded: Collection[str],
        included: Collection[str] | None,
    ) -> None:
        self.layers, self.sampling = layers, sampling
        self.excluded, self.included = excluded, included
        self.numbers = {str(layer.parameter): number for number, layer in enumerate(layers)}

    def name(self, coupling: Coupling) -> str:
        """The layers that make the units."""
        makers = dict.fromkeys(part.parameter for part in coupling.of("rows"))
        names = [name.removesuffix(".weight") for name in makers]
        name = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        kind = ", heads" if coupling.whole else ""
        if coupling.query_keys is not None:
            kind = ", dimensions of heads" if coupling.read else ", queries and keys"
        return name + kind

    def why_stuck(self, coupling: Coupling) -> str | None:
        """Why its units cannot leave; None where they can."""
        if coupling.fixed is not None:
            return coupling.fixed
        if coupling.units < 2 * max(1, len(coupling.blocks)):
            return "a single channel"
        if coupling.units <= max(1, len(coupling.blocks)) * len(coupling.shares):
            return "the only channels of their layers"
        for part in coupling.slices:
            if part.parameter in self.excluded:
                return f"{_short(part)} is excluded"
        for part in coupling.of("rows"):
            if self.included is not None and part.parameter not in self.included:
                return f"{_short(part)} is not among the layers asked for"
        if why := self._why_nobody_reads(coupling):
            return why
        return next(filter(None, map(self._why_not_read, coupling.of("columns"))), None)

    def _why_nobody_reads(self, coupling: Coupling) -> str | None:
        if coupling.query_keys is None:
            return None if coupling.of("columns") else "no layer reads them"
        if self.met(coupling) is None:
            return "queries and keys behind a normalisation, or of several layers"
        return None

    def _why_not_read(self, part: Slices) -> str | None:
        number = self.numbers.get(part.parameter)
        if number is None:
            return f"read by {_short(part)}, which cannot be fitted"
        layer = self.layers[number]
        if is_wide(layer, self.sampling):
            return f"read by {_short(part)}, which has {layer.columns} columns: raise max_columns"
        return None

    def met(self, coupling: Coupling) -> tuple[int, int] | None:
        """The layers that make queries and keys; None where there are none, or not one of each."""
        met = coupling.query_keys
        if met is None or not met.linear:
            return None
        makers = [
            {of.parameter for of in part if of.role == "rows"} for part in (met.queries, met.keys)
        ]
        names = [name for part in makers for name in part]
        if len(names) != 2 or not {*names} <= {*self.numbers}:
            return None
        query, key = (self.numbers[name] for name in names)
        if any(is_wide(self.layers[at], self.sampling) for at in (query, key)):
            return None
        return query, key

    def readers(self, coupling: Coupling) -> tuple[ReadColumns, ...]:
        """The layers that read its units."""
        found = [self._reader(part) for part in coupling.of("columns")]
        return tuple(sorted(found, key=lambda reader: reader.layer))

    def _reader(self, part: Slices) -> ReadColumns:
        number = self.numbers[part.parameter]
        return ReadColumns(layer=number, columns=unit_columns(self.layers[number], part))


def unit_columns(layer: Layer, part: Slices) -> Int[Tensor, "units taps"]:
    """The columns of a layer's matrix with which it reads each unit; -1 where one has fewer."""
    sizes = [1] * len(layer.shape)
    sizes[part.axis] = layer.shape[part.axis]
    index = torch.arange(float(layer.shape[part.axis])).view(sizes).expand(layer.shape)
    along = layer.calls[0].geometry.matrix(index)[0, 0]  # which index each column is of
    columns = [
        torch.isin(along, torch.tensor(of, dtype=along.dtype)).nonzero()[:, 0]
        for of in part.indices
    ]
    return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=-1)


def _short(part: Slices) -> str:
    return part.parameter.removesuffix(".weight")


def removed_units(space: ChannelSpace, removed: Sequence[Sequence[int]]) -> Removed:
    """Units to leave out by coupling, as `Frontend.shrunk` takes them."""
    return [
        (removable.coupling, sorted(units))
        for removable, units in zip(space.removable, removed, strict=True)
        if units
    ]
