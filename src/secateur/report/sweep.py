"""Several sparsities of one network, with the accuracy and size of each.

The images are read, the network traced and the layers' sensitivity measured once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.methods import Method
from secateur.core.patterns import Pattern
from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES
from secateur.errors import OptionError, SecateurWarning
from secateur.evaluation.inference import Evaluation
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.loading import read_model
from secateur.pruning.allocations import Allocation
from secateur.pruning.recipe import Recipe, choose_recipe
from secateur.pruning.run import PruningRun
from secateur.pruning.targets import Sparsity
from secateur.pruning.walk import Sampling
from secateur.report.model import DataReport, Report
from secateur.session import Job, Options, prepare
from secateur.support.files import write_file
from secateur.support.progress import telling
from secateur.support.serialization import Saved


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """A network pruned to one sparsity; fields as in `secateur.Report`.

    Attributes:
        sparsity: zeros / weights over the pruned layers, as achieved.
        network_sparsity: zeros / all parameters.
        macs_fraction, bytes_fraction: as fractions of the dense network's.
        calibration: against the dense network, on the calibration images; optimistic.
        evaluation: on evaluation images; None without any.
        seconds: time of the walk and the evaluation of this point.
    """

    sparsity: float
    network_sparsity: float
    macs_fraction: float
    bytes_fraction: float
    calibration: Evaluation | None
    evaluation: Evaluation | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Sweep(Saved):
    """The result of `secateur.sweep`.

    Attributes:
        synthetic: generator and seed of synthetic calibration images; None for real ones.
        points: one per sparsity, rising.
        dense: the dense network on the evaluation images; None without any.
        data: the calibration images.
        requested: the settings of the call, with `sparsities` instead of a target.
        seconds: wall-clock time by step, and "total".
        warnings: read these first.
        notes: other departures from the ordinary.
        versions: versions of secateur, torch and Python.
        reports: the report of each point, as `secateur.prune` would return it; not in the file
            that `save` writes.
    """

    schema = "secateur.sweep"
    schema_version = 2

    synthetic: str | None
    points: tuple[SweepPoint, ...]
    dense: Evaluation | None
    data: DataReport
    requested: dict[str, Any]
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    reports: tuple[Report, ...] = field(
        default=(), compare=False, repr=False, metadata={"saved": False}
    )

    def save_page(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the curve and the table as one HTML file that loads nothing.

        Raises:
            OutputError: the file exists and `force` is not given, or it cannot be written.
        """
        from secateur.render.page import sweep_page

        write_file(Path(path), sweep_page(self).encode(), force=force)

    def __str__(self) -> str:
        from secateur.render.terminal import render_sweep

        return render_sweep(self)


@one_first_run()
@torch.inference_mode(False)  # as in `prune`
def sweep(
    model: nn.Module | str | Path | Any,
    data: Any,
    *,
    sparsities: Sequence[float],
    evaluation: Any = None,
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
) -> Sweep:
    """Prunes a network to several sparsities, to show accuracy against zeros.

    Each point is the result of `secateur.prune` at that sparsity. The allocation measures the
    layers once. Each sparsity has its own walks, because a layer's inputs depend on how far the
    layers before it were pruned.

    Example:
        >>> import secateur
        >>> from secateur import example
        >>> images = example.calibration()[:64]  # few, to be quick
        >>> found = secateur.sweep(example.trained(), images, sparsities=[0.3, 0.5])
        >>> [f"{point.sparsity:.2f}" for point in found.points]
        ['0.30', '0.50']

    Args:
        sparsities: fractions of zeros among the weights of the pruned layers, in [0, 1).
        model, data, evaluation and all others: see `secateur.prune`.

    Returns:
        Sparsity, accuracy, bytes and MACs of each point, and its report; no networks.

    Raises:
        OptionError, DataError, ModelError: a mistake in the call; the message says how to fix it.
        NumericalError: a layer gets NaN or infinite values, or cannot be solved.

    Cost: the allocation once, and for each sparsity the rest of `prune`.
    """
    targets = [Sparsity(value) for value in sorted(set(check_sparsities(sparsities)))]
    options = Options(
        target=targets[0],
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
    )
    with telling(progress) as teller:
        job = prepare(read_model(model), data, options, evaluation, teller=teller)
        job = job.measure(_visits(job.run, targets))
        reports = [_point(job, target) for target in targets]
    found = _sweep(job, reports, [of.value for of in targets])
    for warning in found.warnings:
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    return found


def check_sparsities(sparsities: Sequence[float]) -> Sequence[float]:
    """The sparsities, at least one.

    Raises:
        OptionError: none are given, or one is out of range.
    """
    if isinstance(sparsities, float | int | str) or not len(sparsities):
        raise OptionError(
            f"sparsities is {sparsities!r}, expected fractions of zeros: write them like [0.5, 0.7]"
        )
    return [Sparsity(value).value for value in sparsities]


def _visits(run: PruningRun, targets: Sequence[Sparsity]) -> int:
    """How often layers are visited in all."""
    walks = (replace(run, target=target).visits - run.measured for target in targets)
    return run.measured + sum(walks)


def _point(job: Job, target: Sparsity) -> Report:
    """The report of a walk to one sparsity."""
    job = replace(job, options=replace(job.options, target=target))
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


def _together(of: Sequence[Sequence[str]], sparsities: Sequence[float]) -> tuple[str, ...]:
    """Each remark once, with the sparsities that it belongs to where these are not all."""
    found: dict[str, list[float]] = {}
    for remarks, sparsity in zip(of, sparsities, strict=True):
        for remark in remarks:
            found.setdefault(remark, []).append(sparsity)
    return tuple(
        remark
        if len(at) == len(sparsities)
        else f"at {', '.join(f'{sparsity:.4g}' for sparsity in at)}: {remark}"
        for remark, at in found.items()
    )


def _sweep(job: Job, reports: Sequence[Report], sparsities: list[float]) -> Sweep:
    first = reports[0]
    settings = {key: value for key, value in first.requested.items() if key != "target"}
    return Sweep(
        synthetic=first.synthetic,
        points=tuple(
            SweepPoint(
                sparsity=of.sparsity,
                network_sparsity=of.network_sparsity,
                macs_fraction=of.macs_fraction,
                bytes_fraction=of.bytes_fraction,
                calibration=of.calibration,
                evaluation=of.evaluation.get("pruned"),
                seconds=of.seconds["total"],
            )
            for of in reports
        ),
        dense=first.evaluation.get("dense"),
        data=first.data,
        requested={**settings, "sparsities": sparsities},
        seconds=job.watch.seconds,
        warnings=_together([of.warnings for of in reports], sparsities),
        notes=_together([of.notes for of in reports], sparsities),
        versions=first.versions,
        reports=tuple(reports),
    )
