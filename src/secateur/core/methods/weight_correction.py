"""Weight correction: restores the mean and standard deviation of each channel's weights."""

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
    """Scales and shifts each row's kept weights to the dense row's mean and standard deviation.

        factor = std(dense row) / (std(sparse row, zeros included) + 1e-9)
        row   <- mask * (factor * sparse row + mean(dense row) - mean(factor * sparse row))

    Choose it only if there are no images at all; methods fitted to images are better. The shift is
    masked too, as in the paper's code, so the mean is restored only in part.
    Source: arXiv 2104.15023, section 3.2 (weight correction), and its release in OpenVINO POT.

    Attributes:
        base: the method whose weights are corrected.
    """

    name: ClassVar[str] = "weight-correction"
    summary: ClassVar[str] = (
        "The remaining weights of each layer were scaled and shifted towards the mean and standard "
        "deviation that the weights of each output had."
    )

    base: Method = field(default_factory=Magnitude)

    def __post_init__(self) -> None:
        check_settings(self)

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: a few passes over the weights; no statistics are used."""
        previous = self.base.solve(problem, pattern, kept)
        dense, sparse = problem.weight, previous.weight
        dense_std, sparse_std = (w.std(-1, correction=0, keepdim=True) for w in (dense, sparse))
        scaled = sparse * (dense_std / (sparse_std + _TINY))
        shift = dense.mean(-1, keepdim=True) - scaled.mean(-1, keepdim=True)
        weight = (scaled + shift) * previous.mask
        return previous.refined(weight, previous.bias)
