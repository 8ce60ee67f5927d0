"""What the network loses when channels of one coupling alone are removed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateur.core.group_elimination import Reader, elimination_order
from secateur.core.methods import ADMM, Method
from secateur.core.patterns import KeptColumns
from secateur.core.problem import Problem
from secateur.network.graph import Graph
from secateur.network.sample_layout import Layouts
from secateur.network.samples import Samples
from secateur.pruning.allocations.protocol import Curve
from secateur.pruning.allocations.sensitivity import enough_to_judge, split_samples
from secateur.pruning.channels.logits import Mixing, heads_of, mixing
from secateur.pruning.channels.space import ChannelSpace, Removable
from secateur.pruning.execution import Execution
from secateur.pruning.journal import Chapter
from secateur.pruning.judged import Judged
from secateur.pruning.layer_fit import LayerFit
from secateur.pruning.sampling import Sampling
from secateur.pruning.streams import DualStream

_JUDGED = 16  # samples that the network is run on at least


@dataclass(frozen=True, kw_only=True)
class ChannelStudy:
    """What is known of each coupling in the dense network.

    Attributes:
        orders: the units of each, in the order in which they should go.
        curves: what the output loses as they go, all others staying.
        mixings: of couplings of queries and keys how their dimensions are made anew, by number.
    """

    orders: Sequence[Sequence[int]]
    curves: Sequence[Curve]
    mixings: Mapping[int, Mixing] = field(default_factory=dict[int, Mixing])


@dataclass(frozen=True, kw_only=True)
class ChannelSensitivity:
    """Measures how removing channels of each coupling alone changes the network's output.

    Attributes:
        levels: shares of the units at which it is measured.
        images: number of images held back from the fits to measure on (at most a quarter).
        damping: relative damping of elimination.
        method: fits the readers' other columns.
    """

    summary: ClassVar[str] = (
        "To choose how many channels leave each layer, those of each layer were first removed "
        "alone; channels left where they change the output of the network least for what they cost."
    )

    levels: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75)
    images: int = 64
    damping: float = 0.3
    method: Method = field(
        default_factory=lambda: ADMM(damping=0.3, dampings=(), tolerance=1e-3, iterations=50)
    )

    def study(
        self,
        graph: Graph,
        samples: Samples,
        space: ChannelSpace,
        *,
        sampling: Sampling,
        layouts: Layouts | None,
        chunk: int,
        on_layer: Callable[[str], Any] = lambda name: None,
        execution: Execution | None = None,
    ) -> ChannelStudy:
        """Looks at the dense network, once; processes share the samples, and what is run.

        Cost: a dense pass with fits, and a run from the first reader on per level and coupling.
        Memory: the statistics of all layers that read the same channels as a later one.
        """
        fitting, judging = split_samples(samples, self.images)
        execution = execution or Execution()
        group, journal = execution.group, execution.journal
        streams = DualStream(
            graph, fitting, chunk=chunk, inputs="dense", layouts=layouts, execution=execution
        )
        judging = enough_to_judge(graph, judging, least=_JUDGED)
        judged = Judged.beside(streams, judging, chunk=chunk)
        fits = _Fits(self, graph, space, sampling, streams, journal.chapter("couplings"))
        curves: list[Curve] = []
        with torch.no_grad():
            found = fits.all(on_layer)
            chapter = journal.chapter("curves")
            while len(curves) < len(found) and (entry := chapter.get(len(curves), Curve)):
                curves.append(entry.record)
            while len(curves) < len(found):  # each process has one of the next
                index, own = len(curves) + group.rank, None
                if index < len(found):
                    own = self._curve(space, space.removable[index], found[index][1], judged)
                for curve in group.gather(own):
                    if curve is not None:
                        chapter.put(len(curves), curve)
                        curves.append(curve)
        return ChannelStudy(
            orders=[order for order, _ in found], curves=curves, mixings=fits.mixings
        )

    def counts(self, removable: Removable) -> list[int]:
        """Units to remove at each level."""
        units, step = removable.units, removable.step
        asked = (round(units * level) // step * step for level in self.levels)
        return [min(max(step, count), units - removable.fewest) for count in asked]

    def _curve(
        self,
        space: ChannelSpace,
        removable: Removable,
        changes: Sequence[Mapping[str, Tensor]],
        judged: Judged,
    ) -> Curve:
        first = space.layers[removable.layers[0]].calls[0].op
        losses: dict[float, float] = {}
        for count, new in zip(self.counts(removable), changes, strict=True):
            share = count / removable.units
            if share not in losses:
                losses[share] = judged.loss(first, new)
        rising = itertools.accumulate((max(loss, 1e-9) for loss in losses.values()), max)
        return Curve(tuple(losses), tuple(rising))


@dataclass(frozen=True)
class _Coupling:
    """What a journal holds of a coupling beside tensors.

    Attributes:
        order: of its units.
        levels: at which its readers were fitted.
        mixed: whether it has queries and keys.
    """

    order: tuple[int, ...]
    levels: int
    mixed: bool


_QUERIES, _KEYS = "queries", "keys"  # in journals


class _Fits:
    """Readers of each coupling fitted to the dense network at each level."""

    def __init__(
        self,
        settings: ChannelSensitivity,
        graph: Graph,
        space: ChannelSpace,
        sampling: Sampling,
        streams: DualStream,
        chapter: Chapter,
    ) -> None:
        self.chapter = chapter
        self.settings, self.graph, self.space = settings, graph, space
        self.sampling, self.streams = sampling, streams
        self.group = streams.group
        self.held: dict[int, tuple[LayerFit, Problem | None]] = {}
        self.mixings: dict[int, Mixing] = {}

    def all(
        self, on_layer: Callable[[str], Any]
    ) -> list[tuple[list[int], list[Mapping[str, Tensor]]]]:
        """By coupling the order of its units, and the readers' parameters at each level."""
        found = self._before()
        left = [of for index, of in enumerate(self.space.removable) if index not in found]
        couplings = list(enumerate(self.space.removable))
        for number, layer in enumerate(self.space.layers):
            if any(number in removable.layers for removable in left):
                chunks = self.streams.run_to(layer)
                fit = LayerFit(self.graph, chunks, index=number, sampling=self.sampling, start={})
                problem = fit.problem(self.settings.method, solver=self.solver)
                self.held[number] = fit, problem
            for index, removable in couplings:
                if removable.layers[-1] == number and index not in found:
                    found[index] = self._shared(index, removable)
                    self._write(index, *found[index])
            self._forget(number)
            on_layer(layer.name)
        return [found[index] for index, _ in couplings]

    @property
    def solver(self) -> int:
        """The process that looks at the couplings: it has no more chunks than others."""
        return self.group.size - 1

    def _shared(
        self, index: int, removable: Removable
    ) -> tuple[list[int], list[Mapping[str, Tensor]]]:
        """What the solver finds of a coupling, in all processes."""
        found: tuple[list[int], list[Mapping[str, Tensor]]] = [], []
        if self.group.rank == self.solver:
            found = self._coupling(index, removable)
        mixed = self.mixings.get(index)
        parts = mixed and (mixed.queries, mixed.keys)
        found, parts = self.group.broadcast((found, parts), self.solver)
        if parts is not None:
            coupling = removable.coupling
            self.mixings[index] = Mixing(
                coupling=coupling, heads=heads_of(coupling), queries=parts[0], keys=parts[1]
            )
        return found

    def _problem(self, layer: int) -> Problem:
        problem = self.held[layer][1]
        assert problem is not None  # in the solver
        return problem

    def _before(self) -> dict[int, tuple[list[int], list[Mapping[str, Tensor]]]]:
        """The couplings that were looked at before, in the order in which they are."""
        found: dict[int, tuple[list[int], list[Mapping[str, Tensor]]]] = {}
        for index in sorted(
            range(len(self.space.removable)), key=lambda of: self.space.removable[of].layers[-1]
        ):
            entry = self.chapter.get(index, _Coupling)
            if entry is None:
                break
            removable, tensors = self.space.removable[index], entry.tensors
            if entry.record.mixed:
                self.mixings[index] = Mixing(
                    coupling=removable.coupling,
                    heads=heads_of(removable.coupling),
                    queries=tensors.pop(_QUERIES),
                    keys=tensors.pop(_KEYS),
                )
            changes: list[dict[str, Tensor]] = [{} for _ in range(entry.record.levels)]
            for name, tensor in tensors.items():
                level, _, parameter = name.partition("/")
                changes[int(level)][parameter] = tensor
            found[index] = list(entry.record.order), [*changes]
        return found

    def _write(self, index: int, order: list[int], changes: Sequence[Mapping[str, Tensor]]) -> None:
        mixed = self.mixings.get(index)
        tensors = {
            f"{level}/{name}": tensor
            for level, of in enumerate(changes)
            for name, tensor in of.items()
        }
        if mixed is not None:
            tensors |= {_QUERIES: mixed.queries, _KEYS: mixed.keys}
        record = _Coupling(tuple(map(int, order)), len(changes), mixed is not None)
        self.chapter.put(index, record, tensors)

    def _forget(self, number: int) -> None:
        """Drops statistics that no later coupling needs."""
        needed = {
            layer
            for removable in self.space.removable
            if removable.layers[-1] > number
            for layer in removable.layers
        }
        self.held = {at: of for at, of in self.held.items() if at in needed}

    def _coupling(
        self, index: int, removable: Removable
    ) -> tuple[list[int], list[Mapping[str, Tensor]]]:
        if removable.met is not None:
            made = [(self.space.layers[at], self._problem(at)) for at in removable.met]
            self.mixings[index] = mixing(removable.coupling, self.graph, *made)
        readers = [
            Reader(problem=self._problem(reader.layer), columns=reader.columns)
            for reader in removable.readers
        ]
        counts = self.settings.counts(removable)
        order = removal_order(
            removable, readers, self.mixings.get(index), damping=self.settings.damping
        )
        return order, [self._changes(index, removable, order[:count]) for count in counts]

    def _changes(
        self, index: int, removable: Removable, gone: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """All readers fitted without some units."""
        changes: dict[str, Tensor] = {}
        if index in self.mixings:
            left = dimensions_left(removable, len(gone))
            changes.update(self.mixings[index].changes(self.graph.parameters, left=left))
        for reader in removable.readers:
            fit, problem = self.held[reader.layer][0], self._problem(reader.layer)
            pattern = kept_columns(problem.columns, [reader.of(gone)])
            solved = fit.solve_problem(problem, self.settings.method, pattern, problem.present)
            changes.update(solved.changes[-1])
        return changes


def removal_order(
    removable: Removable,
    readers: Sequence[Reader],
    mixing: Mixing | None,
    *,
    damping: float,
    count: int | None = None,
) -> list[int]:
    """Units of a coupling in the order in which they should go.

    Those that layers read go by elimination. Of queries and keys the last dimensions of each head
    go: those that stay are made anew.

    Args:
        removable: the coupling.
        readers: the layers that read it.
        mixing: of its queries and keys, if it has some.
        damping: relative damping of elimination.
        count: how many are wanted; None = all.
    """
    coupling = removable.coupling
    if mixing is None:
        return elimination_order(
            readers,
            damping=damping,
            count=count,
            blocks=coupling.blocks,
            shares=[*coupling.shares],
        )
    count = removable.units if count is None else count
    steps, read = count // removable.step, removable.read_blocks
    order = (
        elimination_order(readers, damping=damping, count=steps * len(read), blocks=read)
        if read
        else []
    )
    rounds = [order[at * len(read) : (at + 1) * len(read)] for at in range(steps)]
    lasts = [[head[-1 - at] for head in mixing.heads] for at in range(steps)]
    return [unit for own, last in zip(rounds, lasts, strict=True) for unit in (*own, *last)]


def dimensions_left(removable: Removable, gone: int) -> int:
    """Of each head, without so many units of a coupling."""
    return (removable.units - gone) // removable.step


def kept_columns(columns: int, gone: Sequence[Tensor]) -> KeptColumns:
    """All columns but some."""
    kept = torch.ones(columns, dtype=torch.bool)
    for of in gone:
        kept[of] = False
    return KeptColumns(kept)
