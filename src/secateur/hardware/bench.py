"""Measured latency: is a pruned file faster here, and does the runtime really skip zeros?

Several processes run one after the other, because the speed of a file depends on where its memory
lies in a process. Each process loads all files into all runtimes. The files take turns, in another
order each round, so that other work on the machine affects all of them alike.
`secateur.hardware.latency` has the statistics.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from secateur.errors import MissingExtraError, ModelError, OptionError, install_line
from secateur.hardware.bench_worker import runtime_of
from secateur.hardware.latency import CONFIDENCE, PROCESSES, Bench, Timing, interval
from secateur.hardware.machine import Machine, installed_versions
from secateur.hardware.runtimes import RUNTIMES, Runtime
from secateur.support.progress import check_takes
from secateur.support.settings import SEEDS, check_arguments
from secateur.support.subprocesses import run_program
from secateur.support.wording import counted
from secateur.version import __version__

_LEAST_ROUNDS = 2 * PROCESSES
TIMEOUT_SECONDS = 600.0  # seconds for the first run of a file
_SPREAD = 0.1  # between processes, from which on there is a warning
_IDLE = 0.5  # load average of a machine that does nothing else


def bench(
    *files: str | Path,
    threads: int | None = None,
    batch: int = 1,
    rounds: int = 100,
    sparse_rate: float = 0.5,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> Bench:
    """Measures the latency of model files in ONNX Runtime and OpenVINO, on random inputs.

    OpenVINO runs twice, with sparse weights decompression off and on. The executed model says how
    many layers really used it.

    Example:
        >>> import secateur
        >>> found = secateur.bench("dense.onnx", "pruned.onnx", rounds=50)
        >>> pruned = found.timings[1]
        >>> comparison = found.verdict(pruned)  # such as "no measurable difference"

    Args:
        files: .onnx files, or OpenVINO's .xml files: the dense one first.
        threads: threads of each runtime; None = the cores that this process may use.
        batch: size of the free axes of the inputs.
        rounds: measurements of each file in each runtime, at least 10; rounded up to a multiple of
            the 5 processes that share them.
        sparse_rate: fraction of zeros in a layer from which OpenVINO uses its sparse path, in
            (0, 1).
        seed: seed of the order in which the files take turns.
        progress: called with (done, rounds).

    Raises:
        OptionError, ModelError: a mistake in the call; the message says how to fix it.
        MissingExtraError: neither onnxruntime nor OpenVINO is installed.

    Memory: all files in all runtimes at once.
    """
    check_arguments(bench, locals(), seed=SEEDS)
    if progress is not None:
        check_takes(progress, "(done, rounds)", 1, rounds)
    paths = [Path(file) for file in files]
    _check(paths, batch, rounds, sparse_rate, threads)
    threads = threads or _cores()
    load = _load()
    engines = [(of, engine) for of in _runtimes(paths) for engine in of.engines]
    cases = [(path, name) for of, name in engines for path in paths if _takes(path, of)]
    options = {"threads": threads, "rate": sparse_rate, "batch": batch}
    facts = [_first_run(path, of, options) for path, of in cases]
    _check_inputs(paths, [path for path, _ in cases], facts)
    each = math.ceil(rounds / PROCESSES)
    times = []
    for number in range(PROCESSES):
        times.append(_turns(cases, options, rounds=each, seed=[seed, number]))
        if progress is not None:
            progress((number + 1) * each, PROCESSES * each)
    timings = [
        _timing(str(path), of, held, [found[index] for found in times])
        for index, ((path, of), held) in enumerate(zip(cases, facts, strict=True))
    ]
    return Bench(
        timings=tuple(timings),
        files=tuple(map(str, paths)),
        threads=threads,
        batch=batch,
        rounds=PROCESSES * each,
        processes=PROCESSES,
        confidence=CONFIDENCE,
        sparse_rate=sparse_rate,
        cpu=Machine.here().cpu,
        versions={"secateur": __version__, **_versions(timings)},
        warnings=tuple(_warnings(timings, load, threads)),
        notes=tuple(_notes(timings)),
    )


def _check(
    paths: Sequence[Path], batch: int, rounds: int, rate: float, threads: int | None
) -> None:
    if not paths:
        raise OptionError("got no files, expected the dense one and those to compare with it")
    for name, value, least in (("batch", batch, 1), ("threads", threads, 1)):
        if value is not None and value < least:
            raise OptionError(f"{name} is {value}, expected at least {least}")
    if rounds < _LEAST_ROUNDS:
        raise OptionError(
            f"rounds is {rounds}, expected at least {_LEAST_ROUNDS}: fewer runs tell no interval"
        )
    if not 0 < rate < 1:
        raise OptionError(f"sparse_rate is {rate}, expected a fraction in (0, 1), such as 0.5")
    if len({path.resolve() for path in paths}) < len(paths):
        raise OptionError("got a file twice, expected different ones: copy it to compare it")
    for path in paths:
        if path.suffix.lower() not in (".onnx", ".xml"):
            raise ModelError(
                f"got {path}, expected .onnx files (or OpenVINO's .xml): prune with --onnx to get "
                "one from a PyTorch network, or pass --data to measure modules "
                "(secateur.bench_modules)"
            )
        if not path.is_file():
            raise ModelError(f"{path} is not there, expected a model file: check the path")


def _takes(path: Path, runtime: Runtime) -> bool:
    return path.suffix.lower() in runtime.formats


def _runtimes(paths: Sequence[Path]) -> list[Runtime]:
    """Those that are installed and take one of the files."""
    able = [of for of in RUNTIMES if any(_takes(path, of) for path in paths)]
    installed = [of for of in able if (of.found or partial(is_installed, of.package))()]
    if not installed:
        wanted = next((of for of in able if all(_takes(path, of) for path in paths)), able[0])
        raise MissingExtraError(wanted.package, wanted.extra, "bench")
    return installed


def is_installed(package: str) -> bool:
    """Whether Python finds a package."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec
        return False


def _first_run(path: Path, engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a file from a process of its own, which also shows whether it runs at all."""
    arguments = {"path": str(path), "engine": engine, "options": options}
    try:
        done = _in_worker("trial", arguments, seconds=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{path} did not finish three runs on {engine} within {TIMEOUT_SECONDS:g} s, "
            "expected one that ends: use a smaller batch"
        ) from error
    if done.returncode != 0:
        raise ModelError(
            f"{engine} cannot run {path} ({_said(done)}), expected a file that it runs: check it, "
            "or its batch"
        )
    return json.loads(done.stdout)


def _turns(
    cases: Sequence[tuple[Path, str]], options: Mapping[str, Any], *, rounds: int, seed: list[int]
) -> list[list[float]]:
    """Milliseconds of each case by round, from one process."""
    listed = [(str(path), engine) for path, engine in cases]
    arguments = {"cases": listed, "options": options, "rounds": rounds, "seed": seed}
    done = _in_worker("turns", arguments, seconds=None)
    if done.returncode != 0:
        raise ModelError(
            f"the files cannot be run together ({_said(done)}), expected room for all of them in "
            "memory: give fewer"
        )
    return json.loads(done.stdout)


def _in_worker(
    action: str, arguments: Mapping[str, Any], *, seconds: float | None
) -> subprocess.CompletedProcess[bytes]:
    program = Path(__file__).with_name("bench_worker.py")
    content = json.dumps([action, arguments]).encode()
    return run_program(program, [], seconds=seconds, content=content)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """Why a process has failed."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"status {done.returncode}"


def _check_inputs(
    files: Sequence[Path], paths: Sequence[Path], facts: Sequence[Mapping[str, Any]]
) -> None:
    """All files have to take the same inputs as the first."""
    taken = [_text(held["inputs"]) for held in facts]
    for path, text in zip(paths, taken, strict=True):
        if text != taken[0]:
            raise ModelError(
                f"{path} takes {text}, {files[0]} takes {taken[0]}; expected files of one network, "
                "with the same inputs"
            )


def _text(inputs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['dtype']} {list(one['shape'])}" for one in inputs)


def _timing(
    file: str, engine: str, facts: Mapping[str, Any], found: Sequence[Sequence[float]]
) -> Timing:
    low, middle, high = interval([statistics.median(of) for of in found])
    return Timing(
        file=file,
        runtime=engine,
        milliseconds=tuple(map(tuple, found)),
        median=middle,
        low=low,
        high=high,
        peak_bytes=facts["peak"],
        precision=facts["precision"],
        layers=facts["layers"],
        sparse_layers=facts["sparse_layers"],
    )


def _versions(timings: Sequence[Timing]) -> dict[str, str]:
    known = installed_versions()
    used = {runtime_of(of.runtime).package for of in timings}
    return {name: known[name] for name in sorted(used) if name in known}


def _warnings(timings: Sequence[Timing], load: float | None, threads: int) -> list[str]:
    """Why the numbers may mean little: other work on the machine, processes that differ."""
    found, cores = [], os.cpu_count() or 1
    if load is not None and load + threads > cores + _IDLE:
        given = f"{counted(cores, 'core')} for {counted(threads, 'thread')}"
        found.append(
            f"the machine was busy (load average {load:.1f} before the start; {given}): measure "
            "again when it is idle"
        )
    spread, one = max(((_spread(of), of) for of in timings), key=lambda pair: pair[0])
    if spread > _SPREAD:
        found.append(
            f"the same file took up to {spread:.0%} longer in one process than in another "
            f"({Path(one.file).name}, {one.runtime}): smaller differences cannot be told"
        )
    return found


def _spread(timing: Timing) -> float:
    medians = [statistics.median(of) for of in timing.milliseconds]
    return max(medians) / min(medians) - 1


def _load() -> float | None:
    """Processes that wanted to run in the last minute; None = the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _notes(timings: Sequence[Timing]) -> list[str]:
    """Runtimes that were not measured, and sparse paths that were not taken."""
    notes = []
    for runtime in (of for of in RUNTIMES if of.engines):
        own = [of for of in timings if of.runtime in runtime.engines]
        name = next(iter(runtime.engines))
        if not own and not runtime.extra:
            continue  # never installed by us, so that nobody misses it
        if not own:
            only = f", and give {runtime.formats[0]} files" if len(runtime.formats) == 1 else ""
            notes.append(f"{name} was not measured: {install_line(runtime.extra)}{only}")
        elif runtime.sparse_path and not any(of.sparse_layers for of in own):
            lacks = "; ".join(runtime.machine(Machine.here()))
            because = f" ({lacks})" if lacks else ""
            notes.append(
                f"{name} took its sparse path in no layer{because}: it needs {runtime.sparse_path}"
            )
    return notes


def _cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
