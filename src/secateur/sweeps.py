"""The public function `sweep`: accuracy against zeros."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.methods import Method, MethodName
from secateur.core.outputs import Judge
from secateur.core.patterns import Pattern, PatternName
from secateur.core.precision import full_products
from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES, Data
from secateur.errors import SecateurWarning
from secateur.frontends import open as open_model
from secateur.frontends.first_runs import one_first_run
from secateur.options import Options
from secateur.preparation import prepare
from secateur.pruning.allocations import Allocation, AllocationName
from secateur.pruning.recipe import Recipe, RecipeName
from secateur.pruning.sampling import Sampling
from secateur.pruning.streams import Inputs
from secateur.pruning.targets import Sparsity, check_sparsities
from secateur.report.sweep import Sweep
from secateur.session import started


@one_first_run()
@full_products()
@torch.inference_mode(False)  # as in `prune`
def sweep(
    model: nn.Module | str | Path | Any,
    data: Data,
    *,
    sparsities: Sequence[float],
    evaluation: Data | None = None,
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
    arguments = locals()
    targets = [Sparsity(value) for value in sorted(set(check_sparsities(sparsities)))]
    options = Options.given({**arguments, "sparsity": targets[-1].value})  # refused first if any is
    asked = ", ".join(f"{target.value:g}" for target in targets)
    with started(options, progress, sparsities=asked) as (execution, teller):
        network = open_model(model)
        job = prepare(network, data, options, evaluation, teller=teller, execution=execution)
        job = job.measure(job.visits(targets))
        reports = [job.report_at(target) for target in targets]
    result = Sweep.of(reports, [of.value for of in targets], job.watch.seconds)
    for warning in result.warnings:
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    return result
