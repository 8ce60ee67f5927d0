"""Ctrl-C and a polite kill while packages are imported; imports little itself."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_INTERRUPTED = b"secateur: error: interrupted: nothing was written\n"


def load(name: str) -> Any:
    """Imports a module; Ctrl-C and a polite kill end the process meanwhile.

    This is how the command line imports what is slow to import, PyTorch above all: not before a
    command is to run.
    """
    if name in sys.modules or threading.current_thread() is not threading.main_thread():
        return importlib.import_module(name)
    with ended_at_once():
        return importlib.import_module(name)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Ctrl-C and a polite kill end the process at once, wherever it is; later Ctrl-C raises.

    Some packages catch every exception while they are imported, this one included.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _stop)
    yield
    for number in numbers:
        signal.signal(number, signal.default_int_handler)


def _stop(*_: object) -> NoReturn:
    os.write(2, _INTERRUPTED)
    os._exit(2)
