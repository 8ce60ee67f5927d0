"""The largest sparsity that loses no more than asked: a bracketed search.

What is lost rises with the sparsity, steeply at its end. What the allocation's curves expect to
be lost gives the first try, and the scale on which to interpolate between those made. Each try
prunes the network with the recipe, without the allocation. Where a recipe begins to train blocks,
less is lost than a little before, so that this is tried too when the search ends close below.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from secateur.errors import OptionError
from secateur.support.wording import counted

WALKS = 6  # tries at most
WIDTH = 0.01  # of the bracket, as a sparsity, at which the search ends

# Points of agreement lost over the square root of the curves' losses in sum. On the
# embedded example it is 8 to 11 between 50 and 90 % zeros; elsewhere the second try corrects it.
_POINTS = 10.0
_LEAST = 0.1  # a loss below this share of the limit tells no more than that it is small
_MARGIN = 0.1  # how far below `better_from` the search may end for that to be tried too
_REACH = 4.0  # a single try says no more than that the limit is within this factor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Try:
    """A sparsity that was tried.

    Attributes:
        sparsity: of the pruned layers.
        drop: points lost, or what the drop is counted in.
        error: standard error of `drop`; None = not known.
    """

    sparsity: float
    drop: float
    error: float | None


@dataclass(frozen=True)
class PredictedLoss:
    """Points that are expected to be lost, before anything is tried.

    Attributes:
        sparsities: rising, in (0, 1).
        points: at each of them, rising.
        point: what a point is where a loss is counted in something else.
    """

    sparsities: tuple[float, ...]
    points: tuple[float, ...]
    point: float = 1.0

    @classmethod
    def of(cls, loss: Callable[[float], float] | None) -> PredictedLoss:
        """From the sum of the loss curves at a sparsity; None = a curve that fits any network."""
        sparsities: list[float] = np.linspace(0.02, 0.99, 25).tolist()
        points = [_unknown(s) if loss is None else _POINTS * loss(s) ** 0.5 for s in sparsities]
        rising = itertools.accumulate(points, lambda before, now: max(now, 1.001 * before + 1e-9))
        return cls(tuple(sparsities), tuple(rising))

    def counted_in(self, point: float) -> PredictedLoss:
        """The same, counted in something of which a point is so much."""
        return PredictedLoss(self.sparsities, tuple(point * of for of in self.points), point)

    def at(self, sparsity: float) -> float:
        """Points expected to be lost."""
        return float(np.exp(np.interp(sparsity, self.sparsities, np.log(self.points))))

    def sparsity(self, points: float) -> float:
        """Where they are expected to be lost."""
        logarithm: float = np.log(points)
        return float(np.interp(logarithm, np.log(self.points), self.sparsities))


def search(
    attempt: Callable[[float], tuple[Try, Result]],
    limit: float,
    expected: PredictedLoss,
    better_from: float = 1.0,
    told: Callable[[Try], str] = lambda of: f"{of.drop:.2f} ± {of.error:.2f} points",
) -> tuple[Try, Result, list[Try]]:
    """The largest sparsity whose loss stays within a limit, as far as the tries can tell.

    Args:
        attempt: prunes to a sparsity, or to the largest there is, and judges the result.
        limit: points at most.
        expected: what is known beforehand.
        better_from: a sparsity at which less may be lost than a little below it; 1 = none.
        told: what a try has lost, in words.

    Returns:
        The best try, its result (of others none is held), and all tries in their order.

    Raises:
        OptionError: no try stays within the limit; tells the nearest.

    Cost: at most 6 attempts; fewer when the bracket is within a point of sparsity.
    """
    tries: list[Try] = []
    best: tuple[Try, Result] | None = None
    while len(tries) < WALKS:
        if _width(tries, limit) > WIDTH * (1 + 1e-9):
            sparsity = propose(tries, limit, expected)
        elif _ends_close_below(tries, limit, better_from):
            sparsity = better_from
        else:
            break
        latest, result = attempt(sparsity)
        tries.append(latest)
        if latest.drop <= limit:  # always above the best so far: inside the bracket or above it
            best = latest, result
            if latest.sparsity < sparsity:
                break  # no more can be removed
        del result
    if best is None:
        nearest = min(tries, key=lambda attempted: attempted.drop)
        raise OptionError(
            f"max_drop is {limit:g}, expected at least {told(nearest)}, the least lost in "
            f"{counted(len(tries), 'try', 'tries')}, at sparsity {nearest.sparsity:g}: raise it, "
            "or judge on more images"
        )
    return *best, tries


def propose(tries: Sequence[Try], limit: float, expected: PredictedLoss) -> float:
    """The sparsity to try next, strictly inside the bracket of those tried."""
    low, high = bracket(tries, limit)
    left, right = (low.sparsity if low else 0.0), (high.sparsity if high else 1.0)
    if _stalled(tries, limit):
        return round((left + right) / 2, 4)
    floor = max(_LEAST * limit, 1e-3 * expected.point)
    goal = max(limit, floor)
    ends = [end for end in (low, high) if end is not None]
    if not ends:
        points = goal
    else:
        lost = [max(end.drop, floor) for end in ends]
        predicted = [expected.at(end.sparsity) for end in ends]
        points = predicted[0] * min(_REACH, max(1 / _REACH, goal / lost[0]))
        if len(ends) == 2 and lost[1] > lost[0]:
            share = np.log(goal / lost[0]) / np.log(lost[1] / lost[0])
            points = predicted[0] * (predicted[1] / predicted[0]) ** share
    margin = min(WIDTH, (right - left) / 2)
    return round(min(right - margin, max(left + margin, expected.sparsity(points))), 4)


def bracket(tries: Sequence[Try], limit: float) -> tuple[Try | None, Try | None]:
    """The largest sparsity that stays within the limit, and the smallest above it that does not."""
    within = [t for t in tries if t.drop <= limit]
    low = max(within, key=_sparsity, default=None)
    least = low.sparsity if low else 0.0
    above = [t for t in tries if t.drop > limit and t.sparsity > least]
    return low, min(above, key=_sparsity, default=None)


def _sparsity(attempted: Try) -> float:
    return attempted.sparsity


def _ends_close_below(tries: Sequence[Try], limit: float, better_from: float) -> bool:
    """Whether the smallest sparsity that loses too much is little below one not tried yet."""
    _, high = bracket(tries, limit)
    if better_from >= 1 or high is None or any(t.sparsity >= better_from for t in tries):
        return False
    return better_from - _MARGIN <= high.sparsity


def _width(tries: Sequence[Try], limit: float) -> float:
    low, high = bracket(tries, limit)
    return (high.sparsity if high else 1.0) - (low.sparsity if low else 0.0)


def _stalled(tries: Sequence[Try], limit: float) -> bool:
    """Whether the last two tries moved the same end, and the last did not halve the bracket."""
    if len(tries) < 2 or (tries[-1].drop > limit) != (tries[-2].drop > limit):
        return False
    return _width(tries, limit) > 0.5 * _width(tries[:-1], limit)


def _unknown(sparsity: float) -> float:
    """Points lost at a sparsity, roughly, on compact networks."""
    return 2 * sparsity**2 / (1 - sparsity)
