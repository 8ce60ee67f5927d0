"""`secateur.advise`: which pattern pays on which runtime, for this network, and at what price.

The network is read, traced and conditioned once. Each pattern then has a quick fit to the same
samples (`QUICK`), is judged on the same others, and is measured on the runtimes that it is for.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from secateur.core.methods import LeastSquares
from secateur.core.outputs import Judge
from secateur.data.preprocess import Transform
from secateur.data.sources import Data, Images, load_images
from secateur.errors import ModelError, SecateurError, SecateurWarning
from secateur.evaluation.results import Loss
from secateur.frontends import Frontend, asked_or_own
from secateur.frontends import open as open_model
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.hardware.acceleration.run import AcceleratedRuntime, accelerate
from secateur.hardware.compare_latency import compare, compare_modules, file_for
from secateur.hardware.layer_worker import ENGINES
from secateur.hardware.machine import Machine
from secateur.hardware.paying import ACCELERATED, pays_nowhere
from secateur.hardware.runtimes import BY_KEY
from secateur.options import Options
from secateur.preparation import again, hold_back, prepare
from secateur.pruning.allocations.sensitivity import FittedSensitivity, Sensitivity
from secateur.pruning.channels.curves import ChannelSensitivity
from secateur.pruning.channels.run import ChannelRun
from secateur.pruning.recipe import Recipe
from secateur.pruning.run import PruningRun
from secateur.pruning.targets import MaxMacs
from secateur.report.advice import Advice, Suggestion
from secateur.report.build import versions
from secateur.session import Job
from secateur.support.progress import telling
from secateur.support.settings import SEEDS, at_least, check_arguments
from secateur.support.threads import torch_threads
from secateur.support.wording import counted

QUICK = Recipe(
    method=LeastSquares(damping=0.3, tolerance=1e-2, iterations=30),
    allocation=Sensitivity(
        levels=(0.5, 0.9),
        block_levels=(0.25, 0.5, 0.75, 0.9),
        fitted=64,
        method=LeastSquares(damping=0.3, tolerance=3e-2, iterations=20),
    ),
)
"""One walk, the smallest weights removed, the others fitted; no blocks trained."""

_CHANNELS = ChannelSensitivity(levels=(0.25, 0.6))

_IMAGES = 192
_HELD_BACK = 3  # of so many samples one is judged on


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """A network pruned quickly in one pattern.

    Attributes:
        asked: how far, in words.
        network: the result; None where the pattern cannot be had.
        lost: on the samples that it is judged on.
        bytes_fraction: of a packed file; None where channels are gone.
        why: there is none.
    """

    asked: str
    network: Frontend | None = None
    lost: Loss | None = None
    bytes_fraction: float | None = None
    why: str = ""


@one_first_run()
@torch.inference_mode(False)
def advise(
    model: nn.Module | str | Path | Any,
    data: Data,
    *,
    evaluation: Data | None = None,
    sparsity: float = 0.5,
    blocks: float = 0.7,
    max_macs: float = 0.7,
    seconds: float = 5.0,
    threads: int = 1,
    preprocess: Transform | None = None,
    include: str | Collection[str] | None = None,
    exclude: str | Collection[str] | None = None,
    max_images: int = _IMAGES,
    seed: int = 0,
    mask: str | None = None,
    output: str | int | None = None,
    judge: Judge | None = None,
    metric: Callable[[Any], float] | None = None,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, int, str], Any] | None = None,
) -> Advice:
    """Tells what each pattern would bring on each runtime here, and what it would cost.

    A network is pruned quickly in each pattern that some runtime can use, judged, and measured on
    the runtimes that are installed: keep the machine idle meanwhile. What cannot be measured here
    is told with its reason.

    Example:
        >>> import torch, secateur
        >>> torch.manual_seed(0) and None
        >>> layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)
        >>> net = torch.nn.Sequential(*layers)
        >>> advice = secateur.advise(net, torch.randn(64, 64), seconds=0)
        >>> sorted({of.pattern for of in advice.suggestions})
        ['1x4', '2:4', 'channels', 'unstructured']

    Args:
        model, data, evaluation: as for `secateur.prune`; without evaluation data and `metric` a
            third of `data` is held back to judge on.
        sparsity: fraction of zeros, where any weight may be one, in [0, 1).
        blocks: fraction of zeros in blocks, in [0, 1).
        max_macs: multiply-accumulates left where channels leave, as a fraction of the dense
            network's, in (0, 1].
        seconds: of measuring on each runtime, in one process; 0 = no times, only bytes and what is
            lost.
        threads: that runtimes use.
        max_images: use at most this many samples: few are quick.
        preprocess, include, exclude, seed, mask, output, judge, metric, device, progress: as for
            `secateur.prune`.

    Returns:
        A row for each runtime.

    Raises:
        OptionError, DataError, ModelError: a mistake in the call; the message says how to fix it.

    Cost: four quick fits, each a half to one call of `prune` on so many samples, and `seconds` of
    measuring on each runtime, besides starting it.
    """
    arguments = {**locals(), "progress": None}  # which `telling` checks
    check_arguments(
        advise,
        arguments,
        seconds=at_least(0),
        threads=at_least(1),
        max_images=at_least(1),
        seed=SEEDS,
        output=at_least(0),
    )
    common = {
        "include": include,
        "exclude": exclude,
        "max_images": max_images,
        "seed": seed,
        "device": device,
        "mask": mask,
        "output": output,
        "judge": judge,
        "metric": metric,
        "preprocess": preprocess,
    }
    asked = {
        "unstructured": {"sparsity": sparsity},
        "1x4": {"sparsity": blocks},
        "2:4": {},
        "channels": {"max_macs": max_macs},
    }
    options = {pattern: _options(pattern, **target, **common) for pattern, target in asked.items()}
    network = open_model(model)
    with telling(progress) as teller:
        first = options["unstructured"]
        images, judged, judged_on = _read(network, data, first, evaluation)
        job = prepare(network, images, first, judged, teller=teller)
        tried, measured = dict[str, _Tried](), list[PruningRun]()
        for pattern, each in options.items():
            teller.step(f"a quick fit in the pattern {pattern}")
            tried[pattern] = _try(job, each, measured)
        job.watch.lap("fits")
        machine = Machine.here()
        found = list[Suggestion]()
        with tempfile.TemporaryDirectory() as folder:
            files = _Files(job, Path(folder))
            for key, runtime in BY_KEY.items():
                teller.step(f"measuring on {key}")
                plain = _suggestion(job, key, tried[runtime.pattern], machine)
                if plain.share is None and not plain.note:
                    plain = _timed(files, plain, tried[runtime.pattern], seconds, threads)
                found.append(plain)
        job.watch.lap("latency")
    losses = [of.lost.measure.heading for of in tried.values() if of.lost is not None]
    return Advice(
        suggestions=tuple(found),
        lost=losses[0] if losses else "",
        images=len(images.samples),
        judged_on=judged_on,
        cpu=machine.cpu,
        threads=threads,
        seconds=job.watch.seconds,
        versions=versions(),
        warnings=tuple(job.warnings),
    )


def _options(pattern: str, **others: Any) -> Options:
    chosen = {"recipe": QUICK, "method": None, "allocation": None, "inputs": None}
    return Options.of(pattern=pattern, **chosen, **others)


def _read(
    network: Frontend, data: Data, options: Options, evaluation: Data | None
) -> tuple[Images, Data | None, str]:
    """The samples to fit to, those to judge on, and what the latter are."""
    images = load_images(
        data,
        preprocess=asked_or_own(options.preprocess, network),
        max_images=options.max_images,
        seed=options.seed,
        takes=network.signature.masking(options.mask),
    )
    if evaluation is not None:
        return images, evaluation, "the evaluation data"
    if options.metric is not None:
        return images, None, "the metric's own data"
    images, held_back = hold_back(images, _HELD_BACK)
    return images, held_back, f"{counted(len(held_back.samples), 'sample')} held back"


def _try(job: Job, options: Options, measured: list[PruningRun]) -> _Tried:
    """The network pruned quickly; what goes wrong is what there is to say of the pattern.

    Args:
        job, options: of the network, and of the pattern.
        measured: in patterns before; this one is added.
    """
    asked = _in_words(options)
    try:
        own = again(job, options)
        own = replace(own, run=_quick(own.run, measured)).measure()
        measured.append(own.run)
        walked, _, _ = own.carry_out()
        pruned = own.network(walked)
        packed = None if walked.removed else own.report(pruned, walked, {}).bytes_fraction
        evaluation = own.evaluate(pruned)
    except SecateurError as error:
        return _Tried(asked=asked, why=str(error))
    return _Tried(
        asked=asked,
        network=pruned,
        lost=evaluation and evaluation.lost,
        bytes_fraction=packed,
    )


def _quick(run: PruningRun, measured: Sequence[PruningRun]) -> PruningRun:
    """A run that measures less, and what was measured before not again."""
    if isinstance(run, ChannelRun):
        return replace(run, sensitivity=_CHANNELS)
    return replace(run, beside=_beside(run, measured))


def _beside(run: PruningRun, measured: Sequence[PruningRun]) -> FittedSensitivity | None:
    """What another pattern has shown of all layers of a run; None = they are measured."""
    for other in measured:
        if isinstance(other, ChannelRun) or run.reordered != other.reordered:
            continue
        numbers = {layer.name: number for number, layer in enumerate(other.layers)}
        found = other.fitted_allocation
        known = all(layer.name in numbers for layer in run.layers)
        if known and isinstance(found, FittedSensitivity):
            return found.only([numbers[layer.name] for layer in run.layers])
    return None


def _in_words(options: Options) -> str:
    if isinstance(options.target, MaxMacs):
        return f"{options.target.value:.0%} of the MACs"
    return f"{options.target.value:.0%} zeros"


def _suggestion(job: Job, key: str, tried: _Tried, machine: Machine) -> Suggestion:
    """What is known of a network on a runtime before it is run there."""
    runtime = BY_KEY[key]
    plain = Suggestion(
        runtime=key,
        pattern=runtime.pattern,
        asked=tried.asked,
        lost=tried.lost and tried.lost.amount,
        lost_error=tried.lost and tried.lost.error,
        note=tried.why,
    )
    if tried.network is None:
        return plain
    if key == "storage":
        return replace(plain, what="bytes", share=tried.bytes_fraction)
    if runtime.pattern != "channels" and (reason := _pays_nowhere(job, key)):
        return replace(plain, note=f"zeros would bring nothing there: {reason}")
    obstacle = runtime.obstacle_here(machine)
    return replace(plain, note=f"cannot be measured here: {obstacle}" if obstacle else "")


def _pays_nowhere(job: Job, key: str) -> str:
    """Why `prune` would refuse the runtime; empty where it would not."""
    return "" if job.options.include is not None else pays_nowhere(job.original.layers, key)


class _Files:
    """Networks as files for the runtimes that measure them, each written once."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.few = job.run.samples.select(slice(2))
        self._made: dict[tuple[int, str], Path] = {}

    def of(self, network: Frontend, runtime: str) -> Path:
        """A file that a runtime runs; ONNX is for more than one."""
        alone = runtime == "torch" or network.suffix == ".xml"
        kind = id(network), runtime if alone else ".onnx"
        if kind not in self._made:
            place = self.folder / str(len(self._made))
            self._made[kind] = file_for(network.model, self.few, runtime, place)
        return self._made[kind]


def _timed(
    files: _Files, plain: Suggestion, tried: _Tried, seconds: float, threads: int
) -> Suggestion:
    """The same with the network's time there, or why there is none."""
    assert tried.network is not None
    job = files.job
    if not seconds:
        return replace(plain, note="not measured, as asked")
    try:
        if plain.runtime in ACCELERATED:
            return _accelerated(job, plain, tried.network, threads)
        if plain.runtime not in ENGINES:
            return replace(plain, note="secateur bench measures it, once the file is written")
        networks = job.model, tried.network
        if plain.runtime == "torch" and isinstance(job.model, TorchFrontend):
            modules = [of.model for of in networks]
            _, ratio = compare_modules(modules, files.few, seconds, threads=threads)
        else:
            given = [files.of(of, plain.runtime) for of in networks]
            _, ratio = compare(
                given, files.few, plain.runtime, seconds, threads=threads, quick=True
            )
    except SecateurError as error:
        return replace(plain, note=f"not measured: {error}")
    return replace(plain, share=ratio.ratio, low=ratio.low, high=ratio.high)


def _accelerated(job: Job, plain: Suggestion, network: Frontend, threads: int) -> Suggestion:
    """On PyTorch's own kernels, and what their precision has cost beside the zeros."""
    if not isinstance(network.model, nn.Module):
        raise ModelError("these kernels are PyTorch's, which runs modules: give the module")
    with warnings.catch_warnings(), torch_threads(threads):
        warnings.simplefilter("ignore", SecateurWarning)  # the note tells which kernels run
        fast = accelerate(
            network.model,
            job.images,
            runtime=cast("AcceleratedRuntime", plain.runtime),
            mask=job.options.mask,
        )
    lost = job.evaluate(open_model(fast.model))
    time = fast.report.milliseconds
    return replace(
        plain,
        share=time["accelerated"] / time["float"],
        lost=lost and lost.lost and lost.lost.amount,
        lost_error=lost and lost.lost and lost.lost.error,
        note=f"in {BY_KEY[plain.runtime].dtype}, against float32; {fast.report.kernels}",
    )
