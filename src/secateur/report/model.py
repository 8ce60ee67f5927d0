"""The report of a pruned network, as data; saved as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from secateur.evaluation.results import MEASURES, Evaluation, Measure, evaluation_table
from secateur.hardware.requirements import RuntimeReport, runtime_table
from secateur.pruning.groups import ChannelGroup
from secateur.pruning.search import Try
from secateur.report.channels import channel_table, stuck_table
from secateur.report.latency import LatencyReport, latency_table
from secateur.report.layers import DenseLayer, LayerReport, Totals, dense_table, layer_table
from secateur.report.parts import PartReport, part_table
from secateur.support.serialization import Saved, are_finite, demand
from secateur.support.tables import Block, Cell, Column, Document, Table, warnings_first
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The calibration samples.

    Attributes:
        source: where they come from.
        images: how many.
        shape: of one, in the network's first input.
        inputs: the shape of each input by its name, where there are several.
        notes: how they were chosen.
    """

    source: str
    images: int
    shape: tuple[int, ...]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        """What a sample is called: an image, where the network takes nothing but such a tensor."""
        return "image" if len(self.shape) > 1 and not self.inputs else "sample"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The network after a step of a recipe and all earlier steps.

    Attributes:
        name: name of the step.
        calibration: agreement and KL against the dense network on the calibration images.
        evaluation: on evaluation data; None without any.
    """

    name: str
    calibration: Evaluation | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """How the largest sparsity within `max_drop` was found.

    Attributes:
        measure: what a drop is: points of "top-1" or of "disagreement" with the dense network,
            the same "per token", hundredths of mean "cosine", or the user's own "metric".
        judged_on: "evaluation images", "held-back calibration images", or "the metric's own data".
        images: number of images; 0 where the metric has its own.
        sparsity, drop, error: of the result; `error` is the standard error of the drop, None
            where it is not known.
        tries: every sparsity tried, one walk each, in order.
    """

    measure: str
    judged_on: str
    images: int
    sparsity: float
    drop: float
    error: float | None
    tries: tuple[Try, ...]

    def __post_init__(self) -> None:
        demand(self.measure in MEASURES, f"measure is {self.measure!r}, none that there is")

    @property
    def counted_in(self) -> Measure:
        """The measure, with its unit."""
        return MEASURES[self.measure]

    @property
    def lost(self) -> str:
        """What was lost (or gained) at the sparsity of the result."""
        return self.counted_in.lost(self.drop, self.error)

    @property
    def on_text(self) -> str:
        """What it was measured on."""
        return f"{self.images} {self.judged_on}" if self.images else self.judged_on

    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """Sparsity and loss of each try, and which one is the result."""
        return tuple(
            (
                100 * of.sparsity,
                self.counted_in.figure(of.drop, of.error),
                "yes" * (of.sparsity == self.sparsity),
            )
            for of in self.tries
        )


@dataclass(kw_only=True)
class Report(Saved, Document):
    """The report of a pruned network; `print` shows it, `save` writes it as JSON.

    Attributes:
        synthetic: generator and seed of synthetic calibration images; None for real ones.
        sparsity: zeros / weights over the pruned layers, as achieved.
        network_sparsity: zeros / parameters over the whole network.
        macs_fraction: multiply-accumulates with nonzero weights / all of the dense network's;
            only a runtime that skips zeros gets faster by it.
        bytes_fraction: bytes of a packed file / the dense network's; see `Costs`.
        requested: the settings of the call.
        search: how the sparsity was found for `max_drop`; None for other targets.
        layers: the pruned layers, in execution order.
        channels: groups of channels, where whole channels were removed; else empty. Then zeros are
            weights that are gone, and `macs_fraction` and `bytes_fraction` are those of the smaller
            network.
        dense_layers: the other layers with weights, with the reason.
        data: the calibration images.
        seconds: wall-clock time by step, and "total".
        calibration: agreement and KL against the dense network on the calibration images
            (optimistic: the layers were fitted to them), or the output error if the output is
            not class scores; None if not measured.
        steps: the result of each step, for recipes with several steps.
        evaluation: by network ("dense", "pruned"), on evaluation data; empty without any.
        latency: time for one input, dense and pruned, where that was asked for; else None.
        parts: what channels, zeros in what they left, and INT8 brought, where there is more than
            one of them.
        runtimes: which could be faster with these zeros on the machine that wrote the report.
        exports: facts about each written file, by file name.
        summary: how the network was pruned, in sentences for readers new to pruning.
        warnings: read these first.
        notes: other departures from the ordinary.
        versions: versions of secateur, torch and Python.
    """

    schema = "secateur.report"
    schema_version = 9

    synthetic: str | None = None
    sparsity: float
    network_sparsity: float
    macs_fraction: float
    bytes_fraction: float
    requested: dict[str, Any]
    search: SearchReport | None = None
    layers: list[LayerReport]
    dense_layers: list[DenseLayer]
    channels: list[ChannelGroup] = field(default_factory=list)
    data: DataReport
    seconds: dict[str, float]
    calibration: Evaluation | None = None
    steps: list[StepReport] = field(default_factory=list)
    evaluation: dict[str, Evaluation] = field(default_factory=dict)
    latency: LatencyReport | None = None
    parts: list[PartReport] = field(default_factory=list)
    runtimes: list[RuntimeReport] = field(default_factory=list)
    exports: dict[str, dict[str, int | float]] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str]

    def __post_init__(self) -> None:
        shares = (self.sparsity, self.network_sparsity, self.macs_fraction, self.bytes_fraction)
        demand(are_finite(*shares), "a share of zeros, MACs or bytes is no finite number")
        demand(bool(self.layers), "layers is empty")
        check_run(self.seconds, self.versions)
        target = self.requested.get("target")
        value = target.get("value") if isinstance(target, dict) else None
        is_number = type(value) in (int, float)
        demand(self.search is None or is_number, "requested has no target, as a search needs")

    @property
    def totals(self) -> Totals:
        """What shares of bytes and multiply-accumulates are of."""
        return Totals(self.layers, self.dense_layers)

    @property
    def result(self) -> str:
        """The outcome in one line, for pipes and logs."""
        parts = [f"{self.sparsity:.2%} of the prunable weights are {self.gone}", self.left]
        if self.synthetic:
            parts.append(f"calibrated on synthetic data ({self.synthetic})")
        return ", ".join([*parts, *self._accuracy()])

    @property
    def left(self) -> str:
        """What is left of the dense network's cost."""
        return left_text(self.macs_fraction, self.bytes_fraction, packed=self.has_zeros)

    @property
    def has_zeros(self) -> bool:
        """Whether single weights were pruned, alone or after channels."""
        return not self.channels or self.requested.get("then_sparsity") is not None

    @property
    def gone(self) -> str:
        """What became of the pruned weights."""
        if not self.channels:
            return "zero"
        return "gone, in whole channels" + " or as zeros" * self.has_zeros

    def _accuracy(self) -> Iterator[str]:
        """What is known of the accuracy, for one line."""
        search, pruned = self.search, self.evaluation.get("pruned")
        if self.latency is not None:
            yield self.latency.text
        if search is not None:
            yield f"{self.searched} ({counted(len(search.tries), 'try', 'tries')})"
        if pruned is not None:
            yield str(pruned)
        elif search is not None:
            yield f"{search.lost} on {search.on_text}"
        elif self.calibration is not None:
            images = counted(self.data.images, f"calibration {self.data.noun}")
            difference = self.calibration.difference_text
            yield f"{difference} on the {images} that the layers were fitted to (optimistic)"
        for name, of in self.evaluation.items():
            if name not in ("dense", "pruned"):  # INT8 and OpenVINO files
                yield f"{name} {_verdict(of)}"

    @property
    def searched(self) -> str:
        """What was searched for; empty without a search."""
        if self.search is None:
            return ""
        search, limit = self.search, self.requested["target"]["value"]
        most = "most channels' weights removed" if self.channels else "most zeros"
        return f"the {most} that lose at most {search.counted_in.amount(limit)}"

    @property
    def is_evaluated(self) -> bool:
        """Whether there were evaluation images."""
        return any(of.images for of in self.evaluation.values())

    def evaluation_table(self) -> Table:
        """The networks on the evaluation images."""
        return evaluation_table(
            list(self.evaluation.items()),
            name="evaluation",
            title="On the evaluation images" if self.is_evaluated else "By your own metric",
            note="The network was not fitted to these images. The number after ± is the standard "
            "error: with other images of the same kind, two out of three results fall within it.",
        )

    def latency_table(self) -> Table:
        """The times of the dense and the pruned network."""
        assert self.latency is not None
        return latency_table(self.latency)

    def part_table(self) -> Table:
        """What channels, zeros and INT8 brought."""
        return part_table(self.parts)

    def step_table(self) -> Table:
        """What each step of a recipe led to: on evaluation images where there are any."""
        judged = any(step.evaluation for step in self.steps)
        return evaluation_table(
            [(of.name, of.evaluation if judged else of.calibration) for of in self.steps],
            name="steps",
            what="step",
            title=f"After each step, on the {'evaluation' if judged else 'calibration'} images",
        )

    def search_table(self) -> Table:
        """Every sparsity tried."""
        search = self.search
        gone = "removed" if self.channels else "zeros"
        lost = "points lost" if search is None else search.counted_in.heading
        columns = (Column(gone, "{:.2f}", unit="%"), Column(lost, "{}"))
        rows = () if search is None else search.rows()
        on = "" if search is None else search.on_text
        return Table(
            name="search",
            columns=(*columns, Column("kept")),
            rows=rows,
            title=f"Search for {self.searched}, on {on}",
        )

    def layer_table(self) -> Table:
        """The pruned layers."""
        return layer_table(self.layers, self.totals)

    def channel_tables(self) -> list[Table]:
        """How many channels are left, and which all stay; empty where none was to leave."""
        if not self.channels:
            return []
        return [of for of in (channel_table(self.channels), stuck_table(self.channels)) if of]

    def dense_table(self) -> Table:
        """The other layers."""
        return dense_table(self.dense_layers)

    def runtime_table(self) -> Table:
        """What each runtime could gain."""
        return runtime_table(
            self.runtimes,
            title="Runtimes on the machine where the network was pruned",
            note="Layers that qualify may run faster; secateur bench measures whether they do.",
        )

    def export_table(self) -> Table:
        """The files that were written."""
        rows = ((name, _facts(of)) for name, of in self.exports.items())
        return Table(
            name="files",
            columns=(Column("file"), Column("facts, from reading it back")),
            rows=tuple(rows),
            title="Files written",
        )

    def seconds_table(self) -> Table:
        """Where the time went."""
        rows = tuple((name, value) for name, value in self.seconds.items())
        columns = (Column("step"), Column("time", "{:.1f}", unit="s"))
        title = f"Time on {self.requested.get('device')}"
        return Table(name="seconds", columns=columns, rows=rows, title=title)

    def blocks(self) -> list[Block]:
        """Warnings first, then the layers, the accuracy, and the use of the zeros."""
        blocks: list[Block] = [*warnings_first(self.warnings, self.synthetic), self.layer_table()]
        weights = sum(layer.weights for layer in self.layers)
        of_all = "" if self.channels else f" ({self.network_sparsity:.2%} of all parameters)"
        for table in self.channel_tables():
            blocks += ["", table]
        if self.dense_layers:
            blocks += ["", self.dense_table()]
        blocks += [
            "",
            f"{self.sparsity:.2%} of {counted(weights, 'prunable weight')} are {self.gone}"
            f"{of_all}; {self.left}; "
            f"{counted(self.data.images, self.data.noun)} from {self.data.source}, "
            f"{self.seconds.get('total', 0.0):.1f} s",
        ]
        if self.calibration is not None:
            blocks.append(
                "on the calibration images (optimistic, the layers were fitted to them): "
                + self.calibration.difference_text
            )
        tables = {
            self.evaluation_table: bool(self.evaluation),
            self.latency_table: self.latency is not None,
            self.part_table: bool(self.parts),
            self.search_table: self.search is not None,
            self.step_table: bool(self.steps),
            self.runtime_table: bool(self.runtimes),
            self.export_table: bool(self.exports),
        }
        for make, is_shown in tables.items():
            blocks += ["", make()] if is_shown else []
        notes = [*self.data.notes, *self.notes]
        return [*blocks, *([""] if notes else []), *notes]


def check_run(seconds: dict[str, float], versions: dict[str, str]) -> None:
    """Raises ValueError unless they are the seconds and the versions of a run."""
    demand("total" in seconds, "seconds has no total")
    demand(are_finite(*seconds.values()), "seconds holds no finite number")
    demand("secateur" in versions, "versions has no secateur")


def left_text(macs: float, size: float, *, packed: bool = True) -> str:
    """What is left of the dense network's cost, from two fractions."""
    how = " (packed)" if packed else ""
    return f"{macs:.1%} of the MACs and {size:.1%} of the bytes{how} are left"


def _verdict(of: Evaluation) -> str:
    """The figure of an evaluation that counts most."""
    if of.metric is not None:
        return of.metric_text
    if of.output_error is not None:
        return of.error_text
    if of.cosine is not None:
        return f"mean cosine {of.cosine:.4f}"
    return f"agreement {of.agreement:.2f} %" if of.top1 is None else of.accuracy_text


def _facts(facts: dict[str, int | float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_number(of)}" for key, of in facts.items())


def _number(value: float) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}"
