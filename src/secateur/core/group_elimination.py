"""Which groups of columns should go: elimination on second moments.

A layer's columns come in groups: all kernel taps of an input channel, all dimensions of a head.
With H = G + damping and W the fitted weights, taking out group g and refitting the others adds

    score(g) = tr(W_g (H^-1_gg)^-1 W_g^T)

to the loss, and leads to

    W    <- W - W_g (H^-1_gg)^-1 H^-1_g,:
    H^-1 <- H^-1 - H^-1_:,g (H^-1_gg)^-1 H^-1_g,:

Where several layers read the same channels, their scores add up, each as a share of the variance of
the layer's outputs. Source of the idea: Hassibi and Stork, "Second order derivatives for network
pruning: Optimal brain surgeon", 1993; here for groups, several layers, and sums over samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.normal_equations import NormalEquations
from secateur.core.problem import Problem

_CROWDED = 0.5  # share of columns still in at which the others leave the matrices
_AT_ONCE = 64  # of this many groups left the cheapest goes at each step
_SHIFT = 1e-6  # of the unit diagonal, for the Cholesky factor
_NEXT_TO_LAST = 1e300  # score of what goes when nothing else is left


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A layer that reads channels.

    Attributes:
        problem: of the layer.
        columns: of each unit; -1 where a unit has fewer than others.
        absent: columns that are out already.
    """

    problem: Problem
    columns: Int[Tensor, "units taps"]
    absent: Int[Tensor, " absent"] | None = None


def elimination_order(
    readers: Sequence[Reader],
    *,
    damping: float,
    count: int | None = None,
    blocks: Sequence[Sequence[int]] = (),
    shares: Collection[frozenset[int]] = (),
) -> list[int]:
    """Units in the order in which they should go.

    Args:
        readers: every layer that reads them.
        damping: relative, as in `NormalEquations`.
        count: how many are wanted; None = all.
        blocks: units of which each block has to lose as many at a time; empty = no such rule.
        shares: sets of units; the last of each goes after all others that can.

    Returns:
        The units, the cheapest first; of blocks one of each, block by block.

    Cost: cols^3 for the inverse of each reader, and about as much again for eliminating all
    columns, most of it for the first half.
    """
    units = len(readers[0].columns)
    states = [_Elimination(reader, damping) for reader in readers]
    alive = torch.ones(units, dtype=torch.bool)
    order: list[int] = []
    wanted = units if count is None else min(count, units)
    while len(order) < wanted:
        scores = torch.stack([state.scores() for state in states]).sum(0)
        if shares:
            chosen = _cheapest_of_shares(scores, alive.clone(), blocks, shares)
        else:
            chosen = _cheapest(scores, alive, blocks, wanted - len(order))
        order += chosen
        alive[chosen] = False
        if len(order) < wanted:
            for state in states:
                state.remove(chosen)
    return order


def _cheapest_of_shares(
    scores: Tensor,
    alive: Tensor,
    blocks: Sequence[Sequence[int]],
    shares: Collection[frozenset[int]],
) -> list[int]:
    """The same, one by one: what is the last of a share goes after all others."""
    chosen: list[int] = []
    for block in blocks or [range(len(scores))]:
        scores[_last(shares, alive)] = _NEXT_TO_LAST
        chosen.append(min(block, key=lambda unit: float(scores[unit])))
        alive[chosen[-1]], scores[chosen[-1]] = False, torch.inf
    return chosen


def _last(shares: Collection[frozenset[int]], alive: Tensor) -> list[int]:
    """The units that are the only ones left of a share."""
    left = ([unit for unit in share if alive[unit]] for share in shares)
    return [units[0] for units in left if len(units) == 1]


def _cheapest(
    scores: Tensor, alive: Tensor, blocks: Sequence[Sequence[int]], wanted: int
) -> list[int]:
    """What goes at the next step: a few where many are left, one of each block."""
    if blocks:
        return [min(block, key=lambda unit: float(scores[unit])) for block in blocks]
    several = max(1, min(int(alive.sum()) // _AT_ONCE, wanted))
    chosen = torch.topk(scores, several, largest=False, sorted=True).indices
    return [int(unit) for unit in chosen]


class _Elimination:
    """The weights and the inverse of a reader, as groups go."""

    def __init__(self, reader: Reader, damping: float) -> None:
        system = NormalEquations.of(reader.problem, damping)
        factor, _ = system.factor(_SHIFT)
        self.inverse: Tensor = torch.cholesky_inverse(factor)
        self.share = 1 / float(reader.problem.variance.sum().clamp_min(1e-30))
        self.there = torch.ones_like(self.inverse[0, 0], dtype=torch.bool)
        if reader.absent is not None and len(reader.absent):
            absent = reader.absent.to(self.inverse.device)
            self._take_out(absent)
            self.there[absent] = False
        self.weight = system.cross @ self.inverse
        columns = reader.columns.to(self.inverse.device)
        self.taps, self.missing = columns.clamp_min(0), columns < 0
        self.units = torch.arange(len(columns))  # whose scores are asked for

    def _take_out(self, gone: Tensor) -> Tensor:
        """Takes columns out of the inverse; what their weights hand to each of the others."""
        side = self.inverse[:, :, gone]  # (groups, cols, gone)
        update = _solve(_regular(side[:, gone]), side.mT)  # (groups, gone, cols)
        self.inverse -= side @ update
        self.inverse[:, :, gone] = 0
        self.inverse[:, gone] = 0
        return update

    def scores(self) -> Float[Tensor, " units"]:
        """What each unit adds to the loss of the layer, relative to the outputs' variance.

        Infinite for those that are out.
        """
        groups, taps, missing = len(self.inverse), self.taps[self.units], self.missing[self.units]
        blocks = self.inverse[:, taps.unsqueeze(2), taps.unsqueeze(1)]
        own = self.weight[:, :, taps].movedim(2, 1)  # (groups, units, rows, taps)
        if missing.any():
            blocks, own = _padded(blocks, missing), own * ~missing.unsqueeze(1)
        if taps.shape[1] == 1:
            energy = own.square().sum((2, 3)) / blocks.reshape(groups, -1).clamp_min(1e-12)
        else:
            solved = _solve(_regular(blocks), own.mT)  # (groups, units, taps, rows)
            energy = (solved * own.mT).sum((2, 3))
        scores = torch.full((len(self.taps),), torch.inf, dtype=torch.float64)
        scores[self.units] = energy.sum(0).double().cpu() * self.share
        return scores

    def remove(self, units: Sequence[int]) -> None:
        """Takes out units and refits the other columns."""
        self.units = self.units[~torch.isin(self.units, torch.tensor(units))]
        gone = self.taps[list(units)][~self.missing[list(units)]]
        if not len(gone):
            return
        self.weight -= self.weight[:, :, gone] @ self._take_out(gone)
        self.weight[:, :, gone] = 0
        self.there[gone] = False
        if int(self.there.sum()) <= _CROWDED * len(self.there):
            self._leave()

    def _leave(self) -> None:
        """Columns that are out leave the matrices: each step costs the square of their width."""
        left = self.there.nonzero().squeeze(1)
        self.inverse = self.inverse[:, left][:, :, left]
        self.weight = self.weight[:, :, left]
        number = torch.cumsum(self.there, 0) - 1
        self.missing |= ~self.there[self.taps]
        self.taps = number[self.taps].masked_fill(self.missing, 0)
        self.there = self.there[left]


def _padded(blocks: Tensor, missing: Tensor) -> Tensor:
    """Blocks with ones on the diagonal where a unit has no column."""
    eye = torch.diag_embed(missing.to(blocks.dtype))
    return torch.where(missing.unsqueeze(2) | missing.unsqueeze(1), eye, blocks)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    # PyTorch gives torch.linalg no types.
    return torch.linalg.solve(matrix, right)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _regular(blocks: Tensor) -> Tensor:
    """Blocks of an inverse, with ones on the diagonal where columns are out already."""
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    return blocks + torch.diag_embed((diagonal <= 0).to(blocks.dtype))
