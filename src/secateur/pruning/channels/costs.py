"""What a network costs at given widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.network.ops import Convolution, Linear, expanded
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


@dataclass(frozen=True, kw_only=True)
class LayerWidths:
    """A layer whose time depends on its widths.

    Attributes:
        op: name of its operation.
        inputs, outputs: channels that it reads and makes, dense.
        shares: of either, what a unit of each coupling takes: (2, couplings).
    """

    op: str
    inputs: int
    outputs: int
    shares: NDArray[np.float64]

    def at(self, removed: Removed) -> tuple[int, int]:
        """Its widths with so many units of each coupling gone."""
        outputs, inputs = 1 - self.shares @ removed
        return round(self.inputs * inputs), round(self.outputs * outputs)


@dataclass(frozen=True, kw_only=True)
class TimeCost:
    """The time for one input, from a table of layers' times against their widths.

    Attributes:
        fixed: seconds of all else.
        layers: those in the table.
        seconds: of a layer, from the name of its operation and its widths (inputs, outputs).
    """

    fixed: float
    layers: Sequence[LayerWidths]
    seconds: Callable[[str, int, int], float]

    @cached_property
    def dense(self) -> float:
        """See `WidthCost.dense`."""
        none = np.zeros(self.layers[0].shares.shape[1], dtype=np.int64)
        return self.at(none)

    def at(self, removed: Removed) -> float:
        """See `WidthCost.at`."""
        return self.fixed + math.fsum(self._time(of, removed) for of in self.layers)

    def savings(self, removed: Removed, steps: Removed) -> NDArray[np.float64]:
        """See `WidthCost.savings`."""
        saved = np.zeros(len(steps))
        now = [self._time(of, removed) for of in self.layers]
        for number in np.flatnonzero(steps):
            after = removed.copy()
            after[number] += steps[number]
            touched = [
                (before - self._time(of, after))
                for of, before in zip(self.layers, now, strict=True)
                if of.shares[:, number].any()
            ]
            saved[number] = math.fsum(touched)
        return saved

    def _time(self, layer: LayerWidths, removed: Removed) -> float:
        return self.seconds(layer.op, *layer.at(removed))


def layer_widths(graph: Graph, removable: Sequence[Removable]) -> list[LayerWidths]:
    """The convolutions and linear layers of a network, with what leaves them.

    Args:
        graph: whose operations have the names of the table.
        removable: what can leave.
    """
    by_axis, none = _by_axis(removable), np.zeros(len(removable))
    found: list[LayerWidths] = []
    for _, op in expanded(graph.ops):
        if not isinstance(op, Convolution | Linear) or op.weight not in graph.parameters:
            continue
        shape = graph.parameters[op.weight].shape
        groups = op.geometry.groups if isinstance(op, Convolution) else 1
        made, read = (1, 0) if isinstance(op, Convolution) and op.transposed else (0, 1)
        sizes = {made: shape[made] * (groups if made else 1), read: shape[read] * groups}
        shares = [by_axis.get((op.weight, at), none) / shape[at] for at in (made, read)]
        if groups > 1 and shape[1] == 1:  # depthwise: as many inputs as outputs
            shares[1] = shares[0]
        found.append(
            LayerWidths(
                op=op.name, inputs=sizes[read], outputs=sizes[made], shares=np.array(shares)
            )
        )
    return found


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


def _by_axis(removable: Sequence[Removable]) -> dict[tuple[str, int], NDArray[np.float64]]:
    """How many indices along each axis of each parameter a unit of each coupling takes."""
    by_axis: dict[tuple[str, int], NDArray[np.float64]] = {}
    for number, of in enumerate(removable):
        for part in of.coupling.slices:
            each = sum(map(len, part.indices)) / of.units
            row = by_axis.setdefault((part.parameter, part.axis), np.zeros(len(removable)))
            row[number] += each
    return by_axis


def _cost(
    parts: Iterable[tuple[str | None, Sequence[int], float]], removable: Sequence[Removable]
) -> ProductCost:
    by_axis = _by_axis(removable)
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
