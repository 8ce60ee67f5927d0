"""Measured latency: is a pruned file faster here, and did the runtime really leave zeros out?

Every file is loaded into every runtime. Then all of them take turns, in another order each round,
so that whatever else the machine does falls on all alike. Medians have distribution-free intervals
from the ranks of the runs; where those of two files overlap there is no measurable difference.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.engines import (
    ONNX_RUNTIME,
    OPENVINO,
    OPENVINO_SPARSE,
    Engine,
    Input,
    example,
    start,
)
from secateur.errors import MissingExtraError, ModelError, OptionError, install_line
from secateur.own_process import run_program
from secateur.plain import Saved
from secateur.runtimes import RUNTIMES, Machine, installed_versions
from secateur.version import __version__

NO_DIFFERENCE = "no measurable difference"
CONFIDENCE = 0.95
_LEAST_ROUNDS = 6  # below, no pair of runs encloses the median with that confidence
_LEAST_SECONDS = 2e-3  # of one measurement: shorter runs are repeated
_PATIENCE = 600.0  # seconds for the first run of a file
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A file in a runtime.

    Attributes:
        file: its name as given.
        runtime: "ONNX Runtime", "OpenVINO" or "OpenVINO, sparse on".
        milliseconds: of a run, one number per round.
        median, low, high: of these, with its interval.
        peak_bytes: memory that loading and running it took in a process of its own; None = the
            system does not tell.
        precision: of what was computed, as far as the runtime tells.
        layers, sparse_layers: executed layers, and those that left zeros out; None = not told.
    """

    file: str
    runtime: str
    milliseconds: tuple[float, ...]
    median: float
    low: float
    high: float
    peak_bytes: int | None
    precision: str
    layers: int | None
    sparse_layers: int | None


@dataclass(frozen=True, kw_only=True)
class Bench(Saved):
    """What `bench` measured.

    Attributes:
        timings: by runtime, the first file first.
        files: as given; the others are compared with the first.
        threads: that each runtime could use.
        batch: size of free axes.
        rounds: measurements of each.
        confidence: of the intervals.
        sparse_rate: share of zeros from which OpenVINO was to take its sparse path.
        cpu: its name.
        versions: of the runtimes and of secateur.
        notes: what was not measured, and why a sparse path was not taken.
    """

    schema = "secateur.bench"
    schema_version = 1

    timings: tuple[Timing, ...]
    files: tuple[str, ...]
    threads: int
    batch: int
    rounds: int
    confidence: float
    sparse_rate: float
    cpu: str
    versions: dict[str, str]
    notes: tuple[str, ...]

    def first(self, timing: Timing) -> Timing:
        """The first file's timing in the same runtime."""
        return next(one for one in self.timings if one.runtime == timing.runtime)

    def verdict(self, timing: Timing) -> str:
        """A file against the first one in the same runtime; empty for that one itself."""
        return "" if self.first(timing) is timing else verdict(self.first(timing), timing)

    def label(self, timing: Timing) -> str:
        """The file's name without its folder, where no other has the same."""
        names = [Path(file).name for file in self.files]
        name = Path(timing.file).name
        return name if names.count(name) == 1 else timing.file

    def sparse_text(self, timing: Timing) -> str:
        """In how many layers zeros were left out, as the runtime tells."""
        if timing.layers is None:
            return "no such path"
        return f"in {timing.sparse_layers} of {timing.layers} layers"

    def __str__(self) -> str:
        from secateur.console import render_bench

        return render_bench(self)


def bench(
    *files: str | Path,
    threads: int | None = None,
    batch: int = 1,
    rounds: int = 100,
    sparse_rate: float = 0.5,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> Bench:
    """Measures the latency of model files on ONNX Runtime and OpenVINO, on random inputs.

    OpenVINO runs twice, with its sparse weights decompression off and on; how many layers really
    took that path is read from the executed model.

    Args:
        files: .onnx files, or OpenVINO's .xml files: the dense one first.
        threads: that each runtime may use; None = the cores that this process may use.
        batch: size of the free axes of the inputs.
        rounds: measurements of each file in each runtime, at least 6.
        sparse_rate: share of zeros in a layer from which OpenVINO is to take its sparse path, in
            (0, 1).
        seed: of the inputs and of the order in which the files take turns.
        progress: called with (done, rounds).

    Raises:
        OptionError, ModelError: a mistake that the message helps to put right.
        MissingExtraError: neither onnxruntime nor OpenVINO is installed.

    Memory: all files in all runtimes at once.
    """
    paths = [Path(file) for file in files]
    _check(paths, batch, rounds, sparse_rate, threads)
    threads = threads or _cores()
    cases = [(path, of) for of in _runtimes(paths) for path in paths if _takes(path, of)]
    peaks = [_first_run(path, of, threads, sparse_rate, batch) for path, of in cases]
    engines = [start(path, of, threads, sparse_rate, batch) for path, of in cases]
    _check_inputs(paths, [path for path, _ in cases], engines)
    feeds = [example(engine.inputs, seed) for engine in engines]
    times = measure(
        [_bound(engine, feed) for engine, feed in zip(engines, feeds, strict=True)],
        rounds,
        seed,
        progress,
    )
    timings = [
        _timing(str(path), of, engine, peak, found)
        for (path, of), engine, peak, found in zip(cases, engines, peaks, times, strict=True)
    ]
    return Bench(
        timings=tuple(timings),
        files=tuple(map(str, paths)),
        threads=threads,
        batch=batch,
        rounds=rounds,
        confidence=CONFIDENCE,
        sparse_rate=sparse_rate,
        cpu=Machine.here().cpu,
        versions={"secateur": __version__, **_versions(timings)},
        notes=tuple(_notes(timings)),
    )


def measure(
    runs: Sequence[Callable[[], Any]],
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> list[list[float]]:
    """Milliseconds of each function, one number per round; they take turns in random order.

    A function that ends sooner than 2 ms is repeated within a round, as often as it takes.
    """
    repeats = [_repeats(run) for run in runs]
    rng = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in runs]
    for done in range(rounds):
        for index in rng.permutation(len(runs)):
            begin = time.perf_counter()
            for _ in range(repeats[index]):
                runs[index]()
            seconds = time.perf_counter() - begin
            found[index].append(1e3 * seconds / repeats[index])
        if progress is not None:
            progress(done + 1, rounds)
    return found


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Low end, median and high end: ranks that enclose the median with at least the confidence.

    Distribution-free: the number of values below the median is binomial with probability 1/2.

    Raises:
        OptionError: there are too few values.
    """
    ordered = sorted(values)
    count, tail, rank = len(ordered), 0.0, 0
    while (tail := tail + math.comb(count, rank) / 2**count) <= (1 - confidence) / 2:
        rank += 1
    if rank == 0:
        raise OptionError(f"got {count} runs, expected at least {_LEAST_ROUNDS}: add rounds")
    return ordered[rank - 1], statistics.median(ordered), ordered[count - rank]


def verdict(first: Timing, other: Timing) -> str:
    """Whether a file is faster than the first: its ratio, or that none can be measured.

    The interval of the ratio goes from the one extreme of both intervals to the other.
    """
    if other.low <= first.high and first.low <= other.high:
        return NO_DIFFERENCE
    faster = other.median < first.median
    slow, fast = (first, other) if faster else (other, first)
    ratio, low, high = slow.median / fast.median, slow.low / fast.high, slow.high / fast.low
    return f"{ratio:.2f} times as {'fast' if faster else 'slow'} ({low:.2f} to {high:.2f})"


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
                "one from a PyTorch network"
            )
        if not path.is_file():
            raise ModelError(f"{path} is not there, expected a model file: check the path")


def _takes(path: Path, runtime: str) -> bool:
    return path.suffix.lower() == ".onnx" or runtime != ONNX_RUNTIME


def _runtimes(paths: Sequence[Path]) -> list[str]:
    """Those installed that take one of the files."""
    found = [ONNX_RUNTIME] if _installed("onnxruntime") else []
    found += [OPENVINO, OPENVINO_SPARSE] if _installed("openvino") else []
    found = [of for of in found if any(_takes(path, of) for path in paths)]
    if not found:
        xml = all(path.suffix.lower() == ".xml" for path in paths)
        package = "openvino" if xml else "onnxruntime"
        raise MissingExtraError(package, "openvino" if xml else "onnx", "bench")
    return found


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec
        return False


def _first_run(path: Path, runtime: str, threads: int, rate: float, batch: int) -> int | None:
    """Peak memory of a file in a process of its own, which also shows whether it runs at all."""
    program = Path(__file__).with_name("engines.py")
    options = [str(path), runtime, str(threads), str(rate), str(batch)]
    try:
        done = run_program(program, options, seconds=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{path} did not finish three runs on {runtime} within {_PATIENCE:g} s, expected one "
            "that ends: use a smaller batch"
        ) from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = lines[-1][:300] if lines else f"status {done.returncode}"
        raise ModelError(
            f"{runtime} cannot run {path} ({said}), expected a file that it runs: check it, or "
            "its batch"
        )
    return json.loads(done.stdout)["peak"]


def _check_inputs(files: Sequence[Path], paths: Sequence[Path], engines: Sequence[Engine]) -> None:
    """All files have to take the same inputs as the first."""
    wanted = engines[0].inputs
    for path, engine in zip(paths, engines, strict=True):
        if _signature(engine.inputs) != _signature(wanted):
            raise ModelError(
                f"{path} takes {_text(engine.inputs)}, {files[0]} takes {_text(wanted)}; expected "
                "files of one network, with the same inputs"
            )


def _signature(inputs: Sequence[Input]) -> list[tuple[tuple[int, ...], str]]:
    return [(one.shape, one.dtype) for one in inputs]


def _text(inputs: Sequence[Input]) -> str:
    return ", ".join(f"{one.dtype} {list(one.shape)}" for one in inputs)


def _bound(engine: Engine, feed: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    return lambda: engine.run(feed)


def _repeats(run: Callable[[], Any]) -> int:
    """How often to run for one measurement."""
    for _ in range(_WARM_UP):
        run()
    begin = time.perf_counter()
    run()
    return max(1, math.ceil(_LEAST_SECONDS / max(time.perf_counter() - begin, 1e-7)))


def _timing(
    file: str, runtime: str, engine: Engine, peak: int | None, found: Sequence[float]
) -> Timing:
    low, middle, high = median_interval(found)
    return Timing(
        file=file,
        runtime=runtime,
        milliseconds=tuple(found),
        median=middle,
        low=low,
        high=high,
        peak_bytes=peak,
        precision=engine.precision,
        layers=engine.layers,
        sparse_layers=engine.sparse_layers,
    )


def _versions(timings: Sequence[Timing]) -> dict[str, str]:
    known = installed_versions()
    names = {ONNX_RUNTIME: "onnxruntime", OPENVINO: "openvino"}
    used = {names[one.runtime] for one in timings if one.runtime in names}
    return {name: known[name] for name in sorted(used) if name in known}


def _notes(timings: Sequence[Timing]) -> list[str]:
    notes = []
    runtimes = {one.runtime for one in timings}
    if ONNX_RUNTIME not in runtimes:
        notes.append(f"ONNX Runtime was not measured: {install_line('onnx')}, and give .onnx files")
    if OPENVINO not in runtimes:
        notes.append(f"OpenVINO was not measured: {install_line('openvino')}")
    elif not any(one.sparse_layers for one in timings):
        (openvino,) = [of for of in RUNTIMES if of.package == "openvino"]
        why = openvino.machine(Machine.here())
        because = f" ({'; '.join(why)})" if why else ""
        notes.append(
            f"OpenVINO took its sparse path in no layer{because}: it needs INT8 linear layers, "
            "both sizes divisible by 64, enough zeros, and AMX"
        )
    return notes


def _cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
