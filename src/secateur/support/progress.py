"""What a long call is doing: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from secateur.errors import OptionError

FIRST, AGAIN = 2.0, 10.0  # seconds until a step is told of, and until the next line about it
TICK = 0.5  # seconds between looks at the time

OnLayer = Callable[[int, int, str], Any]
ShowProgress: TypeAlias = bool | OnLayer | None  # see `telling`


class Teller:
    """Hears what a call is doing and tells nobody.

    Attributes:
        what: the step that it is at, such as "pruning".
        done, total: visits of layers, where they are counted.
        layer: the last one that was visited.
    """

    def __init__(self) -> None:
        self.what, self.layer = "", ""
        self.done = self.total = 0

    def step(self, what: str) -> None:
        """A step begins."""
        self.what, self.layer = what, ""

    def expect(self, total: int) -> None:
        """From now on so many layers are visited, in one step or several."""
        self.done, self.total = 0, total

    def visit(self, layer: str) -> None:
        """A layer is done."""
        self.done, self.layer = self.done + 1, layer


class Caller(Teller):
    """Calls the user's function after each layer."""

    def __init__(self, function: OnLayer) -> None:
        super().__init__()
        self.function = function

    def visit(self, layer: str) -> None:
        """A layer is done."""
        super().visit(layer)
        self.function(self.done, self.total, layer)


class Bar(Teller):
    """A bar on a terminal, which is gone in the end."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self.bar, self.task = bar, bar.add_task("", total=None, about="")

    def step(self, what: str) -> None:
        """A step begins."""
        super().step(what)
        self._show()

    def expect(self, total: int) -> None:
        """From now on so many layers are visited."""
        super().expect(total)
        self._show()

    def visit(self, layer: str) -> None:
        """A layer is done."""
        super().visit(layer)
        self._show()

    def _show(self) -> None:
        counted = bool(self.layer) or self.done < self.total
        count = f"{self.done}/{self.total} {self.layer}" if counted else ""
        total = self.total if counted else None
        task: TaskID = self.task
        self.bar.update(task, description=self.what, completed=self.done, total=total, about=count)


class Lines(Teller):
    """A line for each step that takes long, and every ten seconds."""

    def __init__(self, stream: TextIO, began: float) -> None:
        super().__init__()
        self.stream, self.began = stream, began
        self.due = began + FIRST

    def step(self, what: str) -> None:
        """A step begins."""
        super().step(what)
        self.due = time.monotonic() + FIRST

    def tick(self, now: float) -> None:
        """Writes a line if it is time for one; `now` in seconds."""
        if now < self.due or not self.what:
            return
        self.due = now + AGAIN
        of = f", {self.done} of {self.total}: {self.layer}" if self.layer else ""
        self.stream.write(f"secateur: {now - self.began:.0f} s: {self.what}{of}\n")
        self.stream.flush()

    def run(self, ended: threading.Event) -> None:
        """Ticks until it has ended, or nobody reads."""
        try:
            while not ended.wait(TICK):
                self.tick(time.monotonic())
        except Exception:  # a closed pipe or file, a logger of any kind: there is nobody to tell
            pass


@contextmanager
def telling(progress: ShowProgress | Teller) -> Iterator[Teller]:
    """Tells what happens in the block.

    Args:
        progress: True for a bar on a terminal and lines elsewhere, on standard error; None for a
            bar on a terminal only; False for nothing; a function called after each layer with
            (done, total, layer's name); or who tells already.

    Raises:
        OptionError: it is something else.
    """
    terminal = on_terminal(sys.stderr)
    if isinstance(progress, Teller):
        yield progress
    elif callable(progress):
        check_takes(progress, "(done, total, layer)", 1, 1, "layer")
        yield Caller(progress)
    elif progress not in (None, False, True):
        raise OptionError(f"progress is {progress!r}, expected True, False, None or a function")
    elif progress is not False and terminal:
        with _bar() as bar:
            yield Bar(bar)
    elif progress is True and sys.stderr is not None:
        with _lines(sys.stderr) as lines:
            yield lines
    else:
        yield Teller()


def check_takes(function: Callable[..., Any], what: str, *arguments: Any) -> None:
    """Raises OptionError where a progress function cannot be called with such arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise OptionError(
            f"progress is a function that cannot be called with {what}: {error}; expected one that "
            f"takes {len(arguments)} arguments"
        ) from error
    except ValueError:  # written in C, without a signature
        pass


def on_terminal(stream: Any) -> bool:
    """Whether somebody may be looking.

    A program started without a stream has None there, and others a logger that can write only.
    """
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and not getattr(stream, "closed", False) and isatty()


@contextmanager
def _lines(stream: TextIO) -> Iterator[Lines]:
    """In a thread of its own: a single step may take minutes without a call."""
    lines, ended = Lines(stream, time.monotonic()), threading.Event()
    thread = threading.Thread(target=lines.run, args=(ended,), daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[about]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=on_terminal(sys.stdout),  # a file gets its own
    )
