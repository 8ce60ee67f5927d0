"""Part "kill": commands killed at random moments, and before the n-th change of the disk.

After `kill -9` there is the whole result or none, what was there is as it was, and the next run
clears up. After Ctrl-C and a polite kill nothing is left at once.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from abuse_base import Outcome, keep
from abuse_runs import Command, Run, commands, everything, fresh, make_inputs, told, wrong

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
_CHANGES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}
_PARTIAL = re.compile(r"(^|/)\.out\.[^/]*\.partial(/|$)")
_STARTS = ("nothing", "empty", "old")  # in the place of the output


def kill(seconds: float, seed: int, scratch: Path, out: Path) -> Outcome:
    """Kills all commands in turns."""
    outcome = Outcome("kill", "kills survived")
    inputs, rng = scratch / "inputs", Random(seed)
    make_inputs(inputs)
    victims = {name: _Victim(name, of, scratch, rng) for name, of in commands(inputs).items()}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for victim in victims.values():
            if time.monotonic() < end:
                victim.strike(out, f"scripts/abuse --part kill --seed {seed}")
    for name, victim in victims.items():
        fault, again = victim.recover(), f"scripts/abuse --part kill --seed {seed}"
        if fault:
            victim.faults.append(keep(out, f"kill-{name}", victim.arena, "next run", fault, again))
        outcome.add(name, victim.kills - len(victim.faults), victim.faults)
    return outcome


class _Victim:
    """A command with a folder of its own, in which it is killed again and again."""

    def __init__(self, name: str, command: Command, scratch: Path, rng: Random) -> None:
        self.command, self.rng, self.name = command, rng, name
        self.arena, self.logs = fresh(scratch / f"arena-{name}"), scratch
        self.out = self.arena / "out"
        self.kills, self.faults = 0, list[str]()
        self.known: set[str] = set()  # what kills before have left
        (self.arena / "mine").write_text("mine")
        begin = time.monotonic()
        fault = self._finish([])
        if fault:
            raise SystemExit(f"{name} does not even run: {fault}")
        self.duration = time.monotonic() - begin
        self.old = shutil.copytree(self.arena, scratch / f"old-{name}") / "out"
        counter = scratch / f"count-{name}"
        self._clear()
        Run(self._words([]), self.logs, lambda: _count(self.arena, counter)).wait()
        self.changes = len(counter.read_bytes())
        self._clear()

    def strike(self, out: Path, again: str) -> None:
        """One kill, and what is found then."""
        start, number = self.rng.choice(_STARTS), self.rng.choice(_SIGNALS)
        force = self._prepare(start)
        before = everything(self.arena)
        moment = self.rng.random()
        if self.rng.random() < 0.5:
            run = Run(self._words(force), self.logs)
            time.sleep(1.05 * self.duration * moment)
            run.kill(number)
            how = f"{number.name} after {1.05 * moment:.3f} of the time"
        else:
            at = int(self.changes * moment)
            run = Run(self._words(force), self.logs, lambda: _kill_at(self.arena, at, number))
            how = f"{number.name} before change {at} of {self.changes}"
        status, text = run.wait()
        self.kills += status != 0
        if status == -signal.SIGTERM and not text and everything(self.arena) == before:
            status = -signal.SIGKILL  # it came before the program had begun to listen
        fault = self._check(start, status, text)
        if fault:
            detail = f"{how}, {start} before: {fault}\n\n{text}\n\n{sorted(everything(self.arena))}"
            self.faults.append(keep(out, f"kill-{self.name}", self.arena, fault, detail, again))
            shutil.rmtree(self.arena)
            self.arena.mkdir()
            (self.arena / "mine").write_text("mine")

    def recover(self) -> str:
        """Runs the command to its end after the last kill."""
        self._prepare("nothing")
        return self._finish([])

    def _words(self, force: list[str]) -> list[str]:
        return [*self.command.words, "-o", str(self.out), *force]

    def _finish(self, force: list[str]) -> str:
        status, text = Run(self._words(force), self.logs).wait()
        if status:
            return told(status, text) or text
        self.known = set()
        return self._complete() or self._left()

    def _prepare(self, start: str) -> list[str]:
        self._clear()
        self.known = set(everything(self.arena))
        if start == "old":
            copy = shutil.copytree if self.old.is_dir() else shutil.copy
            copy(self.old, self.out)
            return ["--force"]
        if start == "empty" and self.command.files:
            self.out.mkdir()
        return []

    def _clear(self) -> None:
        """Takes away the output, but not what a killed run has left beside it."""
        if self.out.is_dir():
            shutil.rmtree(self.out)
        self.out.unlink(missing_ok=True)

    def _check(self, start: str, status: int, text: str) -> str:
        if (self.arena / "mine").read_text() != "mine":
            return "another file was changed"
        if status not in (-signal.SIGKILL, 0, 2):
            return f"it did not end as it should: status {status}"
        names = {path.name for path in self.arena.iterdir()} - {"mine", "out"}
        if any(not _PARTIAL.search(name) for name in names):
            return f"something else was left: {names}"
        if status == 0:
            self.known = set()  # a run that ends well has cleared up
            return told(status, text) or self._complete() or self._left()
        files = [path for path in self.out.rglob("*") if path.is_file()]
        files += [self.out] if self.out.is_file() else []
        broken = [wrong(path) for path in files if not _PARTIAL.search(str(path))]
        if any(broken):
            return max(broken)
        if start == "nothing" and self.out.exists() and self._complete():
            return f"a part of the result: {self._complete()}"
        if status == 2:
            return told(status, text) or self._left() or self._unsaid(start, text)
        return ""

    def _unsaid(self, start: str, text: str) -> str:
        """Nothing was written, it said."""
        if "nothing was written" in text and start == "nothing" and self.out.exists():
            return "said that nothing was written, and wrote"
        return ""

    def _complete(self) -> str:
        if not self.command.files:
            return wrong(self.out) if self.out.is_file() else "no file"
        missing = [name for name in self.command.files if not (self.out / name).is_file()]
        return f"without {missing}" if missing else ""

    def _left(self) -> str:
        left = [name for name in everything(self.arena) if _PARTIAL.search(name)]
        left = [name for name in left if name not in self.known]
        return f"left behind: {len(left)} files" if left else ""


def _changes(arena: Path, act: Any) -> None:
    """Calls `act` before each change below a folder."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and (not arguments[2] or not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if (event == "open" or event in _CHANGES) and str(arena) in str(arguments[0]):
            act()

    sys.addaudithook(hook)


def _count(arena: Path, counter: Path) -> None:
    handle = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _changes(arena, lambda: os.write(handle, b"."))


def _kill_at(arena: Path, at: int, number: signal.Signals) -> None:
    left = [at]

    def act() -> None:
        left[0] -= 1
        if left[0] == -1:
            os.kill(os.getpid(), number)

    _changes(arena, act)
