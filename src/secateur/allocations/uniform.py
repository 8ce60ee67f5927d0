"""The same sparsity in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from secateur.allocations.protocol import Budget, Curve, Subject


@dataclass(frozen=True)
class Uniform:
    """The same sparsity in every layer: the choice when layers must stay alike."""

    def measure(self, subject: Subject) -> UniformDivision:
        """Costs nothing."""
        return UniformDivision([layer.weights for layer in subject.layers])


@dataclass(frozen=True)
class UniformDivision:
    """Divides a budget by the layers' sizes."""

    sizes: Sequence[int]
    curves: Sequence[Curve] = ()

    def kept(self, budget: Budget) -> list[int]:
        """Rounds by largest remainder: no layer is off by more than one weight.

        Where weights cost alike the sum is exact; else it is within one weight a layer.
        """
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        prices = torch.tensor(budget.prices(len(sizes)), dtype=torch.float64)
        exact = sizes * min(1.0, max(0.0, budget.allowed / float((sizes * prices).sum())))
        kept = exact.floor()
        if budget.costs is None:
            missing = round(budget.allowed) - int(kept.sum())
            kept[torch.argsort(kept - exact, stable=True)[: max(0, missing)]] += 1
        return [int(count) for count in kept]

    def damage(self, kept: Sequence[int]) -> list[float]:
        """Nothing is known."""
        return []
