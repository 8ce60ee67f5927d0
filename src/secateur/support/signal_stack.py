"""The stack that a thread handles signals on, kept while OpenVINO changes it.

OpenVINO's CPU device gives its thread such a stack of its own and puts back the one from before
when it is unloaded. Where two devices lived by turns, that one is gone, and the next signal that
Python handles, Ctrl-C among them, ends the process with a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """The system's `stack_t`."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Gives the thread its own stack for signals back after a block that uses OpenVINO's CPU.

    OpenVINO puts back nothing when it is unloaded and finds that its stack is not in use.
    """
    if sys.platform != "linux":  # elsewhere OpenVINO does no such thing
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
