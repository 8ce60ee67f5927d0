"""A call of `prune`, `plan` or `sweep`: what it starts with, and what is known when it prunes."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from secateur.data.images import Images
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.evaluation.metric import DenseMetric
from secateur.evaluation.results import Evaluation, Loss, Measure
from secateur.frontends import Frontend
from secateur.frontends import open as open_model
from secateur.hardware.compare_latency import Ratio
from secateur.hardware.paying import layers_note, not_paying
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.samples import Samples
from secateur.network.store import spilling
from secateur.options import Options
from secateur.pruning.alignment import Alignment
from secateur.pruning.channels.run import ChannelRun
from secateur.pruning.execution import Execution
from secateur.pruning.journal import opened
from secateur.pruning.needs import Needs
from secateur.pruning.permutation import Permutation
from secateur.pruning.run import PruningRun
from secateur.pruning.search import Try
from secateur.pruning.search import search as search_sparsity
from secateur.pruning.targets import MaxDrop, Sparsity, Target
from secateur.pruning.walk import WalkResult
from secateur.report.build import build_report, compared_with
from secateur.report.latency import LatencyReport
from secateur.report.model import Report, SearchReport, StepReport
from secateur.support.group import Group
from secateur.support.progress import ShowProgress, Teller, telling
from secateur.timing import Timing, latency_report, measure_all


@contextmanager
def started(
    options: Options, progress: ShowProgress, group: Group | None = None, **asked: str
) -> Generator[tuple[Execution, Teller]]:
    """How a call is carried out, and who is told of its steps; what it opens is closed at the end.

    Args:
        options: of the call.
        progress: see `secateur.support.progress.telling`; the first process alone tells.
        group: the processes that make the call together; None = this one alone.
        asked: see `secateur.pruning.journal.opened`.

    Raises:
        OptionError, OutputError: the work folder cannot be used, or `progress` is something else.
    """
    group = group or Group()
    with (
        opened(options.work_dir, group, **asked) as journal,
        telling(progress if group.is_first else False) as teller,
        spilling(options.memory_cap) as spill,
    ):
        yield Execution(journal=journal, spill=spill, group=group), teller


def _padding(samples: Samples) -> list[str]:
    """How much of the samples is padding, where a mask says so."""
    mask = samples.mask
    if mask is None or bool(mask.all()):
        return []
    share = 1 - float(mask.float().mean())
    return [
        f"{share:.0%} of the samples' {mask.shape[1]} positions are padding, which the statistics "
        "of layers with a row for each position leave out"
    ]


class Stopwatch:
    """Wall-clock seconds by step.

    Attributes:
        teller: is told which step begins.
    """

    def __init__(self, teller: Teller | None = None) -> None:
        self.teller = teller or Teller()
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def begin(self, what: str) -> None:
        """Tells what is done from now on."""
        self.teller.step(what)

    def lap(self, name: str) -> None:
        """Ends a step."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now

    @property
    def seconds(self) -> dict[str, float]:
        """By step, and "total"."""
        return {**self.laps, "total": self.last - self.start}


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is needed to prune.

    Attributes:
        options: of the call.
        model: the dense network.
        images: those that layers are fitted to.
        evaluation_set: the evaluation data of the call; None = none were given.
        search_set: what a search for the largest sparsity measures the drop on: evaluation data,
            or calibration images that were held back.
        original: the network as traced, before it was aligned.
        aligned: what aligning it changed.
        permutation: what changing the order of its channels changed.
        run: the recipe on the network with both.
        output: name or number of the output that networks are judged by; None = the first.
        metric: the user's own, with what it says of the dense network; None = none was given.
        timing: the network's times on the runtime that it is pruned for; None = none was asked for.
        needs: what the run takes of memory, where there is a cap.
        warnings: what may be wrong with the images.
        watch: runs since the call.
    """

    options: Options
    model: Frontend
    images: Images
    evaluation_set: EvaluationSet | None
    search_set: EvaluationSet | None
    original: Graph
    aligned: Alignment
    run: PruningRun
    permutation: Permutation = field(default_factory=Permutation)
    output: str | int | None = None
    metric: DenseMetric | None = None
    timing: Timing | None = None
    needs: Needs | None = None
    warnings: Sequence[str] = ()
    watch: Stopwatch = field(default_factory=Stopwatch)

    def measure(self, visits: int | None = None) -> Job:
        """The job with its layers measured by the allocation.

        Args:
            visits: of layers that are expected, here and in walks; None = those of the run.
        """
        teller = self.watch.teller
        teller.expect(self.run.visits if visits is None else visits)
        self.watch.begin("measuring what each layer bears")
        run = replace(self.run, on_layer=teller.visit)
        run.measure()
        self.watch.lap("allocation")
        if isinstance(run, ChannelRun) and self.timing is not None:
            run, timing = self.timing.met(replace(run, known=run.fitted_channels), teller)
            self.watch.lap("latency")
            return replace(self, run=run, timing=timing)
        return replace(self, run=run)

    def times(self, networks: Sequence[Frontend], int8: Any) -> tuple[list[Ratio], list[str]]:
        """Times on the runtime of the call; see `measure_all`. None where it names none."""
        if not self.options.measures:
            return [], []
        self.watch.begin("measuring the pruned network")
        few = self.run.samples.select(slice(2))
        models = [network.model for network in networks]
        found = measure_all(self.model.model, models, int8, few, self.options)
        self.watch.lap("latency")
        return found

    def latency(self, walked: WalkResult, dense: Ratio, pruned: Ratio) -> LatencyReport:
        """The pruned network's time, and how its widths were found."""
        found = latency_report(str(self.options.runtime), self.options.threads, dense, pruned)
        if self.timing is None or not isinstance(self.run, ChannelRun):
            return found
        return self.timing.planned(self.run, walked, found)

    def notes(self, walked: WalkResult) -> list[str]:
        """What was done to the network around the walk, for the report."""
        pairs = self.aligned.pairs
        notes = [f"channels aligned between {first} and {second}" for first, second in pairs]
        notes += self.permutation.notes
        if count := len(self.run.recalibration.statistics) // 2:
            notes.append(
                f"layers fitted with the statistics of {count} BatchNorms taken on the calibration "
                "images; the network keeps its own"
            )
        if walked.previous:
            notes.append(
                f"pruned to {', then '.join(walked.previous)} on the way, and on from there"
            )
        if walked.reconstruction is not None:
            notes.append(walked.reconstruction.note())
        if self.run.samples.device.type == "cuda":
            notes.append("on the GPU float32 values were multiplied in full, not in TF32")
        notes += [*self.memory_notes(), *_padding(self.run.samples), *walked.notes]
        return [*self.runtime_notes(), *notes, *self.run.execution.journal.notes()]

    def memory_notes(self) -> list[str]:
        """What the run takes of memory, where there is a cap."""
        return [] if self.needs is None else [self.needs.text(self.run.execution.spill)]

    def runtime_notes(self) -> list[str]:
        """What was chosen for the runtime of the call, and why."""
        options = self.options
        if options.runtime is None:
            return []
        notes = [options.runtime_note]
        if options.include is None and not options.measures:
            reasons = not_paying(self.run.graph.layers, options.runtime)
            notes += [layers_note(options.runtime, reasons)] if reasons else []
        return notes

    @property
    def conditioned(self) -> dict[str, Tensor]:
        """What aligning the network and changing the order of its channels changed."""
        return {**self.aligned.changes, **self.permutation.changes}

    def network(self, walked: WalkResult) -> Frontend:
        """The network with what a walk has changed, without the channels that it removed."""
        edited = self.model.edited({**self.conditioned, **walked.changes})
        if not walked.removed:
            return edited
        return edited.shrunk(walked.removed, self.run.samples.select(slice(2)))

    def layers_left(self, pruned: Frontend, walked: WalkResult) -> Sequence[Layer] | None:
        """The layers of the network after a walk; None where they are the dense one's."""
        return pruned.trace(self.run.samples.select(slice(2))).layers if walked.removed else None

    def evaluate(self, network: Frontend) -> Evaluation | None:
        """A network on the evaluation data and by the metric; None where there are neither."""
        found = self.evaluation_set and self.evaluation_set.evaluate(network)
        return found if self.metric is None else self.metric.added(found, network)

    def compared(self, dense: Tensor | None, network: Frontend) -> Evaluation | None:
        """A network against the dense one's output on the calibration images."""
        return compared_with(
            dense,
            network,
            self.images.samples,
            judge=self.run.graph.judge,
            output=self.output,
            group=self.run.execution.group,
        )

    def evaluations(self, pruned: Any, int8: Any = None) -> dict[str, Evaluation]:
        """The networks on the evaluation data; none where there are no such data."""
        self.watch.begin("evaluating")
        found = self.evaluation_set.evaluations(pruned, int8) if self.evaluation_set else {}
        if self.metric is not None:
            found = self.metric.added_to_all(found, pruned, int8 and open_model(int8))
        self.watch.lap("evaluation")
        return found

    def report(
        self,
        pruned: Frontend,
        walked: WalkResult,
        evaluation: dict[str, Evaluation],
        *,
        steps: Sequence[StepReport] = (),
        search: SearchReport | None = None,
        latency: LatencyReport | None = None,
        then: WalkResult | None = None,
        left: Sequence[Layer] | None = None,
    ) -> Report:
        """What was asked for, what a walk did, and what it led to; see `build_report`."""
        return build_report(
            pruned,
            self.run,
            walked,
            self.images,
            self.options.settings(self.run.samples.device),
            self.watch.seconds,
            self.notes(walked),
            self.warnings,
            steps=list(steps),
            search=search,
            evaluation=evaluation,
            latency=latency,
            then=then,
            output=self.output,
            left=left,
        )

    def visits(self, targets: Sequence[Target]) -> int:
        """How often layers are visited by the allocation and by the walks to several targets."""
        walks = (replace(self.run, target=of).visits - self.run.measured for of in targets)
        return self.run.measured + sum(walks)

    def report_at(self, target: Sparsity) -> Report:
        """The report of a walk to one of several sparsities."""
        job = replace(self, options=replace(self.options, target=target))
        before = job.watch.seconds
        job.watch.begin(f"pruning to a sparsity of {target.value:.2%}")
        walked = job.run.prune_to(target)
        pruned = job.network(walked)
        job.watch.lap("walk")
        left = job.layers_left(pruned, walked)
        report = job.report(pruned, walked, job.evaluations(pruned), left=left)
        after = report.seconds
        steps = ("walk", "evaluation", "total")
        report.seconds = {name: after[name] - before.get(name, 0.0) for name in steps}
        return report

    def carry_out(self) -> tuple[WalkResult, Target, SearchReport | None]:
        """Walks; for a drop as often as the search needs. Also the target walked to."""
        run = self.run
        self.watch.begin("pruning")
        if not isinstance(run.target, MaxDrop):
            return run.prune_to(run.target), run.target, None
        measures: list[Measure] = []
        chapter, group = run.execution.journal.chapter("tries"), run.execution.group

        def attempt(sparsity: float) -> tuple[Try, WalkResult]:
            sparsity = min(sparsity, run.largest_sparsity)
            self.watch.begin(f"pruning to a sparsity of {sparsity:.2%}")
            walked = run.prune_to(Sparsity(sparsity))
            self.watch.begin("evaluating")
            entry = chapter.get(len(measures), Loss)
            lost = entry.record if entry else self._lost(self.network(walked))
            lost = group.broadcast(lost)  # a metric may give something else each time
            if entry is None:
                chapter.put(len(measures), lost)
            measures.append(lost.measure)
            return Try(sparsity, lost.amount, lost.error), walked

        best, walked, tries = search_sparsity(
            attempt,
            run.target.value,
            run.predicted_loss().counted_in(1.0 if self.metric is None else self.metric.point),
            run.reconstructed_from,
            lambda of: measures[0].with_unit(of.drop, of.error),
        )
        judged_on, images = "the metric's own data", 0
        if self.metric is None and self.search_set is not None:
            kind = "evaluation" if self.evaluation_set else "held-back calibration"
            judged_on, images = f"{kind} images", len(self.search_set.dense)
        return (
            walked,
            Sparsity(best.sparsity),
            SearchReport(
                measure=measures[0].name,
                judged_on=judged_on,
                images=images,
                sparsity=best.sparsity,
                drop=best.drop,
                error=best.error,
                tries=tuple(tries),
            ),
        )

    def _lost(self, network: Frontend) -> Loss:
        found = None
        if self.metric is not None:
            found = self.metric.added(None, network)
        elif self.search_set is not None:
            found = self.search_set.evaluate(network)
        assert found is not None  # otherwise refused before
        assert found.lost is not None
        return found.lost
