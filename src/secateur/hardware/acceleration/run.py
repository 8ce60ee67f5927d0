"""`secateur.accelerate`: a module whose layers run kernels that leave zeros out, by runtime."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES, Data, load_images
from secateur.errors import ModelError, OptionError, SecateurWarning
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.frontends import asked_or_own
from secateur.frontends import open as open_model
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.frontends.torch.modules import check_in_floats, copy_module
from secateur.hardware.acceleration import kernels as int8
from secateur.hardware.acceleration import semi_structured
from secateur.hardware.acceleration.int8_work import Int8Work
from secateur.hardware.acceleration.replacing import without_fast_path
from secateur.hardware.acceleration.report import AccelerationReport
from secateur.hardware.acceleration.saved import save_accelerated
from secateur.hardware.acceleration.semi_structured import SemiStructuredWork
from secateur.hardware.paying import CUDA_SPARSE
from secateur.support.settings import SEEDS, at_least, check_arguments
from secateur.support.wording import counted

AcceleratedRuntime = Literal["torch-int8-sparse", "torch-cuda-2:4"]
KernelName = Literal["sparse", "dense", "float"]


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """What `accelerate` returns.

    Attributes:
        model: the module, for inference on a CPU (torch-int8-sparse), or on a GPU in float16
            (torch-cuda-2:4). `torch.save` keeps it whole.
        report: which kernel each layer runs and why, its speed, and its error.
    """

    model: nn.Module
    report: AccelerationReport

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the module as .safetensors, for `secateur.load_accelerated`.

        Raises:
            OutputError: the file exists and `overwrite` is not given, or it cannot be written.
        """
        save_accelerated(self.model, path, runtime=self.report.runtime, overwrite=overwrite)

    def notes(self, judged: EvaluationSet | None) -> list[str]:
        """What a pruning report says of it, with the module on evaluation data where there are."""
        told = [f"accelerated: {self.report.result}"]
        if judged is not None:
            told.append(f"accelerated, evaluated: {judged.evaluate(self.model)}")
        told.append(
            f"accelerated, against the pruned network in floats: {self.report.compared}; relative "
            f"error {self.report.relative_error:.2g}"
        )
        return told


@torch.inference_mode(False)
def accelerate(
    model: nn.Module | str | Any,
    data: Data,
    *,
    runtime: AcceleratedRuntime = "torch-int8-sparse",
    batch: int = 1,
    cuda_graph: bool = False,
    kernels: KernelName | Collection[KernelName] = ("sparse", "dense", "float"),
    exclude: str | Collection[str] | None = None,
    preprocess: Transform | None = None,
    max_images: int | None = MAX_IMAGES,
    mask: str | None = None,
    seed: int = 0,
) -> Acceleration:
    """Makes a module whose layers leave zeros out, by kernels that PyTorch itself has.

    "torch-int8-sparse", on x86: linear layers and 1 x 1 convolutions in INT8. The sparse kernel
    leaves out blocks of four neighbouring inputs that are all zero: prune with `pattern="1x4"`
    first. Weights have 8 bits and a scale for each output, inputs 7 bits; the ranges are those of
    the calibration data.

    "torch-cuda-2:4", on NVIDIA GPUs from Ampere on: the whole module in float16 on the GPU, linear
    layers pruned with `pattern="2:4"` by `torch.sparse.to_sparse_semi_structured`.

    Each layer gets the kernel that is fastest here.

    Example:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> fast = secateur.accelerate(net, torch.randn(64, 64), kernels=["dense"])
        >>> fast.model(torch.randn(2, 64)).shape
        torch.Size([2, 64])

    Args:
        model: a module, or a reference to one; not changed.
        data: calibration data as for `prune` (`secateur.Data`); padding is left out where a mask
            says so. The accelerated module is compared with the one in floats on them.
        runtime: "torch-int8-sparse" or "torch-cuda-2:4".
        batch: samples that the module will be run with at a time: how many rows a layer has
            decides which kernel is fastest.
        cuda_graph: on a GPU, whether the module will be run in a CUDA graph (`torch.cuda.graph`,
            or `torch.compile` with mode="reduce-overhead"): layers and the whole are measured in
            one. Launched from Python, a 2:4 layer costs half a millisecond more.
        kernels: those that a layer may get: "sparse", "dense" and "float", one or several; on a GPU
            floats are the dense kernel.
        exclude: names or globs of layers to leave in floats.
        preprocess, max_images, mask, seed: as for `prune`.

    Returns:
        The module and a report. Layers whose weights are shared or used otherwise are left alone,
        with the reason.

    Raises:
        OptionError, DataError: a mistake in the call; the message says how to fix it.
        ModelError: the model is no module, no layer can run such a kernel, PyTorch has none here,
            or there is no such GPU.

    Cost: three forward passes over the data, and a moment for each layer.
    """
    check_arguments(accelerate, locals(), batch=at_least(1), max_images=at_least(1), seed=SEEDS)
    allowed = _check(runtime, kernels, cuda_graph=cuda_graph)
    network = open_model(model)
    if not isinstance(network, TorchFrontend):
        raise ModelError(
            f"the model is an {network.suffix} file, expected a torch.nn.Module: PyTorch's kernels "
            "run in modules only"
        )
    check_in_floats(network.model)
    takes = network.signature.masking(mask)
    how = asked_or_own(preprocess, network)
    images = load_images(data, preprocess=how, max_images=max_images, seed=seed, takes=takes)
    twin = copy_module(network.model).eval().cpu()
    without_fast_path(twin)
    globs = [exclude] if isinstance(exclude, str) else [*(exclude or ())]
    given = network.model, twin, images.samples
    try:
        work = (
            SemiStructuredWork(*given, batch=batch, allowed=allowed, graph=cuda_graph)
            if runtime == CUDA_SPARSE
            else Int8Work(*given, batch=batch, allowed=allowed)
        )
        report = work.carried_out(runtime, globs)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the GPU has not enough memory for the network and {counted(batch, 'sample')}, "
            "expected room for it in float32 and twice in float16: give a smaller batch"
        ) from error
    for warning in (told := (*images.warnings, *report.warnings)):
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    return Acceleration(model=twin, report=replace(report, warnings=told))


def _check(runtime: str, kernels: str | Collection[str], *, cuda_graph: bool) -> tuple[str, ...]:
    """The kernels that a layer may get.

    Raises:
        OptionError: none is given, or a CUDA graph for a CPU.
        ModelError: there is none here.
    """
    given = {kernels} if isinstance(kernels, str) else {*kernels}
    allowed = tuple(kernel for kernel in get_args(KernelName) if kernel in given)
    if not allowed:
        raise OptionError(
            "kernels is empty, expected 'sparse', 'dense' or 'float', or several of these: leave "
            "it out for all of them"
        )
    on_gpu = runtime == CUDA_SPARSE
    if cuda_graph and not on_gpu:
        raise OptionError(
            f"got cuda_graph with runtime={runtime!r}, whose kernels run on the CPU, expected it "
            f"with {CUDA_SPARSE!r}: leave it out"
        )
    if on_gpu and allowed == ("float",):
        raise OptionError(
            f"got kernels='float' with runtime={runtime!r}, expected 'sparse' or 'dense': floats "
            "are the dense kernel there"
        )
    if on_gpu:
        allowed = tuple(dict.fromkeys("dense" if of == "float" else of for of in allowed))
    for kernel in allowed:
        if kernel == "float":
            continue
        if obstacle := semi_structured.missing() if on_gpu else int8.missing(kernel):
            raise ModelError(f"{runtime} cannot run here: {obstacle}")
    return allowed
