"""Programs of this package that run in a process of their own, so that they can do no harm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


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
        _command(program, options),
        input=content,
        capture_output=True,
        timeout=seconds,
        env=_environment(),
        check=False,
    )


def watch_program(
    program: Path, *, content: bytes, on_line: Callable[[bytes], Any]
) -> subprocess.CompletedProcess[bytes]:
    """As `run_program`, for a program that says how it goes on.

    Args:
        program: the file.
        content: what it reads from standard input.
        on_line: gets each line of its standard output at once; if it raises, the program ends.

    Returns:
        Its exit status and standard error.
    """
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            _command(program, []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has failed already
                process.stdin.write(content)
                process.stdin.close()
            for line in process.stdout:
                on_line(line)
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        errors.seek(0)
        return subprocess.CompletedProcess(process.args, status, b"", errors.read())


def _command(program: Path, options: Sequence[str]) -> list[str]:
    # -P: the program's own folder would hide packages of the same names as its neighbours
    return [sys.executable, "-P", "-W", "ignore", str(program), *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
