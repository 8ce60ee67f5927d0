"""A recipe carried out on a graph where whole channels leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from secateur.core.patterns import Channels
from secateur.errors import OptionError
from secateur.network.couplings import Removed, find_couplings
from secateur.network.graph import Graph
from secateur.pruning.alignment import Alignment
from secateur.pruning.allocations import Curve, Sensitivity
from secateur.pruning.channels.allocation import allocate, expected_losses, most_removed
from secateur.pruning.channels.costs import WidthCost, bytes_cost, macs_cost, weights_cost
from secateur.pruning.channels.curves import ChannelSensitivity, ChannelStudy
from secateur.pruning.channels.space import ChannelSpace, find_space, removed_units
from secateur.pruning.channels.walk import channel_walk
from secateur.pruning.groups import ChannelGroup
from secateur.pruning.recipe import GRADUAL
from secateur.pruning.run import Changes, PruningRun
from secateur.pruning.search import PredictedLoss
from secateur.pruning.targets import MaxBytes, MaxDrop, MaxLatency, MaxMacs, Sparsity, Target
from secateur.pruning.walk import LayerResult, WalkResult
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class FittedChannels:
    """What is known of the couplings, in the form of an allocation.

    Attributes:
        space: the couplings.
        study: what removing each alone does.
        multiple: of which the width left is one.
    """

    space: ChannelSpace
    study: ChannelStudy
    multiple: int

    @property
    def curves(self) -> Sequence[Curve]:
        """One for each coupling."""
        return self.study.curves

    def removed(self, cost: WidthCost, allowed: float) -> list[int]:
        """Units of each coupling to remove, so that a cost is met."""
        return allocate(self.space.removable, self.curves, cost, allowed, multiple=self.multiple)

    def loss_increase(self, removed: Sequence[int]) -> list[float]:
        """What the curves expect of each coupling."""
        return expected_losses(self.space.removable, self.curves, removed)


@dataclass(frozen=True, kw_only=True)
class ChannelRun(PruningRun):
    """What a recipe with the pattern `Channels` is carried out on; see `PruningRun`.

    Its `layers` are those that are fitted. The counts that a walk has (`WalkResult.kept`) are
    channels of each coupling that are gone.

    Attributes:
        space: what can leave.
        prices: what the network costs at given widths, by the name of the target.
        time_share: share of the dense network's time, by the table of times, at which the whole
            network takes what is asked for; None = the table is right.
        known: what was found of the couplings before; None = they are looked at when needed.
    """

    space: ChannelSpace
    prices: Mapping[str, WidthCost]
    sensitivity: ChannelSensitivity = field(default_factory=ChannelSensitivity)
    time_share: float | None = None
    known: FittedChannels | None = None

    @property
    def measured(self) -> int:
        """See `PruningRun.measured`."""
        return len(self.layers)

    @property
    def visits(self) -> int:
        """See `PruningRun.visits`."""
        walks = 2 if self.reconstructs(self.target) else 1
        tries = 6 if isinstance(self.target, MaxDrop) else 1
        return (1 + tries * walks) * len(self.layers)

    @property
    def multiple(self) -> int:
        """Of which the number of channels left is one."""
        pattern = self.recipe.pattern
        return pattern.multiple if isinstance(pattern, Channels) else 1

    @cached_property
    def fitted_channels(self) -> FittedChannels:
        """The couplings, looked at in the dense network."""
        if self.known is not None:
            return self.known
        study = self.sensitivity.study(
            self.graph,
            self.samples,
            self.space,
            sampling=self.sampling,
            layouts=self.layouts,
            chunk=self.chunk,
            on_layer=self.on_layer,
            execution=self.execution,
        )
        return FittedChannels(space=self.space, study=study, multiple=self.multiple)

    def measure(self) -> None:
        """See `PruningRun.measure`."""
        _ = self.fitted_channels

    def check_target(self) -> None:
        """See `PruningRun.check_target`."""
        if isinstance(self.target, MaxDrop) or self.target.name not in self.prices:
            return  # which prices come later
        cost, allowed = self.budget(self.target)
        least = cost.at(most_removed(self.space.removable, self.multiple))
        if least > allowed:
            stuck = counted(len(self.space.stuck), "group")
            raise OptionError(
                f"{self.target.name} is {self.target.value:g}, but with as few channels as can be "
                f"{least / cost.dense:.3f} of the dense network's is left, expected "
                f"{self._reachable(least / cost.dense)}: {stuck} of channels cannot leave "
                "(secateur inspect --verbose tells why)"
            )

    @property
    def largest_sparsity(self) -> float:
        """See `PruningRun.largest_sparsity`."""
        cost = self.prices[Sparsity.name]
        return 1 - cost.at(most_removed(self.space.removable, self.multiple)) / cost.dense

    def shortfall(self) -> list[str]:
        """Nothing: a target that cannot be met is refused."""
        return []

    def _reachable(self, least: float) -> str:
        if isinstance(self.target, Sparsity):
            return f"at most {1 - least:.3f}"
        return f"at least {least:.3f}"

    def budget(self, target: Target) -> tuple[WidthCost, float]:
        """The cost that a target is about, and what is allowed of it."""
        cost = self.prices[target.name]
        share = 1 - target.value if isinstance(target, Sparsity) else target.value
        if isinstance(target, MaxLatency) and self.time_share is not None:
            share = self.time_share
        return cost, share * cost.dense

    def counts(self, target: Target) -> list[int]:
        """Units of each coupling to remove."""
        return self.fitted_channels.removed(*self.budget(target))

    def prune_to(self, target: Target) -> WalkResult:
        """See `PruningRun.prune_to`. In one walk, whatever the recipe's schedule.

        A walk on the way gained nothing on EfficientNet-Lite0 at 70 % of the multiply-accumulates
        (KL 0.1965 with one at 82 %, 0.1978 without), and costs as much again.
        """
        walked = replace(self.walk_to(self.counts(target)), target=target)
        if self.reconstructs(target):
            walked = self._reconstructed(walked)
        return self._unfold(replace(walked, notes=[*self.ignored, *self.left_out(target)]))

    @property
    def ignored(self) -> list[str]:
        """Notes on settings of the recipe that are for single weights only."""
        recipe, gradual = self.recipe, self.recipe.schedule != GRADUAL["schedule"]
        name = type(recipe.allocation).__name__
        notes = {
            f"the recipe's allocation ({name}) is for single weights: how many channels leave was "
            "told by curves of their own": recipe.allocation != Sensitivity(),
            f"the recipe's schedule {list(recipe.schedule)} is for single weights: channels leave "
            "in one walk": len(recipe.schedule) > 1 and (gradual or not recipe.schedule_from),
        }
        return [note for note, holds in notes.items() if holds]

    def left_out(self, target: Target) -> list[str]:
        """A note where blocks should be trained and cannot be."""
        if not self.asks_for_reconstruction(target) or self.reconstructs(target):
            return []
        return [f"no block reconstruction: {self.cannot_reconstruct}"]

    def summary(self, *, reconstructed: bool) -> list[str]:
        """See `PruningRun.summary`."""
        return self.recipe.summary(reconstructed=reconstructed, allocation=self.sensitivity)

    def removed_at(self, counts: Sequence[int]) -> Removed:
        """Which units those are by what the dense network shows, before the walk chooses."""
        orders = zip(self.fitted_channels.study.orders, counts, strict=True)
        return removed_units(self.space, [list(order[:count]) for order, count in orders])

    def walk_to(self, counts: Sequence[int]) -> WalkResult:
        """One walk that removes so many units of each coupling."""
        walked, gone = channel_walk(
            self.graph,
            self.samples,
            self.space,
            counts,
            self.fitted_channels.study,
            method=self.recipe.method,
            damping=self.sensitivity.damping,
            inputs=self.recipe.inputs,
            sampling=self.sampling,
            layouts=self.layouts,
            chunk=self.chunk,
            on_layer=self.on_layer,
            execution=self.execution,
        )
        return replace(walked, kept=list(counts), removed=removed_units(self.space, gone))

    def asks_for_reconstruction(self, target: Target) -> bool:
        """Always where the recipe has one: it pays from the first channels that leave."""
        return self.recipe.reconstruction is not None

    @property
    def reconstructed_from(self) -> float:
        """See `PruningRun.reconstructed_from`: all tries of a search are alike."""
        return 1.0

    def departures(self, walked: WalkResult, kept: Sequence[int]) -> list[str]:
        """Warnings where the network costs more than was asked for."""
        target = walked.target
        cost, allowed = self.budget(target)
        removed = np.array([len(units) for units in self.removed_by(walked)])
        spent = cost.at(removed)
        if spent <= allowed * (1 + 1e-6):
            return []
        asked = f"{target.value:g} asks for"
        if isinstance(target, MaxLatency) and self.time_share is not None:
            of_whole = f"{target.value:g} of the whole network's time"
            asked = f"the {self.time_share:.4f} of the layers' time that {of_whole} comes to"
        return [
            f"{spent / cost.dense:.4f} of the dense network's is left by the measure of "
            f"{target.name}, more than {asked}: no more channels can leave"
        ]

    @cached_property
    def touched(self) -> frozenset[str]:
        """Weights of the layers that make or read channels that can leave, and are fitted."""
        parts = {part.parameter for of in self.space.removable for part in of.coupling.slices}
        return frozenset(parts & {str(layer.parameter) for layer in self.layers})

    @property
    def curves(self) -> Sequence[Curve]:
        """What removing each coupling alone does."""
        return self.fitted_channels.curves

    def predicted_loss(self) -> PredictedLoss:
        """See `PruningRun.predicted_loss`."""
        known = self.fitted_channels
        return PredictedLoss.of(
            lambda sparsity: sum(known.loss_increase(self.counts(Sparsity(sparsity))))
        )

    def outcomes(
        self, walked: WalkResult, then: WalkResult | None = None
    ) -> list[tuple[LayerResult, Curve | None]]:
        """The layers that lost channels, or have been given zeros then."""
        lost = [of for of in walked.results if of.layer.parameter in self.touched]
        names = {of.layer.name for of in lost}
        others = () if then is None else then.results
        return [(of, None) for of in [*lost, *(of for of in others if of.layer.name not in names)]]

    def groups(self, walked: WalkResult) -> list[ChannelGroup]:
        """The couplings, those that can leave first."""
        removed = zip(self.space.removable, self.removed_by(walked), self.curves, strict=True)
        groups = [
            ChannelGroup(
                name=of.name, channels=of.units, left=of.units - len(units), sensitivity=curve
            )
            for of, units, curve in removed
        ]
        return groups + [
            ChannelGroup(name=of.name, channels=of.units, left=of.units, reason=of.reason)
            for of in self.space.stuck
        ]

    def removed_by(self, walked: WalkResult) -> list[Sequence[int]]:
        """The units of each coupling that are gone."""
        units = {id(coupling): units for coupling, units in walked.removed}
        return [units.get(id(of.coupling), ()) for of in self.space.removable]

    def account(
        self, walked: WalkResult, target: Target, original: Graph, aligned: Alignment
    ) -> dict[str, Changes]:
        """Nothing: the networks on the way have other shapes."""
        return {}


def channel_run(
    run: PruningRun,
    original: Graph,
    excluded: Collection[str],
    included: Collection[str] | None,
    tensors: Mapping[str, Tensor],
) -> ChannelRun:
    """The same run with channels that leave.

    Args:
        run: with the layers to fit.
        original: the network as it was traced.
        excluded: weights of layers that stay as they are.
        included: weights of layers whose channels may leave; None = all.
        tensors: that a file of the network holds.
    """
    space = find_space(
        find_couplings(original),
        run.layers,
        sampling=run.sampling,
        excluded=excluded,
        included=included,
    )
    if not space.removable:
        reasons = "; ".join(dict.fromkeys(f"{of.name}: {of.reason}" for of in space.stuck[:3]))
        raise OptionError(
            f"no channel of the network can leave ({reasons}), expected one that can: prune single "
            "weights with pattern='unstructured'"
        )
    every = original.layers
    return ChannelRun(
        **{name: getattr(run, name) for name in PruningRun.__dataclass_fields__},
        space=space,
        prices={
            Sparsity.name: weights_cost(run.layers, space.removable),
            MaxMacs.name: macs_cost(every, space.removable),
            MaxBytes.name: bytes_cost(tensors, space.removable),
        },
    )
