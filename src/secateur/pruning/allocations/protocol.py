"""What an allocation is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from secateur.core.patterns import Pattern, Unstructured
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.sample_layout import Layouts
from secateur.network.samples import Samples
from secateur.pruning.execution import Execution
from secateur.pruning.layer_fit import Survey, folded_weight
from secateur.pruning.sampling import Sampling
from secateur.support.serialization import demand


@dataclass(frozen=True, kw_only=True)
class AllocationInputs:
    """What an allocation may look at.

    Attributes:
        graph: the dense network.
        samples: calibration inputs.
        layers: the layers to prune, in execution order.
        weights: weights by parameter name that stand for the dense ones (of the walk before).
        previous: what was found out about the dense network, where `weights` are given, or in
            another pattern.
        costs: what one kept weight costs in each layer; None = 1 each.
        pattern: which zeros are allowed.
        sampling, layouts, chunk: as in `secateur.pruning.walk`.
        on_layer: called with a layer's name when an allocation that takes long is done with it.
        execution: its journal has what was found out before, and is told of what is; its processes
            share the samples and the layers.
    """

    graph: Graph
    samples: Samples
    layers: Sequence[Layer]
    weights: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    previous: FittedAllocation | None = None
    costs: Sequence[float] | None = None
    pattern: Pattern = field(default_factory=Unstructured)
    sampling: Sampling = field(default_factory=Sampling)
    layouts: Layouts | None = None
    chunk: int = 32
    on_layer: Callable[[str], Any] = lambda name: None
    execution: Execution = field(default_factory=Execution)

    @cached_property
    def free(self) -> list[Tensor]:
        """By layer, where the dense network's weight matrix is not zero: what may be kept."""
        return [folded_weight(self.graph, layer) != 0 for layer in self.layers]

    @cached_property
    def present(self) -> list[int]:
        """Weights of the layers that are not zero in the dense network."""
        return [int(free.sum()) for free in self.free]

    @property
    def cost_per_unit(self) -> list[float]:
        """The costs, one for each layer."""
        return Budget(0, self.costs).cost_per_unit(len(self.layers))

    @cached_property
    def folded(self) -> list[Tensor]:
        """The layers' weight matrices with a following BatchNorm's scale in their rows."""
        return [folded_weight(self.graph, layer, self.weights) for layer in self.layers]


@dataclass(frozen=True)
class Budget:
    """What the kept weights may cost in sum.

    Attributes:
        allowed: their cost at most.
        costs: cost of one kept weight in each layer; None = 1 each, which makes `allowed` the
            number of kept weights, and the division exact.
    """

    allowed: float
    costs: Sequence[float] | None = None

    @classmethod
    def of_sparsity(cls, sizes: Sequence[int], sparsity: float) -> Budget:
        """As many weights as a sparsity in [0, 1) leaves."""
        return cls(total_kept(sum(sizes), sparsity))

    def cost_per_unit(self, layers: int) -> list[float]:
        """The costs, one for each layer."""
        return [1.0] * layers if self.costs is None else list(self.costs)


@dataclass(frozen=True)
class Curve:
    """Increase of the network's output error when one layer alone is pruned.

    Attributes:
        sparsities: of the layer's weights that are not zero in the dense network, rising.
        loss_increase: at each of them, never falling: the outputs' mean squared error relative to
            their variance (of scores, less the mean of each image's, which a softmax does not
            see).
        measured: False where it was estimated from the layer's own output error.
    """

    sparsities: tuple[float, ...]
    loss_increase: tuple[float, ...]
    measured: bool = True

    def __post_init__(self) -> None:
        demand(bool(self.sparsities), "sparsities is empty")
        demand(
            len(self.sparsities) == len(self.loss_increase), "loss_increase is of another length"
        )


class FittedAllocation(Protocol):
    """An allocation that has looked at a network: it divides any budget."""

    @property
    def curves(self) -> Sequence[Curve]:
        """One per layer, where the allocation knows such; else empty."""
        ...

    def kept(self, budget: Budget) -> list[int]:
        """Weights to keep in each layer: the most that the budget allows, and that are there."""
        ...

    def loss_increase(self, kept: Sequence[int]) -> list[float]:
        """What the curves expect of each layer at such numbers; empty where there are none."""
        ...


@runtime_checkable
class Allocation(Protocol):
    """What `secateur.prune` asks of an allocation."""

    def fit(self, inputs: AllocationInputs) -> FittedAllocation:
        """Looks at the network and the images, once."""
        ...


@runtime_checkable
class SurveyingAllocation(Allocation, Protocol):
    """An allocation that learns from a walk what it needs for the next one, not by a pass more."""

    def survey(self, fitted: FittedAllocation, pattern: Pattern) -> Survey | None:
        """What the walk is to find out about the layers; None = it is to be fitted anew."""
        ...

    def surveyed(
        self, fitted: FittedAllocation, errors: Sequence[Sequence[float | None]]
    ) -> FittedAllocation:
        """What it is after the walk.

        Args:
            fitted: to the dense network.
            errors: of each layer at each level of the survey, see `LayerResult.level_errors`.
        """
        ...


def total_kept(weights: int, sparsity: float) -> int:
    """How many of `weights` weights stay non-zero at a sparsity in [0, 1)."""
    return weights - round(weights * sparsity)


def remove_in_order(
    sizes: Sequence[int], budget: Budget, steps: Sequence[tuple[int, int]]
) -> list[int]:
    """Weights left when steps (layer, how many weights) are taken until the budget is met.

    The last step is taken in part: as far as it has to be.
    """
    kept, cost_per_unit = list(sizes), budget.cost_per_unit(len(sizes))
    excess = (
        math.fsum(n * cost for n, cost in zip(sizes, cost_per_unit, strict=True)) - budget.allowed
    )
    for layer, count in steps:
        if excess <= 1e-9 * max(1.0, budget.allowed):
            break
        cost = cost_per_unit[layer]
        if cost <= 0:
            continue
        taken = min(count, kept[layer], math.ceil(excess / cost - 1e-9))
        kept[layer] -= taken
        excess -= taken * cost
    return kept
