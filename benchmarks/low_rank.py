"""Low rank: convolutions and linear layers as two smaller ones, fitted to the outputs they give.

The best approximation of rank r of a layer y = W x + b on some inputs, in squared error of the
outputs, keeps the r directions in which y varies most:

    y  ~  m + U U^T (W x + b - m)

with m the mean of y and U, (rows, r), the first eigenvectors of its covariance.

This is the truncated singular value decomposition of W times the square root of the inputs' Gram
matrix (of centred inputs). It becomes a layer of U^T W, (r, cols), with the kernel and stride of
the old one, and one of U, (rows, r), with a 1 x 1 kernel. Source for convolutions: Zhang et al.
2016, arXiv 1505.06798, section 3.1. Both layers' multiply-accumulates count.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What a layer's outputs are like.

    Attributes:
        mean: of the outputs, (rows,).
        directions: eigenvectors of their covariance, (rows, rows), in columns, the largest first.
        lost: share of their variance that rank r loses, (rows + 1,).
        dense: multiply-accumulates of the layer for an image.
        each: those of each rank.
    """

    mean: Tensor
    directions: Tensor
    lost: Tensor
    dense: int
    each: int


class Factors(nn.Sequential):
    """Two layers in place of one, with the geometry that others ask the one about."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__(first, second)
        self.kernel_size = getattr(first, "kernel_size", None)
        self.stride = getattr(first, "stride", None)


def spectra(model: nn.Module, images: Tensor, *, batch: int = 50) -> dict[str, Spectrum]:
    """Looks at the outputs of all convolutions without groups and linear layers.

    Cost: a forward pass, and (rows x rows) products of all outputs. Memory: rows x rows a layer.
    """
    layers = {name: of for name, of in model.named_modules() if _can_be_factored(of)}
    moments = {name: _Moments() for name in layers}
    hooks = [of.register_forward_hook(moments[name].add) for name, of in layers.items()]
    with torch.no_grad():
        for part in images.split(batch):
            model(part.to(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return {name: moments[name].spectrum(of, len(images)) for name, of in layers.items()}


def _can_be_factored(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


class _Moments:
    """Sums over a layer's outputs, less the mean of the first batch: squares are in float32."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())
        self.shift: Tensor | None = None

    def add(self, layer: nn.Module, inputs: object, output: Tensor) -> None:
        rows = output.movedim(1, -1).flatten(0, -2) if output.dim() == 4 else output  # (n, rows)
        if self.shift is None:
            self.shift = rows.mean(0)
        rows = rows - self.shift
        self.count += len(rows)
        self.first = self.first + rows.sum(0, dtype=torch.float64)
        self.second = self.second + (rows.T @ rows).double()

    def spectrum(self, layer: nn.Module, images: int) -> Spectrum:
        assert self.shift is not None
        mean = self.first / self.count
        covariance = self.second / self.count - mean.outer(mean)
        values, directions = torch.linalg.eigh(covariance)
        values = values.flip(0).clamp_min(0)
        kept = torch.cat([torch.zeros(1), values.cumsum(0)])  # by rank, from 0
        rows, cols = len(mean), layer.weight[0].numel()  # pyright: ignore
        positions = self.count // images
        return Spectrum(
            mean=mean + self.shift,
            directions=directions.flip(1),
            lost=1 - kept / kept[-1].clamp_min(1e-30),
            dense=positions * rows * cols,
            each=positions * (rows + cols),
        )


def choose_ranks(
    spectra: Mapping[str, Spectrum], fixed: float, allowed: float
) -> dict[str, int | None]:
    """The ranks that lose least of the layers' variances together, within a cost.

    Args:
        spectra: of the layers.
        fixed: multiply-accumulates of everything else.
        allowed: multiply-accumulates at most.

    Returns:
        Rank of each layer; None = it stays as it is.
    """
    low, high = 1e-30, 1e30  # loss for a multiply-accumulate
    for _ in range(200):
        price = (low * high) ** 0.5
        ranks = {name: _best_rank(of, price) for name, of in spectra.items()}
        cost = fixed + sum(_cost(of, ranks[name]) for name, of in spectra.items())
        low, high = (price, high) if cost > allowed else (low, price)
    return {name: _best_rank(of, high) for name, of in spectra.items()}


def _best_rank(of: Spectrum, price: float) -> int | None:
    totals = of.lost + price * of.each * torch.arange(len(of.lost))
    rank = 1 + int(totals[1:].argmin())
    return rank if totals[rank] < price * of.dense else None


def _cost(of: Spectrum, rank: int | None) -> int:
    return of.dense if rank is None else rank * of.each


def factored(
    model: nn.Module, spectra: Mapping[str, Spectrum], ranks: Mapping[str, int | None]
) -> nn.Module:
    """A copy of the network with layers of these ranks."""
    model = copy.deepcopy(model)
    for name, rank in ranks.items():
        if rank is not None:
            model.set_submodule(name, _factors(model.get_submodule(name), spectra[name], rank))
    return model.eval()


@torch.no_grad()
def _factors(layer: nn.Module, of: Spectrum, rank: int) -> Factors:
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"got {type(layer).__name__}, expected a convolution or a linear layer")
    kept = of.directions[:, :rank]  # (rows, rank)
    weight = layer.weight.double().flatten(1)
    bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.double()
    bias = of.mean + kept @ (kept.T @ (bias - of.mean))
    first, second = _empty(layer, rank)
    first.weight.copy_((kept.T @ weight).view_as(first.weight))
    second.weight.copy_(kept.view_as(second.weight))
    second.bias.copy_(bias)
    return Factors(first, second)


def _empty(layer: nn.Conv2d | nn.Linear, rank: int) -> Sequence[nn.Conv2d] | Sequence[nn.Linear]:
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        return first, nn.Linear(rank, layer.out_features)
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # pyright: ignore
        stride=layer.stride,  # pyright: ignore
        padding=layer.padding,  # pyright: ignore
        dilation=layer.dilation,  # pyright: ignore
        bias=False,
    )
    return first, nn.Conv2d(rank, layer.out_channels, 1)
