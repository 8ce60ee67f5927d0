"""What a layer's zeros cost: curves between the levels at which that was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from secateur.pruning.allocations.protocol import Curve

_POWER = 3.0  # the loss grows like sparsity to this power below the first measured level
_STEPS = 400  # sparsities at which a curve is looked up


def loss_from_error(
    measured: Sequence[float], losses: Sequence[float], asked: Sequence[float]
) -> list[float]:
    """The loss at output errors of a layer, from that at others: their ratio, log-linear."""
    known, wanted = (np.log(np.maximum(errors, 1e-12)) for errors in (measured, asked))
    order = np.argsort(known, kind="stable")
    ratios = np.log(np.maximum(losses, 1e-9)) - known
    return np.exp(wanted + np.interp(wanted, known[order], ratios[order])).tolist()


def curve_of(
    levels: Sequence[float],
    losses: Sequence[float] | None,
    errors: Sequence[float],
    all_losses: Sequence[Sequence[float] | None],
    all_errors: Sequence[Sequence[float]],
) -> Curve:
    """A layer's curve, as measured or, failing that, from its output errors."""
    measured = losses is not None
    if losses is None:
        ratios = [
            [loss / max(error, 1e-12) for loss, error in zip(of_layer, its_errors, strict=True)]
            for of_layer, its_errors in zip(all_losses, all_errors, strict=True)
            if of_layer is not None
        ]
        worst = [max(column) for column in zip(*ratios, strict=True)] or [1.0] * len(levels)
        losses = [error * ratio for error, ratio in zip(errors, worst, strict=True)]
    rising = itertools.accumulate((max(loss, 1e-9) for loss in losses), max)
    return Curve(tuple(levels), tuple(rising), measured=measured)


def loss_at(curve: Curve, sparsity: Tensor) -> Tensor:
    """Between levels linear in the logarithm, below the first a power law, above as before."""
    x = torch.tensor(curve.sparsities, dtype=torch.float64)
    y = torch.tensor(curve.loss_increase, dtype=torch.float64).log()
    if len(x) == 1:
        return y.exp() * (sparsity / x).pow(_POWER)
    right = torch.searchsorted(x, sparsity).clamp(1, len(x) - 1)
    left = right - 1
    slope = (y[right] - y[left]) / (x[right] - x[left])
    inside = (y[left] + slope * (sparsity - x[left])).exp()
    below = y[0].exp() * (sparsity / x[0]).clamp_min(0).pow(_POWER)
    return torch.where(sparsity < x[0], below, inside)


def lower_hull(size: int, curve: Curve) -> list[tuple[float, int]]:
    """(loss per weight, weights) along a curve's lower convex hull."""
    steps = torch.linspace(0, size, min(size, _STEPS) + 1, dtype=torch.float64).round()
    removed = sorted({float(count) for count in steps})
    sparsities = torch.tensor(removed, dtype=torch.float64) / size
    loss = [float(value) for value in loss_at(curve, sparsities)]
    hull: list[int] = []
    for index in range(len(removed)):
        while len(hull) > 1 and _above(removed, loss, hull[-2], hull[-1], index):
            hull.pop()
        hull.append(index)
    return [
        ((loss[b] - loss[a]) / (removed[b] - removed[a]), int(removed[b] - removed[a]))
        for a, b in itertools.pairwise(hull)
    ]


def _above(x: Sequence[float], y: Sequence[float], a: int, b: int, c: int) -> bool:
    """Whether point b lies on or above the line from a to c."""
    return (y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a])
