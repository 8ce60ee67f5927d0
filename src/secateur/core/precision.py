"""The number formats of long sums, by device, and of products on GPUs."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager

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


@contextmanager
def full_products() -> Generator[None]:
    """Products of float32 values in float32 on GPUs too, not in TF32, which keeps 10 bits of each.

    PyTorch uses TF32 in convolutions unless it is told otherwise. What layers are fitted to would
    be as coarse then as what is lost by pruning them. Also a decorator; what was set comes back.
    """
    products = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [bool(of.allow_tf32) for of in products]
    _set_tf32([False] * len(products))
    try:
        yield
    finally:
        _set_tf32(before)


def _set_tf32(allowed: Sequence[bool]) -> None:
    """Of matrix products and of convolutions, in the form that `torch.export` reads too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions call it deprecated
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
