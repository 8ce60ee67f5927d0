"""The same sparsity in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.pruning.allocations.protocol import AllocationInputs, Budget, Curve


@dataclass(frozen=True)
class Uniform:
    """Gives every layer the same sparsity. Choose it if layers must stay alike."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "Each layer got the same share of zeros."

    def fit(self, inputs: AllocationInputs) -> FittedUniform:
        """Costs nothing."""
        sizes = [layer.weights for layer in inputs.layers]
        return FittedUniform(sizes, present=inputs.present)


@dataclass(frozen=True)
class FittedUniform:
    """Divides a budget by the layers' sizes.

    Attributes:
        sizes: weights in each layer.
        present: those that are not zero in the dense network; None = all. A layer that has fewer
            than its share keeps what it has, and the others share the rest.
    """

    sizes: Sequence[int]
    curves: Sequence[Curve] = ()
    present: Sequence[int] | None = None

    def kept(self, budget: Budget) -> list[int]:
        """Rounds by largest remainder: no layer is off by more than one weight.

        Where weights cost alike the sum is exact; else it is within one weight a layer.
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        present = sizes if self.present is None else torch.tensor(self.present).to(sizes)
        cost_per_unit = torch.tensor(budget.cost_per_unit(len(sizes)), dtype=torch.float64)
        exact = _filled(sizes, present, cost_per_unit, budget.allowed)
        kept = exact.floor()
        if budget.costs is None:
            missing = min(round(budget.allowed), int(present.sum())) - int(kept.sum())
            order = torch.argsort(kept - exact, stable=True)
            order = order[kept[order] < present[order]]
            kept[order[: max(0, missing)]] += 1
        return [int(count) for count in kept]

    def loss_increase(self, kept: Sequence[int]) -> list[float]:
        """Nothing is known."""
        return []


def _filled(sizes: Tensor, present: Tensor, cost_per_unit: Tensor, allowed: float) -> Tensor:
    """The same share of every layer, or all that is there, at a cost of `allowed` in sum."""
    exact, full = torch.zeros_like(sizes), torch.zeros_like(sizes, dtype=torch.bool)
    for _ in sizes:
        left = allowed - float((present * cost_per_unit)[full].sum())
        cost = float((sizes * cost_per_unit)[~full].sum())
        share = min(1.0, max(0.0, left / cost)) if cost > 0 else 1.0
        exact = torch.where(full, present, sizes * share)
        if not (more := exact > present).any():
            break
        full |= more
    return torch.minimum(exact, present)
