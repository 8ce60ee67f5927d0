"""A recipe carried out on a graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from secateur.core.methods import Magnitude, rough
from secateur.core.patterns import UnitPattern
from secateur.errors import OptionError
from secateur.network.folding import Folding
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.sample_layout import Layouts, find_layouts
from secateur.network.samples import Samples
from secateur.pruning.allocations import (
    AllocationInputs,
    Curve,
    FittedAllocation,
    SurveyingAllocation,
)
from secateur.pruning.allocations.uniform import FittedUniform
from secateur.pruning.allocations.units import block_of
from secateur.pruning.execution import Execution
from secateur.pruning.groups import ChannelGroup
from secateur.pruning.layer_fit import Survey, is_wide
from secateur.pruning.layer_selection import in_pattern
from secateur.pruning.recalibration import Recalibration
from secateur.pruning.recipe import Recipe
from secateur.pruning.room import PatternRoom
from secateur.pruning.sampling import Sampling
from secateur.pruning.search import WALKS, PredictedLoss
from secateur.pruning.targets import Costs, MaxDrop, MaxMacs, Sparsity, Target
from secateur.pruning.walk import LayerResult, WalkResult, first_output, walk
from secateur.support.wording import counted

Changes = dict[str, Tensor]

# Of a walk on the way to another one (docs/experiments.md):
_ROUGH_SAMPLES = 128  # at most
_ROUGH_PER_COLUMN = 8  # output positions per column of a layer


def ignore(layer: str) -> None:
    """What is done with the name of a finished layer where nobody counts them."""


@dataclass(frozen=True, kw_only=True)
class PruningRun:
    """What a recipe is carried out on.

    Attributes:
        recalibration: the dense network, aligned where the recipe says so, and its BatchNorms'
            statistics on the calibration images where they are to be used.
        folding: that network with BatchNorms in the layers before them.
        samples: calibration inputs.
        layers: the layers to prune, in execution order.
        target: what is asked for.
        costs: what the network costs, for targets that are set in it.
        recipe: how.
        sampling: how many output positions are used.
        chunk: samples per run of an operation.
        on_layer: called with a layer's name whenever a layer is done, `visits` times at most.
        execution: where it keeps what is finished, in how much memory, and by which processes.
        reordered: whether channels of the network were put in another order.
        beside: what was measured of the same layers in another pattern: what the network loses is
            estimated from that and from the layers' own errors in this one; None = it is measured.
    """

    recalibration: Recalibration
    folding: Folding
    samples: Samples
    layers: Sequence[Layer]
    target: Target
    costs: Costs
    recipe: Recipe
    sampling: Sampling
    chunk: int
    on_layer: Callable[[str], Any] = ignore
    execution: Execution = field(default_factory=Execution)
    reordered: bool = False
    beside: FittedAllocation | None = None

    @cached_property
    def graph(self) -> Graph:
        """The dense network that layers are fitted in."""
        return self.folding.graph

    @cached_property
    def layouts(self) -> Layouts:
        """Which position of a layer's output belongs to which sample."""
        return find_layouts(self.graph, self.samples)

    @property
    def measured(self) -> int:
        """How often layers are visited by the allocation, each time that it is fitted."""
        visits = getattr(self.recipe.allocation, "visits", 0) if self.allocates else 0
        return visits * len(self.layers)

    @property
    def visits(self) -> int:
        """How often layers are visited at most, by the allocation and by the walks."""
        searched = isinstance(self.target, MaxDrop)
        if isinstance(self.target, Sparsity):
            schedule = self.schedule(self.target)
            steps, trained = len(schedule), sum(map(self.reconstructs, schedule))
        else:
            steps = len(self.recipe.schedule)
            trained = steps if self.reconstructed_from < 1 else 0
        walks = steps + trained
        anew = self.measured if self._surveying is None else 0
        walk = walks * len(self.layers) + (steps - 1) * anew
        return self.measured + (WALKS if searched else 1) * walk  # the first fit serves all

    def prune_to(self, target: Target) -> WalkResult:
        """Walks once per target of the schedule, each time from the weights of the walk before.

        Args:
            target: the run's own, or, where that has to be searched, a sparsity to try.
        """
        walked, weights = None, {}
        *previous, last = targets = self.schedule(target)
        for step in targets:
            fitted = self._fitted_after(walked, weights)
            kept = self.kept(fitted, step)
            walked = self._walk(
                kept, weights, on_the_way=step is not last, few=not self.reconstructs(step)
            )
            walked = replace(walked, kept=kept, target=step)
            walked = self._reconstructed(walked) if self.reconstructs(step) else walked
            names = (str(layer.parameter) for layer in self.layers)
            weights = {name: walked.changes[name] for name in names}
        assert walked is not None
        left_out = self.asks_for_reconstruction(target) and not self.reconstructs(target)
        walked = replace(
            walked,
            previous=[f"{step.name} {step.value:g}" for step in previous],
            notes=[f"no block reconstruction: {self.cannot_reconstruct}"] * left_out
            + self.zeros_before()
            + self.room.note(walked.kept, walked.target, self.costs),
        )
        return self._unfold(walked)

    def measure(self) -> None:
        """Lets the allocation look at the network, which it does once."""
        _ = self.fitted_allocation

    def check_target(self) -> None:
        """Shows what cannot be met before the allocation has looked at anything.

        Raises:
            OptionError: nothing that is pruned could meet the target; names what could.
        """
        self.room.check(self.target, self.costs, self.recipe.allocation)
        self.target.budget(self.costs)

    @cached_property
    def room(self) -> PatternRoom:
        """What the recipe's pattern allows in the layers."""
        free = (
            layer.calls[0].geometry.matrix(self.graph.parameters[str(layer.parameter)]) != 0
            for layer in self.layers
        )
        return PatternRoom.of(self.recipe.pattern, free)

    @property
    def every_layer(self) -> list[Layer]:
        """All layers of the network, with the reason where the pattern does not fit one."""
        return in_pattern(self.graph.layers, self.recipe.pattern)

    @property
    def allocates(self) -> bool:
        """Whether the allocation has anything to choose: a pattern may fix the zeros of layers."""
        return not self.room.takes_all(self.target, self.costs)

    @property
    def largest_sparsity(self) -> float:
        """What can be asked for at most."""
        least = self.room.least
        return 1 - sum(least) / sum(self.costs.sizes) if least else 1.0

    def summary(self, *, reconstructed: bool) -> list[str]:
        """What was done, in sentences for readers new to pruning."""
        return self.recipe.summary(
            reconstructed=reconstructed, reordered=self.reordered, allocates=self.allocates
        )

    def shortfall(self) -> list[str]:
        """A warning where no choice of layers could meet the target."""
        short = self.target.shortfall(self.costs) if isinstance(self.target, MaxMacs) else None
        return [short] if short else []

    def zeros_before(self) -> list[str]:
        """A note on the zeros that the network has already."""
        total = sum(self.costs.sizes)
        before = total - sum(self.present)
        if not before:
            return []
        are = "is" if before == 1 else "are"
        return [
            f"{before:,} of {counted(total, 'weight')} of the pruned layers {are} zero in the "
            "network given; zeros stay and count"
        ]

    def schedule(self, target: Target) -> list[Target]:
        """The targets to go through on the way, the given one last."""
        *before, last = self.recipe.targets(target)
        if self.room.least:
            return [last]  # less zeros are fewer layers, not an easier problem in each
        on_the_way = (step for step in before if self._is_easier(step, last))
        return [*(step for step in on_the_way if self._is_worth_a_walk(step)), last]

    def reconstructs(self, target: Target) -> bool:
        """Whether blocks are trained after the walk to a target."""
        return self.asks_for_reconstruction(target) and not self.cannot_reconstruct

    @property
    def reconstructed_from(self) -> float:
        """Sparsity from which blocks are trained; 1 = they never are."""
        never = self.recipe.reconstruction is None or self.cannot_reconstruct
        return 1.0 if never else self.recipe.reconstruction_from

    @property
    def cannot_reconstruct(self) -> str:
        """Why blocks are not trained with this network, method and images; empty if they are."""
        if isinstance(self.recipe.method, Magnitude):
            return "magnitude pruning leaves the weights that stay as they are"
        least = 0 if self.recipe.reconstruction is None else self.recipe.reconstruction.held_back
        if not self.graph.has_gradients:
            return (
                "ONNX Runtime gives no gradients; the same network as a PyTorch module would lose "
                "less"
            )
        if len(self.samples) < least:
            given = counted(len(self.samples), self.samples.noun)
            return f"{given}, expected at least {least}, of which one is held back"
        return ""

    def asks_for_reconstruction(self, target: Target) -> bool:
        """Whether the recipe trains blocks for such a target, where that is possible."""
        if self.recipe.reconstruction is None:
            return False
        return self._zeros(target) > self.recipe.reconstruction_from - 1e-9

    def _is_easier(self, step: Target, target: Target) -> bool:
        """Whether more may stay; not so where layers left dense exceed the target, not the step."""
        try:
            return step.budget(self.costs).allowed > target.budget(self.costs).allowed
        except OptionError:
            return False

    def _is_worth_a_walk(self, target: Target) -> bool:
        return self._zeros(target) > self.recipe.schedule_from - 1e-9

    def _zeros(self, target: Target) -> float:
        """Sparsity of the pruned layers that a target comes to."""
        if isinstance(target, Sparsity):
            return target.value
        return 1 - sum(self.kept(self.fitted_allocation, target)) / sum(self.costs.sizes)

    def _reconstructed(self, walked: WalkResult) -> WalkResult:
        """The surviving weights of each block trained together."""
        assert self.recipe.reconstruction is not None
        changes, result = self.recipe.reconstruction.reconstruct(
            self.graph,
            self.samples,
            self.layers,
            walked.changes,
            chunk=self.chunk,
            seed=self.sampling.seed,
            on_layer=lambda layer: self.on_layer(layer.name),
            execution=self.execution,
        )
        return replace(
            walked,
            changes=changes,
            stages=[*walked.stages[:-1], changes],
            pruned=None,
            reconstruction=result,
        )

    def _unfold(self, walked: WalkResult) -> WalkResult:
        """What was found, in the network with its own BatchNorms and their own statistics."""

        def unfold(changes: Changes) -> Changes:
            return self.recalibration.unfold(self.folding.unfold(changes))

        walked = replace(
            walked,
            changes=unfold(walked.changes),
            stages=[unfold(stage) for stage in walked.stages],
        )
        if not self.recalibration.statistics:
            return walked
        return replace(
            walked,
            dense=first_output(
                self.recalibration.original,
                self.samples,
                chunk=self.chunk,
                execution=self.execution,
            ),
            pruned=None,  # of another network: report and judge run the pruned one
        )

    @cached_property
    def fitted_allocation(self) -> FittedAllocation:
        """The allocation, fitted to the dense network."""
        return self.fit_allocation({})

    def fit_allocation(self, weights: Changes) -> FittedAllocation:
        """Fits the allocation with some weights in the place of the dense ones.

        Raises:
            NumericalError: the network's values are NaN or infinite.
        """
        return self.fit_allocation_to(self.graph, self.layers, weights)

    def fit_allocation_to(
        self, graph: Graph, layers: Sequence[Layer], weights: Changes
    ) -> FittedAllocation:
        """As `fit_allocation`, in another state of the network, as before its alignment."""
        if not self.allocates:
            return FittedUniform(self.room.present)
        inputs = AllocationInputs(
            graph=graph,
            samples=self.samples,
            layers=layers,
            weights=weights,
            previous=self.fitted_allocation if weights else self.beside,
            costs=self.target.budget(self.costs).costs,
            pattern=self.recipe.pattern,
            sampling=self.sampling,
            layouts=self.layouts if graph is self.graph else None,
            chunk=self.chunk,
            on_layer=self.on_layer,
            execution=self.execution,
        )
        return self.recipe.allocation.fit(inputs)

    @property
    def _surveying(self) -> SurveyingAllocation | None:
        """The allocation, if walks find out what it needs for the next one; else None."""
        allocation = self.recipe.allocation
        wide = any(is_wide(layer, self.sampling) for layer in self.layers)
        if wide or not (self.allocates and isinstance(allocation, SurveyingAllocation)):
            return None
        return allocation

    @property
    def _survey(self) -> Survey | None:
        """What a walk is to find out for the next one; None = the allocation is fitted anew."""
        surveying = self._surveying
        if surveying is None:
            return None
        return surveying.survey(self.fitted_allocation, self.recipe.pattern)

    def _fitted_after(self, walked: WalkResult | None, weights: Changes) -> FittedAllocation:
        """The allocation after a walk; that of the dense network before the first."""
        if walked is None:
            return self.fitted_allocation
        surveying, errors = self._surveying, [of.level_errors for of in walked.results]
        if surveying is not None and all(errors):
            return surveying.surveyed(self.fitted_allocation, errors)
        return self.fit_allocation(weights)

    def kept(self, fitted: FittedAllocation, target: Target) -> list[int]:
        """Weights to keep in each layer, none more than it has."""
        return self.room.kept(fitted, target, self.costs)

    @property
    def present(self) -> Sequence[int]:
        """Weights of each layer that are not zero in the dense network."""
        return self.room.present

    @property
    def curves(self) -> Sequence[Curve]:
        """What the allocation measured of each layer; empty = it measures nothing."""
        return self.fitted_allocation.curves

    def predicted_loss(self) -> PredictedLoss:
        """Points that the curves expect to be lost, at each sparsity."""
        if not self.curves:
            return PredictedLoss.of(None)
        fitted = self.fitted_allocation
        return PredictedLoss.of(
            lambda sparsity: sum(fitted.loss_increase(self.kept(fitted, Sparsity(sparsity))))
        )

    def outcomes(
        self, walked: WalkResult, then: WalkResult | None = None
    ) -> list[tuple[LayerResult, Curve | None]]:
        """The layers that were pruned, each with its own curve where there is one.

        Args:
            walked: what `prune_to` returned.
            then: zeros that were made in what channels have left.
        """
        return list(zip(walked.results, self.curves or [None] * len(walked.results), strict=True))

    def groups(self, walked: WalkResult) -> list[ChannelGroup]:
        """What became of channels; empty where single weights are pruned."""
        return []

    def departures(self, walked: WalkResult, kept: Sequence[int]) -> list[str]:
        """Warnings where the pruned network has other zeros than were asked for, and why.

        Args:
            walked: what `prune_to` returned.
            kept: non-zero weights of each layer in the pruned network.
        """
        total, before = sum(self.costs.sizes), sum(self.costs.sizes) - sum(self.present)
        budget, zeros = walked.target.budget(self.costs), total - sum(kept)
        cost_per_unit = budget.cost_per_unit(len(kept))
        allowed = round(budget.allowed) if budget.costs is None else budget.allowed
        asked = f"{walked.target.name} {walked.target.value:g}"
        spent = math.fsum(map(operator.mul, cost_per_unit, self.present))
        if before and spent < allowed - 1e-9 * max(1.0, allowed) and zeros == before:
            return [
                f"{before / total:.2%} of the weights of the pruned layers are zero in the network "
                f"given, more than {asked} asks for: they stay zero, and no others were added"
            ]
        block = block_of(self.recipe.pattern) if before else 1  # that may hold zeros already
        fewer = [
            layer.name
            for layer, count, planned in zip(self.layers, kept, walked.kept, strict=True)
            if not planned - block < count <= planned
        ]
        in_units = isinstance(self.recipe.pattern, UnitPattern)  # of which `room.note` tells
        exact = budget.costs is not None or in_units or sum(walked.kept) == allowed
        if not fewer and exact:
            return []
        why = "the allocation did not divide it exactly"
        if fewer:
            some = ", ".join(fewer[:3]) + (f" and {len(fewer) - 3} more" * (len(fewer) > 3))
            why = f"weights that were to stay came out as zero in {some}"
        return [
            f"{zeros / total:.4%} of the weights of the pruned layers are zero, asked for "
            f"{asked}: {why}"
        ]

    def _walk(
        self, kept: Sequence[int], weights: Changes, *, on_the_way: bool, few: bool
    ) -> WalkResult:
        """A walk from some weights; on the way to another one it need not be exact.

        Args:
            kept, weights: of each layer.
            on_the_way: whether there is another one.
            few: whether few samples do for it then; not where its blocks are trained after it.
        """
        recipe, samples, sampling = self.recipe, self.samples, self.sampling
        if on_the_way and few:
            samples = samples.spread(_ROUGH_SAMPLES)
            sampling = replace(sampling, per_column=min(sampling.per_column, _ROUGH_PER_COLUMN))
        return walk(
            self.graph,
            samples,
            self.layers,
            kept,
            method=rough(recipe.method) if on_the_way else recipe.method,
            pattern=recipe.pattern,
            inputs=recipe.inputs,
            start=self._start(kept, weights),
            survey=self._survey if on_the_way else None,
            sampling=sampling,
            layouts=self.layouts,
            chunk=self.chunk,
            on_layer=lambda result: self.on_layer(result.layer.name),
            execution=self.execution,
        )

    def _start(self, kept: Sequence[int], weights: Changes) -> Changes:
        """The weights of the walk before; with dense ones for its zeros where more are to stay.

        The allocation measures anew for each walk, and may leave a layer more than it left it
        before. A method that keeps weights as they are would keep zeros.
        """
        start = dict(weights)
        for layer, count in zip(self.layers, kept, strict=True):
            name = str(layer.parameter)
            if name in start and int(start[name].count_nonzero()) < count:
                start[name] = torch.where(
                    start[name] == 0, self.graph.parameters[name], start[name]
                )
        return start
