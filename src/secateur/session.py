"""A call of `prune` or `plan`: images read, the network traced, and all of it carried out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from secateur.core.distance import has_one_answer, is_scores
from secateur.data.sources import Data, Images, load_images, open_images
from secateur.data.streams import ImageStream
from secateur.errors import DataError, OptionError
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.evaluation.metrics import Evaluation, one_answer
from secateur.frontends import Frontend
from secateur.network import judging
from secateur.network.folding import fold
from secateur.network.graph import Graph
from secateur.network.layout import (
    to_channels_last,
)
from secateur.network.samples import Samples
from secateur.options import Options
from secateur.pruning.alignment import Alignment
from secateur.pruning.layer_selection import (
    select_layers,
)
from secateur.pruning.recalibration import Recalibration, recalibrate
from secateur.pruning.recipe import Recipe
from secateur.pruning.run import PruningRun
from secateur.pruning.sampling import Sampling
from secateur.pruning.search import Try
from secateur.pruning.search import search as search_sparsity
from secateur.pruning.targets import Costs, MaxDrop, MaxMacs, Sparsity, Target
from secateur.pruning.walk import WalkResult
from secateur.report.build import build_report
from secateur.report.model import Report, SearchReport, StepReport
from secateur.report.plan import predict_loss
from secateur.support.progress import Teller

# Input values per run of an operation. Larger chunks made EfficientNet-Lite0 up to 1.6 times
# slower: activations over 32 MB get fresh pages from the system at every allocation.
_CHUNK_VALUES = 8 * 3 * 224 * 224
_HELD_BACK = 4  # every fourth image is judged on where a search has no evaluation data


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
        run: the recipe on the aligned network.
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
        _ = run.fitted_allocation  # measured here, once
        self.watch.lap("allocation")
        return replace(self, run=run)

    def notes(self, walked: WalkResult) -> list[str]:
        """What was done to the network around the walk, for the report."""
        pairs = self.aligned.pairs
        notes = [f"channels aligned between {first} and {second}" for first, second in pairs]
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
        return [*notes, *walked.notes]

    def network(self, walked: WalkResult) -> Frontend:
        """The network with what a walk has changed."""
        return self.model.edited({**self.aligned.changes, **walked.changes})

    def evaluations(self, pruned: Any, int8: Any = None) -> dict[str, Evaluation]:
        """The networks on the evaluation data; none where there are no such data."""
        self.watch.begin("evaluating")
        found = self.evaluation_set.evaluations(pruned, int8) if self.evaluation_set else {}
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
    ) -> Report:
        """What was asked for, what a walk did, and what it led to."""
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
        )

    def visits(self, targets: Sequence[Target]) -> int:
        """How often layers are visited by the allocation and by the walks to several targets."""
        walks = (replace(self.run, target=of).visits - self.run.measured for of in targets)
        return self.run.measured + sum(walks)

    def report_at(self, target: Sparsity) -> Report:
        """The report of a walk to one of several sparsities."""
        job = replace(self, options=replace(self.options, target=target))
        before = job.watch.seconds
        job.watch.begin(f"pruning to {target.value:.2%} zeros")
        walked = job.run.prune_to(target)
        pruned = job.network(walked)
        job.watch.lap("walk")
        report = job.report(pruned, walked, job.evaluations(pruned))
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
        assert self.search_set is not None
        labelled = self.search_set.labels is not None

        def attempt(sparsity: float) -> tuple[Try, WalkResult]:
            self.watch.begin(f"pruning to {sparsity:.2%} zeros")
            walked = run.prune_to(Sparsity(sparsity))
            self.watch.begin("evaluating")
            return self._lost(sparsity, self.network(walked)), walked

        best, walked, tries = search_sparsity(
            attempt, run.target.value, predict_loss(run), run.reconstructed_from
        )
        kind = "evaluation" if self.evaluation_set else "held-back calibration"
        return (
            walked,
            Sparsity(best.sparsity),
            SearchReport(
                measure="top-1" if labelled else "disagreement",
                judged_on=f"{kind} images",
                images=len(self.search_set.dense),
                sparsity=best.sparsity,
                drop=best.drop,
                error=best.error,
                tries=tuple(tries),
            ),
        )

    def _lost(self, sparsity: float, network: Frontend) -> Try:
        assert self.search_set is not None
        found = self.search_set.evaluate(network)
        if found.drop is not None and found.drop_error is not None:
            return Try(sparsity, found.drop, found.drop_error)
        assert found.agreement is not None
        share = 1 - found.agreement / 100
        return Try(sparsity, 100 * share, 100 * (share * (1 - share) / found.images) ** 0.5)


def prepare(
    model: Frontend,
    data: Data,
    options: Options,
    evaluation: Data | None = None,
    *,
    search: bool = True,
    teller: Teller | None = None,
) -> Job:
    """Reads the images, traces and aligns the network, and chooses its layers.

    Args:
        model: the dense network.
        data: calibration images.
        options: all others.
        evaluation: images to judge by, with labels or without.
        search: whether images are held back to judge by where a drop is to be kept.
        teller: is told of each step, here and in the job.

    Raises:
        OptionError, DataError, ModelError: a mistake that the message helps to put right.
    """
    watch = Stopwatch(teller)
    watch.begin("reading the images")
    if options.preprocess is None:
        options = replace(options, preprocess=model.preprocess)
    how, target = options.recipe, options.target
    sampling = Sampling(max_columns=options.max_columns, seed=options.seed)
    images = load_images(
        data, preprocess=options.preprocess, max_images=options.max_images, seed=options.seed
    )
    judged = None
    if evaluation is not None:
        judged = open_images(evaluation, preprocess=options.preprocess)
    elif isinstance(target, MaxDrop) and search:
        images, held_back = hold_back(images)
        judged = open_images(held_back)
    watch.lap("data")

    samples = Samples({"images": images.tensor}).to(options.device or model.device)
    samples = samples.map(to_channels_last).map(_ordinary)
    watch.begin("tracing the network")
    traced = model.trace(samples.select(slice(2)))
    samples = samples.named(traced.inputs)
    original = judging.judged(traced, samples)
    watch.lap("trace")

    baseline, doubts = None, list(images.warnings)
    if judged is not None:
        if original.outputs[0] not in traced.outputs:  # as many as there are images by chance only
            raise DataError(
                "the network's outputs have as many rows as the values of the images lead to, "
                "expected a row for each image to evaluate it: leave out the evaluation images, or "
                "wrap it in a module that returns what the selection is made from"
            )
        watch.begin("running the dense network on the images to judge by")
        baseline = EvaluationSet.of(model, judged)
        doubts += judged.doubts(baseline.dense.shape[1] if is_scores(baseline.dense) else 0)
        if isinstance(target, MaxDrop):
            _check_answers(baseline)
        elif baseline.labels is None:
            doubts += one_answer(baseline.dense, "evaluation images")
        if evaluation is not None:
            doubts += _fitted_to(judged, len(baseline.dense), images)
    watch.lap("evaluation")
    watch.begin("preparing the layers")
    chunk = chunk_size(samples)
    aligned, recalibration = _condition(
        original, samples, how, synthetic=images.synthetic is not None, chunk=chunk
    )
    folding = fold(recalibration.graph)
    graph = folding.graph
    layers = select_layers(graph.layers, options.include, options.exclude)
    run = PruningRun(
        recalibration=recalibration,
        folding=folding,
        samples=samples,
        layers=layers,
        target=target,
        costs=Costs.of(graph.layers, layers, model.saved_tensors()),
        recipe=how,
        sampling=sampling,
        chunk=chunk,
    )
    if isinstance(target, MaxMacs) and (short := target.shortfall(run.costs)):
        doubts.append(short)
    target.budget(run.costs)  # a target that cannot be met shows now, not after the allocation
    return Job(
        options=options,
        model=model,
        images=images,
        evaluation_set=baseline if evaluation is not None else None,
        search_set=baseline,
        original=original,
        aligned=aligned,
        run=run,
        warnings=tuple(dict.fromkeys(doubts)),  # a folder of both kinds tells them once
        watch=watch,
    )


def _condition(
    graph: Graph, samples: Samples, recipe: Recipe, *, synthetic: bool, chunk: int
) -> tuple[Alignment, Recalibration]:
    """The network aligned, and BatchNorm statistics taken anew, as the recipe says."""
    aligned = Alignment()
    if recipe.alignment is not None:
        aligned = recipe.alignment.align(graph, samples, chunk=chunk)
    graph = graph.changed(aligned.changes) if aligned.changes else graph
    if {"all": True, "none": False}.get(recipe.recalibration, synthetic):
        return aligned, recalibrate(graph, samples, chunk=chunk)
    return aligned, Recalibration(graph)


def _check_answers(baseline: EvaluationSet) -> None:
    """Raises where there are no answers to count, or all are the same."""
    if not is_scores(baseline.dense):
        raise OptionError(
            f"max_drop counts answers, and the network returns {tuple(baseline.dense.shape)}, "
            "expected scores of shape (batch, classes): ask for a sparsity"
        )
    if baseline.labels is None and has_one_answer(baseline.dense):
        raise OptionError(
            "max_drop counts answers, and the network gives the same answer for all "
            f"{len(baseline.dense)} images that it is judged on, expected several: pass evaluation "
            "images of several classes or with labels, or ask for a sparsity"
        )


def _fitted_to(judged: ImageStream, count: int, images: Images) -> list[str]:
    """A warning where images to judge by are among those that layers are fitted to."""
    same = judged.same_images(images.tensor)
    if not same:
        return []
    return [
        f"{same} of {count} evaluation images are calibration images too, which the "
        "layers are fitted to: what is lost on others is more; evaluate on others"
    ]


def hold_back(images: Images) -> tuple[Images, Images]:
    """Images to fit to, and every fourth one, to judge on."""
    count = len(images.tensor)
    if count < 2 * _HELD_BACK:
        raise DataError(
            f"got {count} calibration images, expected at least {2 * _HELD_BACK}, a quarter of "
            "which are held back to measure the drop on: add images, or pass evaluation images"
        )
    judged = torch.arange(count) % _HELD_BACK == _HELD_BACK - 1
    note = f"{int(judged.sum())} of {count} images held back to measure the drop on"
    return (
        replace(images, tensor=images.tensor[~judged], notes=[*images.notes, note]),
        replace(images, tensor=images.tensor[judged], labels=None),
    )


def chunk_size(samples: Samples) -> int:
    """Samples per run of an operation: 8 images of 224 pixels, more of smaller ones, at most 256.

    Of the samples' shape alone, not of the memory at hand: results depend on it.
    """
    return max(1, min(256, _CHUNK_VALUES // max(1, samples.values_per_sample)))


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor that gradients can pass through: blocks are trained with them."""
    return tensor.clone() if tensor.is_inference() else tensor
