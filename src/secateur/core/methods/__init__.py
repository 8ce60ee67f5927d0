"""Methods choose the weights of a layer to remove, and fit the others. One method per file.

A method is a frozen keyword-only dataclass (its fields are its settings) with

    solve(problem, pattern, kept) -> Solution

tensors in, tensors out, a `name`, and a `summary` for reports. To add one: write its file and add
it to `METHODS`; the conformance suite (`tests/test_methods.py`) runs it. A method that refines
another's solution takes that method as `base`:
`BiasCorrection(base=WeightCorrection(base=Magnitude()))`.
"""

from __future__ import annotations

from typing import Literal

from secateur.core.methods.adam_calibration import AdamCalibration
from secateur.core.methods.admm import ADMM
from secateur.core.methods.bias_correction import BiasCorrection
from secateur.core.methods.least_squares import LeastSquares
from secateur.core.methods.magnitude import Magnitude
from secateur.core.methods.protocol import (
    Method,
    needs_folds,
    rough,
    stages,
    stored_patches,
    without_folds,
)
from secateur.core.methods.weight_correction import WeightCorrection
from secateur.support.choices import by_name

__all__ = [
    "ADMM",
    "METHODS",
    "AdamCalibration",
    "BiasCorrection",
    "LeastSquares",
    "Magnitude",
    "Method",
    "MethodName",
    "WeightCorrection",
    "needs_folds",
    "rough",
    "stages",
    "stored_patches",
    "without_folds",
]

MethodName = Literal[
    "admm",
    "least-squares",
    "magnitude",
    "weight-correction",
    "bias-correction",
    "adam-calibration",
]
METHODS = by_name(ADMM, LeastSquares, Magnitude, WeightCorrection, BiasCorrection, AdamCalibration)
