"""Hidden folders that results are written in: `.name.random.partial`.

A run that is killed (`kill -9`) leaves its folder; the next run with the same name removes it. It
is locked while its owner lives, and its name tells the running system that it was made on, for
locks of network folders may not reach other machines.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.support.interruptions import undisturbed

try:
    import fcntl
except ImportError:  # Windows, where a killed run's folder is left
    fcntl = None

_PARTIAL = re.compile(r"\.[0-9a-f]{24}\.partial$")
_LONGEST_PREFIX = 150  # bytes of a name that its hidden folder begins with


@contextmanager
def hidden_folder(place: Path, name: str) -> Iterator[Path]:
    """A hidden folder for what will be called `name`; it is gone at the end."""
    remove_leftovers(place, name)
    path = place / f"{_prefix(name)}{_system()}{secrets.token_hex(8)}.partial"
    lock = None
    try:
        while not path.exists():  # again where another run saw it before it was locked
            path.mkdir(mode=0o700)
            lock = _lock(path, wait=True)
        yield path
    finally:
        try:
            with undisturbed():
                shutil.rmtree(path, ignore_errors=True)
        except KeyboardInterrupt:  # it may have come before `undisturbed` could hold it back
            shutil.rmtree(path, ignore_errors=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)


def remove_leftovers(place: Path, name: str) -> None:
    """Removes the hidden folders of runs that were killed: those that nobody has locked."""
    with suppress(OSError):
        for path in place.iterdir():
            ours = is_partial(path, name) and path.name.startswith(_prefix(name) + _system())
            lock = _lock(path, wait=False) if ours else None
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _prefix(name: str) -> str:
    """Short enough that a name which the system takes can have a hidden folder."""
    return f".{os.fsencode(name)[:_LONGEST_PREFIX].decode(errors='ignore')}."


def is_partial(path: Path, name: str) -> bool:
    """Whether a path is such a folder, for what will be called `name`."""
    ours = _PARTIAL.sub(".", path.name) == _prefix(name)
    return ours and path.is_dir() and not path.is_symlink()


@functools.cache
def _system() -> str:
    """Eight digits for the running system: all its containers, until it is started again."""
    try:
        system = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        system = platform.node()
    return hashlib.sha256(system.encode()).hexdigest()[:8]


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Locks a folder until this process ends, however it ends; None where that cannot be done."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or the file system has no locks
        os.close(handle)
        return None
    return handle


def is_hidden(path: Path) -> bool:
    """Whether a file lies in a hidden folder, as a part of what is still being written."""
    return any(_PARTIAL.search(part) for part in path.parts)
