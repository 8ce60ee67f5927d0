"""How a layer's weight lies in the file: a constant, and what the nodes behind it make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

Lookup = Callable[[str], Tensor]  # the file's constants by name


class Step(Protocol):
    """Something that is done to a constant before a layer multiplies with it."""

    def read(self, held: Tensor, lookup: Lookup) -> Tensor:
        """What the step makes of a value."""
        ...

    def write(self, value: Tensor, lookup: Lookup) -> Tensor:
        """The inverse."""
        ...

    def axis(self, axis: int) -> int | None:
        """The axis before the step that an axis behind it is; None where it is none or several."""
        ...


@dataclass(frozen=True)
class Permuted:
    """Its axes in another order."""

    order: tuple[int, ...]

    def read(self, held: Tensor, lookup: Lookup) -> Tensor:
        """See `Step.read`."""
        return held.permute(self.order)

    def write(self, value: Tensor, lookup: Lookup) -> Tensor:
        """See `Step.write`."""
        return value.permute([self.order.index(axis) for axis in range(len(self.order))])

    def axis(self, axis: int) -> int | None:
        """See `Step.axis`."""
        return self.order[axis]


@dataclass(frozen=True)
class Reshaped:
    """In another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def read(self, held: Tensor, lookup: Lookup) -> Tensor:
        """See `Step.read`."""
        return held.reshape(self.after)

    def write(self, value: Tensor, lookup: Lookup) -> Tensor:
        """See `Step.write`."""
        return value.reshape(self.before)

    def axis(self, axis: int) -> int | None:
        """See `Step.axis`: that of the same size with as many numbers behind each of its places."""
        size, inner = self.after[axis], math.prod(self.after[axis + 1 :])
        same = [
            at
            for at, length in enumerate(self.before)
            if length == size and math.prod(self.before[at + 1 :]) == inner
        ]
        return same[0] if same and size > 1 else None


@dataclass(frozen=True, kw_only=True)
class Dequantised:
    """Integers, less a zero point, times a scale: for all, for each place on an axis, or blocks.

    Attributes:
        bounds: the least and the largest integer that the constant can hold.
        scale: the constant of that name; None = 1.
        zero: the constant of the zero points; None = 0.
        along: the axis whose places have numbers of their own; None = there is one for all.
        block: how many places in a row share a scale; 0 = each has its own.
    """

    bounds: tuple[int, int]
    scale: str | None = None
    zero: str | None = None
    along: int | None = None
    block: int = 0

    def read(self, held: Tensor, lookup: Lookup) -> Tensor:
        """See `Step.read`."""
        return (held.float() - self._each(self.zero, 0, held, lookup)) * self._each(
            self.scale, 1, held, lookup
        )

    def write(self, value: Tensor, lookup: Lookup) -> Tensor:
        """See `Step.write`: the nearest integers; a zero is exact, as zero points are integers."""
        scale = self._each(self.scale, 1, value, lookup).double()
        exact = value.double() / torch.where(scale == 0, 1.0, scale)
        return (exact.round() + self._each(self.zero, 0, value, lookup)).clamp(*self.bounds)

    def centred(self, held: Tensor, lookup: Lookup) -> Tensor:
        """Integers with 0 for the zero point, in their own type, at whose ends they wrap around."""
        return held - self._each(self.zero, 0, held, lookup).to(held.dtype)

    def axis(self, axis: int) -> int | None:
        """See `Step.axis`; None where its places share scales in blocks."""
        return None if self.block and axis == self.along else axis

    def _each(self, name: str | None, default: float, value: Tensor, lookup: Lookup) -> Tensor:
        """Scales or zero points in a shape that meets the value's."""
        if name is None:
            return torch.tensor(float(default), device=value.device)
        each = lookup(name).to(value.device, torch.float32)
        if each.numel() == 1 or self.along is None:
            return each.reshape(())
        if value.dim() == 1:
            return each.flatten()
        if self.block:
            each = each.repeat_interleave(self.block, self.along)
            return each.narrow(self.along, 0, value.shape[self.along])
        return each.reshape([-1 if axis == self.along else 1 for axis in range(value.dim())])


@dataclass(frozen=True, kw_only=True)
class WeightLayout:
    """How a parameter lies in the file.

    Attributes:
        steps: what nodes make of the constant, in their order.
        factor: the layer multiplies by this (Gemm's alpha or beta).
        vector: of any shape with one axis longer than 1, such as (1, C, 1, 1).
    """

    steps: tuple[Step, ...] = ()
    factor: float = 1.0
    vector: bool = False

    def read(self, held: Tensor, lookup: Lookup) -> Tensor:
        """The parameter as the layer uses it."""
        for step in self.steps:
            held = step.read(held, lookup)
        held = held.flatten() if self.vector else held.float().contiguous()
        return held if self.factor == 1 else held * self.factor

    def write(self, value: Tensor, lookup: Lookup) -> Tensor:
        """The inverse, up to the shape of a vector."""
        value = value if self.factor == 1 else value / self.factor + 0.0  # no negative zeros
        for step in reversed(self.steps):
            value = step.write(value, lookup)
        return value

    def centred(self, held: Tensor, lookup: Lookup) -> Tensor:
        """The constant as it is stored, with 0 for each 0 of the parameter."""
        for at, step in enumerate(self.steps):
            if isinstance(step, Dequantised):
                held = step.centred(held, lookup)
                for before in reversed(self.steps[:at]):
                    held = before.write(held, lookup)
                return held
            held = step.read(held, lookup)
        return held

    def axis(self, axis: int) -> int | None:
        """The constant's own axis that one of the parameter is; None where there is no such one."""
        at: int | None = axis
        for step in reversed(self.steps):
            at = None if at is None else step.axis(at)
        return at

    def rank(self, dims: Sequence[int]) -> int:
        """How many axes the parameter has, of a constant of some sizes."""
        shapes = [step.after for step in self.steps if isinstance(step, Reshaped)]
        return len(shapes[-1] if shapes else dims)

    def scales_of(self, axis: int) -> Iterator[str]:
        """The constants that hold a number for each place on one of the parameter's axes."""
        at: int | None = axis
        for step in reversed(self.steps):
            if isinstance(step, Dequantised) and at is not None and at == step.along:
                yield from filter(None, (step.scale, step.zero))
            at = None if at is None else step.axis(at)

    @property
    def is_quantised(self) -> bool:
        """Whether it holds integers."""
        return any(isinstance(step, Dequantised) for step in self.steps)


PLAIN = WeightLayout()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The constant behind a value.

    Attributes:
        name: of the constant.
        steps: from it to the value.
        shape: of the value.
        integers: whether the value is of integers.
    """

    name: str
    steps: tuple[Step, ...] = ()
    shape: tuple[int, ...]
    integers: bool = False

    def then(self, step: Step) -> Origin:
        """With a further step."""
        if isinstance(step, Dequantised):
            return replace(self, steps=(*self.steps, step), integers=False)
        if isinstance(step, Reshaped):
            steps = (*self.steps, step) if step.after != step.before else self.steps
            return replace(self, steps=steps, shape=step.after)
        assert isinstance(step, Permuted)
        shape, steps = tuple(self.shape[axis] for axis in step.order), self.steps
        if steps and isinstance(steps[-1], Permuted):  # two of them are one
            step = Permuted(tuple(steps[-1].order[axis] for axis in step.order))
            steps = steps[:-1]
        is_none = step.order == tuple(range(len(step.order)))
        return replace(self, steps=steps if is_none else (*steps, step), shape=shape)


def turned(origin: Origin) -> Origin:
    """A matrix with its axes in the places of each other."""
    return origin.then(Permuted((1, 0)))


def ranges(kind: str, bits: int) -> tuple[int, int]:
    """The least and the largest integer of a type, such as ("UINT8", 8)."""
    return (0, 2**bits - 1) if kind.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def same_sizes(shape: Sequence[int], sizes: Sequence[int], *, allowzero: bool) -> tuple[int, ...]:
    """The shape that a Reshape gives, where 0 stands for a size as it was and -1 for what is left.

    Raises:
        ValueError: it does not fit.
    """
    new = [
        shape[at] if size == 0 and not allowzero and at < len(shape) else size
        for at, size in enumerate(sizes)
    ]
    if new.count(-1) == 1:
        known = math.prod(size for size in new if size != -1)
        new[new.index(-1)] = math.prod(shape) // known if known else 0
    if min(new, default=1) < 0 or math.prod(new) != math.prod(shape):
        raise ValueError(f"{tuple(shape)} cannot have the shape {tuple(sizes)}")
    return tuple(new)
