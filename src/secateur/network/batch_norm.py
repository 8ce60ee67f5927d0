"""What a BatchNorm multiplies and adds, and a layer with one in it.

In NumPy, in the format of the numbers: the arithmetic is that of PyTorch's ONNX exporter, so that a
module and the file made of it are the same numbers to the last bit. PyTorch's square root differs
from NumPy's in the last bit of some numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.network.ops import BatchNorm

Array = np.ndarray[Any, np.dtype[Any]]


def bn_scale(gamma: Array | float, variance: Array, epsilon: float) -> Array:
    """What a BatchNorm multiplies each channel by: gamma / sqrt(variance + epsilon)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # not finite where it cannot be folded
        return gamma / np.sqrt(variance + epsilon)


def bn_scale_of(norm: BatchNorm, parameters: Mapping[str, Tensor]) -> Float[Tensor, " chan"]:
    """The same of an operation, with parameters by name."""
    variance = parameters[norm.variance].detach()
    gamma = _array(norm.gamma, 1.0, parameters)
    return torch.as_tensor(bn_scale(gamma, variance.cpu().numpy(), norm.epsilon)).to(variance)


@dataclass(frozen=True)
class FoldedLayer:
    """New values of the parameters of a layer with a BatchNorm in it.

    Attributes:
        weight: W * bn_scale.
        bias: (b - mean) * bn_scale + beta.
        bn_scale: nowhere 0.
    """

    weight: Float[Tensor, "out ..."]
    bias: Float[Tensor, " out"]
    bn_scale: Float[Tensor, " out"]


def fold_layer(
    weight: str, bias: str | None, norm: BatchNorm, parameters: Mapping[str, Tensor]
) -> FoldedLayer | None:
    """A BatchNorm in the layer before it; None where a scale is 0 or infinite: no way back.

    Args:
        weight, bias: the layer's, by name.
        norm: the BatchNorm.
        parameters: by name.
    """
    old, mean, variance = (
        parameters[name].detach().cpu().numpy() for name in (weight, norm.mean, norm.variance)
    )
    scale = bn_scale(_array(norm.gamma, 1.0, parameters), variance, norm.epsilon)
    size = np.abs(scale)
    if not (np.isfinite(size) & (size > np.finfo(np.float32).tiny)).all():
        return None
    moved = (_array(bias, 0.0, parameters) - mean) * scale + _array(norm.beta, 0.0, parameters)
    new = old * scale.reshape(-1, *[1] * (old.ndim - 1))
    values = (torch.as_tensor(array).to(parameters[weight]) for array in (new, moved, scale))
    return FoldedLayer(*values)


def _array(name: str | None, default: float, parameters: Mapping[str, Tensor]) -> Array | float:
    return default if name is None else parameters[name].detach().cpu().numpy()
