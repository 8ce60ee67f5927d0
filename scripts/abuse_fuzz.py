"""Part "fuzz": broken files for everything that reads files, each target in a process of its own.

Atheris (libFuzzer) guides by coverage where it is installed; elsewhere inputs are mutated blindly.
"""

from __future__ import annotations

import functools
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import abuse_mutate
from abuse_base import Outcome, keep
from abuse_targets import Target

from secateur.errors import SecateurError

try:
    import atheris
except ImportError:
    atheris = None

SECONDS_EACH = 40  # that one input may take
BYTES_EACH = 2 << 30  # of memory that one input may take
_LONGEST_SENTENCE = 2000
_LONGEST_INPUT = 1 << 20  # bytes
_MAX_DEATHS = 30  # of a target, after which there is enough to mend


def fuzz(
    targets: Mapping[str, Target], seconds: float, seed: int, scratch: Path, out: Path
) -> Outcome:
    """Tries all targets, each for its share of the time."""
    total = sum(target.share for target in targets.values())
    outcome = Outcome("fuzz", "inputs tried")
    for name, target in targets.items():
        tried, faults = _fuzz(name, target, seconds * target.share / total, seed, scratch, out)
        outcome.add(name, tried, faults)
    return outcome


def _fuzz(
    name: str, target: Target, seconds: float, seed: int, scratch: Path, out: Path
) -> tuple[int, list[str]]:
    """How many inputs were tried, and the faults: those told by the child, and its deaths."""
    corpus, end, deaths = scratch / f"corpus-{name}", time.monotonic() + seconds, 0
    counter = mmap.mmap(-1, 8)  # shared with the children
    faults: set[str] = set()
    while (left := end - time.monotonic()) > 0 and deaths < _MAX_DEATHS:
        work = functools.partial(
            _child, name, target, left, seed + deaths, corpus, scratch, out, counter
        )
        status = in_child(work, scratch / "log.txt", left + 2 * SECONDS_EACH)
        found = out.glob("*/target.txt")
        faults |= {path.parent.name for path in found if path.read_text() == name}
        if status == 0:
            break
        deaths += 1
        how = f"died ({_how(status)})"
        log = (scratch / "log.txt").read_text(errors="replace")[-5000:]
        faults.add(keep(out, name, scratch / "case", how, log))
    return struct.unpack("<Q", counter[:8])[0], sorted(faults)


def _how(status: int) -> str:
    if status < 0:
        return signal.Signals(-status).name
    return {70: "timeout", 71: "out of memory", 77: "crash"}.get(status, f"status {status}")


def in_child(work: Any, log: Path, patience: float) -> int:
    """Runs a function in a forked process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 70


def _child(
    name: str, target: Target, seconds: float, seed: int,
    corpus: Path, scratch: Path, out: Path, counter: mmap.mmap,
) -> None:  # fmt: skip
    warnings.simplefilter("ignore")
    if not corpus.exists():
        corpus.mkdir()
        for index, case in enumerate(target.cases()):
            (corpus / f"seed-{index:02}").write_bytes(abuse_mutate.encode(case))
    _limit_memory()
    seeds = [path.read_bytes() for path in sorted(corpus.glob("seed-*"))]
    watch = _Watch(name, target, scratch, out, counter, time.monotonic() + seconds)
    if atheris is None:
        _blindly(watch, seeds, seed)
    else:
        _guided(watch, seeds, seed, corpus)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES_EACH, used + BYTES_EACH))


def _guided(watch: _Watch, seeds: list[bytes], seed: int, corpus: Path) -> None:
    options = {
        "seed": seed + 1,  # 0 is a random one
        "timeout": SECONDS_EACH,
        "rss_limit_mb": 0,
        "max_len": _LONGEST_INPUT,
        "len_control": 0,
        "artifact_prefix": f"{corpus.parent}/",
    }

    def mutator(data: bytes, largest: int, seed: int) -> bytes:
        return _mutated(data, seeds, Random(seed), largest)

    words = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup(["abuse", *words, str(corpus)], watch, custom_mutator=mutator)
    atheris.Fuzz()


def _blindly(watch: _Watch, seeds: list[bytes], seed: int) -> None:
    rng, tried = Random(seed), list(seeds)
    while True:
        signal.alarm(SECONDS_EACH)
        watch(tried.pop() if tried else _mutated(rng.choice(seeds), seeds, rng, _LONGEST_INPUT))
        signal.alarm(0)


def _mutated(data: bytes, seeds: list[bytes], rng: Random, largest: int) -> bytes:
    case = abuse_mutate.decode(data) or abuse_mutate.decode(rng.choice(seeds))
    new = abuse_mutate.encode(abuse_mutate.mutate(case, rng))
    return new if len(new) <= largest else data


class _Watch:
    """Runs a target on a case, and keeps the case where the law is broken."""

    def __init__(
        self, name: str, target: Target, scratch: Path, out: Path, counter: mmap.mmap, end: float
    ) -> None:
        self.end = end
        self.name, self.target, self.out, self.counter = name, target, out, counter
        self.scratch, self.case, self.work = scratch, scratch / "case", scratch / "work"
        self.outside: list[str] = []
        (scratch / "outside").write_bytes(b"nobody may read this" * 100)
        self.before = {path.name for path in scratch.iterdir()} | {"case", "work"}
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            path = os.path.normpath(os.path.join(self.work, os.fspath(arguments[0])))
            if path == str(self.scratch / "outside") or path.startswith("/etc/passwd"):
                self.outside.append(path)

    def __call__(self, data: bytes) -> None:
        if time.monotonic() > self.end:
            os._exit(0)  # without the destructors of libraries, which may hang in a forked process
        case = abuse_mutate.decode(data)
        if not case:
            return
        for folder in (self.case, self.work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, content in case.items():
                (folder / name).write_bytes(content)
        self.outside.clear()
        fault, detail = check(self.target, self.work)
        if not fault and self.outside:
            fault, detail = "read outside the folder", self.outside[0]
        more = {path.name for path in self.scratch.iterdir()} - self.before
        if not fault and (more := {name for name in more if "-" not in name}):
            fault, detail = "wrote outside the folder", str(more)
        if fault:
            keep(self.out, self.name, self.case, fault, detail)
        (count,) = struct.unpack("<Q", self.counter[:8])
        self.counter[:8] = struct.pack("<Q", count + 1)


def check(target: Target, folder: Path) -> tuple[str, str]:
    """How a target breaks the law on a folder, and the details; empty where it does not."""
    try:
        target.run(folder)
    except SecateurError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > _LONGEST_SENTENCE:
            return f"{type(error).__name__} of no sentence", repr(text)
    except BaseException as error:
        return signature(error), traceback.format_exc()
    return "", ""


def signature(error: BaseException) -> str:
    """The kind of exception and the innermost place in the package."""
    with suppress(Exception):
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "secateur" in frame.filename]
        if own:
            place = f"{Path(own[-1].filename).stem}:{own[-1].name}"
            return f"{type(error).__name__} in {place}"
    return type(error).__name__
