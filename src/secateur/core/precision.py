"""The number format that long sums are held in, by device."""

from __future__ import annotations

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = ("mps",)  # device types


def widest_float(device: torch.device) -> torch.dtype:
    """Float64, or float32 on devices that have no float64.

    There sums lose digits when they run over millions of samples: values are shifted by a mean
    first, so that what is lost is small against what is measured.
    """
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def widened(value: Tensor) -> Tensor:
    """A tensor in the widest format of its device."""
    return value.to(widest_float(value.device))
