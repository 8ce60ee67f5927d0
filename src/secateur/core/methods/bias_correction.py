"""Bias correction: restores the mean of every output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from secateur.core.methods.magnitude import Magnitude
from secateur.core.methods.protocol import Method
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution
from secateur.support.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """Adds the change of the mean output to each bias.

        bias <- bias + mean(dense output) - mean(sparse output) = bias + mean(y) - W mean(x)

    Exact for the mean over the sampled positions, because a layer is linear ("fast" in the
    release: no second run of the layer is needed). Choose it to correct a solution whose weights
    must not change; methods that fit weights also fit the bias.
    Source: arXiv 2104.15023, section 3.2; Nagel et al., "Data-free quantization through weight
    equalization and bias correction", 2019.

    Attributes:
        base: the method whose solution is corrected.
    """

    name: ClassVar[str] = "bias-correction"
    summary: ClassVar[str] = "The biases of each layer were corrected to restore its mean outputs."

    base: Method = field(default_factory=Magnitude)

    def __post_init__(self) -> None:
        check_settings(self)

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: one product of the weights with the mean input."""
        previous = self.base.solve(problem, pattern, kept)
        return previous.refined(previous.weight, problem.bias(previous.weight))
