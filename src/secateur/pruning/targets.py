"""What is asked of the pruned network: a sparsity, a share of its dense cost, or a loss at most.

    Sparsity(0.7)     70 % of the pruned layers' weights are zero
    EveryLayer(0.5)   the same, where a pattern such as 2:4 fixes it in every layer
    MaxMacs(0.3)      at most 30 % of the dense network's multiply-accumulates are left
    MaxBytes(0.3)     a packed file takes at most 30 % of the dense one's bytes
    MaxDrop(1.0)      the largest sparsity that loses at most one point; see `search`

A target makes of what a network costs (`Costs`) the `Budget` that an allocation divides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from secateur.errors import OptionError
from secateur.network.layers import Layer
from secateur.pruning.allocations import Budget
from secateur.support.choices import check_sparsity, plain_number


@dataclass(frozen=True)
class CostModel:
    """What a network costs as weights go: fixed + sum over layers of cost_per_unit * kept.

    Attributes:
        cost_per_unit: of one kept weight, by layer.
        fixed: of all that stays whatever is pruned.
        dense: of the dense network.
        least: what would stay if all layers were pruned that can be; None = `fixed`.
    """

    cost_per_unit: tuple[float, ...]
    fixed: float
    dense: float
    least: float | None = None

    def share(self, kept: Sequence[int]) -> float:
        """Cost at given numbers of kept weights, as a fraction of the dense network's."""
        spent = math.fsum(
            cost * count for cost, count in zip(self.cost_per_unit, kept, strict=True)
        )
        return (self.fixed + spent) / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class Costs:
    """What a network costs, by each of the measures that a target may be set in.

    Attributes:
        sizes: weights in each of the layers to prune.
        macs: multiply-accumulates per image, those with a zero weight left out: of all layers
            with weights, also those that stay dense.
        bytes: of a file that holds for each pruned layer a mask (one bit per weight) and the
            kept weights, and all other parameters and buffers whole, each at its own width and
            without entropy coding. The dense network's has no masks.
        stuck: multiply-accumulates of layers that cannot be pruned.
    """

    sizes: tuple[int, ...]
    macs: CostModel
    bytes: CostModel
    stuck: float = 0.0

    @classmethod
    def of(
        cls, every: Sequence[Layer], chosen: Sequence[Layer], tensors: Mapping[str, Any]
    ) -> Costs:
        """Costs of a network of which some layers are pruned.

        Args:
            every: all its layers.
            chosen: those to prune.
            tensors: parameters and buffers that a file holds, by every name; tied ones share
                their memory.
        """
        prunable = [layer for layer in every if layer.obstacle is None]
        return cls(
            tuple(layer.weights for layer in chosen),
            replace(_macs(every, chosen), least=_macs(every, prunable).fixed),
            replace(_bytes(chosen, tensors), least=_bytes(prunable, tensors).fixed),
            stuck=sum(layer.macs for layer in every if layer.obstacle is not None),
        )

    def shares(self, kept: Sequence[int]) -> tuple[float, float]:
        """Of the multiply-accumulates and of the bytes, at given numbers of kept weights."""
        return self.macs.share(kept), self.bytes.share(kept)


def _macs(every: Sequence[Layer], chosen: Sequence[Layer]) -> CostModel:
    total = sum(layer.macs for layer in every)
    each = tuple(layer.macs / layer.weights for layer in chosen)
    return CostModel(each, total - sum(layer.macs for layer in chosen), total)


def _bytes(chosen: Sequence[Layer], tensors: Mapping[str, Any]) -> CostModel:
    every = (value for value in tensors.values() if isinstance(value, Tensor))
    by_address = {value.data_ptr() or id(value): value for value in every}
    total = sum(value.nbytes for value in by_address.values())
    widths = [tensors[str(layer.parameter)].element_size() for layer in chosen]
    masks = sum(math.ceil(layer.weights / 8) for layer in chosen)
    pruned = sum(layer.weights * width for layer, width in zip(chosen, widths, strict=True))
    return CostModel(tuple(map(float, widths)), total - pruned + masks, total)


@runtime_checkable
class Target(Protocol):
    """What is asked of the pruned network.

    Attributes:
        name: the option that asks for it.
        meaning: of its value, in a few words for readers new to pruning.
        value: how much.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]

    @property
    def value(self) -> float: ...  # noqa: D102

    def budget(self, costs: Costs) -> Budget:
        """What the kept weights may cost, and what each costs.

        Raises:
            OptionError: nothing that is pruned could meet it; names what could.
        """
        ...

    def relaxed(self, by: float) -> Target | None:
        """A target on the way to it, easier by a fraction; None where it asks nothing."""
        ...


@dataclass(frozen=True)
class Sparsity:
    """A fraction of zeros among the weights of the pruned layers, in [0, 1); hit exactly."""

    name: ClassVar[str] = "sparsity"
    meaning: ClassVar[str] = "this share of zeros among the weights of the pruned layers"
    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", check_sparsity(self.value))

    def budget(self, costs: Costs) -> Budget:
        """As many weights as the sparsity leaves, at the cost of 1 each."""
        return Budget.of_sparsity(costs.sizes, self.value)

    def relaxed(self, by: float) -> Sparsity | None:
        """A lower sparsity; None at 0 and below."""
        return Sparsity(self.value - by) if self.value > by else None


@dataclass(frozen=True)
class EveryLayer(Sparsity):
    """The sparsity of a pattern that fixes it, in every layer that the pattern fits."""

    meaning: ClassVar[str] = "the pattern in every layer that it fits"


@dataclass(frozen=True)
class _Share:
    """A fraction of the dense network's cost, in (0, 1]."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain_number(self.value))
        _check_share(self.name, self.value)

    def relaxed(self, by: float) -> Self | None:
        """A larger fraction; None at 1 and above."""
        return replace(self, value=self.value + by) if self.value + by < 1 else None


@dataclass(frozen=True)
class MaxMacs(_Share):
    """A fraction of the dense network's multiply-accumulates, in (0, 1]; see `Costs`.

    Only a runtime that leaves out multiplications with zeros is faster by as much; most are not.
    Where layers that cannot be pruned take more, no choice of layers could meet it: it is then that
    fraction of what the pruned layers take, and `shortfall` tells so.
    """

    name: ClassVar[str] = "max_macs"
    meaning: ClassVar[str] = "at most this share of the multiplications left"

    def budget(self, costs: Costs) -> Budget:
        """What the layers left dense do not take."""
        if self.shortfall(costs):
            pruned = costs.macs.dense - costs.macs.fixed
            return Budget(self.value * pruned, costs.macs.cost_per_unit)
        return _what_is_left(self, costs, costs.macs, "the layers that stay dense take")

    def shortfall(self, costs: Costs) -> str | None:
        """Why no choice of layers could meet it; None where one could."""
        if costs.stuck < self.value * costs.macs.dense or not any(costs.macs.cost_per_unit):
            return None
        return (
            f"max_macs is {self.value:g}, but layers that cannot be pruned take "
            f"{costs.stuck / costs.macs.dense:.3g} of the network's multiply-accumulates: the "
            f"others were pruned to {self.value:g} of theirs; macs_fraction tells what is left"
        )


@dataclass(frozen=True)
class MaxBytes(_Share):
    """A fraction of the dense network's bytes in a packed file, in (0, 1]; see `Costs`.

    Masks take a 32nd of float32 weights, so that a file as large as the dense one has some zeros.
    """

    name: ClassVar[str] = "max_bytes"
    meaning: ClassVar[str] = "at most this share of the bytes left, packed"

    def budget(self, costs: Costs) -> Budget:
        """What is left by the masks and by all that stays dense."""
        return _what_is_left(self, costs, costs.bytes, "the masks and all that stays dense take")


@dataclass(frozen=True)
class MaxLatency(_Share):
    """A fraction of the dense network's time for one input on a runtime, in (0, 1].

    Channels have to leave for it: most runtimes multiply by zero as slowly as by any other number.
    """

    name: ClassVar[str] = "max_latency"
    meaning: ClassVar[str] = "at most this share of the time that the dense network takes"

    def budget(self, costs: Costs) -> Budget:
        """Refuses: time is no sum over weights."""
        raise OptionError(
            "max_latency is given, but zeros alone do not make a network faster, expected "
            "pattern='channels': leave the pattern out, or ask for max_macs"
        )


@dataclass(frozen=True)
class MaxDrop:
    """A loss of points at most, in [0, 100): of top-1, or of agreement without labels.

    Which sparsity that is has to be searched: see `secateur.pruning.search`.
    """

    name: ClassVar[str] = "max_drop"
    meaning: ClassVar[str] = "as many zeros as possible with at most so many points lost"
    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain_number(self.value))
        if not _is_number(self.value) or not 0 <= self.value < 100:
            raise OptionError(
                f"max_drop is {self.value!r}, expected points of top-1, in [0, 100): "
                "write 1 for one point"
            )

    def budget(self, costs: Costs) -> Budget:
        """The dense network's, from which the search starts."""
        return Budget.of_sparsity(costs.sizes, 0.0)

    def relaxed(self, by: float) -> None:
        """No schedule of its own: that of the sparsity that is found."""
        return None


def choose_target(
    *,
    sparsity: float | None = None,
    max_macs: float | None = None,
    max_bytes: float | None = None,
    max_drop: float | None = None,
    max_latency: float | None = None,
) -> Target:
    """The one target that is given.

    Raises:
        OptionError: none or several are given, or the one is out of range.
    """
    kinds = (Sparsity, MaxMacs, MaxBytes, MaxDrop, MaxLatency)
    given = (sparsity, max_macs, max_bytes, max_drop, max_latency)
    asked = [(kind, value) for kind, value in zip(kinds, given, strict=True) if value is not None]
    if len(asked) != 1:
        got = " and ".join(kind.name for kind, _ in asked) or "no target"
        raise OptionError(
            f"got {got}, expected exactly one of sparsity, max_macs, max_bytes, max_drop and "
            "max_latency: "
            + ("leave the others out" if asked else "say how much to prune, such as sparsity 0.7")
        )
    ((kind, value),) = asked
    return kind(value)


def _check_share(name: str, value: float) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        percent = _is_number(value) and 1 < value <= 100
        hint = f" ({value:g} % is {value / 100:g})" if percent else ""
        raise OptionError(
            f"{name} is {value!r}, expected a fraction of the dense network's, in (0, 1]: "
            f"write 0.3 for 30 %{hint}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _what_is_left(target: _Share, costs: Costs, model: CostModel, who: str) -> Budget:
    allowed = target.value * model.dense - model.fixed
    if allowed < 0 or not any(model.cost_per_unit):
        least = math.ceil(1e4 * model.fixed / model.dense) / 1e4 if model.dense else 1.0
        raise OptionError(
            f"{target.name} is {target.value:g}, expected at least {least:g}, which {who}: "
            f"raise it{_with_more_layers(target, model)}"
        )
    return Budget(allowed, model.cost_per_unit)


def _with_more_layers(target: _Share, model: CostModel) -> str:
    """How to meet a target otherwise, if every layer that can be pruned is enough for it."""
    least = model.fixed if model.least is None else model.least
    enough = least < model.fixed and least < target.value * model.dense
    return ", or prune more layers with include" if enough else ""


def check_sparsities(sparsities: Sequence[float]) -> Sequence[float]:
    """The sparsities, at least one.

    Raises:
        OptionError: none are given, or one is out of range.
    """
    try:
        values = [] if isinstance(sparsities, str) else list(sparsities)
    except TypeError:  # a single number, None
        values = []
    if not values:
        raise OptionError(
            f"sparsities is {sparsities!r}, expected fractions of zeros: write them like [0.5, 0.7]"
        )
    return [Sparsity(value).value for value in values]
