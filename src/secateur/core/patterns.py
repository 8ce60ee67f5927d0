"""Patterns say which zeros are allowed: they turn sizes of weights into a mask.

A pattern is a frozen dataclass with one method,

    mask(scores, kept) -> bool tensor like scores, True = kept

Scores are sizes of entries, 0 or more. Of the allowed masks with `kept` entries it is the one with
the greatest sum of squared scores, so that the entries it removes are nearest to zero. A negative
score marks an entry that is already zero: others are kept before it.

Patterns that speak of units of weights, `NM` and `Block`, also tell how large these are and which
layers they fit (`UnitPattern`). In a layer's matrix the input channels of a kernel tap lie side by
side (`secateur.network.geometry`), so that neighbours in a row are neighbours among the inputs.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.errors import OptionError
from secateur.support.choices import by_name, choose, did_you_mean
from secateur.support.settings import at_least, check_settings
from secateur.support.wording import counted

_SAMPLE = 16384  # values that tell where the rest lies
_COMPARED = 16  # members of a group up to which comparing all pairs is faster than a top-k


@runtime_checkable
class Pattern(Protocol):
    """The interface of a pattern."""

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """The allowed mask of `kept` entries with the highest sum of squared scores."""
        ...


@runtime_checkable
class UnitPattern(Pattern, Protocol):
    """A pattern that speaks of units: small rectangles of a layer's matrix."""

    @property
    def unit(self) -> tuple[int, int]:
        """Rows and columns of a unit: a layer that is fitted in parts is cut between units."""
        ...

    @property
    def block(self) -> int:
        """Weights that stay or go together: what is kept is a multiple of that."""
        ...

    @property
    def share(self) -> float | None:
        """The share of its weights that every layer in the pattern keeps; None = any share."""
        ...

    def obstacle(self, rows: int, inputs: int) -> str | None:
        """Why a layer cannot be pruned in the pattern; None when it can.

        Args:
            rows: outputs of each of its groups.
            inputs: input channels of each of its groups.
        """
        ...


@dataclass(frozen=True)
class Unstructured:
    """Any weight may become zero: keeps the `kept` highest scores of the whole layer."""

    name: ClassVar[str] = "unstructured"
    summary: ClassVar[str] = "Any weight of a layer could become zero."

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """See `Pattern.mask`; ties are broken in an unspecified but repeatable order.

        A threshold is several times faster than the indices of a top-k; only ties need those.
        """
        if kept == 0:
            return torch.zeros_like(scores, dtype=torch.bool)
        mask = scores >= _kth_value(scores, scores.numel() - kept)
        if int(mask.sum()) == kept:
            return mask
        flat = scores.flatten()
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[torch.topk(flat, kept, sorted=False).indices] = True
        return mask.view_as(scores)


def _kth_value(scores: Float[Tensor, "groups rows cols"], index: int) -> Tensor:
    """The value at a place, counted from 0, if they were sorted.

    Of many values a sample tells between which two it lies, and only what is there is sorted in
    part: three times as fast as looking through all of them several times. Columns differ in size:
    the sample has its values from all of them.
    """
    values = scores.flatten()
    steps = itertools.count(max(1, len(values) // _SAMPLE))
    sample = values[:: next(step for step in steps if math.gcd(step, scores.shape[-1]) == 1)]
    place, slack = index * len(sample) // len(values), len(sample) // 50
    ends = place - slack, place + slack
    if len(values) < 4 * _SAMPLE or ends[0] < 0 or ends[1] >= len(sample):
        return torch.kthvalue(values, index + 1).values
    low, high = (torch.kthvalue(sample, end + 1).values for end in ends)
    between = values[(values >= low) & (values <= high)]
    rank = index - int((values < low).sum())
    if not 0 <= rank < len(between):
        return torch.kthvalue(values, index + 1).values
    return torch.kthvalue(between, rank + 1).values


@dataclass(frozen=True)
class NM:
    """At most n of each m weights of neighbouring input channels stay: `NM(2, 4)`, or "2:4".

    NVIDIA GPUs from the Ampere generation on skip the zeros of 2:4. The pattern fixes the sparsity
    of a layer, 1 - n / m; an allocation can only choose which layers get it.

    Attributes:
        n: weights of a group that stay.
        m: weights in a group: neighbours in a row of the layer's matrix.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        check_settings(self, n=at_least(1), m=at_least(2))
        if self.n >= self.m:
            raise OptionError(
                f"pattern is {self.name!r}, expected fewer weights kept than there are in a group, "
                "such as '2:4'"
            )

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.n}:{self.m}"

    @property
    def summary(self) -> str:
        """For reports."""
        return (
            f"Of each {self.m} weights of neighbouring inputs at most {self.n} stayed "
            f"({self.name} pattern)."
        )

    @property
    def unit(self) -> tuple[int, int]:
        """See `UnitPattern.unit`."""
        return 1, self.m

    @property
    def block(self) -> int:
        """See `UnitPattern.block`."""
        return 1

    @property
    def share(self) -> float | None:
        """See `UnitPattern.share`."""
        return self.n / self.m

    @property
    def makes_two_of_four(self) -> bool:
        """Whether every mask of the pattern is one of 2:4 too, which GPUs can use."""
        return self.m == 2 or (self.n <= 2 and self.m % 4 == 0)

    def obstacle(self, rows: int, inputs: int) -> str | None:
        """See `UnitPattern.obstacle`."""
        return _uneven(self.name, "input", inputs, self.m)

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """See `Pattern.mask`; fewer than `kept` entries where the pattern allows no more.

        Cost: m - 1 comparisons for each entry, or a top-k of each group.
        """
        groups, rows, cols = scores.shape
        members = scores.reshape(groups, rows, cols // self.m, self.m)
        allowed = _largest(members, self.n).view(scores.shape)
        if kept >= scores.numel() // self.m * self.n:
            return allowed
        if kept >= int((allowed & (scores >= 0)).sum()):
            return allowed & (scores >= 0)
        return Unstructured().mask(torch.where(allowed, scores, -torch.inf), kept)


def _largest(
    groups: Float[Tensor, "groups rows units members"], count: int
) -> Bool[Tensor, "groups rows units members"]:
    """The largest members of each unit; of equal ones the first."""
    members = groups.shape[-1]
    if members > _COMPARED:
        best = torch.topk(groups, count, sorted=False).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    columns = groups.movedim(-1, 0).contiguous()
    mask = torch.empty_like(columns, dtype=torch.bool)
    for member, column in enumerate(columns):
        before = (columns[:member] >= column).sum(0, dtype=torch.int8)
        mask[member] = before + (columns[member + 1 :] > column).sum(0, dtype=torch.int8) < count
    return mask.movedim(0, -1).contiguous()


@dataclass(frozen=True)
class Block:
    """Rectangles of weights become zero together: `Block(1, 4)`, or "1x4".

    PyTorch's sparse INT8 kernels skip blocks of 1 x 4. Blocks lie side by side from the first
    weight on. Those with the greatest norm stay.

    Attributes:
        rows: outputs of a block.
        cols: neighbouring input channels of a block.
    """

    rows: int
    cols: int

    share: ClassVar[float | None] = None  # see `UnitPattern.share`

    def __post_init__(self) -> None:
        check_settings(self, rows=at_least(1), cols=at_least(1))

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.rows}x{self.cols}"

    @property
    def summary(self) -> str:
        """For reports."""
        return (
            f"Weights became zero in blocks of {counted(self.rows, 'output')} by "
            f"{counted(self.cols, 'input')}."
        )

    @property
    def unit(self) -> tuple[int, int]:
        """See `UnitPattern.unit`."""
        return self.rows, self.cols

    @property
    def block(self) -> int:
        """See `UnitPattern.block`."""
        return self.rows * self.cols

    def obstacle(self, rows: int, inputs: int) -> str | None:
        """See `UnitPattern.obstacle`."""
        uneven = _uneven(self.name, "output", rows, self.rows)
        return uneven or _uneven(self.name, "input", inputs, self.cols)

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """See `Pattern.mask`; as many whole blocks as `kept` entries fill.

        Entries that are zero already count as none, in whichever block they are.
        """
        norms = self._tiles(scores.clamp_min(0).square())
        present = scores >= 0
        if present.all():
            chosen = Unstructured().mask(norms, min(kept // self.block, norms.numel()))
            return self._spread(chosen, scores.shape)
        sizes = self._tiles(present.int())
        order = torch.argsort(norms.flatten(), descending=True, stable=True)
        chosen = torch.zeros_like(norms, dtype=torch.bool).flatten()
        chosen[order[sizes.flatten()[order].cumsum(0) <= kept]] = True
        return self._spread(chosen.view_as(norms), scores.shape) & present

    def _tiles(self, values: Tensor) -> Tensor:
        """The sum of each block, (groups, rows / rows of a block, cols / its columns)."""
        groups, rows, cols = values.shape
        parts = groups, rows // self.rows, self.rows, cols // self.cols, self.cols
        return values.reshape(parts).sum((2, 4))

    def _spread(self, chosen: Tensor, shape: torch.Size) -> Bool[Tensor, "groups rows cols"]:
        """The mask of the weights of some blocks."""
        groups, rows, cols = chosen.shape
        tiles = chosen[:, :, None, :, None].expand(groups, rows, self.rows, cols, self.cols)
        return tiles.reshape(shape)


def _uneven(pattern: str, what: str, count: int, divisor: int) -> str | None:
    """Why a number of inputs or outputs does not fit a pattern."""
    if count % divisor == 0:
        return None
    return f"{counted(count, what)}, no multiple of {divisor}: the pattern {pattern} does not fit"


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Whole channels leave the network, which becomes smaller and faster on every runtime.

    A channel goes with the rows that make it, its entries in normalisations, and the columns that
    read it (`secateur.network.couplings`); see `secateur.pruning.channels`.

    Attributes:
        multiple: of which the number of channels left is one, where there are more than that; 1 =
            any number. Runtimes compute in vectors, and ONNX Runtime leaves its fast kernels where
            a number is odd: EfficientNet-Lite0 at 75 % of the multiply-accumulates took 0.77
            of the dense time with multiples of 8, and 1.55 with any number (one thread, AVX-512);
            the expected loss was 0.122 against 0.107.
    """

    name: ClassVar[str] = "channels"
    summary: ClassVar[str] = "Whole channels were removed, so that layers became smaller."

    multiple: int = 8

    def __post_init__(self) -> None:
        check_settings(self, multiple=at_least(1))

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """The whole columns with the highest total scores, as many as `kept` entries fill."""
        count = kept // max(1, scores.shape[0] * scores.shape[1])
        best = torch.topk(scores.sum((0, 1)), count, sorted=False).indices
        columns = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
        columns[best] = True
        return columns.expand(scores.shape)


@dataclass(frozen=True)
class KeptColumns:
    """A choice of whole columns that was made already, for all rows alike.

    Attributes:
        columns: True = kept.
    """

    columns: Bool[Tensor, " cols"]

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """The columns, whatever the scores and `kept` are."""
        return self.columns.to(scores.device).expand(scores.shape)


PatternName = Literal["unstructured", "channels"]
PATTERNS = by_name(Unstructured, Channels)
_UNITS = {":": NM, "x": Block}


def choose_pattern(value: Any) -> Any:
    """A pattern given as an object, a class or a name: "unstructured", "channels", "2:4", "1x4".

    Raises:
        OptionError: no such name.
    """
    if not isinstance(value, str) or value in PATTERNS:
        return choose("pattern", value, PATTERNS)
    if found := re.fullmatch(r"([0-9]{1,6})([:x])([0-9]{1,6})", value.strip()):
        first, kind, second = found.groups()
        return _UNITS[kind](int(first), int(second))
    raise OptionError(
        f"pattern is {value!r}, expected one of {', '.join(PATTERNS)}, n:m such as 2:4, or a "
        f"block such as 1x4{did_you_mean(value, PATTERNS)}"
    )
