"""The command `secateur`: Ctrl-C ends it with one sentence, also while packages are imported.

Little is imported before signals are listened to.
"""

from __future__ import annotations

import os

from secateur.cli.signals import ended_at_once


def main() -> None:
    """Runs the command line; a polite kill (SIGTERM) is like Ctrl-C."""
    with ended_at_once():
        from secateur.cli.app import main as run
    try:
        run()
    except KeyboardInterrupt:
        from secateur.support.files import interruption

        os.write(2, f"secateur: error: {interruption()}\n".encode())
        os._exit(2)


if __name__ == "__main__":
    main()
