"""How many zeros in each layer? Scores in, kept weights per layer out, the total exact.

An allocation is a frozen dataclass with

    kept(weights, sparsity) -> list of int

where `weights` are the layers' weight matrices with a following BatchNorm folded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Sequence[Tensor]  # each (groups, rows, cols), of different sizes


@runtime_checkable
class Allocation(Protocol):
    """What `secateur.prune` asks of an allocation."""

    def kept(self, weights: Weights, sparsity: float) -> list[int]:
        """Weights to keep in each layer; they sum to `total_kept` of all weights."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The same sparsity in every layer."""

    def kept(self, weights: Weights, sparsity: float) -> list[int]:
        """Rounds by largest remainder, so that the sum is exact and each layer within one."""
        sizes = torch.tensor([weight.numel() for weight in weights], dtype=torch.float64)
        exact = sizes * (1 - sparsity)
        kept = exact.floor()
        missing = total_kept(int(sizes.sum()), sparsity) - int(kept.sum())
        kept[torch.argsort(kept - exact, stable=True)[:missing]] += 1
        return [int(count) for count in kept]


@dataclass(frozen=True)
class NormalizedMagnitude:
    """One threshold for the whole network on |w| / ||w||_2 of each layer.

    A layer with few weights, or with its energy in few of them, keeps more of them.
    Source: arXiv 2104.15023, section 3.1 (global threshold on normalised magnitudes).
    """

    def kept(self, weights: Weights, sparsity: float) -> list[int]:
        """Cost: one top-k over all weights."""
        scores = [_normalized(weight) for weight in weights]
        sizes = torch.tensor([len(score) for score in scores])
        owner = torch.repeat_interleave(torch.arange(len(scores)), sizes)
        count = total_kept(int(sizes.sum()), sparsity)
        chosen = torch.topk(torch.cat(scores), count, sorted=False).indices
        return torch.bincount(owner[chosen], minlength=len(scores)).tolist()


def _normalized(weight: Tensor) -> Float[Tensor, " weights"]:
    flat = weight.detach().flatten().abs().float().cpu()
    return flat / flat.norm().clamp_min(torch.finfo(flat.dtype).tiny)


def total_kept(weights: int, sparsity: float) -> int:
    """How many of `weights` weights stay non-zero at a sparsity in [0, 1)."""
    return weights - round(weights * sparsity)


ALLOCATIONS = {"uniform": Uniform, "normalized-magnitude": NormalizedMagnitude}
