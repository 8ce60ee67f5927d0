"""Ctrl-C and polite kills: nothing partial is left, and what is said tells what was written."""

from __future__ import annotations

import _thread
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

_NOTHING = "interrupted: nothing was written"


def clean_up_when_killed() -> None:
    """Makes of a polite kill (SIGTERM) what Ctrl-C is, so that nothing partial is left.

    Call it where a program begins.
    """

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = functools.partial(_interrupt_again, others=sys.unraisablehook)


_SOON = 0.01  # seconds


def _interrupt_main() -> None:
    """By SIGTERM, which has its handler above; Ctrl-C may be ignored, as in the background."""
    if hasattr(signal, "pthread_kill"):  # also wakes the thread, where it sleeps
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main()


def _interrupt_again(
    lost: sys.UnraisableHookArgs, others: Callable[[sys.UnraisableHookArgs], object]
) -> None:
    """Ctrl-C within a destructor or a weak reference's callback, where Python drops it.

    Args:
        lost: what was dropped.
        others: is told of all else.
    """
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        others(lost)
        return
    again = threading.Timer(_SOON, _interrupt_main)  # not before the callback has ended
    again.daemon = True
    with suppress(RuntimeError):  # the program ends anyway
        again.start()


_written: list[Path] = []  # by this process, for what it says when it is interrupted
_resumable: list[Path] = []  # work folders that it keeps what is finished in


def begin() -> None:
    """Forgets what was written before, for `interruption`; call it where a program begins."""
    _written.clear()
    _resumable.clear()


def interruption() -> str:
    """What to say after Ctrl-C: whether a result had got its place by then, or how to go on."""
    if _written:
        return f"interrupted after {_written[-1]} was written"
    if _resumable:
        return f"interrupted: the same command goes on from what is finished in {_resumable[-1]}"
    return _NOTHING


def written(result: Path) -> None:
    """Remembers that a result has its place, for `interruption`."""
    _written.append(result)


def resumable(folder: Path) -> None:
    """Remembers that the same call would go on from a work folder, for `interruption`."""
    _resumable.append(folder)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and a polite kill wait until a few files are renamed or removed.

    Blocking the signals would not do: that holds for one thread, and PyTorch has others, which
    take them. Python interrupts its main thread only; what is done in another is not disturbed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in held.items() if handler is not None}
    for number in held:
        signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
