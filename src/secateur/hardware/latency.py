"""Latencies as data: each file's times in each runtime, and which differences are measurable.

A process gives one number: the median over its rounds of the ratio of two files' times. The numbers
of all processes give an interval (Student's t, of the logarithms). If it contains 1 there is no
measurable difference. (Georges, Buytaert and Eeckhout, "Statistically rigorous Java performance
evaluation", 2007.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.support.serialization import Saved, are_finite, demand
from secateur.support.tables import Block, Column, Document, Table, warnings_first
from secateur.support.wording import counted

NO_DIFFERENCE = "no measurable difference"
CONFIDENCE = 0.95
PROCESSES = 5
_STUDENT = 2.776  # quantile (1 + CONFIDENCE) / 2 of Student's t, PROCESSES - 1 degrees of freedom


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
class Bench(Saved, Document):
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

    def __post_init__(self) -> None:
        for timing in self.timings:
            runs = [of for process in timing.milliseconds for of in process]
            demand(all(of > 0 for of in runs) and are_finite(*runs), "milliseconds are no times")
            as_many = _runs(timing) == _runs(self.first(timing))
            demand(
                bool(runs) and all(_runs(timing)) and as_many,
                "milliseconds are not as many as of the first file",
            )

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
        return f"in {timing.sparse_layers} of {counted(timing.layers, 'layer')}"

    def conditions(self) -> str:
        """How it was measured, in one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rounds = counted(self.rounds, "round")
        processes = counted(self.processes, "process", "processes")
        return (
            f"{rounds} in {processes}, the files taking turns; "
            f"{self.confidence:.0%} intervals; slower or faster in percent of the first file's "
            f"time; {counted(self.threads, 'thread')}, batch {self.batch}, "
            f"sparse path from {self.sparse_rate:.0%} zeros on; {self.cpu}; {versions}"
        )

    def table(self) -> Table:
        """A row for each file and runtime, the pruned files against the first."""
        rows = tuple(
            (
                of.runtime,
                self.label(of),
                of.median,
                (of.low, of.high),
                None if of.peak_bytes is None else of.peak_bytes / 1e6,
                self.verdict(of),
                self.sparse_text(of),
                of.precision,
            )
            for of in self.timings
        )
        return Table(name="latency", columns=_COLUMNS, rows=rows, note=self.conditions())

    def blocks(self) -> list[Block]:
        """Warnings, the table, how it was measured, and notes."""
        return [*warnings_first(self.warnings), self.table(), self.conditions(), *self.notes]


_COLUMNS = (
    Column("runtime"),
    Column("file"),
    Column("median", "{:.3g}", unit="ms"),
    Column("interval", "{:.3g} to {:.3g}", unit="ms"),
    Column("peak memory", "{:.1f}", unit="MB"),
    Column("against the first"),
    Column("zeros left out"),
    Column("precision"),
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


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low end, median and high end of a 95 % interval of the median, from rounds of one process.

    From the smallest order statistics that a median of independent rounds lies between with that
    probability, whatever their distribution; of fewer than six it is all of them, and less sure.
    """
    ordered = sorted(values)
    count = len(ordered)
    below, total = -1, 0.0  # how many values lie under the interval's low end, less one
    while (total := total + math.comb(count, below + 1) / 2**count) <= (1 - CONFIDENCE) / 2:
        below += 1
    below = max(below, 0)
    return ordered[below], statistics.median(ordered), ordered[count - 1 - below]


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


def _runs(timing: Timing) -> list[int]:
    """How many runs there were in each process."""
    return [len(process) for process in timing.milliseconds]
