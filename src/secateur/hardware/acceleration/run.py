"""`secateur.accelerate`: layers chosen, calibrated, measured and replaced; the whole compared."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from secateur.core.distance import relative_error
from secateur.core.outputs import judge_of
from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES, Data, load_images
from secateur.errors import ModelError, OptionError, SecateurWarning
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.evaluation.inference import first_output
from secateur.evaluation.metrics import compare
from secateur.frontends import asked_or_own
from secateur.frontends import open as open_model
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.frontends.torch.modules import copy_module
from secateur.hardware.acceleration import calibration
from secateur.hardware.acceleration.calibration import Observed, Observer, readers
from secateur.hardware.acceleration.candidates import Candidate, Found, find, used_otherwise
from secateur.hardware.acceleration.choice import fastest, seconds
from secateur.hardware.acceleration.kernels import BLOCK, missing, quantized_weight, zero_blocks
from secateur.hardware.acceleration.layers import Int8Layer, Int8Linear, Integers, SharedInput
from secateur.hardware.acceleration.replacing import replaced, without_fast_path
from secateur.hardware.acceleration.report import AccelerationReport, LayerAcceleration
from secateur.hardware.acceleration.saved import save_accelerated
from secateur.hardware.bench_worker import measure
from secateur.hardware.machine import Machine
from secateur.network.samples import Samples
from secateur.support.choices import did_you_mean
from secateur.support.settings import SEEDS, at_least, check_arguments
from secateur.version import __version__

AcceleratedRuntime = Literal["torch-int8-sparse"]
KernelName = Literal["sparse", "dense", "float"]
_ROUNDS = 11  # of the whole module
_CHUNK = 32  # samples of a run


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """What `accelerate` returns.

    Attributes:
        model: the module, for inference on a CPU. `torch.save` keeps it whole.
        report: which kernel each layer runs and why, its speed, and its error.
    """

    model: nn.Module
    report: AccelerationReport

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the module as .safetensors, for `secateur.load_accelerated`.

        Raises:
            OutputError: the file exists and `overwrite` is not given, or it cannot be written.
        """
        save_accelerated(self.model, path, overwrite=overwrite)

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
    kernels: KernelName | Collection[KernelName] = ("sparse", "dense", "float"),
    exclude: str | Collection[str] | None = None,
    preprocess: Transform | None = None,
    max_images: int | None = MAX_IMAGES,
    mask: str | None = None,
    seed: int = 0,
) -> Acceleration:
    """Makes a module whose linear layers and 1 x 1 convolutions run PyTorch's INT8 kernels.

    The sparse kernel leaves out blocks of four neighbouring inputs that are all zero: prune with
    `pattern="1x4"` first. Each layer gets the kernel that is fastest here. Weights have 8 bits and
    a scale for each output, inputs 7 bits; the ranges are those of the calibration data.

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
        runtime: "torch-int8-sparse".
        batch: samples that the module will be run with at a time: how many rows a layer has
            decides which kernel is fastest.
        kernels: those that a layer may get: "sparse", "dense" and "float", one or several.
        exclude: names or globs of layers to leave in floats.
        preprocess, max_images, mask, seed: as for `prune`.

    Returns:
        The module and a report. Layers whose weights are shared or used otherwise are left alone,
        with the reason.

    Raises:
        OptionError, DataError: a mistake in the call; the message says how to fix it.
        ModelError: the model is no module, no layer can run such a kernel, or PyTorch has none
            here.

    Cost: three forward passes over the data, and a moment for each layer.
    """
    check_arguments(accelerate, locals(), batch=at_least(1), max_images=at_least(1), seed=SEEDS)
    allowed = _check(runtime, kernels)
    network = open_model(model)
    if not isinstance(network, TorchFrontend):
        raise ModelError(
            f"the model is an {network.suffix} file, expected a torch.nn.Module: PyTorch's kernels "
            "run in modules only"
        )
    takes = network.signature.masking(mask)
    how = asked_or_own(preprocess, network)
    images = load_images(data, preprocess=how, max_images=max_images, seed=seed, takes=takes)
    twin = copy_module(network.model).eval().cpu()
    without_fast_path(twin)
    globs = [exclude] if isinstance(exclude, str) else [*(exclude or ())]
    work = _Work(network.model, twin, images.samples, batch=batch, allowed=allowed)
    report = work.carried_out(runtime, globs)
    for warning in (told := (*images.warnings, *report.warnings)):
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    return Acceleration(model=twin, report=replace(report, warnings=told))


def _check(runtime: str, kernels: str | Collection[str]) -> tuple[str, ...]:
    """The kernels that a layer may get.

    Raises:
        OptionError: none is given.
        ModelError: there is none here.
    """
    given = {kernels} if isinstance(kernels, str) else {*kernels}
    allowed = tuple(kernel for kernel in get_args(KernelName) if kernel in given)
    if not allowed:
        raise OptionError(
            "kernels is empty, expected 'sparse', 'dense' or 'float', or several of these: leave "
            "it out for all of them"
        )
    for kernel in allowed:
        if kernel != "float" and (obstacle := missing(kernel)):
            raise ModelError(f"{runtime} cannot run here: {obstacle}")
    return allowed


class _Work:
    """One call of `accelerate`, on a copy of the module that it changes."""

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        samples: Samples,
        *,
        batch: int,
        allowed: Sequence[str],
    ) -> None:
        self.original, self.model, self.samples = original, model, samples
        self.batch, self.allowed = batch, allowed
        self.layers: dict[str, LayerAcceleration] = {}

    def carried_out(self, runtime: str, exclude: Sequence[str]) -> AccelerationReport:
        """Replaces the layers; the report of it."""
        expected = first_output(self.original, self.samples, batch_size=_CHUNK)
        found = self._found(exclude)
        seen = self._observed(found.candidates)
        unseen = [of.name for of in found.candidates if not seen[of.name].inputs]
        found = found.without(dict.fromkeys(unseen, "no real position reaches it"))
        if not found.candidates:
            raise ModelError(
                f"no layer can run an INT8 kernel ({_most_common(found.reasons)}), expected linear "
                "layers or 1x1 convolutions: leave the network as it is"
            )
        for group in readers(seen, found.candidates):
            self._replace(group, seen)
        return self._report(runtime, found, expected)

    def _found(self, exclude: Sequence[str]) -> Found:
        found = find(self.model)
        names = [*(of.name for of in found.candidates), *found.reasons]
        out = _excluded(exclude, names)
        found = found.without({of.name: _EXCLUDED for of in found.candidates if of.name in out})
        few = self.samples.pair()
        with open_model(self.model).running(few) as run:
            run(few)  # which layout it takes is found out
            return found.without(used_otherwise(found, lambda: run(few)))

    def _observed(self, candidates: Sequence[Candidate]) -> Mapping[str, Observed]:
        parts = self.samples.split(_CHUNK)
        observer = Observer(candidates, len(parts))
        with open_model(self.model).running(parts[0]) as run, torch.no_grad():
            run(parts[0])
            with observer.watching():
                for part in parts:
                    observer.begin(part)
                    run(part)
        return observer.seen

    def _replace(self, group: Sequence[Candidate], seen: Mapping[str, Observed]) -> None:
        """Layers that read the same value, each by its fastest form."""
        shared = calibration.best_input(group, seen)
        for of in group:
            mine = seen[of.name]
            layer, self.layers[of.name] = self._chosen(of, mine, shared)
            if layer is not None:
                replaced(self.model, of.module, layer)

    def _chosen(
        self, of: Candidate, seen: Observed, shared: SharedInput
    ) -> tuple[Int8Layer | None, LayerAcceleration]:
        integers = integers_of(of, shared, seen)
        exact = linear(seen.rows, of.matrix.float(), of.bias)
        forms = {
            name: Int8Linear(integers, name, SharedInput(shared.codes, shared.factor))
            for name in self.allowed
            if name != "float"
        }
        error = {name: check_layer(of.name, form, seen.rows, exact) for name, form in forms.items()}
        rows = max(1, round(seen.rows_per_sample * self.batch))
        matrix, bias = of.matrix.float().contiguous(), of.bias
        runs = {"float": lambda x: linear(x, matrix, bias), **forms}
        times = seconds(runs, seen.rows, rows)
        kernel = fastest(times, self.allowed)
        layer = None if kernel == "float" else of.made(integers, kernel, shared)
        return layer, LayerAcceleration(
            name=of.name,
            kind=of.kind,
            kernel=kernel,
            shape=tuple(matrix.shape),
            zeros=float((matrix == 0).double().mean()),
            zero_blocks=zero_blocks(matrix),
            rows=rows,
            milliseconds={name: 1e3 * value for name, value in times.items()},
            error=error.get(kernel),
        )

    def _report(self, runtime: str, found: Found, expected: Tensor) -> AccelerationReport:
        output = first_output(self.model, self.samples, batch_size=_CHUNK)
        judge, weight = judge_of(expected), self.samples.mask
        before, after = self._times()
        names = [name for name, _ in self.model.named_modules()]
        for name, reason in found.reasons.items():
            self.layers[name] = LayerAcceleration(name=name, reason=reason)
        return AccelerationReport(
            runtime=runtime,
            layers=tuple(self.layers[name] for name in names if name in self.layers),
            batch=self.batch,
            threads=torch.get_num_threads(),
            milliseconds={"float": before, "accelerated": after},
            rounds=_ROUNDS,
            relative_error=relative_error(
                [expected], [output], judge, None if weight is None else [weight]
            ),
            compared=compare(output, None, expected, judge=judge, weight=weight),
            cpu=Machine.here().cpu,
            versions={"secateur": __version__, "torch": str(torch.__version__)},
            warnings=tuple(self._warnings()),
        )

    def _warnings(self) -> list[str]:
        chosen = [of for of in self.layers.values() if not of.reason]
        if "sparse" not in self.allowed or any(of.kernel == "sparse" for of in chosen):
            return []
        share = sum((of.zero_blocks or 0) * math.prod(of.shape) for of in chosen)
        share /= sum(math.prod(of.shape) for of in chosen)
        return [
            f"no layer runs the sparse kernel: {share:.0%} of the blocks of 1x{BLOCK} weights are "
            "zero, and from 60 % on it is usually faster; prune with pattern='1x4'"
        ]

    def _times(self) -> tuple[float, float]:
        """Milliseconds of a run in floats and accelerated, in turns."""
        count = len(self.samples)
        few = self.samples.select([number % count for number in range(self.batch)])
        with ExitStack() as stack:
            nets = (self.original, self.model)
            runs = [stack.enter_context(open_model(of).running(few)) for of in nets]
            stack.enter_context(torch.inference_mode())
            found = measure([partial(run, few) for run in runs], _ROUNDS)
        before, after = (statistics.median(of) for of in found)
        return before, after


_EXCLUDED = "excluded by the call"
_WRONG = 1.5  # codes: outputs halfway between two may be rounded either way


def integers_of(of: Candidate, shared: SharedInput, seen: Observed) -> Integers:
    """A layer's matrix and bias in integers, for inputs as codes."""
    output, factor = calibration.best_output(of, seen)
    matrix, bias = of.matrix.float(), of.bias
    matrix = matrix if shared.factor is None else matrix / shared.factor
    if factor is not None:
        matrix = matrix / factor[:, None]
        bias = None if bias is None else bias / factor
    weight, scale = quantized_weight(matrix)
    return Integers(weight=weight, scale=scale, bias=bias, output=output, factor=factor)


def check_layer(name: str, layer: Int8Layer, rows: Tensor, exact: Tensor) -> float:
    """The error of a layer in integers, relative to the mean square of its outputs in floats.

    Raises:
        ModelError: the kernel does not give what its integers say.
    """
    with torch.inference_mode():
        found = layer(rows)
        factor, shared = layer.output_factor, layer.shared
        given = rows if shared.factor is None else rows * shared.factor
        taken = shared.codes.quantized(given).dequantize()
        said = layer.output.rounded(linear(taken, layer.matrix, layer.bias))
        codes = found if factor is None else found / factor
        codes = (codes - said).abs().max() / layer.output.scale
    if not float(codes) <= _WRONG:
        raise ModelError(
            f"PyTorch's {layer.kernel} INT8 kernel is {float(codes):.0f} codes off in the layer "
            f"{name}, expected rounding only: leave it out with exclude, and please report your "
            "processor"
        )
    return calibration.relative(exact, found)


def _excluded(globs: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that names or globs mean.

    Raises:
        OptionError: one matches nothing.
    """
    out: set[str] = set()
    for glob in globs:
        matches = [name for name in names if name == glob or fnmatchcase(name, glob)]
        if not matches:
            raise OptionError(
                f"exclude={glob!r} matches no linear layer or convolution, expected a name or a "
                f"glob such as 'layer1.*'{did_you_mean(glob, names)}"
            )
        out.update(matches)
    return out


def _most_common(reasons: Mapping[str, str]) -> str:
    """The reason that most layers have."""
    counts = Counter(reasons.values()).most_common(1)
    return counts[0][0] if counts else "it has neither linear layers nor convolutions"
