"""A module with fewer channels: its own submodules, smaller.

What is left out is what nobody reads: the rows that make a channel, its entries in normalisations,
and the columns that would read it. So the module gives what it gave with these columns zero.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.frontends.torch.modules import copy_module, named_tensors
from secateur.network.couplings import Removed, check_removed, gone, rescaled

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def shrink(model: nn.Module, removed: Removed, *, every: bool = False) -> nn.Module:
    """A copy of a module in eval mode, without some units of its couplings.

    Convolutions, linear layers, BatchNorms, GroupNorms and PReLUs get the attributes of their new
    sizes, so that the copy can be trained, saved and exported.

    Args:
        model: not touched.
        removed: units to leave out, by coupling. Of a coupling in blocks as many of each.
        every: see `secateur.network.couplings.rescaled`.

    Raises:
        ModelError: a coupling is fixed, or its blocks would be of different sizes.
    """
    twin = copy_module(model).eval()
    cut(twin, removed, every=every)
    return twin


def cut(module: nn.Module, removed: Removed, *, every: bool = False) -> None:
    """Takes some units out of a module itself; see `shrink`."""
    check_removed(removed)
    held = named_tensors(module)
    mended = {**held, **rescaled(held, removed, every=every)}
    _replace(
        module, {id(held[name]): _cut(mended[name], axes) for name, axes in gone(removed).items()}
    )


def fit_to(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Brings a module to the sizes of a state dict from which channels have left.

    Args:
        model: changed in place; its tensors of other sizes are replaced by empty ones.
        state: by the module's own names.

    Raises:
        ModelError: a tensor of the state dict is larger, or has more or fewer axes.
    """
    held = named_tensors(model)
    smaller: dict[int, Tensor] = {}
    for name, tensor in state.items():
        own = held.get(name)
        if own is None or own.shape == tensor.shape:
            continue
        if own.dim() != tensor.dim() or any(map(operator.gt, tensor.shape, own.shape)):
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(own.shape)} or fewer "
                "channels: check that the weights belong to this network"
            )
        smaller[id(own)] = own.new_empty(tensor.shape)
    _replace(model, smaller)


def _cut(tensor: Tensor, axes: Mapping[int, Collection[int]]) -> Tensor:
    """A tensor without some indices along some axes."""
    for axis, indices in axes.items():
        kept = sorted({*range(tensor.shape[axis])} - {*indices})
        tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
    return tensor.detach().contiguous()


def _replace(module: nn.Module, smaller: Mapping[int, Tensor]) -> None:
    """Puts smaller tensors into a module, wherever it holds the larger ones, known by their id."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        depthwise = _multiplier(part)
        touched = False
        for leaf, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is None or id(tensor) not in smaller:
                continue
            touched = True
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(smaller[id(tensor)], requires_grad=tensor.requires_grad)
                part._parameters[leaf] = made.setdefault(id(tensor), new)
            else:
                part._buffers[leaf] = smaller[id(tensor)]
        if touched:
            _resize(part, depthwise)


def _multiplier(part: nn.Module) -> int:
    """Outputs for each channel of a depthwise convolution; 0 of any other module."""
    if isinstance(part, _CONVOLUTIONS) and 1 < part.groups == part.in_channels:
        return part.out_channels // part.groups
    return 0


def _resize(part: nn.Module, depthwise: int) -> None:
    """Sets the sizes that a module tells to those of its tensors."""
    if isinstance(part, _CONVOLUTIONS):
        part.out_channels = len(part.weight)
        part.groups = part.out_channels // depthwise if depthwise else part.groups
        part.in_channels = part.weight.shape[1] * part.groups
    elif isinstance(part, _TRANSPOSED):
        part.in_channels = len(part.weight)
        part.out_channels = part.weight.shape[1] * part.groups
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif type(part).__name__ == "Conv1D" and hasattr(part, "nf"):  # of GPT-2, (in, out)
        part.nx, part.nf = part.weight.shape  # type: ignore[union-attr, misc]
    elif isinstance(part, _NORMS):
        sized = part.running_mean if part.running_mean is not None else part.weight
        part.num_features = len(sized)
    elif isinstance(part, nn.GroupNorm):
        part.num_groups = part.num_groups * len(part.weight) // part.num_channels
        part.num_channels = len(part.weight)
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(part.weight)
