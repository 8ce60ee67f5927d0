"""Measured allocation: how much does pruning each layer change the network's output?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from secateur.core.methods import LeastSquares, Method
from secateur.core.patterns import Pattern
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.samples import Samples
from secateur.network.stream import Stream
from secateur.pruning.allocations.curves import curve_of, loss_at, loss_from_error, lower_hull
from secateur.pruning.allocations.protocol import (
    AllocationInputs,
    Budget,
    Curve,
    FittedAllocation,
    remove_in_order,
)
from secateur.pruning.allocations.units import block_of, kept_in_pattern, share_of
from secateur.pruning.journal import Chapter
from secateur.pruning.judged import Judged
from secateur.pruning.layer_fit import LayerFit, LayerSolution, Survey, is_wide
from secateur.pruning.sampling import Sampling
from secateur.pruning.sharing import Task, cost_of, divided, memory_of
from secateur.pruning.streams import DualStream
from secateur.support.settings import at_least, between, check_settings, from_to

ENOUGH = {512: 8, 128: 16}  # samples that are run, by values in an output at least
_LEAST = 1e-6  # sparsity of a layer that is in its pattern already


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Measures how pruning each layer alone changes the network's output, and allocates by that.

    Each layer is pruned and fitted at a few sparsities, with all others dense, and the network is
    run from that layer on, over images held back from the fit. The sum of the resulting curves
    (increase of the output error against sparsity, interpolated in its logarithm) is minimised
    within the budget.

    In a later walk (see `Recipe.schedule`) layers start from other weights, and their curves
    differ. They are fitted again but not run again: their loss is estimated from their own output
    errors and from the effect of such errors in the dense network.

    Use it unless there is no time for it: on compact networks layers differ by a factor of a
    thousand in how much they matter, and magnitudes do not show it.

    Attributes:
        levels: sparsities at which a layer is fitted.
        block_levels: the same where weights become zero in blocks: what that costs rises early, so
            that a power law below a first level of 0.5 promises too little. The last one is where
            next to nothing is left, for what lies beyond is a guess: with 0.9 at 70 % zeros in
            blocks of 1x4 two of MiniLM's layers lost all their weights, and Spearman's correlation
            0.051 in place of 0.019 (one draw of the sentences).
        estimated: those of them at which the network is not run from the layer on: the loss there
            is estimated from the layer's output error, between the levels at which it is run, and
            above them in proportion. With 0.75 alone the allocations that this led to were within
            0.5 % of the best loss at 50 to 90 % zeros (MiniLM, ResNet-56, EfficientNet-Lite0).
        per_column: output positions per column of a layer that it is fitted to, where a walk takes
            16 (docs/experiments.md).
        fitted: samples that layers are fitted to at most, evenly spread among all. The allocation
            that 256 lead to was within 0.04 % of the best loss by the curves of all 1000 images
            (ResNet-56) or 400 sentences (MiniLM), at 50 to 90 % zeros; networks that 128 led to
            were as good (docs/experiments.md).
        images: number of images held back from the fits to measure on (at most a quarter); not
            all are run where each says much (`enough_to_judge`).
        small: layers that together hold at most this share of the total cost are not run: their
            loss is estimated from their output error and from the most sensitive layer that
            was run. Early layers are small, and running the network takes longest from them.
        method: the method that fits a layer.
    """

    name: ClassVar[str] = "sensitivity"
    summary: ClassVar[str] = (
        "To choose how many zeros each layer gets, each layer was first pruned alone; zeros went "
        "where they change the output of the network least."
    )

    visits: ClassVar[int] = 1  # calls of `AllocationInputs.on_layer` per layer

    levels: tuple[float, ...] = (0.5, 0.75, 0.9, 0.97)
    block_levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.97)
    estimated: tuple[float, ...] = (0.75, 0.97)
    per_column: int = 4
    fitted: int = 128
    images: int = 64
    small: float = 0.01
    method: Method = field(
        default_factory=lambda: LeastSquares(damping=0.3, tolerance=1e-2, iterations=30)
    )

    def __post_init__(self) -> None:
        check_settings(
            self,
            levels=between(0, 1).rising(),
            block_levels=between(0, 1).rising(),
            estimated=between(0, 1),
            per_column=at_least(1),
            fitted=at_least(1),
            images=at_least(1),
            small=from_to(0, 1),
        )

    def fit(self, inputs: AllocationInputs) -> FittedSensitivity:
        """Cost: a dense pass with fits, and, the first time, a run from each layer on per level.

        On EfficientNet-Lite0 with 300 images: see benchmarks/allocation.py.
        """
        fitting, judging = split_samples(inputs.samples, self.images)
        study = _Study(inputs, fitting.spread(self.fitted), judging, self.per_column)
        previous = inputs.previous
        dense: FittedSensitivity | None = None
        if isinstance(previous, FittedSensitivity) and previous.errors:
            dense = previous
        small = _smallest(inputs, self.small)
        levels = [self._levels(inputs, index) for index in range(len(inputs.layers))]
        chapter = inputs.execution.journal.chapter("sensitivity", layers=len(inputs.layers))
        found: list[_Measured] = []
        for measured in self._before(inputs, chapter):
            found.append(measured)
            inputs.on_layer(measured.layer)
        costs = [
            self._cost(inputs, index, study.images if dense is None and index not in small else 0)
            for index in range(len(inputs.layers))
        ]
        at = inputs.sampling.max_columns
        sizes = [memory_of(layer, at) for layer in inputs.layers]
        left = range(len(found), len(inputs.layers))
        for window in divided(left, costs, sizes, inputs.execution.group.size):
            for measured in self._window(study, window, levels, dense, small):
                chapter.put(len(found), measured)
                found.append(measured)
                inputs.on_layer(measured.layer)
        errors = [list(of.errors) for of in found]
        losses = [of.listed for of in found]
        curves = [
            curve_of(level, loss, error, losses, errors)
            for level, loss, error in zip(levels, losses, errors, strict=True)
        ]
        if dense is not None:
            curves = [replace(curve, measured=False) for curve in curves]
        return FittedSensitivity(inputs.present, curves, errors)

    def survey(self, fitted: FittedAllocation, pattern: Pattern) -> Survey | None:
        """The errors of the layers at the levels at which they were measured."""
        if not (isinstance(fitted, FittedSensitivity) and fitted.errors):
            return None
        block = block_of(pattern)
        measured = zip(fitted.sizes, fitted.curves, strict=True)
        return Survey(
            method=self.method,
            kept=[[_kept(size, at, block) for at in curve.sparsities] for size, curve in measured],
        )

    def surveyed(
        self, fitted: FittedAllocation, errors: Sequence[Sequence[float | None]]
    ) -> FittedSensitivity:
        """The curves that these errors would lead to, by what was measured of the dense network."""
        assert isinstance(fitted, FittedSensitivity)
        found = [completed(*of) for of in zip(errors, fitted.errors, strict=True)]
        curves = [
            curve_of(curve.sparsities, fitted.loss_of(layer, of), of, (), ())
            for layer, (curve, of) in enumerate(zip(fitted.curves, found, strict=True))
        ]
        curves = [replace(curve, measured=False) for curve in curves]
        return FittedSensitivity(fitted.sizes, curves, found)

    @staticmethod
    def _before(inputs: AllocationInputs, chapter: Chapter) -> Iterator[_Measured]:
        """The first layers, as far as they were measured before."""
        for index in range(len(inputs.layers)):
            entry = chapter.get(index, _Measured)
            if entry is None:
                return
            yield entry.record

    def _cost(self, inputs: AllocationInputs, index: int, images: int) -> float:
        """What it takes to measure a layer, in multiply-accumulates, about.

        Args:
            images: that the network is run on from there on, at each level.
        """
        layer = inputs.layers[index]
        first, levels = layer.calls[0].op, len(self.levels)
        behind = sum(of.macs for of in inputs.graph.layers if of.calls and of.calls[0].op >= first)
        return levels * (cost_of(layer, inputs.sampling.max_columns) + images * behind)

    @torch.no_grad()
    def _window(
        self,
        study: _Study,
        window: Sequence[Task],
        levels: Sequence[Sequence[float]],
        dense: FittedSensitivity | None,
        small: Collection[int],
    ) -> list[_Measured]:
        """Some layers, whose statistics are held at the same time, each measured in its process."""
        fits = {task.index: study.fits(task, levels[task.index], self.method) for task in window}
        found: dict[int, _Measured] = {}
        for index, fit in fits.items():
            if fit is not None:
                asked = levels[index], dense, index not in small
                found[index] = self._measure(study, index, fit(), *asked)
        every = study.inputs.execution.group.gather(found)
        return [every[task.solver][task.index] for task in window]

    def _measure(
        self,
        study: _Study,
        index: int,
        solutions: Sequence[LayerSolution],
        levels: Sequence[float],
        dense: FittedSensitivity | None,
        is_run: bool,
    ) -> _Measured:
        """A layer's output errors at each level, and what the network loses."""
        layer = study.inputs.layers[index]
        changes = [solution.changes[-1] for solution in solutions]
        errors = [solution.result.relative_error for solution in solutions]
        losses: Sequence[float] | None = None
        if dense is not None:
            losses = dense.loss_of(index, errors)
        elif is_run:
            losses = self._losses(study, layer, changes, errors, levels)
        return _Measured(layer.name, tuple(errors), None if losses is None else tuple(losses))

    def _losses(
        self,
        study: _Study,
        layer: Layer,
        changes: Sequence[Mapping[str, Tensor]],
        errors: Sequence[float],
        levels: Sequence[float],
    ) -> list[float]:
        """The network's loss at each level, and an estimate where it is not run."""
        run = [at for at, level in enumerate(levels) if level not in self.estimated]
        run = run or list(range(len(levels)))
        losses = [study.loss(layer, changes[at]) for at in run]
        if len(run) == len(errors):
            return losses
        estimates = loss_from_error([errors[at] for at in run], losses, errors)
        for at, loss in zip(run, losses, strict=True):
            estimates[at] = loss
        return estimates

    def _levels(self, inputs: AllocationInputs, index: int) -> Sequence[float]:
        """Where a layer is measured: in a pattern that fixes its sparsity, there alone."""
        if share_of(inputs.pattern) is None:
            return self.levels if block_of(inputs.pattern) == 1 else self.block_levels
        least = kept_in_pattern(inputs.pattern, inputs.free[index])
        return (max(1 - least / max(1, inputs.present[index]), _LEAST),)


@dataclass(frozen=True)
class FittedSensitivity:
    """Divides a budget where it increases the loss least in sum.

    Attributes:
        sizes: weights in each layer that are not zero in the dense network.
        curves: one per layer.
        errors: the layer's relative output error at each sparsity of its curve.
    """

    sizes: Sequence[int]
    curves: Sequence[Curve]
    errors: Sequence[Sequence[float]] = ()

    def kept(self, budget: Budget) -> list[int]:
        """Takes weights where the next one increases the loss least, until the budget is met.

        Exact for the curves' lower convex hulls (Fox, "Discrete optimization via marginal
        analysis", 1966).
        """
        cost_per_unit = [max(cost, 1e-300) for cost in budget.cost_per_unit(len(self.sizes))]
        steps = sorted(
            (rise / cost_per_unit[layer], layer, count) for rise, layer, count in self._marginal
        )
        return remove_in_order(self.sizes, budget, [(layer, count) for _, layer, count in steps])

    @cached_property
    def _marginal(self) -> list[tuple[float, int, int]]:
        """(loss per weight, layer, weights) along the curves' lower convex hulls."""
        return [
            (rise, layer, count)
            for layer, (size, curve) in enumerate(zip(self.sizes, self.curves, strict=True))
            for rise, count in (lower_hull(size, curve) if size else ())
        ]

    def only(self, layers: Sequence[int]) -> FittedSensitivity:
        """What is known of some of the layers."""
        return FittedSensitivity(
            sizes=[self.sizes[at] for at in layers],
            curves=[self.curves[at] for at in layers],
            errors=[self.errors[at] for at in layers],
        )

    def loss_of(self, layer: int, errors: Sequence[float]) -> list[float]:
        """What other output errors of a layer would lead to, from those measured (log-linear)."""
        return loss_from_error(self.errors[layer], self.curves[layer].loss_increase, errors)

    def loss_increase(self, kept: Sequence[int]) -> list[float]:
        """What the curves expect of each layer, at given numbers of kept weights."""
        shares = [1 - count / max(size, 1) for count, size in zip(kept, self.sizes, strict=True)]
        return [
            float(loss_at(curve, torch.tensor([share], dtype=torch.float64)))
            for curve, share in zip(self.curves, shares, strict=True)
        ]


@dataclass(frozen=True)
class _Measured:
    """What was found out about a layer.

    Attributes:
        layer: its name.
        errors: relative errors of its outputs at each level.
        losses: of the network's outputs; None = it was not run.
    """

    layer: str
    errors: tuple[float, ...]
    losses: tuple[float, ...] | None

    @property
    def listed(self) -> list[float] | None:
        """The losses."""
        return None if self.losses is None else list(self.losses)


class _Study:
    """Runs the dense network over both parts of the samples, layer by layer.

    Nothing is run where all layers were measured before.
    """

    def __init__(
        self, inputs: AllocationInputs, fitting: Samples, judging: Samples, per_column: int
    ) -> None:
        self.inputs, self.graph, self.per_column = inputs, inputs.graph, per_column
        self.fitting, self.judging = fitting, judging

    @cached_property
    def streams(self) -> DualStream:
        """Of the samples that layers are fitted to."""
        inputs = self.inputs
        return DualStream(
            self.graph,
            self.fitting,
            chunk=inputs.chunk,
            inputs="dense",
            layouts=inputs.layouts,
            execution=inputs.execution,
        )

    @property
    def images(self) -> int:
        """How many samples the network is run on, at most."""
        return len(self.judging)

    @cached_property
    def judged(self) -> Judged:
        """The network on the other samples."""
        judging = enough_to_judge(self.graph, self.judging)
        return Judged.beside(self.streams, judging, chunk=self.inputs.chunk)

    @cached_property
    def sampling(self) -> Sampling:
        """How many output positions layers are fitted to here: none more than in a walk."""
        asked = self.inputs.sampling
        return replace(asked, per_column=min(self.per_column, asked.per_column))

    @torch.no_grad()
    def fits(
        self, task: Task, levels: Sequence[float], method: Method
    ) -> Callable[[], list[LayerSolution]] | None:
        """What solves a layer at each level, in the process that is to do so."""
        inputs, index = self.inputs, task.index
        layer = inputs.layers[index]
        chunks = self.streams.run_to(layer, again=is_wide(layer, inputs.sampling))
        fit = LayerFit(
            self.graph, chunks, index=index, sampling=self.sampling, start=inputs.weights
        )
        block = block_of(inputs.pattern)
        kept = [_kept(inputs.present[index], level, block) for level in levels]
        return fit.solve_all(method, inputs.pattern, kept, task.solver)

    def loss(self, layer: Layer, changes: Mapping[str, Tensor]) -> float:
        """Error of the network's outputs when the layer alone has other parameters."""
        return self.judged.loss(layer.calls[0].op, changes)


def enough_to_judge(graph: Graph, samples: Samples, least: int = 0) -> Samples:
    """Of the samples held back those that are needed: fewer where an output says more.

    Many values, such as an embedding or the scores of hundreds of classes, say more of a sample
    than ten scores do, and running the network is what measuring costs most. The allocation that 16
    of 64 samples lead to was within 0.4 % of the best by the loss that all 64 show, at 50 to 90 %
    zeros, on a sentence encoder, and within 0.2 % on EfficientNet-Lite0 (1000 classes), where 8
    were up to 0.7 % off. On ResNet-56 (10 classes) 16 were up to 2 % off.

    Args:
        graph: the network.
        samples: those held back.
        least: how many are run in any case.
    """
    few = samples.select(slice(2))
    stream = Stream(graph, graph.parameters, few.inputs())
    with torch.no_grad():
        stream.advance(len(graph.ops))
    output = torch.as_tensor(stream.values[graph.outputs[0]])
    values = output.numel() // len(few)
    enough = next((count for many, count in ENOUGH.items() if values >= many), len(samples))
    return samples.select(slice(None, None, max(1, len(samples) // max(enough, least))))


def completed(found: Sequence[float | None], dense: Sequence[float]) -> list[float]:
    """Errors at all levels.

    Args:
        found: some; None where none was looked for: there it is to the dense layer's as it is at
            the nearest level at which it was.
        dense: the dense layer's.
    """
    ratios = {at: of / max(dense[at], 1e-30) for at, of in enumerate(found) if of is not None}
    return [
        error * ratios[min(ratios, key=lambda of: (abs(of - at), of))]
        for at, error in enumerate(dense)
    ]


def split_samples(samples: Samples, judging: int) -> tuple[Samples, Samples]:
    """Samples to fit to, and, evenly spread among them, those to judge on."""
    count = min(judging, len(samples) // 4)
    if count == 0:
        return samples, samples
    chosen = torch.zeros(len(samples), dtype=torch.bool)
    chosen[torch.linspace(0, len(samples) - 1, count).round().long()] = True
    chosen = chosen.to(samples.device)
    return samples.select(~chosen), samples.select(chosen)


def _smallest(inputs: AllocationInputs, share: float) -> set[int]:
    """The layers that cost least, together at most a share of the cost of all."""
    cost_per_unit = torch.tensor(inputs.cost_per_unit, dtype=torch.float64)
    costs = cost_per_unit * torch.tensor(inputs.present)
    shares = costs / costs.sum().clamp_min(torch.finfo(costs.dtype).tiny)
    order = torch.argsort(shares, stable=True)
    return {int(index) for index in order[shares[order].cumsum(0) <= share]}


def _kept(present: int, level: float, block: int) -> int:
    """Weights left at a level: whole blocks, one at least."""
    return min(present, max(block, (present - round(present * level)) // block * block))
