"""The operations that PyTorch runs: layers, normalisations, and the swaps around a product.

Each is one value of the graph: `name` is what it writes, `reads` what it needs, `run` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.network.geometry import Convolution, Linear
from secateur.network.layout import (
    to_channels_last,
)


class Step(Protocol):
    """What the graph asks of an operation."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def reads(self) -> tuple[str, ...]: ...  # noqa: D102
    def run(self, values: Mapping[str, Any]) -> Any: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Convolve:
    """Conv with a weight that is a parameter, as (out, in / groups, kernel...).

    Attributes:
        name, input, weight, bias: values by name.
        kernel, stride, dilation: per spatial axis.
        pads: (before, after) per spatial axis; None = as `same` says.
        same: "SAME_UPPER" or "SAME_LOWER": outputs of size ceil(input / stride), an odd pad more
            goes behind or before.
        groups: number of independent groups of channels.
    """

    name: str
    input: str
    weight: str
    bias: str | None
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    same: str
    groups: int

    @property
    def reads(self) -> tuple[str, ...]:
        """Input, weight and bias."""
        return _present(self.input, self.weight, self.bias)

    def padding(self, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(before, after) per spatial axis for an input of these spatial sizes."""
        if self.pads is not None:
            return self.pads
        axes = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        totals = [
            max((-(-size // step) - 1) * step + (kernel - 1) * apart + 1 - size, 0)
            for size, kernel, step, apart in axes
        ]
        pairs = [(total // 2, total - total // 2) for total in totals]
        upper = self.same == "SAME_UPPER"
        return tuple(pair if upper else (pair[1], pair[0]) for pair in pairs)

    def geometry(self, input_shape: tuple[int, ...]) -> Convolution:
        """For inputs of this shape."""
        return Convolution(
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding(input_shape[2:]),
            dilation=self.dilation,
            groups=self.groups,
        )

    def run(self, values: Mapping[str, Any]) -> Tensor:
        """The convolution of images in channels-last memory."""
        x = to_channels_last(values[self.input])
        padding = self.padding(tuple(x.shape[2:]))
        even = all(before == after >= 0 for before, after in padding)
        if not even:
            x = F.pad(x, [pad for both in reversed(padding) for pad in both])
        return torch.convolution(
            x,
            values[self.weight],
            None if self.bias is None else values[self.bias],
            self.stride,
            [before if even else 0 for before, _ in padding],
            self.dilation,
            False,
            [0] * len(self.kernel),
            self.groups,
        )


@dataclass(frozen=True, kw_only=True)
class Multiply:
    """Gemm or MatMul with a weight that is a parameter, as (out, in): the last axis is multiplied.

    Attributes:
        name, input, weight, bias: values by name.
    """

    name: str
    input: str
    weight: str
    bias: str | None

    @property
    def reads(self) -> tuple[str, ...]:
        """Input, weight and bias."""
        return _present(self.input, self.weight, self.bias)

    def geometry(self, input_shape: tuple[int, ...]) -> Linear:
        """The same for all shapes."""
        return Linear()

    def run(self, values: Mapping[str, Any]) -> Tensor:
        """x W^T + b."""
        bias = None if self.bias is None else values[self.bias]
        return F.linear(values[self.input], values[self.weight], bias)


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """BatchNormalization with statistics that are parameters, per channel (axis 1)."""

    name: str
    input: str
    gamma: str
    beta: str
    mean: str
    variance: str
    epsilon: float

    @property
    def reads(self) -> tuple[str, ...]:
        """Input, slope, offset, mean and variance."""
        return (self.input, self.gamma, self.beta, self.mean, self.variance)

    def run(self, values: Mapping[str, Any]) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) * gamma + beta."""
        x, gamma, beta, mean, variance = (values[name] for name in self.reads)
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A matrix transposed: the last two axes change places (a view)."""

    name: str
    input: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The matrix."""
        return (self.input,)

    def run(self, values: Mapping[str, Any]) -> Tensor:
        """The view."""
        return values[self.input].mT


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of several outputs of a segment."""

    name: str
    input: str
    index: int

    @property
    def reads(self) -> tuple[str, ...]:
        """The tuple of outputs."""
        return (self.input,)

    def run(self, values: Mapping[str, Any]) -> Any:
        """The output."""
        return values[self.input][self.index]


@dataclass(frozen=True, kw_only=True)
class RowsFirst:
    """An output with a row for each image.

    Attributes:
        name, input: values by name.
        axis: the one that counts the images.
        each: shape for one image, where those of several lie behind each other; None = they share
            the axis.
    """

    name: str
    input: str
    axis: int
    each: tuple[int, ...] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The output as the file has it."""
        return (self.input,)

    def run(self, values: Mapping[str, Any]) -> Tensor:
        """The axis put first (a view)."""
        value = values[self.input]
        if self.each is None:
            return value.movedim(self.axis, 0)
        return value.reshape(-1, *self.each).squeeze(self.axis + 1)


def _present(*names: str | None) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)
