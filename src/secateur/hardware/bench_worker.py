"""The processes in which `secateur.bench` measures, as a program.

It reads a pair from standard input, "trial" or "turns" and the arguments of that function by name,
and writes what the function returns, both as JSON. It does not import PyTorch, so that only the
runtimes are in the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.hardware.runtimes import RUNTIMES, Runtime
from secateur.hardware.runtimes.protocol import Engine, EngineOptions, Input

_WARM_UP = 3  # runs
_LEAST_SECONDS = 2e-3  # of one measurement: shorter runs are repeated


def runtime_of(engine: str) -> Runtime:
    """The runtime that has an engine of this name."""
    (runtime,) = (of for of in RUNTIMES if engine in of.engines)
    return runtime


def start(path: Path, engine: str, options: EngineOptions) -> Engine:
    """A model file in a runtime, by the name of one of its engines; a .pt2 file in "PyTorch"."""
    if engine == "PyTorch":
        return importlib.import_module("secateur.hardware.torch_cells").start(path, options)
    return runtime_of(engine).engines[engine](path, options)


def example(inputs: tuple[Input, ...], seed: int, values: str = "") -> dict[str, np.ndarray]:
    """Normal numbers for inputs of floating-point type, zeros for others.

    Args:
        inputs: their names, shapes and types.
        seed: of the numbers.
        values: a file with those to take instead, see `EngineOptions`.
    """
    if values:
        with np.load(values) as held:
            given = [held[name] for name in held.files]
        return {
            one.name: np.ascontiguousarray(value.astype(one.dtype))
            for one, value in zip(inputs, given, strict=True)
        }
    rng = np.random.default_rng(seed)
    return {
        one.name: rng.standard_normal(one.shape).astype(one.dtype)
        if np.dtype(one.dtype).kind == "f"
        else np.zeros(one.shape, one.dtype)
        for one in inputs
    }


def _memory(key: str) -> int | None:
    """The process's resident memory in bytes: VmRSS now, VmHWM at most; None but on Linux.

    Not getrusage, whose peak a process takes over from the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(of.split()[1]) for of in lines if of.startswith(f"{key}:")), None)


def trial(path: str, engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a file is in a runtime, and the memory that loading and three runs take.

    Args:
        path: of the model file.
        engine: name of one of the runtimes' engines.
        options: fields of `EngineOptions`.

    Returns:
        `inputs`, `precision`, `layers` and `sparse_layers` of `Engine`, and `peak`: the growth of
        the process's peak memory in bytes; None = the system does not tell.
    """
    if runtime_of(engine).found is None:  # else it is in another process
        __import__(runtime_of(engine).package)
    before = _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    started = start(Path(path), engine, EngineOptions(**options))
    feed = example(started.inputs, 0)
    for _ in range(_WARM_UP):
        started.run(feed)
    after = _memory("VmHWM")
    return {
        "inputs": [dataclasses.asdict(one) for one in started.inputs],
        "precision": started.precision,
        "layers": started.layers,
        "sparse_layers": started.sparse_layers,
        "peak": None
        if before is None or after is None or runtime_of(engine).found is not None
        else after - before,
    }


def turns(
    cases: Sequence[tuple[str, str]],
    options: Mapping[str, Any],
    rounds: int,
    seed: Sequence[int],
    seconds: float = 0.0,
) -> list[list[float]]:
    """Milliseconds of each case, a file and an engine, by round: see `measure`."""
    engines = [start(Path(path), of, EngineOptions(**options)) for path, of in cases]
    values = str(options.get("values", ""))
    feeds = [example(engine.inputs, 0, values) for engine in engines]
    runs = [_bound(engine, feed) for engine, feed in zip(engines, feeds, strict=True)]
    return measure(runs, rounds, seed, seconds)


def measure(
    runs: Sequence[Callable[[], Any]],
    rounds: int,
    seed: int | Sequence[int] = 0,
    seconds: float = 0.0,
) -> list[list[float]]:
    """Milliseconds of each function, one number per round; they take turns in random order.

    There are as many rounds as asked for, and more until so many seconds have passed.

    A function that ends sooner than 2 ms is repeated within a round, as often as it takes.
    """
    repeats = [_repeats(run) for run in runs]
    rng = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in runs]
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or time.perf_counter() < end:
        done += 1
        for index in rng.permutation(len(runs)):
            begin = time.perf_counter()
            for _ in range(repeats[index]):
                runs[index]()
            seconds = time.perf_counter() - begin
            found[index].append(1e3 * seconds / repeats[index])
    return found


def _repeats(run: Callable[[], Any]) -> int:
    """How often to run for one measurement."""
    for _ in range(_WARM_UP):
        run()
    begin = time.perf_counter()
    run()
    return max(1, math.ceil(_LEAST_SECONDS / max(time.perf_counter() - begin, 1e-7)))


def _bound(engine: Engine, feed: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    return lambda: engine.run(feed)


def main() -> None:
    """Does what standard input asks for."""
    action, options = json.load(sys.stdin)
    try:
        found = {"trial": trial, "turns": turns}[action](**options)
    except (Exception, MemoryError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())[:300]}\n")
        sys.exit(3)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
