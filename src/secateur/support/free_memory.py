"""Memory that nothing uses any more goes back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any


def give_back() -> None:
    """Gives back what the allocator of C keeps for later, where that is glibc's.

    Blocks of up to 32 MB are taken from one heap, which shrinks at its end alone: values that lie
    there keep all that was freed before them. Pruning ResNet-50 on 256 images held 3.7 GB at its
    last layer, whose values take 4 MB. Costs some milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], Any] | None:
    """glibc's `malloc_trim`; None on other systems."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
