"""Numbers of kept weights that a pattern allows: whole blocks, or whole layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.core.patterns import Pattern, UnitPattern
from secateur.pruning.allocations.protocol import Budget, FittedAllocation


def block_of(pattern: Pattern) -> int:
    """Weights that stay or go together."""
    return pattern.block if isinstance(pattern, UnitPattern) else 1


def share_of(pattern: Pattern) -> float | None:
    """The share of its weights that every layer in the pattern keeps; None = any share."""
    return pattern.share if isinstance(pattern, UnitPattern) else None


def kept_in_pattern(pattern: Pattern, free: Bool[Tensor, "groups rows cols"]) -> int:
    """Weights that a layer keeps in a pattern that fixes their share.

    Args:
        pattern: which zeros are allowed.
        free: where the dense network's weight is not zero.
    """
    mask = pattern.mask(torch.where(free, 1.0, -1.0), free.numel())
    return int((mask & free).sum())


def in_blocks(kept: Sequence[int], present: Sequence[int], block: int, budget: Budget) -> list[int]:
    """Numbers of kept weights as whole blocks; what rounding down leaves of the budget is used.

    Layers that would have nothing left come first, then those that lost most.

    Args:
        kept: weights to keep in each layer.
        present: those that there are.
        block: weights that stay or go together.
        budget: that `kept` meets.
    """
    if block == 1:
        return list(kept)
    pairs = list(zip(kept, present, strict=True))
    rounded = [count if count >= there else count // block * block for count, there in pairs]
    cost = budget.cost_per_unit(len(pairs))
    rest = budget.allowed - math.fsum(a * b for a, b in zip(rounded, cost, strict=True))
    cut = [count - left for count, left in zip(kept, rounded, strict=True)]
    for layer in sorted(range(len(pairs)), key=lambda of: (rounded[of] > 0, -cut[of], of)):
        more = min(block, present[layer] - rounded[layer])
        if cut[layer] and more * cost[layer] <= rest * (1 + 1e-12):
            rounded[layer] += more
            rest -= more * cost[layer]
    return rounded


def in_layers(
    fitted: FittedAllocation, present: Sequence[int], least: Sequence[int], budget: Budget
) -> list[int]:
    """Which layers get a pattern that fixes their sparsity: the others stay dense.

    Those go first that lose least for what they save, until the budget is met; then those are
    left out again, the most sensitive first, without which it is still met.

    Args:
        fitted: an allocation. Where it expects no losses, the layers go first of which it keeps
            least.
        present: weights of each layer.
        least: what it keeps in the pattern.
        budget: what the kept weights may cost.
    """
    cost, layers = budget.cost_per_unit(len(present)), range(len(present))
    saved = [(present[of] - least[of]) * cost[of] for of in layers]
    excess = math.fsum(present[of] * cost[of] for of in layers) - budget.allowed
    missing = excess - 1e-9 * max(1.0, abs(budget.allowed))
    loss = fitted.loss_increase(least) or _wanted(fitted, present, budget, saved)
    order = sorted((of for of in layers if saved[of] > 0), key=lambda of: loss[of] / saved[of])
    chosen: list[int] = []
    for layer in order:
        if math.fsum(saved[of] for of in chosen) >= missing:
            break
        chosen.append(layer)
    for layer in sorted(chosen, key=lambda of: -loss[of]):
        if math.fsum(saved[of] for of in chosen if of != layer) >= missing:
            chosen.remove(layer)
    return [least[of] if of in chosen else present[of] for of in layers]


def _wanted(
    fitted: FittedAllocation, present: Sequence[int], budget: Budget, saved: Sequence[float]
) -> list[float]:
    """A loss in each layer's place: what the allocation would keep of it."""
    shares = zip(fitted.kept(budget), present, saved, strict=True)
    return [count / max(there, 1) * of for count, there, of in shares]
