"""How many channels of each coupling leave: curves of what is lost, against what is saved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.pruning.allocations.curves import lower_hull
from secateur.pruning.allocations.protocol import Curve
from secateur.pruning.channels.costs import Removed, WidthCost
from secateur.pruning.channels.space import Removable

_STEPS = 100  # a coupling leaves in at most so many steps
_KEPT = 1 / 32  # of a coupling's units at least


def allocate(
    removable: Sequence[Removable],
    curves: Sequence[Curve],
    cost: WidthCost,
    allowed: float,
    *,
    multiple: int = 1,
) -> list[int]:
    """Takes channels where the loss rises least for what is saved, until the cost is met.

    Args:
        removable: what can leave.
        curves: of each.
        cost: of the network.
        allowed: cost at most.
        multiple: of what is left of each coupling, where it has more than that.

    Returns:
        How many units of each are to leave. Where the cost cannot be met: as many as can.
    """
    stairs = [_Stairs(of, curve, multiple) for of, curve in zip(removable, curves, strict=True)]
    removed = np.zeros(len(stairs), dtype=np.int64)
    while cost.at(removed) > allowed * (1 + 1e-9):
        steps = np.array(
            [of.step(int(gone)) for of, gone in zip(stairs, removed, strict=True)], dtype=np.int64
        )
        if not steps.any():
            break
        rises = np.array(
            [
                of.loss(int(gone + step)) - of.loss(int(gone))
                for of, gone, step in zip(stairs, removed, steps, strict=True)
            ]
        )
        saved = cost.savings(removed, steps)
        price = np.where((steps > 0) & (saved > 0), rises / np.maximum(saved, 1e-300), np.inf)
        best = int(price.argmin())
        if not np.isfinite(price[best]):
            break
        removed[best] += steps[best]
    return removed.tolist()


def most_removed(removable: Sequence[Removable], multiple: int = 1) -> Removed:
    """How many units of each coupling can leave."""
    found: list[int] = []
    for of in removable:
        stairs, gone = _Stairs(of, None, multiple), 0
        while step := stairs.step(gone):
            gone += step
        found.append(gone)
    return np.array(found)


class _Stairs:
    """The widths that a coupling may have, and what is lost at each."""

    def __init__(self, removable: Removable, curve: Curve | None, multiple: int) -> None:
        self.units, self.least = removable.units, removable.step
        self.most = self.units - max(removable.fewest, round(self.units * _KEPT))
        heads = removable.coupling.whole  # of many channels each
        self.multiple = multiple if self.units > multiple and not heads else 1
        self.fine = max(1, self.units // _STEPS)
        x, y = [0.0], [0.0]
        for rise, count in lower_hull(self.units, curve) if curve else ():
            x.append(x[-1] + count)
            y.append(y[-1] + rise * count)
        self.losses = np.interp(np.arange(self.units + 1), x, y)

    def step(self, removed: int) -> int:
        """How many leave next; 0 = no more can."""
        left = (self.units - removed - self.fine) // self.multiple * self.multiple
        left = left // self.least * self.least
        step = self.units - removed - left
        return step if 0 < step <= self.most - removed else 0

    def loss(self, removed: int) -> float:
        """What the output loses, along the lower convex hull of the curve."""
        return float(self.losses[removed])


def expected_losses(
    removable: Sequence[Removable], curves: Sequence[Curve], removed: Removed | Sequence[int]
) -> list[float]:
    """What the curves expect of each coupling."""
    pairs = zip(removable, curves, removed, strict=True)
    return [_Stairs(of, curve, 1).loss(int(gone)) for of, curve, gone in pairs]
