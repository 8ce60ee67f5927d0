"""What ends a command: one sentence on standard error for a mistake or an interruption."""

from __future__ import annotations

import errno
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import typer

from secateur.cli.started import is_another, leave_it_to_the_first, say
from secateur.errors import SecateurError, SecateurWarning, one_line
from secateur.support.interruptions import begin, interruption

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@contextmanager
def one_sentence() -> Iterator[None]:
    """Ends the program with exit status 2 and one sentence for a mistake or an interruption."""
    caught: list[warnings.WarningMessage] = []
    begin()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SecateurWarning)
            yield
    except SecateurError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(interruption())
    except BrokenPipeError as error:
        if _is_read():  # it was another pipe; typer would end without a word
            raise RuntimeError("a pipe within the program broke") from error
        _point_nowhere(sys.stdout, sys.stderr)
        raise typer.Exit from None
    except (MemoryError, RuntimeError) as error:
        if comes_of_interruption(error):
            fail(interruption())
        if not _comes_of_memory(error):
            raise
        fail("out of memory: use fewer images (--max-images)")
    finally:
        for warning in caught:
            if issubclass(warning.category, SecateurWarning):
                say(f"warning: {one_line(str(warning.message))}")


def comes_of_interruption(error: BaseException) -> bool:
    """Whether Ctrl-C is the cause of an error.

    Python 3.11 makes it a RuntimeError where it comes while a class is made (`__set_name__`), as
    in a module that is imported late.
    """
    return isinstance(error.__cause__, KeyboardInterrupt)


def _comes_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left; of RuntimeErrors only their text tells."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def fail(sentence: str) -> NoReturn:
    """Ends the program with exit status 2 and this sentence."""
    typer.echo(f"secateur: error: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(2)


def printed(command: Callable[[], int]) -> int:
    """Runs a command whose output may have no reader or no room; its exit status."""
    try:
        status = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _point_nowhere(sys.stdout, sys.stderr)
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _point_nowhere(sys.stdout)
        typer.echo(f"secateur: error: the output cannot be written ({error.strerror})", err=True)
        return 2
    return status


def usage(error: Any) -> int:
    """Tells a mistake in the options, which typer would frame, in one line."""
    if is_another():
        leave_it_to_the_first()
        return 2
    if not error.format_message() or type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # no command at all: the help
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "secateur"
        sentence = " ".join(error.format_message().split()).rstrip(".")
        typer.echo(f"secateur: error: {sentence}: see {command} --help", err=True)
    return 2


def _is_read() -> bool:
    """Whether somebody reads the output: `head` stops when it has read enough, which is fine."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # asks for errors only
        return not pipe.poll(0)
    except (AttributeError, OSError, ValueError):  # no such question on Windows; no file at all
        return os.name != "nt"


def _point_nowhere(*streams: TextIO | None) -> None:
    """What is still to be printed is lost: Python would complain about it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
