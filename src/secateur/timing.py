"""A network that takes a share of the dense one's time: its layers measured, and the whole.

The time of a layer against its widths is measured here, and an allocation divides it
(`secateur.pruning.channels.costs.TimeCost`). What lies between layers, and caches, no table tells:
so the whole network is measured at the widths found, before anything is fitted, and the table is
corrected by what it was off, until the target is met.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import ModelError
from secateur.frontends import Frontend
from secateur.hardware.compare_latency import Ratio, compare, file_for, try_run
from secateur.hardware.layer_times import LayerTimes
from secateur.network.samples import Samples
from secateur.options import Options
from secateur.pruning.channels.costs import TimeCost, layer_widths
from secateur.pruning.channels.run import ChannelRun
from secateur.pruning.targets import MaxLatency
from secateur.pruning.walk import WalkResult
from secateur.report.latency import LatencyReport
from secateur.support.progress import Teller

_TRIES = 4  # measurements of the whole network, at most
_BELOW = 0.03  # how far below its target a time may be, as a share of it
_SECONDS = 60  # for the table
_WHOLE_SECONDS = 10  # for the whole network, each time but the last
_LAST_SECONDS = 30
_FLAT = 0.1  # a slope below it is noise


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of a network on the runtime that it is pruned for.

    Attributes:
        model: the dense network.
        samples: some inputs.
        runtime, threads: where it runs.
        layers: each layer against its widths.
        tried: shares of the layers' time that were tried, and the whole network's time at each, as
            a share of the dense one's.
    """

    model: Frontend
    samples: Samples
    runtime: str
    threads: int
    layers: LayerTimes
    tried: tuple[tuple[float, float], ...] = ()

    @classmethod
    def measured(cls, model: Frontend, run: ChannelRun, options: Options, teller: Teller) -> Timing:
        """Measures the layers.

        Raises:
            MissingExtraError: the runtime is not installed.
            ModelError: it does not run the network.
        """
        runtime, few = str(options.runtime), run.samples.select(slice(2))
        chapter = run.execution.journal.chapter("layer times")
        if (entry := chapter.get(0, LayerTimes)) is not None:
            return cls(
                model=model,
                samples=few,
                runtime=runtime,
                threads=options.threads,
                layers=entry.record,
            )
        teller.step(f"measuring the layers' times on {runtime}")
        with tempfile.TemporaryDirectory() as folder:
            network = file_for(model.model, few, runtime, Path(folder) / "dense")
            layers = LayerTimes.measure(
                run.graph,
                runtime=runtime,
                network=network,
                step=max(8, run.multiple),
                seconds=_SECONDS,
                threads=options.threads,
            )
        chapter.put(0, layers)
        return cls(
            model=model, samples=few, runtime=runtime, threads=options.threads, layers=layers
        )

    def priced(self, run: ChannelRun) -> ChannelRun:
        """The run with what its layers take."""
        widths = layer_widths(run.graph, run.space.removable)
        known = [of for of in widths if of.op not in self.layers.unmeasured]
        rest = max(0.0, self.layers.rest or 0.0)
        cost = TimeCost(fixed=rest, layers=known, seconds=self.layers.of)
        return replace(run, prices={**run.prices, MaxLatency.name: cost})

    def met(self, run: ChannelRun, teller: Teller) -> tuple[ChannelRun, Timing]:
        """The run with its table corrected by the whole network's time, at the widths found.

        Raises:
            ModelError: the runtime does not run the smaller network.
        """
        asked, share = run.target.value, run.target.value
        tried: list[tuple[float, float]] = []  # shares of the table's time, and what was measured
        chapter = run.execution.journal.chapter("whole times")
        with tempfile.TemporaryDirectory() as folder:
            dense = cache(lambda: self.written(Path(folder) / "dense"))  # once for all tries
            while True:
                entry = chapter.get(len(tried), Ratio)
                if entry is None:
                    counts = replace(run, time_share=share).counts(run.target)
                    smaller = self.model.shrunk(run.removed_at(counts), self.samples)
                    teller.step("measuring the whole network at the widths found")
                    _, ratio = self.compared(dense(), smaller, _WHOLE_SECONDS)
                    chapter.put(len(tried), ratio)
                else:
                    ratio = entry.record
                tried.append((share, ratio.ratio))
                if asked * (1 - _BELOW) <= ratio.ratio <= asked or len(tried) == _TRIES:
                    break
                share = next_share(tried, asked * (1 - _BELOW / 2))
        share = best_share(tried, asked)
        return replace(run, time_share=share), replace(self, tried=tuple(tried))

    def written(self, place: Path) -> Path:
        """The dense network as a file that the runtime runs."""
        return file_for(self.model.model, self.samples, self.runtime, place)

    def compared(self, dense: Any, smaller: Frontend, seconds: float) -> list[Ratio]:
        """The dense network's time and a smaller one's, in processes of their own."""
        models = [dense, smaller.model]
        return compare(models, self.samples, self.runtime, seconds, threads=self.threads)

    def planned(self, run: ChannelRun, walked: WalkResult, report: LatencyReport) -> LatencyReport:
        """The report of the times that were measured, with how the widths were found."""
        cost = run.prices[MaxLatency.name]
        removed = np.array([len(units) for units in run.removed_by(walked)])
        return replace(
            report,
            predicted=cost.at(removed) / cost.dense,
            tries=len(self.tried),
            table=self.layers.conditions(),
        )


def measure_all(
    dense: Any, networks: Sequence[Any], int8: Any, samples: Samples, options: Options
) -> tuple[list[Ratio], list[str]]:
    """Times of the dense network, of those made of it, and of the last one in INT8, in turns.

    Args:
        dense: the network to compare with.
        networks: after each part.
        int8: an `onnx.ModelProto`; None = there is none.
        samples: some inputs.
        options: name the runtime and its threads.

    Returns:
        The times in this order, without INT8 where the runtime does not run it, none where it does
        not run the others; and what could not be measured, with the reason.
    """
    runtime = str(options.runtime)
    floats, told = [dense, *networks], list[str]()
    if int8 is not None and runtime == "torch":
        told.append("the time in INT8 was not measured: PyTorch does not run the ONNX file")
    elif int8 is not None:
        try:
            return _turns([*floats, int8], samples, runtime, options.threads), told
        except ModelError as error:
            told.append(f"the time in INT8 was not measured: {error}")
    try:
        return _turns(floats, samples, runtime, options.threads), told
    except ModelError as error:  # the pruned network is there all the same
        return [], [*told, f"the pruned network's time was not measured: {error}"]


def _turns(models: Sequence[Any], samples: Samples, runtime: str, threads: int) -> list[Ratio]:
    return compare(models, samples, runtime, _LAST_SECONDS, threads=threads)


def try_runtime(model: Frontend, samples: Samples, options: Options) -> None:
    """Runs the dense network a few times where the pruned one is to be measured.

    Raises:
        ModelError: the runtime does not run it.
        MissingExtraError: what exporting needs is not installed.
    """
    try_run(model.model, samples, str(options.runtime), threads=options.threads)


def latency_report(runtime: str, threads: int, dense: Ratio, pruned: Ratio) -> LatencyReport:
    """The times of the dense network and of the pruned one."""
    return LatencyReport(
        runtime=runtime,
        threads=threads,
        dense=1e3 * dense.seconds,
        pruned=1e3 * pruned.seconds,
        ratio=pruned.ratio,
        low=pruned.low,
        high=pruned.high,
        rounds=pruned.rounds,
    )


def next_share(tried: Sequence[tuple[float, float]], wanted: float) -> float:
    """The share of the table's time to try next, so that the whole network takes what is wanted.

    Along the line through the two tries nearest to it; in proportion where there is one, or noise
    has them in the wrong order.
    """
    near = sorted(tried, key=lambda one: abs(one[1] - wanted))[:2]
    share, found = near[0]
    proportional = share * wanted / found
    if len(near) < 2 or near[1][0] == share:
        return _within(proportional)
    slope = (near[1][1] - found) / (near[1][0] - share)
    return _within(share + (wanted - found) / slope if slope > _FLAT else proportional)


def _within(share: float) -> float:
    return min(1.0, max(0.01, share))


def best_share(tried: Sequence[tuple[float, float]], asked: float) -> float:
    """The share whose network takes most of what is allowed; failing that, the least time."""
    met = [one for one in tried if one[1] <= asked]
    best = max(met, key=lambda one: one[1]) if met else min(tried, key=lambda one: one[1])
    return best[0]
