"""The public functions `prune`, `plan` and `inspect`: a network and images in, results out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.methods import Method, MethodName
from secateur.core.outputs import Judge
from secateur.core.patterns import Pattern, PatternName, choose_pattern
from secateur.core.precision import full_products
from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES, Data, open_images
from secateur.errors import SecateurWarning
from secateur.export.files import rehearse
from secateur.export.int8 import Precision, check_kind
from secateur.frontends import asked_or_own
from secateur.frontends import open as open_model
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.torch.onnx_export import CHECKED_IMAGES
from secateur.low_precision import check_accelerated, low_precision
from secateur.options import Options, RuntimeName
from secateur.parts import part_reports
from secateur.preparation import example, prepare, zeros_after
from secateur.pruning.allocations import Allocation, AllocationName
from secateur.pruning.contributions import contributions
from secateur.pruning.recipe import Recipe, RecipeName
from secateur.pruning.sampling import Sampling
from secateur.pruning.streams import Inputs
from secateur.report.build import step_reports
from secateur.report.inspection import Inspection
from secateur.report.parts import CHANNELS, ZEROS
from secateur.report.plan import Plan, plan_of
from secateur.result import PruneResult
from secateur.session import started
from secateur.support.choices import check_device
from secateur.support.group import Group, together
from secateur.support.progress import ShowProgress
from secateur.support.settings import check_arguments


@one_first_run()
@full_products()
@torch.inference_mode(False)  # whatever the caller is in, blocks are trained with gradients
def prune(
    model: nn.Module | str | Path | Any,
    data: Data,
    *,
    sparsity: float | None = None,
    max_macs: float | None = None,
    max_bytes: float | None = None,
    max_drop: float | None = None,
    max_latency: float | None = None,
    runtime: RuntimeName | None = None,
    threads: int = 1,
    then_sparsity: float | None = None,
    evaluation: Data | None = None,
    quantize: Precision | None = None,
    preprocess: Transform | None = None,
    recipe: Recipe | RecipeName | str | Path = "default",
    pattern: Pattern | PatternName | str | None = None,
    method: Method | MethodName | None = None,
    allocation: Allocation | AllocationName | None = None,
    inputs: Inputs | None = None,
    include: str | Collection[str] | None = None,
    exclude: str | Collection[str] | None = None,
    max_images: int | None = MAX_IMAGES,
    max_columns: int = Sampling.max_columns,
    seed: int = 0,
    memory: int | str | None = None,
    mask: str | None = None,
    output: str | int | None = None,
    judge: Judge | None = None,
    metric: Callable[[Any], float] | None = None,
    device: torch.device | str | None = None,
    work_dir: str | Path | None = None,
    progress: bool | Callable[[int, int, str], Any] | None = None,
) -> PruneResult:
    """Prunes a trained network without retraining it.

    Give exactly one target: `sparsity`, `max_macs`, `max_bytes`, `max_drop` or `max_latency`; with
    a pattern n:m one at most.

    Example:
        >>> import secateur
        >>> from secateur import example
        >>> result = secateur.prune(example.trained(), example.calibration(), sparsity=0.5)
        >>> f"{result.report.sparsity:.2f}"
        '0.50'
        >>> images, labels = example.test()
        >>> secateur.evaluate(result.model, images, labels).top1 > 90
        True

    Args:
        model: any module that `torch.export` can trace, with its weights, or an ONNX or OpenVINO
            model, as a path or an `onnx.ModelProto` or `openvino.Model`; never modified. Of
            `torch.compile(net)`, `DataParallel(net)`, `DistributedDataParallel(net)` and
            `AveragedModel(net)` the inner network is pruned and returned. Also
            "file.py:function" that returns a module, "timm:resnet18", or "hf:PATH".
        data: calibration images, labels are ignored: a float tensor (N, C, H, W), a DataLoader or
            other batches, a folder, an `.npz` file, "file.py:callable", "fractal:300" for synthetic
            images if you have none, or any other source (`secateur.Data`). Use 300 to 1000.
        sparsity: fraction of zeros among the weights of the pruned layers, in [0, 1); met exactly.
            With a pattern n:m leave it out: every layer that fits gets the pattern; with a smaller
            fraction the allocation chooses which layers get it.
        max_macs: multiply-accumulates with nonzero weights, as a fraction of the dense
            network's, in (0, 1]. Only some runtimes skip the others; with `pattern="channels"`
            there are no others.
        max_bytes: size of a packed file (one bit per weight, and the kept weights) as a fraction
            of the dense network's, in (0, 1]; with `pattern="channels"` of a plain file.
        max_drop: points of top-1 to lose at most, in [0, 100). Finds the largest sparsity within
            it in at most 6 tries. Without labels: points of agreement with the dense network. Per
            token, of scores at each position; of embeddings, hundredths of mean cosine; with
            `metric`, in its own unit. Without evaluation data: measured on a quarter of `data`,
            held back.
        max_latency: time for one input on a runtime, as a fraction of the dense network's, in
            (0, 1]. Whole channels are removed (`pattern="channels"`). Layers are measured here,
            in a minute or so, at several widths, and the whole network at the end: keep the
            machine idle meanwhile.
        runtime: where the network will run, see `secateur.runtimes`: the pattern that pays there is
            chosen unless you give one, layers where zeros would bring nothing stay dense unless
            you include them, and the report says why. On "onnxruntime", "openvino" and "torch" the
            time is measured in the end, in turns with the dense network's; one of them is needed
            for `max_latency`. With "torch-int8-sparse" the result has the accelerated module.
        threads: that the runtime uses while it is measured.
        then_sparsity: with `pattern="channels"`: fraction of zeros, in [0, 1), to make afterwards
            among the weights of the layers that are left, with the same recipe. The report tells
            what channels and zeros have each brought.
        evaluation: images to evaluate the result on, never fitted to: (images, labels), or any
            other source as for `data`; labels are used if it has them. All images are used.
        quantize: "int8" also quantises the pruned network to INT8, on the same images, and keeps
            every zero; see `secateur.quantize`. It is tried on the dense network first. If it
            fails on the pruned network only, a warning says so.
        preprocess: from images to inputs, see `Preprocess`; for folders and uint8 data. None =
            what a network from a hub prescribes; no preprocessing for any other network.
        recipe: all settings: an object, "default", "tuned" or "paper" (`RECIPES`), or a TOML
            file. The next four arguments override single settings.
        pattern: which zeros are allowed: an object, or "unstructured"; "2:4" (or any n:m): at most
            2 of each 4 weights of neighbouring input channels stay; "1x4" (or any block): weights
            become zero in blocks of 1 output by 4 inputs. Layers that a pattern does not fit stay
            dense. "channels" removes whole channels: the network returned is smaller, and faster
            on every runtime.
        method: chooses the weights to remove and fits the others: an object, or "admm",
            "least-squares", "magnitude", "weight-correction", "bias-correction" or
            "adam-calibration".
        allocation: decides how many zeros each layer gets: an object, or "sensitivity",
            "normalized-magnitude" or "uniform".
        inputs: "pruned" fits each layer to its inputs in the pruned network, "dense" (the paper)
            to those in the dense network.
        include: names or globs of the layers to prune; None = all but the first layer, depthwise
            convolutions and tiny layers (one output of fewer than 64 weights).
        exclude: names or globs of layers to leave dense.
        max_images: use at most this many images; None = all.
        max_columns: layers with more inputs per output are fitted in blocks of columns.
        seed: seed of every random choice.
        memory: bytes that values between layers may take, such as "4 GB"; those beyond it are kept
            in files in a folder of its own (in TMPDIR) and removed at the end. The result is the
            same. Statistics, weights and images come on top: the report's notes tell how much.
            None = no cap.
        mask: the input, (samples, positions), that says which positions are real and which are
            padding, to be left out of the statistics: 0 is padding; where 1 is, write ~ before
            the name, as "~src_key_padding_mask". None = "attention_mask", if there is one.
        output: the output that the network is judged by: its name, such as "last_hidden_state", or
            its number from 0 on. None = the first that has a row for each sample.
        judge: what that output is judged by: "classes" (scores, a row for each sample), "tokens"
            (scores at each position), "embeddings" (by the cosine of their angle) or "values" (by
            their relative error). None = found out: see `secateur.core.outputs.judge_of`.
        metric: your own function of the network, a module or an `onnx.ModelProto`, that gives a
            number, larger for a better one. It is measured on the dense network and on the result,
            and at each try for `max_drop`, which then is in the metric's own unit.
        device: where to compute; None = where the model is (an ONNX model on the CPU).
        work_dir: folder to keep what is finished in, layer by layer. The same call again goes on
            from there, and gives the same bytes as a call that nobody disturbed; see "Long runs" in
            docs/guide.md. None = nothing is kept.
        progress: None shows a bar on a terminal and nothing elsewhere. True shows a bar on a
            terminal and prints a line now and then elsewhere, on standard error. False shows
            nothing. A function is called with (done, total, layer name) after each layer.

    Returns:
        The pruned copy and the report.

    Raises:
        OptionError, DataError, ModelError: a mistake in the call; the message says how to fix it.
        MissingExtraError: the model is an ONNX model and onnx or onnxruntime is not installed, or
            INT8 is requested and nncf is not installed.
        NumericalError: a layer gets NaN or infinite values, or cannot be solved.
        ProcessError: another process of the group has failed.

    In a group of processes (`torch.distributed`) all make the call, share its work and return the
    same result; see "Several processes" in docs/guide.md.

    Cost: docs/results.md has it in forward passes over the images, docs/paper.md for the paper's
    recipe. `max_drop` costs that much per try, and a pass over the evaluation images.
    Memory: the values at the widest cut for all images, of two networks at most; see
    `secateur.pruning.walk`. With `memory` no more of them than that.
    """
    given = locals()
    with together() as group:
        return _pruned(group, Options.given(given), model, data, evaluation, progress)


def _pruned(
    group: Group,
    options: Options,
    model: Any,
    data: Data,
    evaluation: Data | None,
    progress: ShowProgress,
) -> PruneResult:
    """What `prune` returns, in all processes of a group."""
    network, quantize = open_model(model), options.quantize
    check_kind(quantize, network)
    check_accelerated(options.runtime, network)
    with started(options, progress, group) as (execution, teller):
        job = prepare(network, data, options, evaluation, teller=teller, execution=execution)
        if quantize is not None:
            teller.step("trying INT8 on the dense network")
            rehearse(network, job.images.samples, int8=True)
            job.watch.lap("quantize")
        job = job.measure()
        walked, target, search = job.carry_out()
        pruned = job.network(walked)
        job.watch.lap("walk")
        networks, then = {CHANNELS if walked.removed else ZEROS: pruned}, None
        if options.then_sparsity is None:
            left = job.layers_left(pruned, walked)
        else:
            later = zeros_after(job, pruned).measure()
            left, (then, *_) = later.original.layers, later.carry_out()
            pruned = networks[ZEROS] = later.network(then)
            job.watch.lap("zeros")
        teller.step("measuring what the steps have contributed")
        steps = contributions(job.run, walked, target, job.original, job.aligned, job.permutation)
        found = step_reports(
            network, steps, lambda of: job.compared(walked.dense, of), job.evaluate
        )
        job.watch.lap("steps")
        low = low_precision(job, pruned)
        int8 = low.int8.model
        judged = job.evaluations(pruned, int8)
        times, unmeasured = job.times([*networks.values()], int8)
        latency = job.latency(walked, times[0], times[len(networks)]) if times else None
        report = job.report(
            pruned,
            walked,
            judged,
            steps=found,
            search=search,
            latency=latency,
            then=then,
            left=left,
        )
        report.parts = part_reports(job, networks, int8, walked.dense, times, report, left)
    report.notes.extend(low.int8.notes)
    if job.metric is not None and int8 is not None:
        report.warnings.extend(job.metric.left_out(open_model(int8)))
    report.notes.extend(low.accelerated.notes(job.evaluation_set) if low.accelerated else ())
    report.warnings.extend([*unmeasured, *low.warnings])
    for warning in report.warnings if group.is_first else ():
        warnings.warn(warning, SecateurWarning, stacklevel=3)
    return PruneResult(
        model=pruned.model,
        report=report,
        images=job.images.samples[: None if quantize else CHECKED_IMAGES].map(Tensor.clone),
        steps=steps,
        quantized=int8,
        evaluation_set=job.evaluation_set and job.evaluation_set.alone(),
        output=job.output,
        exported=low.exported,
        missing=low.missing,
        acceleration=low.accelerated,
    )


@full_products()
def plan(
    model: nn.Module | str | Path | Any,
    data: Data,
    *,
    sparsity: float | None = None,
    max_macs: float | None = None,
    max_bytes: float | None = None,
    max_drop: float | None = None,
    max_latency: float | None = None,
    runtime: RuntimeName | None = None,
    threads: int = 1,
    then_sparsity: float | None = None,
    evaluation: Data | None = None,
    quantize: Precision | None = None,
    preprocess: Transform | None = None,
    recipe: Recipe | RecipeName | str | Path = "default",
    pattern: Pattern | PatternName | str | None = None,
    method: Method | MethodName | None = None,
    allocation: Allocation | AllocationName | None = None,
    inputs: Inputs | None = None,
    include: str | Collection[str] | None = None,
    exclude: str | Collection[str] | None = None,
    max_images: int | None = MAX_IMAGES,
    max_columns: int = Sampling.max_columns,
    seed: int = 0,
    memory: int | str | None = None,
    mask: str | None = None,
    output: str | int | None = None,
    judge: Judge | None = None,
    metric: Callable[[Any], float] | None = None,
    device: torch.device | str | None = None,
    work_dir: str | Path | None = None,
    progress: bool | Callable[[int, int, str], Any] | None = None,
) -> Plan:
    """Shows what `prune` would do with the same arguments: the zeros of each layer.

    Example:
        >>> import secateur
        >>> from secateur import example
        >>> plan = secateur.plan(example.trained(), example.calibration(), max_macs=0.4)
        >>> plan.macs_fraction <= 0.4
        True

    Args: as for `prune`. With `max_drop` the sparsity is estimated from the measured layers. Only
    the first images of `evaluation` are read, to check them; no network is evaluated. With
    `work_dir` a later `prune` with the same arguments takes what was measured here.

    Returns:
        The layers with their zeros, expected loss and MACs left, and the totals.

    Raises:
        OptionError, DataError, ModelError: a mistake in the call; the message says how to fix it.

    Cost: that of the allocation; next to nothing for allocations that look at weights only.
    """
    options = Options.given(locals())
    network = open_model(model)
    check_kind(quantize, network)
    check_accelerated(options.runtime, network)
    if evaluation is not None:
        prepared = asked_or_own(preprocess, network)
        stream = open_images(evaluation, preprocess=prepared, takes=network.signature.masking(mask))
        next(stream.batches())
    with together() as group, started(options, progress, group) as (execution, teller):
        job = prepare(network, data, options, planning=True, teller=teller, execution=execution)
        for warning in job.warnings if group.is_first else ():
            warnings.warn(warning, SecateurWarning, stacklevel=2)
        found = plan_of(job.measure(job.run.measured).run)
    notes = *job.runtime_notes(), *job.memory_notes(), *execution.journal.notes()
    found = dataclasses.replace(found, notes=(*found.notes, *notes))
    if options.then_sparsity is None:
        return found
    note = f"then {options.then_sparsity:.2%} zeros in what is left, which this plan leaves out"
    return dataclasses.replace(found, notes=(*found.notes, note))


def inspect(
    model: nn.Module | str | Path | Any,
    shape: Sequence[int] | None = None,
    *,
    data: Data | None = None,
    preprocess: Transform | None = None,
    pattern: Pattern | PatternName | str | None = None,
    device: torch.device | str | None = None,
) -> Inspection:
    """Lists a network's layers, those that `prune` leaves dense, and runtimes that could be faster.

    Example:
        >>> import secateur
        >>> from secateur import example
        >>> print(secateur.inspect(example.trained(), (1, 28, 28)).layers[0].name)
        stem.conv1

    Args:
        model: as for `prune`; never modified.
        shape: shape of one input, without the batch axis; of a file with several that of the
            first. None = the shape in a file, with 3 channels, 224 pixels and 16 tokens for
            its free axes; for a network from a hub the shape that it prescribes; (3, 224, 224) for
            any other module.
        data: some inputs, as for `prune`, in place of a shape: for a network of several inputs, or
            of whole numbers. Two samples are used.
        preprocess: of these, as for `prune`.
        pattern: of the zeros, as for `prune`: layers that it does not fit are told. None = any.
        device: where to trace; None = where the model is.

    Returns:
        The layers with the reason why one stays dense, and the runtimes.

    Raises:
        ModelError: the model cannot be exported or run with such an input.
    """
    check_arguments(inspect, locals())
    check_device(device)
    asked = choose_pattern(pattern)
    network = open_model(model)
    few = example(network, shape, data, preprocess).to(device or network.device)
    return Inspection.of(network.trace(few), asked)
