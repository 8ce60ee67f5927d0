"""The process in which `secateur.hardware.layer_times` measures, as a program.

It reads the arguments of `measure_in` by name from standard input as JSON. It writes lines of JSON:
what it is at, and at the end what `measure` returns. It imports PyTorch only to measure PyTorch.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from secateur.hardware.bench_worker import example, start
from secateur.hardware.layer_cells import Cell, OnnxRuntimeCell, OpenVinoCell, Timed, clock_for
from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.runtimes.protocol import EngineOptions

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
LEAST_ROUNDS = 7  # the first is not counted; six have a 95 % interval, from least to greatest
SMALL = 0.01  # of the sum of all layers
_MOST_ROUNDS = 200  # more would tell little
_FIRST_ROUNDS = 5
_PREPARING = 0.5  # of the time, at most, before the rounds

Make = Callable[[LayerShape], Cell]
Tell = Callable[[float, str], Any]  # told the seconds so far, and what is done


@dataclasses.dataclass(kw_only=True)
class RowTimes:
    """The times of a shape at several widths.

    Attributes:
        inputs, outputs: the widths.
        seconds: of each run, in [inputs][outputs].
        skipped: why there is only the full width; empty = there are all.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: list[list[list[float]]]
    skipped: str = ""


@dataclasses.dataclass(kw_only=True)
class Measured:
    """What `measure` gives.

    Attributes:
        rows: by shape.
        whole: the times of the whole network; empty without one.
        rounds: how many count.
        elapsed: seconds that all of it took.
    """

    rows: list[RowTimes]
    whole: list[float]
    rounds: int
    elapsed: float


def measure(
    shapes: Sequence[LayerShape],
    counts: Sequence[int],
    make: Make,
    *,
    shares: tuple[float, ...],
    step: int,
    seconds: float,
    whole: Cell | None = None,
    tell: Tell = lambda elapsed, what: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Times every shape at shares of its widths, and the whole network, all taking turns.

    First all shapes at full width for a few rounds. Those that take under 1 % of the sum stay at
    full width; so do the cheaper ones once half of the time is over and not all are prepared.

    Args:
        shapes, counts: the layers, and how often each shape occurs.
        make: puts a shape into the runtime.
        shares: of the full widths.
        step: that widths are multiples of.
        seconds: after which no further round begins; there are at least 7, and at most 200.
        whole: the network.
        tell: hears how it goes on.
        clock: the time in seconds.
    """
    begin = clock()
    first = [make(shape) for shape in shapes]
    take_turns(first, least=_FIRST_ROUNDS, most=_FIRST_ROUNDS, until=begin, clock=clock)
    totals = [
        count * statistics.median(cell.seconds()[1:])
        for count, cell in zip(counts, first, strict=True)
    ]
    del first
    cells: dict[int, tuple[RowTimes, list[list[Cell]]]] = {}
    for index in sorted(range(len(shapes)), key=lambda index: -totals[index]):
        shape = shapes[index]
        tell(clock() - begin, shape.text)
        late = clock() - begin > _PREPARING * seconds
        skipped = _skipped(totals[index] < SMALL * sum(totals), late)
        widths = shape.widths((1.0,) if skipped else shares, step)
        grid = [[make(shape.at(inputs, outputs)) for outputs in widths[1]] for inputs in widths[0]]
        row = RowTimes(inputs=widths[0], outputs=widths[1], seconds=[], skipped=skipped)
        cells[index] = row, grid
    every = [cell for _, grid in cells.values() for line in grid for cell in line]
    every += [] if whole is None else [whole]
    rounds = take_turns(
        every,
        least=LEAST_ROUNDS,
        most=_MOST_ROUNDS,
        until=begin + seconds,
        clock=clock,
        tell=lambda now: tell(now - begin, "rounds"),
    )
    for row, grid in cells.values():
        row.seconds = [[cell.seconds()[1:] for cell in line] for line in grid]
    return Measured(
        rows=[cells[index][0] for index in range(len(shapes))],
        whole=[] if whole is None else whole.seconds()[1:],
        rounds=rounds - 1,
        elapsed=clock() - begin,
    )


def _skipped(small: bool, late: bool) -> str:
    if small:
        return f"under {SMALL:.0%} of all layers' time"
    return "no time left to prepare it" if late else ""


def take_turns(
    cells: Sequence[Cell],
    *,
    least: int,
    most: int,
    until: float,
    clock: Callable[[], float],
    tell: Callable[[float], Any] = lambda now: None,
) -> int:
    """Runs all cells once a round, in another order each round; returns the number of rounds.

    Once a round and no more, so that a layer finds its weights as far away as in a network, where
    all others run before its next turn.
    """
    rng, rounds = np.random.default_rng(0), 0
    while rounds < least or (rounds < most and clock() < until):
        for index in rng.permutation(len(cells)):
            cells[index].run()
        rounds += 1
        tell(clock())
    return rounds


@contextmanager
def cells_of(runtime: str, threads: int) -> Iterator[Make]:
    """What puts shapes into a runtime."""
    if runtime == "torch":
        module: Any = importlib.import_module("secateur.hardware.torch_cells")
        yield lambda shape: module.TorchCell(shape, threads)
    elif runtime == "openvino":
        yield lambda shape: OpenVinoCell(shape, threads)
    else:
        with tempfile.TemporaryDirectory() as folder:  # for profiles
            yield lambda shape: OnnxRuntimeCell(shape, threads, Path(folder))


def whole_network(path: str, runtime: str, threads: int, inputs: Sequence[Sequence[int]]) -> Cell:
    """A model file as a cell, on random numbers of the shapes of its inputs."""
    options = EngineOptions(threads=threads, rate=1.0, batch=1, shapes=inputs)
    engine = start(Path(path), ENGINES[runtime], options)
    feed = example(engine.inputs, 0)
    return Timed(lambda: engine.run(feed), clock_for(threads))


def measure_in(
    runtime: str,
    shapes: Sequence[Mapping[str, Any]],
    counts: Sequence[int],
    threads: int,
    network: str | None,
    inputs: Sequence[Sequence[int]],
    **options: Any,
) -> Measured:
    """`measure` in a runtime, of shapes as JSON holds them and of a model file."""
    with cells_of(runtime, threads) as make:
        return measure(
            [msgspec.convert(shape, LayerShape) for shape in shapes],
            counts,
            make,
            whole=whole_network(network, runtime, threads, inputs) if network else None,
            tell=_Teller(),
            **{**options, "shares": tuple(options["shares"])},
        )


class _Teller:
    """Writes a line where something else is done than before, or a second has passed."""

    def __init__(self) -> None:
        self.last = (-1, "")

    def __call__(self, elapsed: float, what: str) -> None:
        if (now := (int(elapsed), what)) != self.last:
            self.last = now
            sys.stdout.write(json.dumps({"elapsed": elapsed, "what": what}) + "\n")
            sys.stdout.flush()


def main() -> None:
    """Does what standard input asks for."""
    options = json.load(sys.stdin)
    try:
        result = measure_in(**options)
    except (Exception, MemoryError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())[:300]}\n")
        sys.exit(3)
    sys.stdout.write(json.dumps({"result": dataclasses.asdict(result)}) + "\n")


if __name__ == "__main__":
    main()
