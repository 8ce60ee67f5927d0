"""The command `secateur`: Ctrl-C ends it with one sentence, also while it is still being imported.

It lies outside the package because importing the package takes seconds.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

_INTERRUPTED = b"secateur: error: interrupted: nothing was written\n"


def main() -> None:
    """Runs the command line; a polite kill (SIGTERM) is like Ctrl-C."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers = [of for of in numbers if signal.getsignal(of) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _stop)
    from secateur.cli import main as run

    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        _stop()


def _stop(*_: object) -> NoReturn:
    """Ends the process at once: some packages catch every exception while they are imported."""
    os.write(2, _INTERRUPTED)
    os._exit(2)


if __name__ == "__main__":
    main()
