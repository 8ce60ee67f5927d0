"""Which slices of which parameters go together when a network gets narrower.

Channels with the same number (`secateur.network.numbering`) are a unit: it leaves the network as a
whole, with the rows that make it, the entries of normalisations on its way and the columns that
read it. Where an operation would not do the same without a channel, the units are fixed, with the
reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.network.carrying import carry
from secateur.network.disjoint_sets import Sets
from secateur.network.numbering import NONE, Numbering, Numbers, Role

if TYPE_CHECKING:
    from secateur.network.graph import Graph


@dataclass(frozen=True)
class Slices:
    """The part that the units of a coupling have in one parameter.

    Attributes:
        parameter: its name.
        axis: along which it is cut.
        role: "rows" make the channels, "columns" read them, "entries" are one number a channel on
            the way, such as those of a BatchNorm.
        indices: of each unit along the axis; empty for a unit that has no part in it.
    """

    parameter: str
    axis: int
    role: Role
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class QueryKeys:
    """What makes the queries and keys of an attention, among the slices of a coupling.

    Attributes:
        queries, keys: the part that each unit has in them; none of units that are neither.
        divides: whether the attention divides by the root of the number of units in a block.
        linear: whether units of a block may be mixed: nothing but factors comes behind them.
    """

    queries: tuple[Slices, ...]
    keys: tuple[Slices, ...]
    divides: bool
    linear: bool


@dataclass(frozen=True)
class Coupling:
    """Units that are made by the same layers.

    Attributes:
        units: how many.
        slices: of all parameters that have a part in them.
        blocks: units that lie in blocks, such as the heads of an attention, of which each has to
            keep as many; empty where there is no such rule.
        fixed: why none of them can leave; None = they can.
        query_keys: of units that are multiplied with each other.
        whole: whether the units are heads, of whose dimensions other couplings tell.
    """

    units: int
    slices: tuple[Slices, ...]
    blocks: tuple[tuple[int, ...], ...] = ()
    fixed: str | None = None
    query_keys: QueryKeys | None = None
    whole: bool = False

    def of(self, role: Role) -> list[Slices]:
        """Its slices in one role."""
        return [one for one in self.slices if one.role == role]

    @cached_property
    def shares(self) -> Mapping[frozenset[int], str]:
        """Units of which at least one stays, each with the parameter that would be empty.

        Those that alone have a part in a parameter, such as the first channels of a value that
        grows along its way; none that hold all of another such set.
        """
        held: dict[frozenset[int], str] = {}
        for part in self.slices:
            units = frozenset(unit for unit, indices in enumerate(part.indices) if indices)
            if len(units) < self.units:
                held.setdefault(units, part.parameter)
        return {units: of for units, of in held.items() if not any(map(units.__gt__, held))}

    @cached_property
    def read(self) -> frozenset[int]:
        """Units that layers read by columns; others are queries and keys."""
        parts = (enumerate(part.indices) for part in self.of("columns"))
        return frozenset(unit for indices in parts for unit, own in indices if own)

    def masks(self, part: Slices) -> list[int]:
        """The units that are masked by zeros in one of its slices: all columns, else all parts."""
        units = range(self.units)
        return [*units] if part.role == "columns" else [of for of in units if of not in self.read]


Removed = Sequence[tuple[Coupling, Sequence[int]]]  # units to leave out, by coupling


def find_couplings(graph: Graph) -> list[Coupling]:
    """The couplings of a network, in the order of the layers that make their channels.

    Those of whole heads come first: of a head that leaves, so do all of its dimensions.
    """
    heads = [of for of in _Collected(carry(graph, whole=True)).couplings() if of.whole]
    return [*heads, *_Collected(carry(graph)).couplings()]


def check_removed(removed: Removed) -> None:
    """Raises ModelError where units cannot leave.

    Their coupling is fixed, its blocks would be of different sizes, or a parameter empty.
    """
    for coupling, units in removed:
        if coupling.fixed is not None:
            raise ModelError(
                f"channels cannot leave: {coupling.fixed}; leave this coupling out of those removed"
            )
        left = [len({*block} - {*units}) for block in coupling.blocks]
        if len({*left}) > 1:
            raise ModelError(
                f"blocks of a coupling would keep {left} channels, expected as many of each: "
                "remove as many units of each"
            )
        for share, parameter in coupling.shares.items():
            if share <= {*units}:
                raise ModelError(
                    f"no channel of {parameter} would be left, expected one at least: leave one of "
                    f"the units {sorted(share)[:8]} in"
                )


def gone(removed: Removed) -> dict[str, dict[int, list[int]]]:
    """By parameter and axis the indices that leave with some units, in ascending order."""
    parts: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for coupling, units in removed:
        for part in coupling.slices:
            parts[part.parameter][part.axis].update(
                at for unit in units for at in part.indices[unit]
            )
    return {
        name: {axis: sorted(indices) for axis, indices in axes.items() if indices}
        for name, axes in parts.items()
    }


def masked(parameters: Mapping[str, Tensor], removed: Removed) -> dict[str, Tensor]:
    """Parameters of a network of the same shapes that ignores some units.

    The columns that read them are zero; where nobody reads them as columns (queries and keys,
    which are multiplied with each other), the rows that make them and their entries are.

    Returns:
        Those that change, copied, by name.
    """
    changed: dict[str, Tensor] = {}
    for coupling, units in removed:
        for part in coupling.slices:
            masks = {*coupling.masks(part)} & {*units}
            indices = [at for unit in sorted(masks) for at in part.indices[unit]]
            if not indices:
                continue
            if part.parameter not in changed:
                changed[part.parameter] = parameters[part.parameter].clone()
            held = changed[part.parameter]
            held.index_fill_(part.axis, torch.tensor(indices, dtype=torch.long).to(held.device), 0)
    return changed


def can_be_reordered(coupling: Coupling, graph: Graph) -> bool:
    """Whether units may change places: all that they have a part in can be written as it is."""
    indices: dict[tuple[str, int], tuple[tuple[int, ...], ...]] = {}
    return (
        coupling.fixed is None
        and not coupling.whole
        and all(
            part.parameter in graph.parameters
            and part.parameter not in graph.rounding
            and indices.setdefault((part.parameter, part.axis), part.indices) == part.indices
            for part in coupling.slices
        )
    )


def alike(coupling: Coupling) -> list[int]:
    """The same number for units that may change places: of one block, with as many parts each."""
    block = {unit: number for number, units in enumerate(coupling.blocks) for unit in units}
    numbers: dict[tuple[int, ...], int] = {}
    kinds = (
        (block.get(unit, -1), *(len(part.indices[unit]) for part in coupling.slices))
        for unit in range(coupling.units)
    )
    return [numbers.setdefault(kind, len(numbers)) for kind in kinds]


def reordered(
    parameters: Mapping[str, Tensor], orders: Sequence[tuple[Coupling, Sequence[int]]]
) -> dict[str, Tensor]:
    """Parameters of a network that computes the same with some units in other places.

    Args:
        parameters: by name.
        orders: of couplings that `can_be_reordered`, for each place the unit to put there; one that
            is `alike`.

    Returns:
        Those that change, by name.
    """
    sources: dict[tuple[str, int], list[int]] = {}
    for coupling, order in orders:
        for part in coupling.slices:
            size = parameters[part.parameter].shape[part.axis]
            source = sources.setdefault((part.parameter, part.axis), [*range(size)])
            for place, unit in enumerate(order):
                for to, at in zip(part.indices[place], part.indices[unit], strict=True):
                    source[to] = at
    changed: dict[str, Tensor] = {}
    for (name, axis), source in sources.items():
        if source != sorted(source):
            held = changed.get(name, parameters[name])
            changed[name] = held.index_select(axis, torch.tensor(source).to(held.device))
    return changed


def rescaled(
    parameters: Mapping[str, Tensor], removed: Removed, *, every: bool = False
) -> dict[str, Tensor]:
    """Parameters with queries that make up for the root of their number, which gets smaller.

    Args:
        parameters: by name.
        removed: units that leave.
        every: also of attentions that, as far as the graph tells, divide by a number: a module
            may compute it anew.

    Returns:
        Those that change, by name; multiplied with sqrt(share of the units that is left).
    """
    changed: dict[str, Tensor] = {}
    for coupling, units in removed:
        met = coupling.query_keys
        if met is None or not units or not (met.divides or (every and met.linear)):
            continue
        factor = (1 - len({*units}) / coupling.units) ** 0.5
        for part in met.queries:
            held = changed.get(part.parameter, parameters[part.parameter])
            scale = torch.ones(held.shape[part.axis], dtype=held.dtype, device=held.device)
            scale[[at for of in part.indices for at in of]] = factor
            shape = [1] * held.dim()
            shape[part.axis] = -1
            changed[part.parameter] = held * scale.view(shape)
    return changed


class _Collected:
    """What a pass has found, gathered by the layers that make the same units."""

    def __init__(self, done: Numbering) -> None:
        self.parameters, self.uncut = done.graph.parameters, done.graph.uncut
        self.roots = np.array([done.sets.find(of) for of in range(len(done.sets.parents))], int)
        self.made = [np.unique(self.roots[numbers]) for numbers in done.made]
        self.blocks = [self._rooted(numbers) for numbers in done.blocks]
        self.heads = {int(self.roots[number]) for number in done.heads}
        self.reasons: dict[int, str] = {}
        for number, why in done.reasons.items():
            self.reasons.setdefault(int(self.roots[number]), why)
        self.parts: dict[int, dict[tuple[str, int, Role], list[int]]] = defaultdict(dict)
        for key, numbers in done.slices.items():
            for index, number in enumerate(numbers):
                if number != NONE:
                    unit = self.parts[int(self.roots[number])]
                    unit.setdefault(key, []).append(index)
        self.done = done
        self.met = [
            (meeting, {int(self.roots[number]) for number in meeting.queries | meeting.keys})
            for meeting in done.meetings
        ]
        self.tied = [{*map(int, np.unique(self._rooted(of)))} for of in done.tied]
        for unit in {unit for _, units in self.met for unit in units if self._is_read(unit)}:
            self.reasons.setdefault(unit, "read by a layer and multiplied with keys")
        for units in self.tied:
            for why in [self.reasons[unit] for unit in units if unit in self.reasons][:1]:
                self.reasons |= {unit: self.reasons.get(unit, why) for unit in units}

    def _rooted(self, numbers: Numbers) -> Numbers:
        return np.where(numbers == NONE, NONE, self.roots[numbers])

    def couplings(self) -> list[Coupling]:
        """One for all layers that make some of the same units; of the free ones, if any are.

        Units that nothing reads by columns, such as queries and keys, are apart from others.
        """
        return [
            self._coupling(part)
            for units in self._components()
            for part in self._apart(self._free(units))
        ]

    def _free(self, units: list[int]) -> list[int]:
        return [unit for unit in units if unit not in self.reasons] or units

    def _apart(self, units: list[int]) -> list[list[int]]:
        if any({*units} <= tied for tied in self.tied):
            return [units]  # queries, keys and values that keep one size
        read = [unit for unit in units if self._is_read(unit)]
        return [part for part in (read, [unit for unit in units if unit not in {*read}]) if part]

    def _is_read(self, unit: int) -> bool:
        return any(role == "columns" for _, _, role in self.parts[unit])

    def _components(self) -> list[list[int]]:
        """Units of layers that share some, in the order of the layers."""
        sets, owner = Sets(), dict[int, int]()
        sets.fresh(len(self.made))
        for layer, units in enumerate(self.made):
            for unit in map(int, units):
                sets.join(layer, owner.setdefault(unit, layer))
        members: dict[int, list[int]] = {}
        for layer, units in enumerate(self.made):
            members.setdefault(sets.find(layer), []).extend(map(int, units))
        return [list(dict.fromkeys(units)) for units in members.values()]

    def _coupling(self, units: list[int]) -> Coupling:
        why = self.reasons.get(units[0]) or self._why_not_masked(units) or self._why_not_cut(units)
        keys = dict.fromkeys(key for unit in units for key in self.parts[unit])
        slices = tuple(
            Slices(*key, tuple(tuple(self.parts[unit].get(key, ())) for unit in units))
            for key in keys
        )
        return Coupling(
            len(units),
            slices,
            self._own_blocks(units),
            why,
            self._query_keys(units, slices),
            whole=not self.heads.isdisjoint(units),
        )

    def _query_keys(self, units: list[int], slices: Sequence[Slices]) -> QueryKeys | None:
        """What is known of those that are multiplied with each other."""
        met = [meeting for meeting, own in self.met if own & {*units}]
        if not met or self.done.whole:
            return None
        queries, keys = (
            tuple(filter(None, (self._part(part, numbers) for part in slices)))
            for numbers in (
                frozenset[int]().union(*(of.queries for of in met)),
                frozenset[int]().union(*(of.keys for of in met)),
            )
        )
        divides = any(of.divides for of in met)
        return QueryKeys(queries, keys, divides, len(met) == 1 and met[0].linear)

    def _part(self, part: Slices, numbers: frozenset[int]) -> Slices | None:
        """Of a slice what is made with some numbers."""
        made = self.done.slices[part.parameter, part.axis, part.role]
        indices = tuple(tuple(at for at in of if int(made[at]) in numbers) for of in part.indices)
        return replace(part, indices=indices) if any(indices) else None

    def _why_not_masked(self, units: Sequence[int]) -> str | None:
        """Why units that are masked by what makes them cannot be: a constant that stays."""
        keys = (key for unit in units if not self._is_read(unit) for key in self.parts[unit])
        held = (name for name, _, _ in keys if name not in self.parameters)
        return next((f"{name} is a constant of the graph" for name in held), None)

    def _why_not_cut(self, units: Sequence[int]) -> str | None:
        """Why a part of units cannot leave what holds it."""
        names = (name for unit in units for name, _, _ in self.parts[unit])
        held = next((name for name in names if name in self.uncut), None)
        return None if held is None else f"{held} {self.uncut[held]}"

    def _own_blocks(self, units: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The smallest blocks that hold all of some units, each once."""
        place, found = (
            {unit: at for at, unit in enumerate(units)},
            list[tuple[tuple[int, ...], ...]](),
        )
        for numbers in self.blocks:
            rows = [tuple(place[of] for of in np.unique(row) if of in place) for row in numbers]
            rows = [*dict.fromkeys(filter(None, rows))]
            whole = sorted(at for row in rows for at in row) == [*range(len(units))]
            if whole and any(len(row) > 1 for row in rows):
                found.append(tuple(rows))
        return max(found, key=len, default=())
