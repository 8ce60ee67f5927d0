"""What comes before pruning: data read, the network traced, conditioned, its layers selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from secateur.conditioning import Conditioned, condition, dense_layers, permuting
from secateur.core.outputs import has_one_answer, is_scores, rows_of
from secateur.core.patterns import Channels, Unstructured
from secateur.data.preprocess import Transform
from secateur.data.sources import Data, Images, load_images, open_images
from secateur.data.streams import ImageStream
from secateur.errors import DataError, OptionError
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.evaluation.metric import DenseMetric
from secateur.evaluation.metrics import one_answer
from secateur.fingerprint import facts_of
from secateur.frontends import Frontend, asked_or_own
from secateur.hardware.paying import ACCELERATED
from secateur.network.samples import Samples, Signature, chunk_size
from secateur.options import Options
from secateur.pruning.channels.run import ChannelRun, channel_run
from secateur.pruning.execution import Execution
from secateur.pruning.layer_selection import in_pattern, layers_to_fit, matching, select_layers
from secateur.pruning.needs import Needs, needs_of
from secateur.pruning.run import PruningRun
from secateur.pruning.sampling import Sampling
from secateur.pruning.targets import Costs, MaxDrop, MaxLatency, Sparsity
from secateur.session import Job, Stopwatch
from secateur.support.group import Group
from secateur.support.progress import Teller
from secateur.support.wording import counted
from secateur.timing import Timing, try_runtime
from secateur.tracing import Traced, trace

_HELD_BACK = 4  # of so many images one is judged on where a search has no evaluation data


def prepare(
    model: Frontend,
    data: Data,
    options: Options,
    evaluation: Data | None = None,
    *,
    planning: bool = False,
    teller: Teller | None = None,
    execution: Execution | None = None,
) -> Job:
    """Reads the images, traces and aligns the network, and chooses its layers.

    Args:
        model: the dense network.
        data: calibration images.
        options: all others.
        evaluation: images to judge by, with labels or without.
        planning: whether the network is not pruned then: no images are held back to judge by where
            a drop is to be kept, and a runtime that measures nothing later is not tried.
        teller: is told of each step, here and in the job.
        execution: its processes make the call together; its journal is that of the same call, which
            is checked.

    Raises:
        OptionError, DataError, ModelError: a mistake that the message helps to put right.
    """
    watch, execution = Stopwatch(teller), execution or Execution()
    group, journal = execution.group, execution.journal
    check_processes(options, group)
    options = replace(options, preprocess=asked_or_own(options.preprocess, model))

    takes = model.signature.masking(options.mask)
    watch.begin("reading the images")
    images, judged = read(data, options, evaluation, takes=takes, planning=planning)
    watch.lap("data")

    watch.begin("tracing the network")
    traced = trace(model, images, options)
    watch.lap("trace")

    metric = None
    if options.metric is not None and not planning:
        watch.begin("measuring the metric of the dense network")
        metric = DenseMetric.of(options.metric, model)
    elif options.metric is not None and isinstance(options.target, MaxDrop):
        raise OptionError(
            "max_drop of a metric cannot be planned, for that measures no network, expected "
            "another target: plan a sparsity instead, or prune"
        )
    baseline, warnings = None, list(images.warnings)
    if judged is not None:
        watch.begin("running the dense network on the images to judge by")
        baseline, found = run_dense(model, traced, judged, options, group)
        warnings += found
        if evaluation is not None:
            warnings += _fitted_to(judged, len(baseline.dense), images)
    watch.lap("evaluation")

    chunk = chunk_size(traced.samples)
    needs = _needs(traced, options, chunk, execution)
    about = "the layers" if needs is None else f"({needs.text(execution.spill)})"
    watch.begin(f"preparing {about}")
    synthetic = images.synthetic is not None
    facts: dict[str, str] = {}
    if group.size > 1 or journal.folder is not None:
        facts = facts_of(options, model, traced.graph, traced.samples, baseline)
        group.check_same(facts)
    conditioned = condition(traced, options, synthetic, chunk, execution)
    run = select(model, traced, conditioned, options, chunk, execution)
    journal.check(facts)
    warnings += run.shortfall()
    timing = None
    if isinstance(run, ChannelRun) and isinstance(run.target, MaxLatency):
        timing = Timing.measured(model, run, options, watch.teller)
        run = timing.priced(run)
        run.check_target()
        watch.lap("layer times")
    elif options.measures and not planning:
        watch.begin(f"trying the dense network on {options.runtime}")
        try_runtime(model, traced.samples.select(slice(2)), options)
        watch.lap("latency")
    return Job(
        options=options,
        model=model,
        images=images,
        evaluation_set=baseline if evaluation is not None else None,
        search_set=baseline,
        original=traced.graph,
        aligned=conditioned.aligned,
        permutation=conditioned.permutation,
        run=run,
        output=traced.output,
        metric=metric,
        timing=timing,
        needs=needs,
        warnings=tuple(dict.fromkeys(warnings)),  # a folder of both kinds tells them once
        watch=watch,
    )


def zeros_after(job: Job, smaller: Frontend) -> Job:
    """The job of making zeros in what channels have left, judged against the dense network.

    Raises:
        OptionError: no layer of the smaller network can be pruned.
    """
    assert job.options.then_sparsity is not None
    options = replace(
        job.options,
        target=Sparsity(job.options.then_sparsity),
        recipe=replace(job.options.recipe, pattern=Unstructured()),
        then_sparsity=None,
    )
    traced = trace(smaller, job.images, options)
    chunk, execution = job.run.chunk, job.run.execution
    conditioned = condition(traced, options, job.images.synthetic is not None, chunk, execution)
    return replace(
        job,
        options=options,
        model=smaller,
        original=traced.graph,
        aligned=conditioned.aligned,
        permutation=conditioned.permutation,
        run=select(smaller, traced, conditioned, options, chunk, execution),
        timing=None,
    )


def again(job: Job, options: Options) -> Job:
    """The job with other options for the same network, samples and data to judge by.

    The recipe must align and recalibrate the network as the job's does.

    Raises:
        OptionError: no such layers, or the target cannot be met with them.
    """
    traced = Traced(graph=job.original, samples=job.run.samples, rows=True, output=job.output)
    conditioned = Conditioned(
        aligned=job.aligned,
        permutation=job.permutation,
        recalibration=job.run.recalibration,
        folding=job.run.folding,
    )
    chunk, execution = job.run.chunk, job.run.execution
    if job.permutation.changes or permuting(options.recipe) is not None:
        conditioned = condition(traced, options, job.images.synthetic is not None, chunk, execution)
    run = select(job.model, traced, conditioned, options, chunk, execution)
    return replace(job, options=options, permutation=conditioned.permutation, run=run, timing=None)


def read(
    data: Data,
    options: Options,
    evaluation: Data | None,
    *,
    takes: Signature | None = None,
    planning: bool,
) -> tuple[Images, ImageStream | None]:
    """The images to fit layers to, and those to judge by, if any."""
    images = load_images(
        data,
        preprocess=options.preprocess,
        max_images=options.max_images,
        seed=options.seed,
        takes=takes,
    )
    if evaluation is not None:
        return images, open_images(evaluation, preprocess=options.preprocess, takes=takes)
    if isinstance(options.target, MaxDrop) and options.metric is None and not planning:
        images, held_back = hold_back(images)
        return images, open_images(held_back)
    return images, None


def run_dense(
    model: Frontend,
    traced: Traced,
    images: ImageStream,
    options: Options,
    group: Group | None = None,
) -> tuple[EvaluationSet, Sequence[str]]:
    """What the dense network says to the images to judge by, and what may be wrong with these.

    Raises:
        DataError: it does not take them, or has no output to judge.
        OptionError: a drop is to be kept, and there are no answers to count.
    """
    if not traced.rows:
        raise DataError(
            "the network's outputs have as many rows as the values of the images lead to, "
            "expected a row for each image to evaluate it: leave out the evaluation images, or "
            "wrap it in a module that returns what the selection is made from"
        )
    baseline = EvaluationSet.of(
        model, images, output=traced.output, judge=options.judge, group=group
    )
    warnings = images.warnings_for(
        baseline.dense.shape[1] if baseline.judge == "classes" and is_scores(baseline.dense) else 0
    )
    if isinstance(options.target, MaxDrop) and options.metric is None:
        _check_answers(baseline)
    elif baseline.labels is None:
        judge, weight = baseline.judge, baseline.weight
        called = f"evaluation {baseline.noun}s"
        warnings += one_answer(baseline.dense, called, judge=judge, weight=weight)
    return baseline, warnings


def check_processes(options: Options, group: Group) -> None:
    """Raises OptionError where times would be measured while other processes compute."""
    if group.size > 1 and (options.measures or options.runtime in ACCELERATED):
        raise OptionError(
            f"times on {options.runtime} are measured on an idle machine, and {group.size} "
            "processes make this call, expected one: run it without torchrun"
        )


def _needs(traced: Traced, options: Options, chunk: int, execution: Execution) -> Needs | None:
    """What the run takes of memory; None where there is no cap.

    Raises:
        OptionError: more than it may.
    """
    if execution.spill is None:
        return None
    needs = needs_of(
        traced.graph,
        traced.samples,
        traced.graph.layers,
        chunk=chunk,
        inputs=options.recipe.inputs,
        max_columns=options.max_columns,
        processes=execution.group.size,
    )
    needs.check(execution.spill)
    return needs


def select(
    model: Frontend,
    traced: Traced,
    conditioned: Conditioned,
    options: Options,
    chunk: int,
    execution: Execution,
) -> PruningRun:
    """Chooses the layers.

    Raises:
        OptionError: no such layers, or the target cannot be met with them.
    """
    graph = conditioned.folding.graph
    is_channels = isinstance(options.recipe.pattern, Channels)
    every = in_pattern(graph.layers, options.recipe.pattern)
    layers = (
        layers_to_fit(graph.layers, options.exclude)
        if is_channels
        else select_layers(
            graph.layers, options.include, dense_layers(graph, options), options.recipe.pattern
        )
    )
    run = PruningRun(
        recalibration=conditioned.recalibration,
        folding=conditioned.folding,
        samples=traced.samples,
        layers=layers,
        target=options.target,
        costs=Costs.of(every, layers, model.saved_tensors()),
        recipe=options.recipe,
        sampling=Sampling(max_columns=options.max_columns, seed=options.seed),
        chunk=chunk,
        execution=execution,
        reordered=bool(conditioned.permutation.changes),
    )
    if is_channels:
        run = with_channels(run, model, traced, options)
    run.check_target()  # what cannot be met shows now, not after the allocation
    return run


def with_channels(run: PruningRun, model: Frontend, traced: Traced, options: Options) -> ChannelRun:
    """The run with channels that leave.

    Raises:
        OptionError: a name matches no layer, or no channel can leave.
    """
    every = traced.graph.layers
    excluded = matching("exclude", options.exclude or (), every, any_layer=True)
    included = None
    if options.include is not None:
        included = matching("include", options.include, every, any_layer=True)
    return channel_run(
        run,
        traced.graph,
        {str(layer.parameter) for layer in every if layer.name in excluded},
        included and {str(layer.parameter) for layer in every if layer.name in included},
        model.saved_tensors(),
    )


def _check_answers(baseline: EvaluationSet) -> None:
    """Raises where there are no answers to count, or all are the same."""
    if baseline.judge == "embeddings":
        return
    if baseline.judge == "values":
        raise OptionError(
            f"max_drop counts answers, and the network returns {tuple(baseline.dense.shape)}, "
            "expected scores of shape (batch, classes): ask for a sparsity, pass a metric, or say "
            "by judge what the output is"
        )
    if baseline.labels is None and has_one_answer(rows_of(baseline.dense, baseline.weight)):
        images = counted(len(baseline.dense), baseline.noun)
        raise OptionError(
            f"max_drop counts answers, and the network gives the same answer for all {images} that "
            f"it is judged on, expected several: pass evaluation {baseline.noun}s of several "
            "classes or with labels, or ask for a sparsity"
        )


def _fitted_to(judged: ImageStream, count: int, images: Images) -> list[str]:
    """A warning where images to judge by are among those that layers are fitted to."""
    same = judged.same_images(images.samples)
    if not same:
        return []
    are = "is a calibration image" if same == 1 else "are calibration images"
    text = (
        f"{same} of {counted(count, 'evaluation image')} {are} too, which the layers are fitted "
        "to: what is lost on others is more; evaluate on others"
    )
    return [images.samples.called(text)]


def hold_back(images: Images, every: int = _HELD_BACK) -> tuple[Images, Images]:
    """Images to fit to, and one of each so many, to judge on."""
    count = len(images.samples)
    if count < 2 * every:
        text = (
            f"got {counted(count, 'calibration image')}, expected at least {2 * every}, one of "
            f"each {every} of which is held back to measure the drop on: add images, or pass "
            "evaluation images"
        )
        raise DataError(images.samples.called(text))
    judged = torch.arange(count) % every == every - 1
    of = counted(count, images.samples.noun)
    note = f"{int(judged.sum())} of {of} held back to measure the drop on"
    return (
        replace(images, samples=images.samples.select(~judged), notes=[*images.notes, note]),
        replace(images, samples=images.samples.select(judged), labels=None),
    )


def example(
    network: Frontend, shape: Sequence[int] | None, data: Data | None, preprocess: Transform | None
) -> Samples:
    """Two samples of some data, or of a shape.

    Raises:
        OptionError: both are given, or the shape is none.
        DataError: the data cannot be read, or the network takes other inputs.
    """
    if data is not None:
        if shape is not None:
            raise OptionError("got a shape and data, expected one of them: leave out the shape")
        how, takes = asked_or_own(preprocess, network), network.signature
        return takes.bind(load_images(data, preprocess=how, max_images=2, takes=takes).samples)
    sizes = None if shape is None else tuple(map(int, shape))
    if sizes is not None and (not sizes or any(size < 1 for size in sizes)):
        raise OptionError(f"shape is {sizes}, expected positive sizes such as (3, 224, 224)")
    return network.example(sizes)
