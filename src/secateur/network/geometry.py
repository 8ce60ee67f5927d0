"""How a layer's weight, inputs and outputs map to matrices; a core that knows no front-end.

Both geometries answer the same questions: the weight as a (groups, rows, cols) matrix and back,
how many output positions there are, and the input patches and outputs at some of them. Columns
of a convolution run over (kernel height, kernel width, input channels): patches are gathered
from channels-last memory, and the weights that structured patterns group lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Geometry(Protocol):
    """What the walk asks of a layer's geometry."""

    def matrix(self, weight: Tensor) -> Float[Tensor, "groups rows cols"]:
        """The weight as one matrix per group."""
        ...

    def weight(
        self, matrix: Float[Tensor, "groups rows cols"], shape: torch.Size
    ) -> Float[Tensor, "*shape"]:
        """The inverse of `matrix`."""
        ...

    def rows(self, vector: Float[Tensor, " out"]) -> Float[Tensor, "groups rows"]:
        """A value per output, such as a bias, by group."""
        ...

    def count(self, output: Tensor) -> int:
        """How many output positions a layer's output has."""
        ...

    def inputs(
        self, value: Tensor, positions: Int[Tensor, " samples"], output: torch.Size
    ) -> Float[Tensor, "groups samples cols"]:
        """The input patches that lead to the outputs at `positions`."""
        ...

    def outputs(
        self, value: Tensor, positions: Int[Tensor, " samples"]
    ) -> Float[Tensor, "groups samples rows"]:
        """The outputs at `positions`."""
        ...


@dataclass(frozen=True, kw_only=True)
class LinearGeometry:
    """A linear layer on inputs of any rank: the last axis is multiplied.

    Attributes:
        turned: whether its weight is held as (in, out).
    """

    turned: bool = False

    def matrix(self, weight: Tensor) -> Float[Tensor, "groups rows cols"]:
        return (weight.mT if self.turned else weight).unsqueeze(0)

    def weight(
        self, matrix: Float[Tensor, "groups rows cols"], shape: torch.Size
    ) -> Float[Tensor, "*shape"]:
        return matrix[0].mT.contiguous() if self.turned else matrix.reshape(shape)

    def rows(self, vector: Float[Tensor, " out"]) -> Float[Tensor, "groups rows"]:
        return vector.unsqueeze(0)

    def count(self, output: Tensor) -> int:
        return output.numel() // output.shape[-1]

    def inputs(
        self, value: Tensor, positions: Int[Tensor, " samples"], output: torch.Size
    ) -> Float[Tensor, "groups samples cols"]:
        return self.outputs(value, positions)

    def outputs(
        self, value: Tensor, positions: Int[Tensor, " samples"]
    ) -> Float[Tensor, "groups samples rows"]:
        return _at(positions, value).unsqueeze(0)


@dataclass(frozen=True, kw_only=True)
class ConvolutionGeometry:
    """A convolution over any number of spatial axes.

    Attributes:
        kernel, stride, dilation: per spatial axis.
        padding: (before, after) per spatial axis, zeros; or "same_upper" and "same_lower": outputs
            of size ceil(input / stride), where an odd pad more goes behind, or before.
        groups: number of independent groups of channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] | Literal["same_upper", "same_lower"]
    dilation: tuple[int, ...]
    groups: int

    def pads(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(before, after) per spatial axis for an input of these spatial sizes."""
        if not isinstance(self.padding, str):
            return self.padding
        totals = [
            max((-(-size // step) - 1) * step + (kernel - 1) * apart + 1 - size, 0)
            for size, kernel, step, apart in zip(
                sizes, self.kernel, self.stride, self.dilation, strict=True
            )
        ]
        pairs = [(total // 2, total - total // 2) for total in totals]
        upper = self.padding == "same_upper"
        return tuple(pair if upper else (pair[1], pair[0]) for pair in pairs)

    def matrix(self, weight: Tensor) -> Float[Tensor, "groups rows cols"]:
        last = weight.movedim(1, -1)  # out, kernel..., in / groups
        return last.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(
        self, matrix: Float[Tensor, "groups rows cols"], shape: torch.Size
    ) -> Float[Tensor, "out in_per_group *kernel"]:
        last = matrix.reshape(shape[0], *self.kernel, shape[1])
        return last.movedim(-1, 1).contiguous()

    def rows(self, vector: Float[Tensor, " out"]) -> Float[Tensor, "groups rows"]:
        return vector.reshape(self.groups, -1)

    def count(self, output: Tensor) -> int:
        return output.shape[0] * math.prod(output.shape[2:])

    def inputs(
        self, value: Tensor, positions: Int[Tensor, " samples"], output: torch.Size
    ) -> Float[Tensor, "groups samples cols"]:
        """Cost: one copy of the padded input and of the patches; never a full unfold."""
        image, *places = torch.unravel_index(positions, torch.Size((output[0], *output[2:])))
        pads = [pad for both in reversed(self.pads(value.shape[2:])) for pad in both]
        padded = F.pad(value, pads) if any(pads) else value
        pixels = image.view(-1, *[1] * len(self.kernel))  # samples, kernel...
        for axis, at in enumerate(places):
            first = at.view(-1, *[1] * len(self.kernel)) * self.stride[axis]
            pixels = pixels * padded.shape[2 + axis] + first + self._taps(axis, positions.device)
        patches = _at(pixels.flatten(), padded.movedim(1, -1))
        patches = patches.view(len(positions), -1, self.groups, value.shape[1] // self.groups)
        return patches.permute(2, 0, 1, 3).reshape(self.groups, len(positions), -1)

    def _taps(self, axis: int, device: torch.device) -> Int[Tensor, 1 * kernel]:
        """Offsets of the kernel's taps along an axis, shaped to broadcast over the others."""
        shape = [1] * (1 + len(self.kernel))
        shape[1 + axis] = self.kernel[axis]
        return (torch.arange(self.kernel[axis], device=device) * self.dilation[axis]).view(shape)

    def outputs(
        self, value: Tensor, positions: Int[Tensor, " samples"]
    ) -> Float[Tensor, "groups samples rows"]:
        samples = _at(positions, value.movedim(1, -1))
        return samples.view(len(positions), self.groups, -1).movedim(1, 0).contiguous()


def _at(
    positions: Int[Tensor, " samples"], values: Float[Tensor, "*places channels"]
) -> Float[Tensor, "samples channels"]:
    """All channels at some positions, which are counted through all places.

    In channels-last memory whole rows are copied: twice as fast as an index for each axis.
    """
    return values.reshape(-1, values.shape[-1]).index_select(0, positions)


def per_output(values: Tensor, weight: Tensor) -> Tensor:
    """A value for each output, (out,), shaped so that it meets that output's weights."""
    return values.view(-1, *[1] * (weight.dim() - 1))
