"""What room a pattern leaves: which numbers of kept weights it allows, and how a target is met."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.core.patterns import Pattern
from secateur.errors import OptionError
from secateur.pruning.allocations import Allocation, Budget, FittedAllocation, Uniform
from secateur.pruning.allocations.units import (
    block_of,
    in_blocks,
    in_layers,
    kept_in_pattern,
    share_of,
)
from secateur.pruning.targets import Costs, EveryLayer, MaxBytes, MaxDrop, MaxMacs, Sparsity, Target
from secateur.support.choices import name_of
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class PatternRoom:
    """The numbers of kept weights that a pattern allows in the layers to prune.

    Attributes:
        pattern: which zeros are allowed.
        present: weights of each layer that are not zero in the dense network.
        least: of these what each layer keeps in a pattern that fixes their share; empty = a
            pattern leaves any number of blocks.
    """

    pattern: Pattern
    present: Sequence[int]
    least: Sequence[int] = ()

    @classmethod
    def of(cls, pattern: Pattern, free: Iterable[Tensor]) -> PatternRoom:
        """The room in layers of which some weights are not zero.

        Args:
            pattern: which zeros are allowed.
            free: by layer, where the dense network's weight matrix is not zero; one is held at a
                time.
        """
        fixes = share_of(pattern) is not None
        present: list[int] = []
        least: list[int] = []
        for layer in free:
            present.append(int(layer.sum()))
            if fixes:
                least.append(kept_in_pattern(pattern, layer))
        return cls(pattern=pattern, present=present, least=least)

    def takes_all(self, target: Target, costs: Costs) -> bool:
        """Whether a target needs every layer in a pattern that fixes its sparsity."""
        if isinstance(target, EveryLayer) or not self.least:
            return bool(self.least)
        budget = target.budget(costs)
        cost = budget.cost_per_unit(len(self.present))
        saved = [
            (there - left) * each
            for there, left, each in zip(self.present, self.least, cost, strict=True)
        ]
        smallest = min((of for of in saved if of > 0), default=0.0)
        spent = math.fsum(map(operator.mul, self.least, cost))
        return budget.allowed < spent + smallest - _slack(budget)

    def kept(self, fitted: FittedAllocation, target: Target, costs: Costs) -> list[int]:
        """Weights to keep in each layer, as an allocation divides a target and the pattern allows.

        A target that the pattern cannot meet exactly is met with fewer weights.
        """
        if self.takes_all(target, costs):
            return list(self.least)
        budget = target.budget(costs)
        if self.least:
            return in_layers(fitted, self.present, self.least, budget)
        kept = map(min, fitted.kept(budget), self.present)
        return in_blocks(list(kept), self.present, block_of(self.pattern), budget)

    def check(self, target: Target, costs: Costs, allocation: Allocation) -> None:
        """Shows what cannot be met in the pattern.

        Raises:
            OptionError: more zeros are asked for than the pattern has, or an allocation that treats
                all layers alike would have to choose some.
        """
        if not self.least or isinstance(target, EveryLayer):
            return
        name = name_of(self.pattern)
        if self._asks_for_more(target, costs):
            raise OptionError(
                f"{target.name} is {target.value:g}, expected {self._reachable(target, costs)}, "
                f"which the pattern {name} leads to in every layer that it fits: ask for fewer "
                "zeros, or for a pattern with more"
            )
        if isinstance(allocation, Uniform) and not self.takes_all(target, costs):
            raise OptionError(
                f"got {target.name} {target.value:g} and allocation 'uniform', but the pattern "
                f"{name} fixes the zeros of a layer, so that some layers would stay dense, "
                "expected no sparsity for the pattern in every layer, or allocation 'sensitivity', "
                "which chooses them"
            )

    def _asks_for_more(self, target: Target, costs: Costs) -> bool:
        """Whether the pattern in every layer that it fits would not be enough."""
        if isinstance(target, MaxBytes | MaxMacs) and not _is_of_the_rest(target, costs):
            model = costs.bytes if isinstance(target, MaxBytes) else costs.macs
            return model.share(self.least) > target.value + 1e-9
        budget = target.budget(costs)
        cost = budget.cost_per_unit(len(self.least))
        return math.fsum(map(operator.mul, self.least, cost)) > budget.allowed + _slack(budget)

    def _reachable(self, target: Target, costs: Costs) -> str:
        """What the target could be, in words."""
        if isinstance(target, Sparsity):
            most = 1 - sum(self.least) / sum(costs.sizes)
            return f"at most {math.floor(1e4 * most) / 1e4:g}"
        model = costs.bytes if isinstance(target, MaxBytes) else costs.macs
        share = math.ceil(1e4 * model.share(self.least)) / 1e4
        return f"at least {share:g}"

    def note(self, kept: Sequence[int], target: Target, costs: Costs) -> list[str]:
        """How the pattern changed what the target asks for."""
        if isinstance(target, MaxDrop):
            return []
        name, zeros = name_of(self.pattern), sum(costs.sizes) - sum(kept)
        dense = sum(a == b > c for a, b, c in zip(kept, self.present, self.least, strict=False))
        notes: list[str] = []
        if dense:
            notes.append(
                f"the pattern {name} is in {counted(len(kept) - dense, 'layer')}; "
                f"{counted(dense, 'layer')} stayed dense, for it fixes the zeros of a layer"
            )
        asked = sum(costs.sizes) - round(target.budget(costs).allowed)
        if isinstance(target, Sparsity) and zeros > asked and sum(kept) < sum(self.present):
            notes.append(
                f"{zeros:,} of {counted(sum(costs.sizes), 'weight')} are zero, {zeros - asked:,} "
                f"more than {target.name} {target.value:g} asks for: the pattern {name} leaves "
                f"{'whole layers' if self.least else 'whole blocks'}"
            )
        return notes


def _is_of_the_rest(target: Target, costs: Costs) -> bool:
    """Whether layers that cannot be pruned exceed a target, which is then one of the others."""
    return isinstance(target, MaxMacs) and target.shortfall(costs) is not None


def _slack(budget: Budget) -> float:
    """What rounding may add to a cost."""
    return 1e-9 * max(1.0, abs(budget.allowed))
