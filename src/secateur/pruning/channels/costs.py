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
class Shares:
    """What the units of couplings take of the axes of parameters.

    Of an axis 1 - sum_i share_i removed_i is left, plus what two couplings both take: of heads that
    leave the dimensions that leave all heads.

    Attributes:
        each: the share of an axis that a unit takes: (axes, couplings).
        axes, first, second, both: of the axes where two couplings overlap their number, the two
            couplings, and the share that a unit of the one and a unit of the other have in common.
    """

    each: NDArray[np.float64]
    axes: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    both: NDArray[np.float64]

    def left(self, removed: Removed) -> NDArray[np.float64]:
        """What is left of each axis."""
        left = 1 - self.each @ removed
        np.add.at(left, self.axes, self.both * removed[self.first] * removed[self.second])
        return left

    def taken(self, removed: Removed, steps: Removed) -> NDArray[np.float64]:
        """What further units of each coupling alone would take: (axes, couplings)."""
        taken = self.each * steps
        for own, other in ((self.first, self.second), (self.second, self.first)):
            np.subtract.at(taken, (self.axes, own), self.both * steps[own] * removed[other])
        return taken


@dataclass(frozen=True, kw_only=True)
class ProductCost:
    """Costs that are products of widths: multiplications, weights, bytes.

    Attributes:
        fixed: what stays whatever is removed.
        sizes: of each part, dense.
        shares: of the first axis of each part, and then of the second one of each.
    """

    fixed: float
    sizes: NDArray[np.float64]
    shares: Shares

    @property
    def dense(self) -> float:
        """See `WidthCost.dense`."""
        return self.fixed + float(self.sizes.sum())

    def at(self, removed: Removed) -> float:
        """See `WidthCost.at`."""
        left = self.shares.left(removed).reshape(2, -1)
        return self.fixed + float((self.sizes * left.prod(0)).sum())

    def savings(self, removed: Removed, steps: Removed) -> NDArray[np.float64]:
        """See `WidthCost.savings`."""
        first, second = self.shares.left(removed).reshape(2, -1)
        gone = self.shares.taken(removed, steps).reshape(2, len(first), len(steps))
        after = (first[:, None] - gone[0]) * (second[:, None] - gone[1])
        return self.sizes @ ((first * second)[:, None] - after)


@dataclass(frozen=True, kw_only=True)
class LayerWidths:
    """A layer whose time depends on its widths.

    Attributes:
        op: name of its operation.
        inputs, outputs: channels that it reads and makes, dense.
        shares: of the outputs and of the inputs.
    """

    op: str
    inputs: int
    outputs: int
    shares: Shares

    def at(self, removed: Removed) -> tuple[int, int]:
        """Its widths with so many units of each coupling gone."""
        outputs, inputs = self.shares.left(removed)
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
        none = np.zeros(self.layers[0].shares.each.shape[1], dtype=np.int64)
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
                if of.shares.each[:, number].any()
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
    taken = _Taken(removable)
    found: list[LayerWidths] = []
    for _, op in expanded(graph.ops):
        if not isinstance(op, Convolution | Linear) or op.weight not in graph.parameters:
            continue
        shape = graph.parameters[op.weight].shape
        groups = op.geometry.groups if isinstance(op, Convolution) else 1
        turned = op.transposed if isinstance(op, Convolution) else op.turned
        made, read = (1, 0) if turned else (0, 1)
        sizes = {made: shape[made] * (groups if made else 1), read: shape[read] * groups}
        depthwise = groups > 1 and shape[1] == 1  # as many inputs as outputs
        axes = (made, made if depthwise else read)
        shares = taken.shares([(op.weight, at, shape[at]) for at in axes])
        found.append(
            LayerWidths(op=op.name, inputs=sizes[read], outputs=sizes[made], shares=shares)
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


class _Taken:
    """How many indices along each axis of each parameter the units of couplings take.

    Of a coupling in heads the units take indices in other couplings' units as well.
    """

    def __init__(self, removable: Sequence[Removable]) -> None:
        self.couplings = len(removable)
        self.each: dict[tuple[str, int], NDArray[np.float64]] = {}
        self.both: dict[tuple[str, int], list[tuple[int, int, float]]] = {}
        heads: dict[tuple[str, int], list[tuple[int, set[int]]]] = {}
        for number, of in sorted(enumerate(removable), key=lambda of: not of[1].coupling.whole):
            for part in of.coupling.slices:
                key, indices = (part.parameter, part.axis), {at for of in part.indices for at in of}
                row = self.each.setdefault(key, np.zeros(self.couplings))
                row[number] += len(indices) / of.units
                for other, own in heads.get(key, ()):
                    common = len(own & indices) / of.units / removable[other].units
                    self.both.setdefault(key, []).append((other, number, common))
                if of.coupling.whole:
                    heads.setdefault(key, []).append((number, indices))

    def shares(self, axes: Sequence[tuple[str, int, int] | None]) -> Shares:
        """Of axes by parameter, number and length; None = an axis that nothing takes."""
        none = np.zeros(self.couplings)
        each = [none if of is None else self.each.get(of[:2], none) / of[2] for of in axes]
        common = [
            (number, first, second, share / of[2])
            for number, of in enumerate(axes)
            if of is not None
            for first, second, share in self.both.get(of[:2], ())
        ]
        at, first, second = np.array([of[:3] for of in common], np.int64).reshape(-1, 3).T
        return Shares(
            each=np.array(each, dtype=np.float64).reshape(len(axes), self.couplings),
            axes=at,
            first=first,
            second=second,
            both=np.array([of[3] for of in common], dtype=np.float64),
        )


def _cost(
    parts: Iterable[tuple[str | None, Sequence[int], float]], removable: Sequence[Removable]
) -> ProductCost:
    taken = _Taken(removable)
    fixed: list[float] = []
    sizes: list[float] = []
    axes: list[list[tuple[str, int, int] | None]] = []
    for name, shape, size in parts:
        own = [
            (str(name), at, shape[at]) for at in range(len(shape)) if (str(name), at) in taken.each
        ]
        if not own:
            fixed.append(size)
            continue
        sizes.append(size)
        axes.append([*own, None][:2])
    return ProductCost(
        fixed=math.fsum(fixed),
        sizes=np.array(sizes, dtype=np.float64),
        shares=taken.shares([of[0] for of in axes] + [of[1] for of in axes]),
    )
