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
from secateur.pruning.allocations.sensitivity import Curve, split_samples
from secateur.pruning.channels.space import ChannelSpace, Removable
from secateur.pruning.judged import Judged
from secateur.pruning.layer_fit import LayerFit
from secateur.pruning.sampling import Sampling
from secateur.pruning.streams import DualStream


@dataclass(frozen=True, kw_only=True)
class ChannelStudy:
    """What is known of each coupling in the dense network.

    Attributes:
        orders: the units of each, in the order in which they should go.
        curves: what the output loses as they go, all others staying.
    """

    orders: Sequence[Sequence[int]]
    curves: Sequence[Curve]


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
    ) -> ChannelStudy:
        """Looks at the dense network, once.

        Cost: a dense pass with fits, and a run from the first reader on per level and coupling.
        Memory: the statistics of all layers that read the same channels as a later one.
        """
        fitting, judging = split_samples(samples, self.images)
        streams = DualStream(graph, fitting, chunk=chunk, inputs="dense", layouts=layouts)
        judged = Judged.beside(streams, judging, chunk=chunk)
        fits = _Fits(self, graph, space, sampling, streams)
        with torch.no_grad():
            found = fits.all(on_layer)
            curves = [
                self._curve(space, removable, changes, judged)
                for removable, (_, changes) in zip(space.removable, found, strict=True)
            ]
        return ChannelStudy(orders=[order for order, _ in found], curves=curves)

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
        first = space.layers[removable.readers[0].layer].calls[0].op
        losses: dict[float, float] = {}
        for count, new in zip(self.counts(removable), changes, strict=True):
            share = count / removable.units
            if share not in losses:
                losses[share] = judged.loss(first, new)
        rising = itertools.accumulate((max(loss, 1e-9) for loss in losses.values()), max)
        return Curve(tuple(losses), tuple(rising))


class _Fits:
    """Readers of each coupling fitted to the dense network at each level."""

    def __init__(
        self,
        settings: ChannelSensitivity,
        graph: Graph,
        space: ChannelSpace,
        sampling: Sampling,
        streams: DualStream,
    ) -> None:
        self.settings, self.graph, self.space = settings, graph, space
        self.sampling, self.streams = sampling, streams
        self.held: dict[int, tuple[LayerFit, Problem]] = {}

    def all(
        self, on_layer: Callable[[str], Any]
    ) -> list[tuple[list[int], list[Mapping[str, Tensor]]]]:
        """By coupling the order of its units, and the readers' parameters at each level."""
        found: dict[int, tuple[list[int], list[Mapping[str, Tensor]]]] = {}
        couplings = list(enumerate(self.space.removable))
        for number, layer in enumerate(self.space.layers):
            if number in self.space.read_by:
                chunks = self.streams.run_to(layer)
                fit = LayerFit(self.graph, chunks, index=number, sampling=self.sampling, start={})
                self.held[number] = fit, fit.problem(self.settings.method)
            for index, removable in couplings:
                if removable.readers[-1].layer == number:
                    found[index] = self._coupling(removable)
            self._forget(number)
            on_layer(layer.name)
        return [found[index] for index, _ in couplings]

    def _forget(self, number: int) -> None:
        """Drops statistics that no later coupling needs."""
        needed = {
            reader.layer
            for removable in self.space.removable
            if removable.readers[-1].layer > number
            for reader in removable.readers
        }
        self.held = {at: of for at, of in self.held.items() if at in needed}

    def _coupling(self, removable: Removable) -> tuple[list[int], list[Mapping[str, Tensor]]]:
        readers = [
            Reader(problem=self.held[reader.layer][1], columns=reader.columns)
            for reader in removable.readers
        ]
        counts = self.settings.counts(removable)
        order = elimination_order(
            readers,
            damping=self.settings.damping,
            blocks=removable.coupling.blocks,
            shares=[*removable.coupling.shares],
        )
        return order, [self._changes(removable, order[:count]) for count in counts]

    def _changes(self, removable: Removable, gone: Sequence[int]) -> Mapping[str, Tensor]:
        """All readers fitted without some units."""
        changes: dict[str, Tensor] = {}
        for reader in removable.readers:
            fit, problem = self.held[reader.layer]
            pattern = kept_columns(problem.columns, [reader.of(gone)])
            solved = fit.solve_problem(problem, self.settings.method, pattern, problem.present)
            changes.update(solved.changes[-1])
        return changes


def kept_columns(columns: int, gone: Sequence[Tensor]) -> KeptColumns:
    """All columns but some."""
    kept = torch.ones(columns, dtype=torch.bool)
    for of in gone:
        kept[of] = False
    return KeptColumns(kept)
