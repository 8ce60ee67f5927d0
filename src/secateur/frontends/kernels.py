"""How PyTorch runs layers and normalisations, as functions of the values that they read."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.network.geometry import ConvolutionGeometry
from secateur.network.layout import to_channels_last


def convolution(geometry: ConvolutionGeometry) -> Callable[..., Tensor]:
    """The convolution of images in channels-last memory."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = to_channels_last(x)
        padding = geometry.pads(x.shape[2:])
        even = all(before == after >= 0 for before, after in padding)
        if not even:
            x = F.pad(x, [pad for both in reversed(padding) for pad in both])
        return torch.convolution(
            x,
            weight,
            bias,
            geometry.stride,
            [before if even else 0 for before, _ in padding],
            geometry.dilation,
            False,
            [0] * len(geometry.kernel),
            geometry.groups,
        )

    return compute


def batch_norm(epsilon: float) -> Callable[..., Tensor]:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    return lambda x, gamma, beta, mean, variance: F.batch_norm(
        x, mean, variance, gamma, beta, False, 0.0, epsilon
    )


def swap(value: Tensor) -> Tensor:
    """The last two axes in the places of each other (a view)."""
    return value.mT
