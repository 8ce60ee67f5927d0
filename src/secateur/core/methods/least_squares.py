"""Least squares on a fixed mask: removes the smallest weights and fits the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.damping import damping_for
from secateur.core.normal_equations import NormalEquations
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution
from secateur.support.settings import at_least, between, check_settings


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """Keeps the largest `abs(w)` (BatchNorm folded in) and fits them to the dense outputs.

    Choose it if the mask has to follow magnitudes, or to measure the effect of fitting alone.
    `ADMM` also chooses the mask, and keeps more accuracy at nearly every sparsity measured.

    Minimises, over W with the mask's support and all rows at once,
        <W G, W> - 2 <W, C> + damping * mean(diag G) * ||W - W_dense||^2

    Attributes:
        damping: relative damping; larger if there are fewer samples than columns.
        tolerance: relative residual at which conjugate gradients stop.
        iterations: largest number of their iterations.
    """

    name: ClassVar[str] = "least-squares"
    summary: ClassVar[str] = (
        "In each layer the smallest weights were removed, and least squares fitted the others to "
        "the layer's outputs in the dense network."
    )

    damping: float = 1e-2
    tolerance: float = 1e-4
    iterations: int = 200

    def __post_init__(self) -> None:
        check_settings(self, damping=at_least(0), tolerance=between(0, 1), iterations=at_least(1))

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: one product of rows x cols x cols per conjugate-gradient iteration."""
        mask = problem.mask(pattern, problem.weight.abs(), kept)
        damping, notes = damping_for(problem, self.damping)
        system = NormalEquations.of(problem, damping)
        weight, fit_notes = system.fit(
            problem.weight, mask, tolerance=self.tolerance, iterations=self.iterations
        )
        bias = problem.bias(weight)
        return Solution(
            weight=weight, mask=mask, bias=bias, damping=damping, notes=notes + fit_notes
        )
