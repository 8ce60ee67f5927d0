"""What a network costs at given widths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.network.layers import Layer
from secateur.pruning.channels.space import Removable

Removed = NDArray[np.int64]  # how many units of each coupling are gone


class WidthCost(Protocol):
    """What a network costs as channels go."""

    @property
    def dense(self) -> float:
        """Of the dense network."""
        ...

    def at(self, removed: Removed) -> float:
        """With so many units of each coupling gone."""
        ...

    def savings(self, removed: Removed, steps: Removed) -> NDArray[np.float64]:
        """What each coupling alone would save if it lost so many more."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProductCost:
    """Costs that are products of widths: multiplications, weights, bytes.

    Attributes:
        fixed: what stays whatever is removed.
        sizes: of each part, dense.
        shares: of a part along each of two axes what a unit of each coupling takes: (2, parts,
            couplings).
    """

    fixed: float
    sizes: NDArray[np.float64]
    shares: NDArray[np.float64]

    @property
    def dense(self) -> float:
        """See `WidthCost.dense`."""
        return self.fixed + float(self.sizes.sum())

    def at(self, removed: Removed) -> float:
        """See `WidthCost.at`."""
        left = 1 - self.shares @ removed
        return self.fixed + float((self.sizes * left.prod(0)).sum())

    def savings(self, removed: Removed, steps: Removed) -> NDArray[np.float64]:
        """See `WidthCost.savings`."""
        first, second = 1 - self.shares @ removed
        gone = self.shares * steps  # (2, parts, couplings)
        after = (first[:, None] - gone[0]) * (second[:, None] - gone[1])
        return self.sizes @ ((first * second)[:, None] - after)


def macs_cost(every: Sequence[Layer], removable: Sequence[Removable]) -> ProductCost:
    """Multiply-accumulates for one image."""
    return _cost([(layer.parameter, layer.shape, layer.macs) for layer in every], removable)


def weights_cost(every: Sequence[Layer], removable: Sequence[Removable]) -> ProductCost:
    """Weights of the layers that make or read channels that can leave."""
    touched = {part.parameter for of in removable for part in of.coupling.slices}
    parts = [(of.parameter, of.shape, of.weights) for of in every if of.parameter in touched]
    return _cost(parts, removable)


def bytes_cost(tensors: Mapping[str, Any], removable: Sequence[Removable]) -> ProductCost:
    """Bytes of the tensors that a file holds; tied ones count once."""
    parts = [(name, of.shape, of.nbytes) for name, of in _held(tensors)]
    return _cost(parts, removable)


def nbytes(tensors: Mapping[str, Any]) -> int:
    """Bytes of the tensors that a file holds; tied ones count once."""
    return sum(of.nbytes for _, of in _held(tensors))


def _held(tensors: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    each = {of.data_ptr() or id(of): (name, of) for name, of in tensors.items() if _counts(of)}
    return each.values()


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor)


def _cost(
    parts: Iterable[tuple[str | None, Sequence[int], float]], removable: Sequence[Removable]
) -> ProductCost:
    by_axis: dict[tuple[str, int], NDArray[np.float64]] = {}
    for number, of in enumerate(removable):
        for part in of.coupling.slices:
            each = sum(map(len, part.indices)) / of.units
            row = by_axis.setdefault((part.parameter, part.axis), np.zeros(len(removable)))
            row[number] += each
    fixed: list[float] = []
    sizes: list[float] = []
    shares: list[list[NDArray[np.float64]]] = []
    none = np.zeros(len(removable))
    for name, shape, size in parts:
        axes = [at for at in range(len(shape)) if (str(name), at) in by_axis]
        if not axes:
            fixed.append(size)
            continue
        along = [by_axis[str(name), at] / shape[at] for at in axes[:2]]
        sizes.append(size)
        shares.append([*along, none][:2])
    array = np.array(shares, dtype=np.float64).reshape(len(sizes), 2, len(removable))
    return ProductCost(
        fixed=math.fsum(fixed),
        sizes=np.array(sizes, dtype=np.float64),
        shares=array.transpose(1, 0, 2),
    )
