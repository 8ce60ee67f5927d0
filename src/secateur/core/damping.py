"""How strongly a layer's fit is pulled towards its dense weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor

from secateur.core.normal_equations import NormalEquations
from secateur.core.problem import Problem
from secateur.support.wording import counted

# Relative dampings from which the default method chooses for each layer.
CANDIDATES = (0.1, 0.3, 1.0, 3.0, 10.0)


def damping_for(problem: Problem, least: float) -> tuple[float, tuple[str, ...]]:
    """Relative damping max(least, 0.1 * cols / samples), with a note where samples are few.

    Below one sample per column the fit has more freedom than data; pulling harder towards the
    dense weights was measured to help on networks with a linear layer after global pooling.
    """
    cols, samples = problem.columns, problem.samples
    damping = max(least, 0.1 * cols / samples)
    if samples < cols:
        few = f"{counted(samples, 'sample')} for {counted(cols, 'column')}"
        return damping, (f"{few}: damping raised to {damping:.2g}",)
    return damping, ()


def choose_damping(
    problem: Problem,
    mask: Bool[Tensor, "groups rows cols"],
    candidates: Sequence[float],
    *,
    rows: int = 32,
) -> float:
    """The relative damping whose fit to either half of the samples errs least on the other.

    Goes from the strongest down while the error falls; the first fits start from the dense
    weights, the others from the last one to the same half. How much a fit to a few hundred images
    can be trusted differs from layer to layer: on EfficientNet-Lite0 the best damping is 0.1 in
    the first layers, where images give thousands of samples, and 3 in the last.

    Args:
        problem: with its folds.
        mask: the mask to fit on.
        candidates: relative dampings.
        rows: at most this many rows a group are looked at, evenly spread.

    Cost: for each candidate tried, two fits of `rows` rows to a tenth of a percent or so.
    """
    if problem.folds is None:
        raise ValueError("the problem does not hold its folds")
    step = -(-mask.shape[-2] // rows)
    first, second = (fold.rows(slice(None, None, step)) for fold in problem.folds)
    mask = mask[:, ::step]
    halves = ((first, second), (second, first))
    weights = [first.weight, second.weight]
    best, least = max(candidates), math.inf
    for damping in sorted(candidates, reverse=True):
        error = 0.0
        for half, (fitted, judged) in enumerate(halves):
            weights[half], _ = NormalEquations.of(fitted, damping).fit(
                weights[half], mask, tolerance=1e-2, iterations=50
            )
            error += float(judged.loss(weights[half], fitted.bias(weights[half])).sum())
        if error >= least:
            break
        best, least = damping, error
    return best
