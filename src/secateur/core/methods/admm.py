"""ADMM: mask and weights together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.damping import CANDIDATES, choose_damping, damping_for
from secateur.core.normal_equations import NormalEquations
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution
from secateur.support.settings import at_least, between, check_settings, from_to, more_than
from secateur.support.wording import counted

_ROUGH = 1e-2  # share of the mask that may still change, and residual, on the way


@dataclass(frozen=True, kw_only=True)
class ADMM:
    """Chooses the mask by the alternating direction method of multipliers, then fits it.

    Use it unless the mask is fixed for another reason. It is the default because it keeps more
    accuracy than the other methods at nearly every sparsity measured (docs/paper.md).

    In columns scaled to unit diagonal, W is split into a dense copy and a copy Z in the pattern::

        W <- (C + rho (Z - U)) (G + rho I)^-1
        Z <- P(W + U)                    P keeps the `kept` largest entries
        U <- W + U - Z                   and U <- U * (old rho / rho) when rho grows

    rho starts small and grows every third step, faster while many entries of the mask still
    change. When the mask stops changing, conjugate gradients fit the weights on it.
    Source: Meng et al., "ALPS: Improved optimization for highly sparse one-shot pruning", 2024
    (splitting and schedule); here for all kinds of layers, with damping towards the dense weights
    and one Cholesky factor per rho instead of an eigendecomposition.

    Finally each row is scaled to the standard deviation of its dense outputs. A fit explains only
    a part of them, and the missing part accumulates from layer to layer. On EfficientNet-Lite0 at
    50 % zeros the scaling reduced the KL divergence of the outputs from 0.41 to 0.29 nats
    (docs/experiments.md).

    Attributes:
        damping: relative damping while the mask is chosen; larger if there are fewer samples
            than columns.
        dampings: relative dampings from which `choose_damping` chooses that of the fit on the
            mask; empty = `damping` for the fit too.
        max_row_gain: greatest factor by which a row is scaled; 1 = leave rows as they were fitted.
        rho: first penalty, relative to the unit diagonal.
        steps: largest number of ADMM steps.
        settled: ADMM stops when at most this fraction of the kept entries changes; 1e-3 took 12 %
            fewer steps than 0 for the same error on EfficientNet-Lite0's layers.
        tolerance: relative residual at which conjugate gradients stop.
        iterations: largest number of their iterations.
    """

    name: ClassVar[str] = "admm"
    summary: ClassVar[str] = (
        "In each layer, ADMM (an optimisation method) chose the weights to remove and fitted the "
        "others to the layer's outputs in the dense network."
    )

    damping: float = 0.3
    dampings: tuple[float, ...] = CANDIDATES
    max_row_gain: float = 2.0
    rho: float = 0.3
    steps: int = 120
    settled: float = 1e-3
    tolerance: float = 1e-3
    iterations: int = 200

    def __post_init__(self) -> None:
        check_settings(
            self,
            damping=at_least(0),
            dampings=more_than(0),
            max_row_gain=at_least(1),
            rho=more_than(0),
            steps=at_least(1),
            settled=from_to(0, 1),
            tolerance=between(0, 1),
            iterations=at_least(1),
        )

    @property
    def needs_folds(self) -> bool:
        """Whether the walk should keep two halves of the images apart."""
        return bool(self.dampings)

    @property
    def rough(self) -> ADMM:
        """For a walk on the way to another one.

        EfficientNet-Lite0 at 65 % and ResNet-56 at 80 %, ten points less first, lost as much as
        with settled masks and exact fits there (docs/experiments.md).
        """
        return replace(
            self,
            settled=max(self.settled, _ROUGH),
            tolerance=max(self.tolerance, _ROUGH),
            iterations=min(self.iterations, 50),
        )

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: a Cholesky factor or an inverse (cols^3) per third step, a solve per step."""
        damping, notes = self._damping(problem, pattern, kept)
        system = NormalEquations.of(problem, damping)
        if kept >= problem.present:
            start = problem.weight
            mask = problem.mask(pattern, start.abs(), problem.present)
        else:
            mask, start, mask_notes = self._mask(system, problem, pattern, kept)
            notes += mask_notes
        weight, fit_notes = system.fit(
            start, mask, tolerance=self.tolerance, iterations=self.iterations
        )
        weight = weight * problem.std_ratio(weight).clamp(1.0, self.max_row_gain).unsqueeze(-1)
        return Solution(
            weight=weight,
            mask=mask,
            bias=problem.bias(weight),
            damping=damping,
            notes=notes + fit_notes,
        )

    def without_folds(self, problem: Problem, pattern: Pattern, kept: int) -> Problem:
        """The same problem with the damping that its folds tell to take, which are let go.

        A wide layer's folds take as much memory as all that the splitting needs.
        """
        if not self.dampings or problem.folds is None:
            return replace(problem, folds=None)
        rms = problem.gram.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-2)
        mask = problem.mask(pattern, (problem.weight * rms).abs(), kept)  # near enough for this
        damping = choose_damping(problem, mask, self.dampings)
        return replace(problem, folds=None, damping=damping)

    def _damping(
        self, problem: Problem, pattern: Pattern, kept: int
    ) -> tuple[float, tuple[str, ...]]:
        """Relative damping of the splitting and of the fit, and what is to be said of it."""
        if not self.dampings:
            return damping_for(problem, self.damping)
        chosen = self.without_folds(problem, pattern, kept).damping
        if chosen is None:
            damping, notes = damping_for(problem, self.damping)
            why = problem.no_folds
            return damping, notes + (
                (f"damping not chosen on images held back: {why}",) * bool(why)
            )
        if problem.samples >= problem.columns:
            return chosen, ()
        few = f"{counted(problem.samples, 'sample')} for {counted(problem.columns, 'column')}"
        return chosen, (f"{few}: damping {chosen:g} found best on images held back",)

    def _mask(
        self, system: NormalEquations, problem: Problem, pattern: Pattern, kept: int
    ) -> tuple[
        Bool[Tensor, "groups rows cols"], Float[Tensor, "groups rows cols"], tuple[str, ...]
    ]:
        """Runs the splitting; returns the mask, weights to start from (unscaled) and notes."""
        notes: tuple[str, ...] = ()
        sparse = problem.weight * system.column_scale
        mask = previous = problem.mask(pattern, sparse.abs(), kept)
        sparse = sparse * mask
        dual = torch.zeros_like(sparse)
        solve, rho = system.solver(self.rho, problem.weight.shape[1])
        moved = 1.0
        if rho > self.rho:
            notes = (f"rho raised from {self.rho:g} to {rho:g}: Cholesky failed",)
        for step in range(1, self.steps + 1):
            right = (sparse - dual).mul_(rho).add_(system.cross)
            target = solve(right).add_(dual)
            mask = problem.mask(pattern, target.abs(), kept)
            sparse = target * mask
            dual = target.sub_(sparse)
            if step % 3 == 0:
                moved = int((mask ^ previous).sum()) / 2 / max(kept, 1)
                if moved <= self.settled:
                    return mask, sparse / system.column_scale, notes
                previous, old = mask, rho
                del solve  # before the next one is made
                solve, rho = system.solver(rho * _growth(moved), problem.weight.shape[1])
                dual.mul_(old / rho)  # the dual is held divided by rho
        left = f"{moved:.1%} of the mask still moving after {self.steps} ADMM steps"
        return mask, sparse / system.column_scale, (*notes, left)


def _growth(moved: float) -> float:
    """How fast rho grows, from the fraction of kept entries that changed (ALPS, section 3.2)."""
    return 1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1
