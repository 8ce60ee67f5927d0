"""Orders of columns in which a pattern costs less, found by exchanging two columns at a time.

A pattern along input channels looks at m neighbouring columns of a row: of 2:4 the two largest of
four stay. How much that keeps depends on which columns are neighbours. With the saliencies s (rows,
columns), 0 or more, an order is searched for that maximises what is kept,

    n:m      sum over rows and blocks of the n largest s in the block
    1 x m    sum over rows and blocks of max(sum of the block - threshold of the row, 0)

With a column x in the place of one of its members a block keeps a + max(b, x), where a and b depend
on the other members alone. As max(b, x) = (b + x + |b - x|) / 2, the gains of all exchanges are a
matrix of L1 distances. Exchanges between different pairs of blocks do not disturb each other: they
are made together, the best first, until none gains anything.
Source of the idea: Pool and Yu, "Channel permutations for N:M sparsity", NeurIPS 2021, who
exchange columns by their magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.patterns import NM, Block

_ROUNDS = 200  # of exchanges at most
_NEGLIGIBLE = 1e-6  # gain of an exchange, relative to what is kept


@dataclass(frozen=True, kw_only=True)
class OrderProblem:
    """Columns to be ordered.

    Attributes:
        pattern: n:m, or blocks of one row.
        saliency: of each row's weights; of several layers that read the columns one below another.
        threshold: that the sum of a block has to exceed to stay, for each row; not used for n:m.
        blocks: the places of each block, each place in one of them.
        alike: columns may change places where they have the same number here.
    """

    pattern: NM | Block
    saliency: Float[Tensor, "rows cols"]
    threshold: Float[Tensor, " rows"]
    blocks: Int[Tensor, "blocks members"]
    alike: Int[Tensor, " cols"]

    def kept(self, order: Int[Tensor, " cols"]) -> float:
        """What the pattern keeps with the columns in an order."""
        return float(self.by_block(self.saliency[:, order]).double().sum())

    def by_block(self, saliency: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows blocks"]:
        """What it keeps of each block in each row."""
        members = saliency[:, self.blocks]
        if isinstance(self.pattern, NM):
            return members.topk(self.pattern.n, -1, sorted=False).values.sum(-1)
        return (members.sum(-1) - self.threshold.unsqueeze(1)).clamp_min(0)

    def without(
        self, members: Float[Tensor, "rows blocks members"], place: int
    ) -> tuple[Float[Tensor, "rows blocks"], Float[Tensor, "rows blocks"]]:
        """Blocks without one member: (a, b), with x in its place they keep a + max(b, x)."""
        others = torch.cat([members[..., :place], members[..., place + 1 :]], -1)
        if isinstance(self.pattern, NM):
            largest = others.topk(self.pattern.n, -1).values
            return largest[..., :-1].sum(-1), largest[..., -1]
        missing = self.threshold.unsqueeze(1) - others.sum(-1)
        return -missing, missing


@torch.no_grad()
def find_order(problem: OrderProblem) -> Int[Tensor, " cols"]:
    """An order of the columns that keeps at least as much as the one they have.

    Returns:
        For each place the number of the column to put there.

    Cost: rows * cols^2 for the first round, and 2 * members / cols of that for each exchange.
    Memory: several matrices of (cols, cols).
    """
    search = _Search(problem)
    for _ in range(_ROUNDS):
        if not search.exchange():
            break
    start = torch.arange(len(search.order), device=search.order.device)
    return search.order if problem.kept(search.order) > problem.kept(start) else start


class _Search:
    """The state of a search.

    Attributes:
        order: for each place the column that is there.
        gains: of a block, if at one of its places (first axis) were the column that is at another
            place (second axis).
    """

    def __init__(self, problem: OrderProblem) -> None:
        self.problem, cols = problem, problem.saliency.shape[1]
        self.order = torch.arange(cols, device=problem.saliency.device)
        self.gains = problem.saliency.new_zeros(cols, cols)
        every = torch.arange(len(problem.blocks), device=self.order.device)
        self.block = torch.empty_like(self.order)
        self.block[problem.blocks] = every.unsqueeze(1).expand_as(problem.blocks)
        self.allowed = problem.alike == problem.alike.unsqueeze(1)
        self.allowed &= self.block != self.block.unsqueeze(1)
        self.least = _NEGLIGIBLE * problem.kept(self.order)
        self._measure(every)

    def exchange(self) -> bool:
        """Makes the best exchanges between different pairs of blocks; False where none gains."""
        pairs = self._pairs()
        if pairs:
            there, here = torch.tensor(pairs, device=self.order.device).unbind(1)
            both, swapped = torch.cat([there, here]), torch.cat([here, there])
            self.order[both] = self.order[swapped]
            self.gains[:, both] = self.gains[:, swapped]
            self._measure(self.block[both])
        return bool(pairs)

    def _pairs(self) -> list[tuple[int, int]]:
        both = torch.where(self.allowed, self.gains + self.gains.mT, -torch.inf)
        gain, partner = both.max(1)
        places = torch.argsort(gain, descending=True, stable=True)
        places = places[gain[places] > self.least]
        taken, pairs = set[int](), list[tuple[int, int]]()
        ends = torch.stack([places, partner[places]], 1)
        for place, block in zip(_pair_list(ends), _pair_list(self.block[ends]), strict=True):
            if taken.isdisjoint(block):
                taken.update(block)
                pairs.append(place)
        return pairs

    def _measure(self, blocks: Int[Tensor, " blocks"]) -> None:
        """The gains of all columns at the places of some blocks."""
        columns = self.problem.saliency[:, self.order]
        part = replace(self.problem, blocks=self.problem.blocks[blocks])
        kept, sums = part.by_block(columns).sum(0), columns.sum(0)
        members, mine = columns[:, part.blocks], columns.mT.contiguous()
        for place, at in enumerate(part.blocks.unbind(1)):
            rest, other = part.without(members, place)
            distance = torch.cdist(other.mT.contiguous(), mine, p=1.0)
            larger = (other.sum(0).unsqueeze(1) + sums + distance) / 2  # blocks, cols
            self.gains[at] = (rest.sum(0) - kept).unsqueeze(1) + larger


def _pair_list(pairs: Int[Tensor, "pairs 2"]) -> list[tuple[int, int]]:
    return [(int(first), int(second)) for first, second in pairs.cpu().numpy()]
