"""The main path: a network and some images in, the pruned network and a report out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.alignment import Alignment
from secateur.allocations import Allocation
from secateur.console import layer_progress
from secateur.data import MAX_IMAGES, Transform, load_images
from secateur.errors import OptionError, SecateurWarning
from secateur.evaluate import fast_layout
from secateur.frontends import device_of, input_shape, read, trace, with_parameters
from secateur.methods import Method
from secateur.options import check_sparsity, select_layers
from secateur.patterns import Pattern
from secateur.recipe import Recipe, choose_recipe
from secateur.report import Inspection, Report, build_report, describe, step_reports
from secateur.steps import Plan
from secateur.walk import Sampling

# Input values per run of an operation. Larger chunks made EfficientNet-Lite0 up to 1.6 times
# slower: activations over 32 MB get fresh pages from the system at every allocation.
_CHUNK_VALUES = 8 * 3 * 224 * 224


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: the pruned copy of the network: a module in eval mode, or an `onnx.ModelProto`
            where that or an ONNX file was given.
        report: what happened.
        steps: for a recipe of several steps, the parameters that differ from the dense
            network's after each of them, by name; see `after`.
    """

    model: Any
    report: Report
    steps: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def after(self, step: str) -> Any:
        """A copy of the network as it was after a step of the recipe."""
        if step not in self.steps:
            known = ", ".join(self.steps) or "none, for the recipe has a single step"
            raise OptionError(f"no step {step!r}, expected one of: {known}")
        return with_parameters(self.model, self.steps[step])


def prune(
    model: nn.Module | str | Path | Any,
    data: Any,
    *,
    sparsity: float,
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

    Args:
        model: any module that `torch.export` can trace, with its weights, or an ONNX model that
            ONNX Runtime runs: the path of the file or an `onnx.ModelProto`; never modified.
        data: calibration images, without labels: a float tensor (N, C, H, W), a DataLoader or
            other batches, a folder, an `.npz`, "file.py:callable", or "fractal:300" for
            synthetic images where there are none. 300 to 1000 serve well.
        sparsity: fraction of zeros among the weights of the pruned layers, in [0, 1); hit exactly.
        preprocess: from images to inputs, see `Preprocess`; for folders and uint8 data.
        recipe: how: an object, a name in `RECIPES` ("default", "paper") or a TOML file. The
            four settings below replace the recipe's where they are given.
        pattern: which zeros are allowed; an object or a name in `PATTERNS`.
        method: which weights go and what the others become; an object or a name in `METHODS`.
        allocation: how many zeros in each layer; an object or a name in `ALLOCATIONS`.
        inputs: "pruned" fits each layer to the inputs it will get in the pruned network,
            "dense" (the paper) to those it gets in the dense one.
        include: names or globs of the layers to prune; None = all but the first layer and
            depthwise convolutions.
        exclude: names or globs of layers to leave dense.
        max_images: use at most this many images; None = all.
        max_columns: layers with more inputs per output are fitted in blocks of columns.
        seed: of every random choice.
        device: where to compute; None = where the model is (an ONNX model on the CPU).
        progress: True or False for a bar, a function (done, total, layer name), or None for a
            bar when on a terminal.

    Returns:
        The pruned copy and the report.

    Raises:
        OptionError, DataError, ModelError: a mistake that the message helps to put right.
        MissingExtraError: an ONNX model, and onnx or onnxruntime is not installed.
        NumericalError: a layer gets NaN or infinite values, or cannot be solved.

    Cost: see the tables of README.md (benchmarks/default.py) and, for the paper's recipe,
    docs/paper.md, in forward passes over the images.
    Memory: the values at the widest cut for all images, twice; see `secateur.walk`.
    """
    start = time.perf_counter()
    check_sparsity(sparsity)
    how = choose_recipe(
        recipe, pattern=pattern, method=method, allocation=allocation, inputs=inputs
    )
    if max_columns < 1:
        raise OptionError(f"max_columns is {max_columns}, expected at least 1")
    model = read(model)
    images = load_images(data, preprocess=preprocess, max_images=max_images, seed=seed)
    loaded = time.perf_counter()

    batch = fast_layout(images.tensor.to(device or device_of(model)))
    original = trace(model, batch[:2])
    traced = time.perf_counter()

    chunk = chunk_size(batch)
    align = how.alignment
    aligned = align.align(original, batch, chunk=chunk) if align is not None else Alignment()
    graph = original.changed(aligned.changes) if aligned.changes else original
    plan = Plan(
        graph=graph,
        images=batch,
        layers=select_layers(graph.layers, include, exclude),
        sparsity=sparsity,
        recipe=how,
        sampling=Sampling(max_columns=max_columns, seed=seed),
        chunk=chunk,
    )
    with layer_progress(progress, plan.visits) as on_layer:
        plan = replace(plan, on_layer=on_layer)
        division = plan.division
        divided = time.perf_counter()
        walked = plan.run()
    pruned = with_parameters(model, {**aligned.changes, **walked.changes})
    solved = time.perf_counter()
    steps = plan.account(walked, original, aligned)
    found = step_reports(model, steps, batch, walked.dense)
    end = time.perf_counter()

    settings = {
        "sparsity": sparsity,
        "recipe": how.settings(),
        "include": include,
        "exclude": exclude,
        "preprocess": None if preprocess is None else describe(preprocess),
        "max_images": max_images,
        "max_columns": max_columns,
        "seed": seed,
        "device": str(batch.device),
    }
    seconds = {
        "data": loaded - start,
        "trace": traced - loaded,
        "allocation": divided - traced,
        "walk": solved - divided,
        "steps": end - solved,
        "total": end - start,
    }
    report = build_report(
        pruned, graph, walked, division, images, settings, seconds, found, aligned.pairs
    )
    for warning in report.warnings:
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    return PruneResult(pruned, report, steps)


def inspect(
    model: nn.Module | str | Path | Any,
    shape: Sequence[int] | None = None,
    *,
    device: str | None = None,
) -> Inspection:
    """Lists a network's layers and which of them `prune` leaves dense, and why.

    Args:
        model: as for `prune`; never modified.
        shape: of one input, without the batch axis; None = as an ONNX file says, with 3 channels
            and 224 pixels for what it leaves open, and (3, 224, 224) for a module.
        device: where to trace; None = where the model is.

    Raises:
        ModelError: the model cannot be exported or run with such an input.
    """
    model = read(model)
    shape = input_shape(model) if shape is None else shape
    if not shape or any(size < 1 for size in shape):
        raise OptionError(f"shape is {tuple(shape)}, expected positive sizes such as (3, 224, 224)")
    example = torch.zeros(2, *shape, device=device or device_of(model))
    return Inspection(tuple(trace(model, example).layers))


def chunk_size(images: Tensor) -> int:
    """Images per run of an operation: 8 of 224 pixels, more of smaller ones, at most 256."""
    return max(1, min(256, _CHUNK_VALUES // max(1, images[0].numel())))
