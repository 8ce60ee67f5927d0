"""Measured latency: is a pruned file faster here, and does the runtime really skip zeros?

Several processes run one after the other, because the speed of a file depends on where its memory
lies in a process. Each process loads all files into all runtimes. The files take turns, in another
order each round, so that other work on the machine affects all of them alike. A process gives one
number: the median over its rounds of the ratio of two files' times. The numbers of all processes
give an interval (Student's t, of the logarithms). If it contains 1 there is no measurable
difference. (Georges, Buytaert and Eeckhout, "Statistically rigorous Java performance evaluation",
2007.)
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import MissingExtraError, ModelError, OptionError, install_line
from secateur.hardware.bench_worker import ONNX_RUNTIME, OPENVINO, OPENVINO_SPARSE
from secateur.hardware.requirements import RUNTIMES, Machine, installed_versions
from secateur.support.serialization import Saved
from secateur.support.subprocesses import run_program
from secateur.version import __version__

NO_DIFFERENCE = "no measurable difference"
CONFIDENCE = 0.95
PROCESSES = 5
_STUDENT = 2.776  # quantile (1 + CONFIDENCE) / 2 of Student's t, PROCESSES - 1 degrees of freedom
_LEAST_ROUNDS = 2 * PROCESSES
_PATIENCE = 600.0  # seconds for the first run of a file
_SPREAD = 0.1  # between processes, from which on there is a warning
_IDLE = 0.5  # load average of a machine that does nothing else


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The latency of a file in a runtime.

    Attributes:
        file: the file as given.
        runtime: "ONNX Runtime", "OpenVINO" or "OpenVINO, sparse on".
        milliseconds: time of a run: for each process one number per round.
        median, low, high: geometric mean of the processes' medians, and its interval.
        peak_bytes: memory that loading and running it took in a process of its own; None if the
            system does not tell.
        precision: number types of the computation, as far as the runtime tells.
        layers, sparse_layers: executed layers, and those that skipped zeros; None if the runtime
            does not tell.
    """

    file: str
    runtime: str
    milliseconds: tuple[tuple[float, ...], ...]
    median: float
    low: float
    high: float
    peak_bytes: int | None
    precision: str
    layers: int | None
    sparse_layers: int | None


@dataclass(frozen=True, kw_only=True)
class Bench(Saved):
    """The result of `bench`.

    Attributes:
        timings: by runtime, the first file first.
        files: as given; the others are compared with the first.
        threads: threads of each runtime.
        batch: size of free axes.
        rounds: measurements of each file, over all processes.
        processes: number of processes.
        confidence: confidence level of the intervals.
        sparse_rate: fraction of zeros from which OpenVINO was told to use its sparse path.
        cpu: name of the processor.
        versions: versions of the runtimes and of secateur.
        warnings: why the figures may be unreliable.
        notes: what was not measured, and why a sparse path was not taken.
    """

    schema = "secateur.bench"
    schema_version = 2

    timings: tuple[Timing, ...]
    files: tuple[str, ...]
    threads: int
    batch: int
    rounds: int
    processes: int
    confidence: float
    sparse_rate: float
    cpu: str
    versions: dict[str, str]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def first(self, timing: Timing) -> Timing:
        """The first file's timing in the same runtime."""
        return next(one for one in self.timings if one.runtime == timing.runtime)

    def verdict(self, timing: Timing) -> str:
        """How a file compares with the first in the same runtime; empty for the first itself."""
        return "" if self.first(timing) is timing else verdict(self.first(timing), timing)

    def ratio(self, timing: Timing) -> tuple[float, float, float]:
        """Its time / the first file's in the same runtime: lower end, middle, upper end."""
        return ratio(self.first(timing), timing)

    def label(self, timing: Timing) -> str:
        """The file's name, with its folder only if another file has the same name."""
        names = [Path(file).name for file in self.files]
        name = Path(timing.file).name
        return name if names.count(name) == 1 else timing.file

    def sparse_text(self, timing: Timing) -> str:
        """In how many layers the runtime skipped zeros."""
        if timing.layers is None:
            return "no such path"
        return f"in {timing.sparse_layers} of {timing.layers} layers"

    def __str__(self) -> str:
        from secateur.render.terminal import render_bench

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
    paths = [Path(file) for file in files]
    _check(paths, batch, rounds, sparse_rate, threads)
    threads = threads or _cores()
    load = _load()
    cases = [(path, of) for of in _runtimes(paths) for path in paths if _takes(path, of)]
    common = {"threads": threads, "rate": sparse_rate, "batch": batch}
    facts = [_first_run(path, of, common) for path, of in cases]
    _check_inputs(paths, [path for path, _ in cases], facts)
    each = math.ceil(rounds / PROCESSES)
    times = []
    for number in range(PROCESSES):
        times.append(_turns(cases, {**common, "rounds": each, "seed": [seed, number]}))
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


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low end, geometric mean and high end, from one positive number per process.

    Student's t interval of the logarithms: right where those are normal, whatever the rounds
    within a process have in common.
    """
    logs = [math.log(value) for value in values]
    middle = statistics.fmean(logs)
    reach = _STUDENT * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle - reach), math.exp(middle), math.exp(middle + reach)


def ratio(first: Timing, other: Timing) -> tuple[float, float, float]:
    """A file's time over the first one's, in the middle of its interval, from paired rounds."""
    return interval(
        [
            statistics.median(late / early for early, late in zip(one, two, strict=True))
            for one, two in zip(first.milliseconds, other.milliseconds, strict=True)
        ]
    )


def verdict(first: Timing, other: Timing) -> str:
    """How much slower or faster a file is than the first, or that no difference can be measured.

    In percent of the first one's time.
    """
    low, middle, high = ratio(first, other)
    if low <= 1 <= high:
        return NO_DIFFERENCE
    if middle > 1:
        return f"{_percent(middle - 1)} % slower ({_percent(low - 1)} to {_percent(high - 1)} %)"
    return f"{_percent(1 - middle)} % faster ({_percent(1 - high)} to {_percent(1 - low)} %)"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f}"


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


def _first_run(path: Path, runtime: str, common: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a file from a process of its own, which also shows whether it runs at all."""
    options = {"path": str(path), "runtime": runtime, **common}
    try:
        done = _engines("trial", options, seconds=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{path} did not finish three runs on {runtime} within {_PATIENCE:g} s, expected one "
            "that ends: use a smaller batch"
        ) from error
    if done.returncode != 0:
        raise ModelError(
            f"{runtime} cannot run {path} ({_said(done)}), expected a file that it runs: check it, "
            "or its batch"
        )
    return json.loads(done.stdout)


def _turns(cases: Sequence[tuple[Path, str]], options: Mapping[str, Any]) -> list[list[float]]:
    """Milliseconds of each case by round, from one process."""
    listed = [(str(path), runtime) for path, runtime in cases]
    done = _engines("turns", {"cases": listed, **options}, seconds=None)
    if done.returncode != 0:
        raise ModelError(
            f"the files cannot be run together ({_said(done)}), expected room for all of them in "
            "memory: give fewer"
        )
    return json.loads(done.stdout)


def _engines(
    action: str, options: Mapping[str, Any], *, seconds: float | None
) -> subprocess.CompletedProcess[bytes]:
    program = Path(__file__).with_name("bench_worker.py")
    content = json.dumps([action, options]).encode()
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
    file: str, runtime: str, facts: Mapping[str, Any], found: Sequence[Sequence[float]]
) -> Timing:
    low, middle, high = interval([statistics.median(of) for of in found])
    return Timing(
        file=file,
        runtime=runtime,
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
    names = {ONNX_RUNTIME: "onnxruntime", OPENVINO: "openvino"}
    used = {names[one.runtime] for one in timings if one.runtime in names}
    return {name: known[name] for name in sorted(used) if name in known}


def _warnings(timings: Sequence[Timing], load: float | None, threads: int) -> list[str]:
    """Why the numbers may mean little: other work on the machine, processes that differ."""
    found, cores = [], os.cpu_count() or 1
    if load is not None and load + threads > cores + _IDLE:
        found.append(
            f"the machine was busy (load average {load:.1f} before the start; {cores} cores for "
            f"{threads} thread{'s' * (threads > 1)}): measure again when it is idle"
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
