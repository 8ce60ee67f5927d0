"""Patterns say which zeros are allowed: they turn scores into a mask.

A pattern is a frozen dataclass with one method,

    mask(scores, kept) -> bool tensor like scores, True = kept

that keeps the best total score among the allowed masks, with exactly `kept` entries. A negative
score marks an entry that is already zero: others are kept before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.support.choices import by_name
from secateur.support.settings import at_least, check_settings

_SAMPLE = 16384  # values that tell where the rest lies


@runtime_checkable
class Pattern(Protocol):
    """The interface of a pattern."""

    def mask(
        self, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """The allowed mask of `kept` entries with the highest total score."""
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
        flat = scores.flatten()
        if kept == 0:
            return torch.zeros_like(scores, dtype=torch.bool)
        mask = scores >= _kth_value(flat, flat.numel() - kept)
        if int(mask.sum()) == kept:
            return mask
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[torch.topk(flat, kept, sorted=False).indices] = True
        return mask.view_as(scores)


def _kth_value(values: Float[Tensor, " values"], index: int) -> Tensor:
    """The value at a place, counted from 0, if they were sorted.

    Of many values a sample tells between which two it lies, and only what is there is sorted in
    part: three times as fast as looking through all of them several times.
    """
    sample = values[:: max(1, len(values) // _SAMPLE)]
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
