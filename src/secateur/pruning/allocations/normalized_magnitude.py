"""One threshold for the whole network, as the paper has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from secateur.pruning.allocations.protocol import AllocationInputs, Budget, Curve


@dataclass(frozen=True)
class NormalizedMagnitude:
    """One threshold for the whole network on `abs(w) / norm(w)` of each layer.

    A layer with few weights, or with its energy in few of them, keeps more of them.
    Source: arXiv 2104.15023, section 3.1 (global threshold on normalised magnitudes).
    """

    name: ClassVar[str] = "normalized-magnitude"
    summary: ClassVar[str] = "How many zeros each layer gets follows from the size of its weights."

    def fit(self, inputs: AllocationInputs) -> FittedMagnitude:
        """Cost: one pass over the weights; no images."""
        pairs = zip(inputs.folded, inputs.free, strict=True)
        return FittedMagnitude([weight[free] for weight, free in pairs])


@dataclass(frozen=True)
class FittedMagnitude:
    """Divides a budget by a threshold on normalised magnitudes.

    Attributes:
        weights: those of each layer that may stay: none that is zero in the dense network.
    """

    weights: Sequence[Tensor]
    curves: Sequence[Curve] = ()

    def kept(self, budget: Budget) -> list[int]:
        """Cost: a top-k over all weights, or a sort where weights do not cost alike."""
        scores = [_normalized(weight) for weight in self.weights]
        sizes = torch.tensor([len(score) for score in scores])
        owner = torch.repeat_interleave(torch.arange(len(scores)), sizes)
        if budget.costs is None:
            count = min(int(sizes.sum()), round(budget.allowed))
            chosen = torch.topk(torch.cat(scores), count, sorted=False).indices
        else:
            order = torch.argsort(torch.cat(scores), descending=True, stable=True)
            cost_per_unit = torch.tensor(budget.cost_per_unit(len(scores)), dtype=torch.float64)
            chosen = order[cost_per_unit[owner[order]].cumsum(0) <= budget.allowed * (1 + 1e-12)]
        return [int(count) for count in torch.bincount(owner[chosen], minlength=len(scores))]

    def loss_increase(self, kept: Sequence[int]) -> list[float]:
        """Nothing is known."""
        return []


def _normalized(weight: Tensor) -> Float[Tensor, " weights"]:
    flat = weight.detach().flatten().abs().float().cpu()
    return F.normalize(flat, dim=0, eps=torch.finfo(flat.dtype).tiny)
