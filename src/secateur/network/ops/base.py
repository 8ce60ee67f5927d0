"""What every operation has, and the shapes of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """The shape of a value.

    Attributes:
        sizes: for one image; 0 where the values decide, as behind a selection.
        growing: whether each axis grows with the number of images; none does where this is empty.
    """

    sizes: Sizes
    growing: tuple[bool, ...] = ()

    @property
    def shown(self) -> Sizes:
        """The sizes with 0 for axes that grow."""
        growing = self.growing or (False,) * len(self.sizes)
        return tuple(0 if grows else size for size, grows in zip(self.sizes, growing, strict=True))


Shapes = Mapping[str, Shape]


class UnknownShapeError(Exception):
    """The shape of a value is not known."""


def sizes_of(shapes: Shapes, name: str, axes: int = 0) -> Sizes:
    """The sizes of a value that has at least so many axes."""
    shape = shapes.get(name)
    if shape is None or 0 in shape.sizes or len(shape.sizes) < axes:
        raise UnknownShapeError(name)
    return shape.sizes


def _not_alone(*values: Any) -> Any:
    raise RuntimeError("a part of a fused operation does not run alone")


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation.

    Attributes:
        name: of the value that it writes.
        inputs: the values that it computes with, in their order.
        others: further values that it reads, such as sizes.
        compute: gives the value; takes what `reads` names, in that order, and changes none of it.
        operation: what its framework calls it, such as "conv2d.default" or "Conv".
        label: which one it is, for messages: a module's or a node's name.
    """

    name: str
    inputs: tuple[str, ...]
    others: tuple[str, ...] = ()
    compute: Callable[..., Any] = field(default=_not_alone, compare=False, repr=False)
    operation: str = ""
    label: str = ""

    @property
    def input(self) -> str:
        """The first of the inputs."""
        return self.inputs[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """Parameters that make it a layer or a normalisation, in the order that it takes them."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All values that it needs."""
        return (*self.inputs, *self.weights, *self.others)

    def run(self, values: Mapping[str, Any]) -> Any:
        """The value, computed; `values` holds activations and parameters by name."""
        return self.compute(*(values[name] for name in self.reads))

    def macs(self, shapes: Shapes) -> int:
        """Multiply-accumulates for one image: of products that sum, as in matrices.

        Raises:
            UnknownShapeError: a shape that they depend on is not known.
        """
        return 0


def present(*names: str | None) -> tuple[str, ...]:
    """The names that are given."""
    return tuple(name for name in names if name is not None)
