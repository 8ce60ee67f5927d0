"""A file that one process at a time holds, until it ends, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_held: set[int] = set()  # handles of locks of this process


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a file's lock in the block; the file stays, so that nobody locks another one.

    The operating system gives a lock back when its process ends, also after `kill -9`.

    Args:
        path: of the file, made where it is missing.

    Yields:
        Whether this process has it: not while another has.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _held.add(handle)
        yield _lock(handle)
    finally:
        _held.discard(handle)
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # on Linux, and on Windows
        return False
    return True


def _leave() -> None:
    """In a forked process, such as a data loader's: else it would hold the locks with us."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)
