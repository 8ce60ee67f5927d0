"""What pruning costs: a model of its time and memory, fitted to the runs of `scaling.py`.

The work of a run is counted by kind, from the shapes of the layers and the number of samples. How
many seconds each kind takes is fitted to measured runs. `tables.py` writes what comes of it into
docs/scale.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.pruning.allocations import Sensitivity
from secateur.pruning.sampling import Sampling

KINDS = ("forward", "judged", "statistics", "solves", "factors", "layers")
SPARSITY = 0.7

WALKS, FITS, LEVELS, RUN_LEVELS = 2, 4, 10, 3
PASSES = 2 + 2 * WALKS + 2  # measuring and the report; two streams a walk; measuring anew
STEPS = 40  # of ADMM and conjugate gradients together: a scale that the fit takes out


@dataclass(frozen=True)
class Work:
    """What a run computes, in 1e12 floating-point operations, but for the last kind.

    Attributes:
        forward: the network, for all samples, in each pass.
        judged: from each layer on, for the samples that tell what the network loses.
        statistics: second moments of the inputs of each layer, once a fit.
        solves: the steps of the fits, which grow with rows times columns squared.
        factors: factors of the second moments, which grow with columns cubed.
        layers: fits of layers, in thousands, however small they are.
    """

    forward: float
    judged: float
    statistics: float
    solves: float
    factors: float
    layers: float

    @property
    def listed(self) -> list[float]:
        """By kind, in the order of KINDS."""
        return [getattr(self, kind) for kind in KINDS]


@dataclass(frozen=True)
class Shape:
    """A layer as far as its cost goes."""

    rows: int
    columns: int
    positions: int  # of a sample
    after: int  # MACs of a sample that come behind it


def work_of(layers: list[Shape], macs: int, samples: int, outputs: int) -> Work:
    """What a run to 70 % zeros computes."""
    taken = [min(Sampling().count(of.columns), of.positions * samples) for of in layers]
    most = 16 if outputs >= 128 else Sensitivity.images  # in the runs that the rates are of
    judged = min(most, samples // 4)
    return Work(
        forward=PASSES * 2 * macs * samples / 1e12,
        judged=RUN_LEVELS * 2 * judged * sum(of.after for of in layers) / 1e12,
        statistics=FITS
        * sum(2 * of.columns**2 * count for of, count in zip(layers, taken, strict=True))
        / 1e12,
        solves=LEVELS * STEPS * sum(2 * of.rows * of.columns**2 for of in layers) / 1e12,
        factors=LEVELS * STEPS / 3 * sum(of.columns**3 for of in layers) / 1e12,
        layers=LEVELS * len(layers) / 1e3,
    )


def fitted(rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Seconds per 1e12 operations of each kind, none negative.

    Least squares of relative errors over all sets of kinds that may be zero; the best of those
    that are feasible (Lawson and Hanson's problem, small enough to try them all).
    """
    work = np.array([[float(row[kind]) for kind in KINDS] for row in rows])
    seconds = np.array([float(row["seconds"]) for row in rows])
    scaled, ones = work / seconds[:, None], np.ones(len(rows))
    best, least = np.zeros(len(KINDS)), np.inf
    for count in range(1, len(KINDS) + 1):
        for kept in map(list, itertools.combinations(range(len(KINDS)), count)):
            found = np.linalg.lstsq(scaled[:, kept], ones, rcond=None)[0]
            error = float(((scaled[:, kept] @ found - ones) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(len(KINDS)), error
                best[kept] = found
    return best


@dataclass(frozen=True)
class Plan:
    """A run that nobody has made.

    Attributes:
        work: what it computes.
        weights: bytes of the network's weights.
        values: bytes between two layers, of all samples, of the dense and the pruned network.
        statistics: bytes of the widest layer's second moments, and of its solution.
    """

    work: Work
    weights: float
    values: float
    statistics: float

    def seconds(self, rates: np.ndarray) -> np.ndarray:
        """By kind, on one thread of the machine that the rates are of."""
        return np.array(self.work.listed) * rates


def transformer(
    width: int, block: Sequence[tuple[int, int]], depth: int, tokens: int, samples: int
) -> Plan:
    """Of a transformer whose blocks have linear layers of these (rows, columns)."""
    each = [(rows, columns, rows * columns * tokens) for rows, columns in [*block] * depth]
    total, done, layers = sum(macs for *_, macs in each), 0, list[Shape]()
    for rows, columns, macs in each:
        layers.append(Shape(rows, columns, tokens, total - done))
        done += macs
    return Plan(
        work=work_of(layers, total, samples, width),
        weights=4 * sum(rows * columns for rows, columns, _ in each),
        values=2 * 4 * samples * tokens * width,
        statistics=12 * 4 * max(columns for _, columns, _ in each) ** 2,
    )


_VIT_L = [(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)]
_LLAMA = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]

PLANS: Mapping[str, Plan] = {
    "ViT-L/16, 256 images": transformer(1024, _VIT_L, 24, 197, 256),
    "ViT-L/16, 10,000 images": transformer(1024, _VIT_L, 24, 197, 10_000),
    "7 billion weights, 128 texts of 2048 tokens": transformer(4096, _LLAMA, 32, 2048, 128),
    "7 billion weights, 1,000,000 texts": transformer(4096, _LLAMA, 32, 2048, 10**6),
}
