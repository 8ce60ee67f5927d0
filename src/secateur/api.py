"""The main path: a network and some images in, the pruned network and a report out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.methods import Method
from secateur.core.patterns import Pattern
from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES, open_images
from secateur.errors import ModelError, OptionError, SecateurWarning
from secateur.evaluation.inference import EvaluationSet
from secateur.export.files import as_onnx, rehearse
from secateur.export.int8 import Quantized, check_kind, in_int8
from secateur.frontends import device_of, input_shape, trace, with_parameters
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.hubs import own_input_shape
from secateur.frontends.loading import read_model
from secateur.pruning.allocations import Allocation
from secateur.pruning.recipe import Recipe, choose_recipe
from secateur.pruning.targets import choose_target
from secateur.pruning.walk import Sampling
from secateur.report.model import Inspection, Report, step_reports
from secateur.report.plan import Plan, make_plan
from secateur.session import Options, prepare
from secateur.support.choices import check_device
from secateur.support.progress import telling


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: the pruned copy of the network: a module in eval mode, or an `onnx.ModelProto`
            where that or an ONNX file was given.
        report: what happened.
        quantized: the pruned network in INT8, an `onnx.ModelProto`, where that was asked for.
        evaluation_set: the evaluation data and what the dense network says to them, where there
            are any.
        steps: for a recipe of several steps, the parameters that differ from the dense
            network's after each of them, by name; see `after`.
        exported: what `quantized` was made from: the pruned network as an `onnx.ModelProto`.
        missing: what was asked for and could not be made ("int8"), and why.
    """

    model: Any
    report: Report
    steps: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    quantized: Any = None
    evaluation_set: EvaluationSet | None = None
    exported: Any = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def after(self, step: str) -> Any:
        """A copy of the network as it was after a step of the recipe."""
        if step not in self.steps:
            known = ", ".join(self.steps) or "none, for the recipe has a single step"
            raise OptionError(f"no step {step!r}, expected one of: {known}")
        return with_parameters(self.model, self.steps[step])


@one_first_run()
@torch.inference_mode(False)  # whatever the caller is in, blocks are tuned with gradients
def prune(
    model: nn.Module | str | Path | Any,
    data: Any,
    *,
    sparsity: float | None = None,
    max_macs: float | None = None,
    max_bytes: float | None = None,
    max_drop: float | None = None,
    evaluation: Any = None,
    quantize: str | None = None,
    preprocess: Transform | None = None,
    recipe: Recipe | str | Path = "default",
    pattern: Pattern | str | None = None,
    method: Method | str | None = None,
    allocation: Allocation | str | None = None,
    inputs: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_images: int | None = MAX_IMAGES,
    max_columns: int = Sampling.max_columns,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, int, str], Any] | None = None,
) -> PruneResult:
    """Prunes a trained network without retraining it.

    Exactly one of `sparsity`, `max_macs`, `max_bytes` and `max_drop` says how much.

    Args:
        model: any module that `torch.export` can trace, with its weights, or an ONNX model that
            ONNX Runtime runs: the path of the file or an `onnx.ModelProto`; never modified. Of
            `torch.compile(net)`, `DataParallel(net)`, `DistributedDataParallel(net)` and
            `AveragedModel(net)` the network within is pruned and returned. Or
            "file.py:function" that returns a module, "timm:resnet18", or "hf:PATH".
        data: calibration images, without labels: a float tensor (N, C, H, W), a DataLoader or
            other batches, a folder, an `.npz`, "file.py:callable", or "fractal:300" for
            synthetic images where there are none. 300 to 1000 serve well.
        sparsity: fraction of zeros among the weights of the pruned layers, in [0, 1); hit exactly.
        max_macs: multiply-accumulates left, as a fraction of the dense network's, in (0, 1].
            Those with zero weights count as saved, which only some runtimes do save.
        max_bytes: size of a packed file (a bit per weight and the kept ones) as a fraction of
            the dense network's, in (0, 1].
        max_drop: points of top-1 that may be lost, in [0, 100): the largest sparsity that stays
            within it, in at most 6 tries. Without labels points of agreement with the dense
            network; without evaluation data on a quarter of `data`, held back.
        evaluation: images to judge the result by, never fitted to: (images, labels), or any
            source as for `data`; all of them are used.
        quantize: "int8" also makes an INT8 network of the pruned one, on the same images, with
            every zero kept; see `secateur.quantize`. It is tried on the dense network first; where
            it fails on the pruned one all the same, a warning tells.
        preprocess: from images to inputs, see `Preprocess`; for folders and uint8 data. None = as
            a network from a hub wants it, and none for any other.
        recipe: how: an object, a name in `RECIPES` ("default", "tuned", "paper") or a TOML file.
            The four settings below replace the recipe's where they are given.
        pattern: which zeros are allowed; an object or a name in `PATTERNS`.
        method: which weights go and what the others become; an object or a name in `METHODS`.
        allocation: how many zeros in each layer; an object or a name in `ALLOCATIONS`.
        inputs: "pruned" fits each layer to the inputs it will get in the pruned network,
            "dense" (the paper) to those it gets in the dense one.
        include: names or globs of the layers to prune; None = all but the first layer, depthwise
            convolutions and tiny layers (one output of fewer than 64 weights).
        exclude: names or globs of layers to leave dense.
        max_images: use at most this many images; None = all.
        max_columns: layers with more inputs per output are fitted in blocks of columns.
        seed: of every random choice.
        device: where to compute; None = where the model is (an ONNX model on the CPU).
        progress: None shows a bar on a terminal and nothing elsewhere; True a bar on a terminal
            and elsewhere a line now and then, on standard error; False nothing; a function is
            called with (done, total, layer name) after each layer.

    Returns:
        The pruned copy and the report.

    Raises:
        OptionError, DataError, ModelError: a mistake that the message helps to put right.
        MissingExtraError: an ONNX model, and onnx or onnxruntime is not installed; or INT8 and
            nncf is not.
        NumericalError: a layer gets NaN or infinite values, or cannot be solved.

    Cost: see the tables of README.md (benchmarks/default.py) and, for the paper's recipe,
    docs/paper.md, in forward passes over the images. `max_drop`: that much per walk, and a pass
    over the images that are judged on.
    Memory: the values at the widest cut for all images, twice; see `secateur.pruning.walk`.
    """
    options = Options(
        target=choose_target(
            sparsity=sparsity, max_macs=max_macs, max_bytes=max_bytes, max_drop=max_drop
        ),
        recipe=choose_recipe(
            recipe, pattern=pattern, method=method, allocation=allocation, inputs=inputs
        ),
        preprocess=preprocess,
        include=include,
        exclude=exclude,
        max_images=max_images,
        max_columns=max_columns,
        seed=seed,
        device=device,
        quantize=quantize,
    )
    model = read_model(model)
    check_kind(quantize, model)
    with telling(progress) as teller:
        job = prepare(model, data, options, evaluation, teller=teller)
        if quantize is not None:
            teller.step("trying INT8 on the dense network")
            rehearse(model, job.images.tensor, int8=True)
            job.watch.lap("quantize")
        job = job.measure()
        walked, target, search = job.carry_out()
        pruned = job.network(walked)
        job.watch.lap("walk")
        teller.step("measuring what the steps have contributed")
        steps = job.run.account(walked, target, job.original, job.aligned)
        found = step_reports(model, steps, job.run.images, walked.dense, job.evaluation_set)
        job.watch.lap("steps")
        exported, integers, missing = None, Quantized(model=None), {}
        if quantize is not None:
            teller.step("quantising to INT8")
            try:
                exported = as_onnx(pruned, job.images.tensor)
                integers = in_int8(exported, job.images.tensor)
            except ModelError as error:  # the pruned network is there all the same
                missing["int8"] = str(error)
            job.watch.lap("quantize")
        judged = job.evaluations(pruned, integers.model)
        report = job.report(pruned, walked, judged, steps=found, search=search)
    report.notes.extend(integers.notes)
    report.warnings.extend(f"no INT8 network was made: {why}" for why in missing.values())
    for warning in report.warnings:
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    return PruneResult(pruned, report, steps, integers.model, job.evaluation_set, exported, missing)


def plan(
    model: nn.Module | str | Path | Any,
    data: Any,
    *,
    sparsity: float | None = None,
    max_macs: float | None = None,
    max_bytes: float | None = None,
    max_drop: float | None = None,
    evaluation: Any = None,
    quantize: str | None = None,
    preprocess: Transform | None = None,
    recipe: Recipe | str | Path = "default",
    pattern: Pattern | str | None = None,
    method: Method | str | None = None,
    allocation: Allocation | str | None = None,
    inputs: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_images: int | None = MAX_IMAGES,
    max_columns: int = Sampling.max_columns,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, int, str], Any] | None = None,
) -> Plan:
    """What `prune` would do with these arguments, without pruning: zeros layer by layer.

    Args: see `prune`. With `max_drop` the sparsity is guessed from the expected damage. Of
    `evaluation` the first images are read, to see that they can be; no network is judged on them.

    Returns:
        The layers with their zeros, expected damage and MACs left, and the sums.

    Raises:
        OptionError, DataError, ModelError: a mistake that the message helps to put right.

    Cost: what the allocation measures; nothing for those that look at weights only.
    """
    options = Options(
        target=choose_target(
            sparsity=sparsity, max_macs=max_macs, max_bytes=max_bytes, max_drop=max_drop
        ),
        recipe=choose_recipe(
            recipe, pattern=pattern, method=method, allocation=allocation, inputs=inputs
        ),
        preprocess=preprocess,
        include=include,
        exclude=exclude,
        max_images=max_images,
        max_columns=max_columns,
        seed=seed,
        device=device,
        quantize=quantize,
    )
    model = read_model(model)
    check_kind(quantize, model)
    if evaluation is not None:
        next(open_images(evaluation, preprocess=preprocess).batches())
    with telling(progress) as teller:
        job = prepare(model, data, options, search=False, teller=teller)
        for warning in job.warnings:
            warnings.warn(warning, SecateurWarning, stacklevel=2)
        return make_plan(job.measure(job.run.measured).run)


def inspect(
    model: nn.Module | str | Path | Any,
    shape: Sequence[int] | None = None,
    *,
    device: str | None = None,
) -> Inspection:
    """Lists a network's layers, which of them `prune` leaves dense, and which runtimes could gain.

    Args:
        model: as for `prune`; never modified.
        shape: of one input, without the batch axis; None = as an ONNX file says, with 3 channels
            and 224 pixels for what it leaves open, as a network from a hub wants it, and
            (3, 224, 224) for any other module.
        device: where to trace; None = where the model is.

    Raises:
        ModelError: the model cannot be exported or run with such an input.
    """
    check_device(device)
    model = read_model(model)
    if shape is None:
        shape = own_input_shape(model) or input_shape(model)
    if not shape or any(size < 1 for size in shape):
        raise OptionError(f"shape is {tuple(shape)}, expected positive sizes such as (3, 224, 224)")
    example = torch.zeros(2, *shape, device=device or device_of(model))
    return Inspection.of(trace(model, example))
