"""Runtimes that `secateur.bench` times, and, as a program, the processes in which it does.

The program reads a pair from standard input, "trial" or "turns" and the arguments of that function
by name, and writes what the function returns, both as JSON. It imports nothing of secateur, so that
only the runtimes themselves are in the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ONNX_RUNTIME, OPENVINO, OPENVINO_SPARSE = "ONNX Runtime", "OpenVINO", "OpenVINO, sparse on"
_SPARSE_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"  # 1 = off
_LAYERS = ("FullyConnected", "Convolution", "MatMul")  # of OpenVINO's executed model
_WARM_UP = 3  # runs
_LEAST_SECONDS = 2e-3  # of one measurement: shorter runs are repeated
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of a model: its name, shape (the batch size in place of a free axis) and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model in a runtime.

    Attributes:
        inputs: what it takes.
        run: one inference on arrays by name.
        precision: of what was computed, as far as the runtime tells.
        layers: executed convolutions, linear layers and matrix products; None = not told.
        sparse_layers: those of them that leave zeros out, by the name of the executed kernel.
    """

    inputs: tuple[Input, ...]
    run: Callable[[Mapping[str, np.ndarray]], Any]
    precision: str
    layers: int | None = None
    sparse_layers: int | None = None


def start(path: Path, runtime: str, threads: int, rate: float, batch: int) -> Engine:
    """A model file in a runtime.

    Args:
        path: an .onnx file, or for OpenVINO an .xml file.
        runtime: one of the names above.
        threads: how many it may use.
        rate: share of zeros in a layer from which OpenVINO takes its sparse path.
        batch: size of the free axes.
    """
    if runtime == ONNX_RUNTIME:
        return _onnxruntime(path, threads, batch)
    return _openvino(path, threads, rate if runtime == OPENVINO_SPARSE else 1.0, batch)


def example(inputs: tuple[Input, ...], seed: int) -> dict[str, np.ndarray]:
    """Normal numbers for inputs of floating-point type, zeros for others."""
    rng = np.random.default_rng(seed)
    return {
        one.name: rng.standard_normal(one.shape).astype(one.dtype)
        if np.dtype(one.dtype).kind == "f"
        else np.zeros(one.shape, one.dtype)
        for one in inputs
    }


def _onnxruntime(path: Path, threads: int, batch: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # threads that wait would take time from the other runtimes, which run in turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = tuple(
        Input(name=of.name, shape=_sizes(of.shape, batch), dtype=np.dtype(_TYPES[of.type]).name)
        for of in session.get_inputs()
    )
    return Engine(
        inputs=inputs,
        run=lambda feed: session.run(None, dict(feed)),
        precision="not told",
    )


def _openvino(path: Path, threads: int, rate: float, batch: int) -> Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino

    core = openvino.Core()
    model = core.read_model(path)
    inputs = tuple(
        Input(
            name=of.get_any_name(),
            shape=_sizes(
                [d.get_length() if d.is_static else None for d in of.partial_shape], batch
            ),
            dtype=np.dtype(of.get_element_type().to_dtype()).name,
        )
        for of in model.inputs
    )
    model.reshape({one.name: list(one.shape) for one in inputs})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        _SPARSE_RATE: rate,
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    executed = [_executed(op) for op in compiled.get_runtime_model().get_ordered_ops()]
    layers = [(kernel, kind) for of, kernel, kind in executed if of in _LAYERS]
    return Engine(
        inputs=inputs,
        run=lambda feed: request.infer(dict(feed)),
        precision=_precision(compiled, layers),
        layers=len(layers),
        sparse_layers=sum("sparse" in kernel for kernel, _ in layers),
    )


def _executed(op: Any) -> tuple[str, str, str]:
    """What an operation of the executed model is: layer type, kernel, precision."""
    info = op.get_rt_info()
    kind, kernel, precision = (
        info[key].astype(str) if key in info else ""
        for key in ("layerType", "primitiveType", "runtimePrecision")
    )
    return kind, kernel, precision


def _precision(compiled: Any, layers: list[tuple[str, str]]) -> str:
    """Of the executed layers, and what OpenVINO was free to use."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    found = sorted({kind for _, kind in layers})
    return f"{hint} allowed; layers in {', '.join(found)}" if found else f"{hint} allowed"


def _sizes(shape: list[Any], batch: int) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size > 0 else batch for size in shape)


def _memory(key: str) -> int | None:
    """The process's resident memory in bytes: VmRSS now, VmHWM at most; None but on Linux.

    Not getrusage, whose peak a process takes over from the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(of.split()[1]) for of in lines if of.startswith(f"{key}:")), None)


def trial(path: str, runtime: str, threads: int, rate: float, batch: int) -> dict[str, Any]:
    """What a file is in a runtime, and the memory that loading and three runs take.

    Args: see `start`.

    Returns:
        `inputs`, `precision`, `layers` and `sparse_layers` of `Engine`, and `peak`: the growth of
        the process's peak memory in bytes; None = the system does not tell.
    """
    __import__("onnxruntime" if runtime == ONNX_RUNTIME else "openvino")
    before = _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    engine = start(Path(path), runtime, threads, rate, batch)
    feed = example(engine.inputs, 0)
    for _ in range(_WARM_UP):
        engine.run(feed)
    after = _memory("VmHWM")
    return {
        "inputs": [dataclasses.asdict(one) for one in engine.inputs],
        "precision": engine.precision,
        "layers": engine.layers,
        "sparse_layers": engine.sparse_layers,
        "peak": None if before is None or after is None else after - before,
    }


def turns(
    cases: Sequence[tuple[str, str]],
    threads: int,
    rate: float,
    batch: int,
    rounds: int,
    seed: Sequence[int],
) -> list[list[float]]:
    """Milliseconds of each case, a file and a runtime, by round: see `measure`."""
    engines = [start(Path(path), of, threads, rate, batch) for path, of in cases]
    feeds = [example(engine.inputs, 0) for engine in engines]
    runs = [_bound(engine, feed) for engine, feed in zip(engines, feeds, strict=True)]
    return measure(runs, rounds, seed)


def measure(
    runs: Sequence[Callable[[], Any]], rounds: int, seed: int | Sequence[int] = 0
) -> list[list[float]]:
    """Milliseconds of each function, one number per round; they take turns in random order.

    A function that ends sooner than 2 ms is repeated within a round, as often as it takes.
    """
    repeats = [_repeats(run) for run in runs]
    rng = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
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
