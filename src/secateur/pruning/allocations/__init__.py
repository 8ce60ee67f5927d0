"""How many zeros in each layer? One allocation per file.

An allocation is a frozen dataclass (its fields are its settings) with

    fit(inputs) -> FittedAllocation
    fitted.kept(budget) -> list of int

It looks at the network once; what it returns then divides any budget. To add one: write its file,
add it to `ALLOCATIONS`, and the laws in `tests/test_allocations.py` run it.
"""

from __future__ import annotations

from typing import Literal

from secateur.pruning.allocations.normalized_magnitude import NormalizedMagnitude
from secateur.pruning.allocations.protocol import (
    Allocation,
    AllocationInputs,
    Budget,
    Curve,
    FittedAllocation,
    SurveyingAllocation,
    total_kept,
)
from secateur.pruning.allocations.sensitivity import Sensitivity
from secateur.pruning.allocations.uniform import Uniform
from secateur.support.choices import by_name

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "AllocationInputs",
    "AllocationName",
    "Budget",
    "Curve",
    "FittedAllocation",
    "NormalizedMagnitude",
    "Sensitivity",
    "SurveyingAllocation",
    "Uniform",
    "total_kept",
]

AllocationName = Literal["sensitivity", "normalized-magnitude", "uniform"]
ALLOCATIONS = by_name(Sensitivity, NormalizedMagnitude, Uniform)
