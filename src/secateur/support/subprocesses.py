"""Programs of this package that run in a process of their own, so that they can do no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_program(
    program: Path, options: Sequence[str], *, seconds: float | None, content: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs a Python file that finds the packages which this process finds.

    Args:
        program: the file.
        options: its command line.
        seconds: how long it may take; None = as long as it likes.
        content: what it reads from standard input.

    Returns:
        Its exit status, standard output and standard error, whatever the status is.

    Raises:
        subprocess.TimeoutExpired: it has taken longer, and was killed.
    """
    return subprocess.run(
        # -P: the program's own folder would hide packages of the same names as its neighbours
        [sys.executable, "-P", "-W", "ignore", str(program), *options],
        input=content,
        capture_output=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
