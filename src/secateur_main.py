"""The command `secateur`: Ctrl-C ends it with one sentence, also while packages are imported.

It lies outside the package so that a signal is heard before the package is imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_INTERRUPTED = b"secateur: error: interrupted: nothing was written\n"


def main() -> None:
    """Runs the command line; a polite kill (SIGTERM) is like Ctrl-C."""
    with ended_at_once():
        from secateur.cli import main as run
    try:
        run()
    except KeyboardInterrupt:
        from secateur.output import interruption

        os.write(2, f"secateur: error: {interruption()}\n".encode())
        os._exit(2)


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


if __name__ == "__main__":
    main()
