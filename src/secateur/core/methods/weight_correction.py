"""Weight correction: every output channel gets back its weights' mean and spread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from secateur.core.methods.magnitude import Magnitude
from secateur.core.methods.protocol import Method
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution
from secateur.support.settings import check_settings

_TINY = 1e-9  # the released code's guard against channels that are all zero


@dataclass(frozen=True, kw_only=True)
class WeightCorrection:
    """Scales and shifts each row's kept weights towards the dense row's mean and deviation.

        factor = std(dense row) / (std(sparse row, zeros included) + 1e-9)
        row   <- mask * (factor * sparse row + mean(dense row) - mean(factor * sparse row))

    Choose it when there are no images at all; anything fitted to images is better. The shift is
    masked too, so that the mean is met only in part: so does the paper's code.
    Source: arXiv 2104.15023, section 3.2 (weight correction), and its release in OpenVINO POT.

    Attributes:
        start: the method whose weights are corrected.
    """

    name: ClassVar[str] = "weight-correction"
    summary: ClassVar[str] = (
        "The weights left in each layer were scaled and shifted, so that each output has the "
        "mean and spread of weights that it had."
    )

    start: Method = field(default_factory=Magnitude)

    def __post_init__(self) -> None:
        check_settings(self)

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: a few passes over the weights; no statistics are used."""
        before = self.start.solve(problem, pattern, kept)
        dense, sparse = problem.weight, before.weight
        spread = [held.std(-1, correction=0, keepdim=True) for held in (dense, sparse)]
        scaled = sparse * (spread[0] / (spread[1] + _TINY))
        shift = dense.mean(-1, keepdim=True) - scaled.mean(-1, keepdim=True)
        weight = (scaled + shift) * before.mask
        return before.refined(weight, before.bias)
