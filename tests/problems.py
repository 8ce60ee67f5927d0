"""Small random problems and slow references, shared by the tests of the numeric core."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.core.problem import Problem
from secateur.core.statistics import Statistics


def correlated(samples: int, cols: int, *, groups: int = 1, seed: int = 0) -> Tensor:
    """Correlated, shifted inputs in float64, (groups, samples, cols)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, cols, cols, generator=generator, dtype=torch.float64)
    noise = torch.randn(groups, samples, cols, generator=generator, dtype=torch.float64)
    return noise @ mix / cols**0.5 + 0.5


def random_weight(groups: int, rows: int, cols: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, rows, cols, generator=generator, dtype=torch.float64)


def problem(
    rows: int = 4,
    cols: int = 6,
    *,
    samples: int = 200,
    groups: int = 1,
    fits_bias: bool = True,
    noise: float = 0.0,
    seed: int = 0,
) -> Problem:
    """The problem of a layer whose inputs may have been disturbed by earlier pruning."""
    x = correlated(samples, cols, groups=groups, seed=seed)
    weight = random_weight(groups, rows, cols, seed + 1)
    y = x @ weight.mT
    disturbed = x + noise * correlated(samples, cols, groups=groups, seed=seed + 2)
    statistics = Statistics()
    statistics.add(disturbed, y)
    statistics.store(disturbed, y)
    return statistics.problem(weight, fits_bias=fits_bias)


def slow_masked_fit(held: Problem, mask: Tensor, damping: float) -> np.ndarray:
    """Row by row, the damped normal equations on the row's support, in NumPy float64."""
    gram, cross = held.gram.double().numpy(), held.cross.double().numpy()
    dense, kept = held.weight.double().numpy(), mask.numpy()
    result = np.zeros_like(dense)
    for g in range(len(dense)):
        amount = damping * np.trace(gram[g]) / len(gram[g])
        for r in range(dense.shape[1]):
            s = kept[g, r]
            if s.any():
                left = gram[g][np.ix_(s, s)] + amount * np.eye(s.sum())
                # entries off the support pull to dense weights that are gone: no term of theirs
                result[g, r, s] = np.linalg.solve(left, cross[g, r, s] + amount * dense[g, r, s])
    return result
