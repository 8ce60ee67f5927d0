"""One layer of a module in the place of another."""

from __future__ import annotations

from torch import nn


def replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a layer in the place of another, under all of its names."""
    for part in model.modules():
        for name, child in part._modules.items():
            if child is old:
                part._modules[name] = new


def without_fast_path(model: nn.Module) -> None:
    """Has PyTorch's transformer layers call their linear layers.

    In eval mode they would hand all weights to one function instead, in floats.
    """
    for part in model.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
