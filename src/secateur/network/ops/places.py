"""Operations without weights of their own: elementwise ones, and those that move values about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateur.network.ops.base import Op


@dataclass(frozen=True, kw_only=True)
class Pointwise(Op):
    """Each number of the result is a function of those at its place; inputs are broadcast."""


@dataclass(frozen=True, kw_only=True)
class Activation(Pointwise):
    """A function of one input, number by number: ReLU, sigmoid, a factor."""


@dataclass(frozen=True, kw_only=True)
class ParametricReLU(Op):
    """x where it is positive, else slope * x.

    Attributes:
        slope: a value by name, per channel (axis 1), or one number for all.
    """

    slope: str

    @property
    def weights(self) -> tuple[str, ...]:
        """The slope."""
        return (self.slope,)


@dataclass(frozen=True, kw_only=True)
class Identity(Activation):
    """The value as it is."""


@dataclass(frozen=True, kw_only=True)
class Scale(Activation):
    """The value times a number, or divided by it."""


@dataclass(frozen=True, kw_only=True)
class Add(Pointwise):
    """The sum of two inputs, or more."""


@dataclass(frozen=True, kw_only=True)
class Multiply(Pointwise):
    """The product of two inputs, number by number."""


@dataclass(frozen=True, kw_only=True)
class Pooling(Op):
    """Each channel (axis 1) by itself made smaller or larger along the axes behind it."""


@dataclass(frozen=True, kw_only=True)
class Reduction(Op):
    """A mean, sum, maximum or minimum over some axes.

    Attributes:
        axes: which.
        keepdims: whether they stay, with size 1.
    """

    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, kw_only=True)
class Padding(Op):
    """Made longer, or shorter, at the ends of some axes.

    Attributes:
        axes: which.
        before, after: places that are added along each of them; negative where they are cut off.
        constant: whether what is added is one number.
    """

    axes: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    constant: bool


@dataclass(frozen=True, kw_only=True)
class Concatenate(Op):
    """Inputs one behind the other.

    Attributes:
        axis: along which.
        stacks: whether that is a new axis, along which each of them has one place.
    """

    axis: int
    stacks: bool = False


@dataclass(frozen=True, kw_only=True)
class Reshape(Op):
    """The same numbers in the same order in another shape."""


@dataclass(frozen=True, kw_only=True)
class Expand(Op):
    """The value again and again along axes where it has one place, or that are new."""


@dataclass(frozen=True, kw_only=True)
class Repeat(Op):
    """Each place along an axis several times, one behind the other.

    Attributes:
        axis: which, counted from the first one.
        times: how often.
    """

    axis: int
    times: int


@dataclass(frozen=True, kw_only=True)
class Slice(Op):
    """A part of the value along one axis.

    Attributes:
        axis: which, counted from the first one.
        start, stop, step: as in `range`, none of them negative.
        keepdims: whether the axis stays; without it one place is taken.
    """

    axis: int
    start: int
    stop: int
    step: int = 1
    keepdims: bool = True


@dataclass(frozen=True, kw_only=True)
class Split(Op):
    """Parts behind each other along one axis; `GetItem` takes them out.

    Attributes:
        axis: which, counted from the first one.
        lengths: of the parts.
        keepdims: whether the axis stays; without it each part is one place.
    """

    axis: int
    lengths: tuple[int, ...]
    keepdims: bool = True


@dataclass(frozen=True, kw_only=True)
class Insert(Op):
    """The first input, with the second in place of a part of it along one axis.

    Attributes:
        axis: which, counted from the first one.
        start, stop: of the part.
    """

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Take(Op):
    """Places along one axis, by their numbers, which are another value; some may be taken twice.

    Attributes:
        axis: which, counted from the first one.
        rank: how many axes the result has in its place.
    """

    axis: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class Scan(Op):
    """Numbers along some axes moved, or computed from each other: rolled, flipped, summed up.

    Attributes:
        axes: which.
    """

    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SizesOf(Op):
    """The sizes of a value, or one of them.

    Attributes:
        axes: those that are computed with, as numbers; others only give shapes to values.
    """

    axes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Transpose(Op):
    """The axes in another order.

    Attributes:
        permutation: by the new number of an axis its old one.
    """

    permutation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Softmax(Op):
    """exp(x) / sum of exp(x), or its logarithm.

    Attributes:
        axis: along which it sums.
    """

    axis: int


@dataclass(frozen=True, kw_only=True)
class GetItem(Op):
    """One of several values that an operation gives together.

    Attributes:
        index: which.
    """

    index: int


@dataclass(frozen=True, kw_only=True)
class Opaque(Op):
    """Anything else."""


@dataclass(frozen=True, kw_only=True)
class Fused(Op):
    """Several operations run as one: it gives its value, or several that `GetItem` takes apart.

    Attributes:
        parts: what it is made of; they do not run alone.
    """

    parts: tuple[Op, ...]


def expanded(ops: Sequence[Op]) -> Iterator[tuple[int, Op]]:
    """Every operation and its number, with the parts of a fused one in place of it."""
    fused = {op.name for op in ops if isinstance(op, Fused)}
    for index, op in enumerate(ops):
        if isinstance(op, Fused):
            yield from ((index, part) for part in op.parts)
        elif not (isinstance(op, GetItem) and op.input in fused):
            yield index, op
