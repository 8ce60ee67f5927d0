"""How the latencies of several networks compare on one runtime: measured in turns.

As `secateur.bench` measures: several processes, in each of which all networks take turns, and an
interval from the processes. But on one runtime, for a time that is given, and of modules as well.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import ModelError, OptionError
from secateur.frontends.loading import open as open_model
from secateur.frontends.openvino.runtime import write_copy
from secateur.frontends.torch.onnx_export import exported
from secateur.frontends.torch.signature import Arguments
from secateur.hardware.bench_worker import measure
from secateur.hardware.latency import PROCESSES, interval, median_interval
from secateur.hardware.layer_worker import ENGINES
from secateur.network.samples import AnySamples, Samples, as_samples
from secateur.support.subprocesses import run_program
from secateur.support.threads import torch_threads

_FORMATS = {"onnxruntime": (".onnx",), "openvino": (".onnx", ".xml"), "torch": (".pt2",)}
_LEAST_SECONDS = 0.1  # in each process


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A network's time against the first one's.

    Attributes:
        ratio: its time over the first one's, from rounds in pairs; 1 for the first itself.
        low, high: ends of the 95 % interval.
        seconds: of a run: the geometric mean of the processes' medians.
        rounds: over all processes.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    rounds: int


def compare(
    models: Sequence[Any],
    images: AnySamples,
    runtime: str,
    seconds: float = 30,
    *,
    threads: int = 1,
    quick: bool = False,
) -> list[Ratio]:
    """Measures several networks in turns, one image at a time, in five processes.

    Args:
        models: the one to compare with first: files that the runtime runs (.onnx, .xml for
            "openvino", .pt2 for "torch"), or modules, which are exported.
        images: some inputs; the first is what is run, and modules are exported with them.
        runtime: "onnxruntime", "openvino" or "torch" (eager, channels last).
        seconds: of measuring, over all processes; starting them is not in it.
        threads: of the runtime.
        quick: in one process, to save the starting of the others: intervals are of the median of
            its rounds, and do not know that processes differ, by some percent.

    Raises:
        OptionError: an unknown runtime, no models, or a setting out of range.
        ModelError: a model cannot be exported or run.
        MissingExtraError: what exporting needs is not installed.

    Memory: all networks at once, in another process.
    """
    if not models:
        raise OptionError("got no models, expected the dense one and those to compare with it")
    if seconds <= 0:
        raise OptionError(f"seconds is {seconds}, expected more than 0")
    count = 1 if quick else PROCESSES
    each = max(seconds / count, _LEAST_SECONDS)
    with _measuring(models, images, runtime, threads) as turns:
        found = [turns(seconds=each, seed=[number]) for number in range(count)]
    return [_ratio(found, index) for index in range(len(models))]


def compare_modules(
    models: Sequence[nn.Module], images: AnySamples, seconds: float, *, threads: int = 1
) -> list[Ratio]:
    """A quick look at several modules in turns, one sample at a time, in this process.

    Args:
        models: the one to compare with first; not exported, so that they run as they are written.
        images: some inputs; the first is what is run.
        seconds: of measuring.
        threads: of PyTorch.
    """
    with torch_threads(threads):
        found = [module_turns(models, as_samples(images).select(slice(1)), 2, seconds)]
    return [_ratio(found, index) for index in range(len(models))]


def module_turns(
    models: Sequence[nn.Module], samples: Samples, rounds: int, seconds: float = 0.0
) -> list[list[float]]:
    """Milliseconds of several modules on the same samples, by round, in this process.

    Args:
        models: accelerated or compiled ones as well.
        samples: of a run.
        rounds, seconds: see `measure`.
    """
    with ExitStack() as stack:
        runs = [_bound(of, samples, stack) for of in models]
        stack.enter_context(torch.inference_mode())
        return measure(runs, rounds, seconds=seconds)


def _bound(model: nn.Module, samples: Samples, stack: ExitStack) -> Callable[[], Any]:
    if type(model).__name__ == "OptimizedModule":  # opened, it would be the network within
        return lambda: model(**samples.tensors)
    run = stack.enter_context(open_model(model).running(samples))
    return lambda: run(samples)


def try_run(model: Any, images: AnySamples, runtime: str, *, threads: int = 1) -> None:
    """Runs a network a few times in one process, to see whether it runs; see `compare`."""
    with _measuring([model], images, runtime, threads) as turns:
        turns(seconds=0, seed=[0])


@contextmanager
def _measuring(
    models: Sequence[Any], images: AnySamples, runtime: str, threads: int
) -> Iterator[Callable[..., list[list[float]]]]:
    """What starts a process in which models take turns; their files are there meanwhile."""
    if runtime not in ENGINES:
        raise OptionError(f"runtime is {runtime!r}, expected one of {', '.join(ENGINES)}")
    if threads < 1:
        raise OptionError(f"threads is {threads}, expected at least 1")
    samples = as_samples(images)
    with tempfile.TemporaryDirectory() as folder:
        files = [
            file_for(model, samples, runtime, Path(folder) / str(number))
            for number, model in enumerate(models)
        ]
        values = Path(folder) / "values.npz"
        given = samples[:1].arrays()
        np.savez(values, **{f"input{name}": value for name, value in given.items()})  # type: ignore[arg-type]
        options = {
            "threads": threads,
            "rate": 1.0,
            "batch": 1,
            "shapes": [[1, *shape] for shape in samples.shapes.values()],
            "values": str(values),
        }
        yield partial(_turns, files, ENGINES[runtime], options)


def file_for(model: Any, images: AnySamples, runtime: str, place: Path) -> Path:
    """A model file that the runtime runs: the one that is given, or a module exported."""
    if isinstance(model, str | Path):
        if Path(model).suffix.lower() not in _FORMATS[runtime] or not Path(model).is_file():
            raise ModelError(
                f"got {model}, expected a {' or '.join(_FORMATS[runtime])} file for "
                f"{ENGINES[runtime]}: check the path"
            )
        return Path(model).resolve()
    network = open_model(model)
    if runtime == "torch" and network.suffix in (".onnx", ".xml"):
        raise ModelError(
            f"the network is an {network.suffix} file, expected a PyTorch module for PyTorch: name "
            "another runtime, or pass the module that the file was made from"
        )
    if runtime == "torch":
        path = place.with_suffix(".pt2")
        module, few = exported(model, as_samples(images))
        given = Arguments.of(module, few[:1])
        program = torch.export.export(module, given.args, dict(given.kwargs))
        torch.export.save(program, path)
        return path
    if runtime == "openvino" and network.suffix == ".xml":
        path = place.with_suffix(".xml")
        write_copy(network.model, path)
        return path
    path = place.with_suffix(".onnx")
    from secateur.frontends.onnx import write

    write(network.to_onnx(as_samples(images)[:2]), path)
    return path


def _turns(
    files: Sequence[Path],
    engine: str,
    options: Mapping[str, Any],
    *,
    seconds: float,
    seed: Sequence[int],
) -> list[list[float]]:
    """Milliseconds of each file by round, from one process."""
    cases = [(str(path), engine) for path in files]
    arguments = {"cases": cases, "options": options, "rounds": 2, "seed": seed, "seconds": seconds}
    program = Path(__file__).with_name("bench_worker.py")
    done = run_program(program, [], seconds=None, content=json.dumps(["turns", arguments]).encode())
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ModelError(
            f"{engine} cannot run the networks ({said[-1][:300] if said else done.returncode}), "
            "expected some that it runs: check them"
        )
    return json.loads(done.stdout)


def _ratio(processes: Sequence[Sequence[Sequence[float]]], index: int) -> Ratio:
    """From the milliseconds of each process, network and round."""
    pairs = [(found[0], found[index]) for found in processes]
    ratios = [[late / early for early, late in zip(one, two, strict=True)] for one, two in pairs]
    medians = [statistics.median(two) for _, two in pairs]
    if len(pairs) == 1:
        low, middle, high = median_interval(ratios[0])
        seconds = medians[0]
    else:
        low, middle, high = interval([statistics.median(each) for each in ratios])
        seconds = interval(medians)[1]
    return Ratio(
        ratio=middle,
        low=low,
        high=high,
        seconds=1e-3 * seconds,
        rounds=sum(len(two) for _, two in pairs),
    )
