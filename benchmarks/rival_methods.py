"""Published one-shot methods for transformers, written as methods of Secateur's own framework.

They see the same sums as Secateur's methods, of the same sentences and positions: those over the
layer's inputs in the pruned network, as published. Both give each layer the same sparsity
(`secateur.Uniform`), and neither changes a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

import secateur
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution
from secateur.pruning.allocations import AllocationInputs
from secateur.pruning.allocations.protocol import Budget, Curve


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """Keeps, in each row, the entries with the largest |w_ij| * ||x_j||, unchanged.

    Source: Sun et al., "A simple and effective pruning approach for large language models", 2023
    (arXiv 2306.11695), section 3.
    """

    name: ClassVar[str] = "wanda"

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """One top-k a row, whatever the pattern is; rows differ by one weight at most."""
        norms = _second_moments(problem).diagonal(dim1=-2, dim2=-1).sqrt()
        order = (problem.weight.abs() * norms.unsqueeze(-2)).argsort(-1, descending=True)
        groups, rows, cols = problem.weight.shape
        each = _parts(kept, [cols] * (groups * rows))
        rank = order.argsort(-1)
        mask = rank < torch.tensor(each).view(groups, rows, 1)
        return Solution(weight=problem.weight * mask, mask=mask)


@dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """Removes weights column by column, and lets the columns behind make up for each.

    With H = X X^T + damping * mean(diag) * I and U the upper Cholesky factor of H^-1, a weight
    of column j is worth w^2 / U_jj^2. Masks are chosen for `block` columns at a time, of all rows
    together, when their turn comes. An entry that goes changes those behind it in its row by
    -w / U_jj * U_j,(j+1..).
    Source: Frantar and Alistarh, "SparseGPT: Massive language models can be accurately pruned in
    one-shot", 2023 (arXiv 2301.00774), algorithm 1, with the settings of its release.

    Attributes:
        block: columns of which a mask is chosen at once.
        damping: relative to the mean of the diagonal.
    """

    name: ClassVar[str] = "sparsegpt"

    block: int = 128
    damping: float = 0.01

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """One Cholesky factor and its inverse (cols^3), and rows * cols^2; any pattern."""
        weight, mask = problem.weight.double().clone(), torch.ones_like(problem.weight).bool()
        bounds = list(range(0, problem.columns, self.block))
        widths = [min(self.block, problem.columns - at) for at in bounds]
        factors = self._factors(_second_moments(problem).double())
        shares = _parts(kept, [width * weight[..., 0].numel() for width in widths])
        for at, width, share in zip(bounds, widths, shares, strict=True):
            columns = slice(at, at + width)
            worth = weight[..., columns] / factors.diagonal(dim1=-2, dim2=-1)[:, None, columns]
            mask[..., columns] = secateur.Unstructured().mask(worth.square(), share)
            for column in range(at, at + width):
                row = factors[:, column, column:]
                error = torch.where(mask[..., column], 0.0, weight[..., column]) / row[:, :1]
                weight[..., column:] -= error.unsqueeze(-1) * row.unsqueeze(1)
        return Solution(weight=weight.to(problem.weight) * mask, mask=mask, damping=self.damping)

    def _factors(self, moments: Float[Tensor, "groups cols cols"]) -> Tensor:
        """Upper factors U of the inverses: H^-1 = U^T U."""
        diagonal = moments.diagonal(dim1=-2, dim2=-1)
        diagonal += self.damping * diagonal.mean(-1, keepdim=True)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        return torch.linalg.cholesky(inverse, upper=True)


def _second_moments(problem: Problem) -> Tensor:
    """Mean of x x^T about zero: the problem's is about the mean where it fits a bias."""
    return problem.gram + problem.input_mean.unsqueeze(-1) * problem.input_mean.unsqueeze(-2)


def _parts(kept: int, sizes: Sequence[int]) -> list[int]:
    """A number of weights divided by the sizes of parts, to the nearest, and exactly in sum."""
    ends = torch.tensor([0, *sizes], dtype=torch.float64).cumsum(0)
    return [int(count) for count in (ends / ends[-1] * kept).round().diff()]


@dataclass(frozen=True)
class GlobalMagnitude:
    """One threshold on |w| for the whole network, as Han et al. have it ("global magnitude")."""

    name: ClassVar[str] = "global-magnitude"

    def fit(self, inputs: AllocationInputs) -> FittedGlobal:
        return FittedGlobal([weight.flatten() for weight in inputs.folded])


@dataclass(frozen=True)
class FittedGlobal:
    """Weights by layer, with a folded BatchNorm's scale in them."""

    weights: Sequence[Tensor]
    curves: Sequence[Curve] = ()

    def kept(self, budget: Budget) -> list[int]:
        everything = torch.cat([weight.abs() for weight in self.weights])
        owner = torch.cat([torch.full_like(of, at) for at, of in enumerate(self.weights)])
        chosen = owner[everything.topk(round(budget.allowed), sorted=False).indices].long()
        return chosen.bincount(minlength=len(self.weights)).tolist()

    def loss_increase(self, kept: Sequence[int]) -> list[Any]:
        return []
