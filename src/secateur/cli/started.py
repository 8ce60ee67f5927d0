"""What the environment tells of processes that `torchrun` has started together."""

from __future__ import annotations

import os
import time

import typer

from secateur.errors import OptionError

SHARED = ("prune",)  # commands whose work is shared out
_PAUSE = 2.0  # seconds in which the first process says what all of them would say


def count() -> int:
    """How many processes there are."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def is_another() -> bool:
    """Whether another process shows progress, prints and writes."""
    return count() > 1 and os.environ.get("RANK", "0") != "0"


def say(sentence: str) -> None:
    """A note or a warning on standard error; in other processes nothing, for the first says it."""
    if not is_another():
        typer.echo(f"secateur: {sentence}", err=True)


def leave_it_to_the_first() -> None:
    """Waits while the first process says what is wrong with the call."""
    time.sleep(_PAUSE)


def check_shares(command: str) -> None:
    """Raises OptionError where several processes would all do the same, and write the same files.

    Args:
        command: its name.
    """
    if count() > 1 and command not in SHARED:
        raise OptionError(
            f"got {count()} processes started together (WORLD_SIZE), expected one: {command} does "
            f"not share its work out, as {' and '.join(SHARED)} does; run it without torchrun"
        )
