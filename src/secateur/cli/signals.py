"""Ctrl-C and a polite kill while packages are imported; imports little itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_INTERRUPTED = b"secateur: error: interrupted: nothing was written\n"


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Ctrl-C and a polite kill end the process at once, wherever it is; later Ctrl-C raises.

    Some packages catch every exception while they are imported, this one included.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers = [of for of in numbers if signal.getsignal(of) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _stop)
    yield
    for number in numbers:
        signal.signal(number, signal.default_int_handler)


def _stop(*_: object) -> NoReturn:
    os.write(2, _INTERRUPTED)
    os._exit(2)
