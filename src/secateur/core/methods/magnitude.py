"""Magnitude pruning: removes the smallest weights and keeps the others unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Keeps the largest `abs(w)` (BatchNorm folded in), unchanged, and does not change biases.

    Choose it as a baseline only: it needs no data and no time, but loses the most accuracy.
    Source: Han et al., "Learning both weights and connections", 2015.
    """

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "In each layer the smallest weights were removed."

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: one top-k of the weights."""
        mask = problem.mask(pattern, problem.weight.abs(), kept)
        return Solution(weight=problem.weight * mask, mask=mask)
