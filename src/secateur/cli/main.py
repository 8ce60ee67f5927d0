"""The command `secateur`: Ctrl-C ends it with one sentence, also while packages are imported.

Little is imported before signals are listened to.
"""

from __future__ import annotations

import os

from secateur.cli.signals import load


def main() -> None:
    """Runs the command line; a polite kill (SIGTERM) is like Ctrl-C."""
    app = load("secateur.cli.app")
    try:
        app.run()
    except KeyboardInterrupt:
        os.write(2, app.interrupted().encode())
        os._exit(2)


if __name__ == "__main__":
    main()
