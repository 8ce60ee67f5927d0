"""Which weights go, and what do the others become? One method per file.

A method is a frozen keyword-only dataclass (its fields are its settings) with

    solve(problem, pattern, kept) -> Solution

tensors in, tensors out. To add one: write its file, add it to `METHODS`, and the conformance
suite (`tests/test_methods.py`) runs it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from secateur.methods.admm import ADMM
from secateur.methods.least_squares import LeastSquares
from secateur.methods.magnitude import Magnitude
from secateur.patterns import Pattern
from secateur.problem import Problem, Solution

__all__ = ["ADMM", "METHODS", "LeastSquares", "Magnitude", "Method"]


@runtime_checkable
class Method(Protocol):
    """What the walk asks of a method."""

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Prunes the problem's weights to `kept` non-zeros in the pattern."""
        ...


METHODS = {"magnitude": Magnitude, "least-squares": LeastSquares, "admm": ADMM}
