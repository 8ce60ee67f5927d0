"""Sums over a layer's samples, chunk by chunk: what its problem is made of.

A chunk's sums depend on its own samples alone. They are taken about the chunk's own means, so that
values far from zero lose no digits, and are added up in float64 in the order of the chunks'
numbers. So the bytes of the result do not depend on who computed which chunk, nor when. With
chunks c of n_c samples with means m_c,

    sum over all samples (x - m)(x - m)^T = sum_c G_c + sum_c n_c (m_c - m)(m_c - m)^T

where G_c is the chunk's own sum about m_c (the parallel axis theorem).

Of a Gram matrix, which is symmetric, a half is computed and held: `Stripes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.precision import widened
from secateur.core.problem import Patches, Problem

_CONSTANT = 1e-12  # variance of outputs that do not vary, relative to their mean square
_ROWS = 128  # of a matrix of sums that are turned into float32 at a time
_STRIPE = 256  # rows of a Gram matrix that are multiplied at a time

Stripes = tuple[Tensor, ...]
"""A symmetric matrix, some rows at a time, each from its square on the diagonal to the end."""


@dataclass(frozen=True, kw_only=True)
class ChunkVectors:
    """Means and squares of one chunk's samples, in the widest format.

    Attributes:
        samples: how many.
        inputs, outputs, dense: means of the inputs, of what the layer is to make of them, and of
            what the dense layer makes of them in all.
        energy, dense_energy: sums of the squares of the centred outputs.
    """

    samples: int
    inputs: Float[Tensor, "groups cols"]
    outputs: Float[Tensor, "groups rows"]
    dense: Float[Tensor, "groups rows"]
    energy: Float[Tensor, "groups rows"]
    dense_energy: Float[Tensor, "groups rows"]


@dataclass(frozen=True, kw_only=True)
class ChunkSums:
    """Sums over one chunk's samples, about their own means.

    Attributes:
        vectors: the means, and sums of squares.
        gram, cross: sums of products of the centred inputs and outputs, in their format.
    """

    vectors: ChunkVectors
    gram: Stripes
    cross: Float[Tensor, "groups rows cols"]

    @classmethod
    def of(
        cls,
        inputs: Float[Tensor, "groups samples cols"],
        outputs: Float[Tensor, "groups samples rows"],
        dense: Float[Tensor, "groups samples rows"] | None = None,
        weight: Float[Tensor, "groups rows cols"] | None = None,
    ) -> ChunkSums | None:
        """Sums over some samples; None where there are none.

        Args:
            inputs, outputs: what is given, and what the layer is to make of it.
            dense: what the dense layer makes of it in all, where `outputs` are a part of that.
            weight: of a layer that makes these outputs of these inputs, but for a bias, where
                there is one: then sum (y - m_y)(x - m_x)^T is its product with the Gram matrix.

        Cost: one product of cols x samples x (cols / 2 + rows), or, with `weight`, of
        cols x samples x cols / 2 and of rows x cols x cols, whichever is less.
        """
        if inputs.shape[1] == 0:
            return None
        (x, x_mean), (y, y_mean) = _centred(inputs), _centred(outputs)
        whole, whole_mean = (y, y_mean) if dense is None else _centred(dense)
        vectors = ChunkVectors(
            samples=x.shape[1],
            inputs=x_mean,
            outputs=y_mean,
            dense=whole_mean,
            energy=widened(y.square().sum(1)),
            dense_energy=widened(whole.square().sum(1)),
        )
        gram = _gram(x)
        if weight is None or x.shape[1] <= x.shape[2]:
            return cls(vectors=vectors, gram=gram, cross=y.mT @ x)
        return cls(vectors=vectors, gram=gram, cross=_product(weight, gram))


def _gram(x: Float[Tensor, "groups samples cols"]) -> Stripes:
    """x^T x."""
    starts = range(0, x.shape[2], _STRIPE)
    return tuple(x[..., at : at + _STRIPE].mT @ x[..., at:] for at in starts)


def _product(
    weight: Float[Tensor, "groups rows cols"], gram: Stripes
) -> Float[Tensor, "groups rows cols"]:
    """The product with a symmetric matrix."""
    product, at = torch.zeros_like(weight), 0
    for stripe in gram:
        stop = at + stripe.shape[1]
        product[..., at:] += weight[..., at:stop] @ stripe
        if stop < weight.shape[2]:
            product[..., at:stop] += weight[..., stop:] @ stripe[..., stop - at :].mT
        at = stop
    return product


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values less their mean, and the mean, (groups, columns).

    In two steps: far from zero a mean in float32 is as coarse as the values are, and a second one
    takes what the first has left.
    """
    first = values.mean(1, keepdim=True)
    centred = values - first
    second = centred.mean(1, keepdim=True)
    return centred.sub_(second), (widened(first) + widened(second)).squeeze(1)


class Statistics:
    """The sums of all chunks, and samples that are kept as they are.

    Memory: groups * cols * (cols / 2 + rows) * 8 bytes, and as many of 4 bytes for each chunk
    that came before its turn.
    """

    def __init__(self) -> None:
        self.gram: Stripes = ()
        self.cross = torch.zeros(())
        self.chunks: list[ChunkVectors] = []
        self.stored: list[tuple[Tensor, Tensor]] = []
        self.waiting: dict[int, ChunkSums | None] = {}
        self.next = 0

    @property
    def samples(self) -> int:
        """How many (x, y) pairs the sums hold."""
        return sum(chunk.samples for chunk in self.chunks)

    def store(
        self,
        inputs: Float[Tensor, "groups samples cols"],
        outputs: Float[Tensor, "groups samples rows"],
    ) -> None:
        """Keeps samples as they are, for the problem's patches."""
        self.stored.append((inputs, outputs))

    def add(
        self,
        inputs: Float[Tensor, "groups samples cols"],
        outputs: Float[Tensor, "groups samples rows"],
        dense: Float[Tensor, "groups samples rows"] | None = None,
    ) -> None:
        """Adds samples as the next chunk; see `ChunkSums.of`."""
        self.include(self.next, ChunkSums.of(inputs, outputs, dense))

    def include(self, number: int, sums: ChunkSums | None) -> None:
        """Adds a chunk's sums, once those of all smaller numbers are there.

        Args:
            number: of the chunk, from 0 on.
            sums: None where the chunk has no samples.
        """
        if number < self.next or number in self.waiting:
            raise ValueError(f"chunk {number} is there already, expected each chunk once")
        self.waiting[number] = sums
        while self.next in self.waiting:
            self._take(self.waiting.pop(self.next))
            self.next += 1

    def _take(self, sums: ChunkSums | None) -> None:
        if sums is None:
            return
        if not self.chunks:
            wide = sums.vectors.energy.dtype
            self.gram = tuple(stripe.to(wide, copy=True) for stripe in sums.gram)
            self.cross = sums.cross.to(wide, copy=True)
        else:
            self._add(sums.gram, sums.cross)
        self.chunks.append(sums.vectors)

    def _add(self, gram: Stripes, cross: Tensor) -> None:
        for mine, more in zip((*self.gram, self.cross), (*gram, cross), strict=True):
            mine += more

    def merge(self, other: Statistics) -> None:
        """Adds another's sums behind these, and its stored samples; the other is used up."""
        self.check_complete()
        other.check_complete()
        self.stored += other.stored
        if not self.chunks:
            self.gram, self.cross = other.gram, other.cross
        elif other.chunks:
            self._add(other.gram, other.cross)
        self.chunks += other.chunks

    def check_complete(self) -> None:
        """Raises where a chunk before others is missing."""
        if self.waiting:
            last = max(self.waiting)
            raise ValueError(f"chunk {self.next} is missing, expected all up to {last}")

    def problem(
        self,
        weight: Float[Tensor, "groups rows cols"],
        *,
        scale: Float[Tensor, "groups rows"] | None = None,
        bias: Float[Tensor, "groups rows"] | None = None,
        fits_bias: bool = True,
    ) -> Problem:
        """Turns the sums into a problem; they stay as they are.

        Args:
            weight: dense weights, before scaling; its dtype is the problem's.
            scale: factor per output row (a following BatchNorm's scale); None = 1.
            bias: the layer's present bias, subtracted from the outputs, so that the problem's
                own bias is the change of it.
            fits_bias: whether a bias may be fitted.

        Memory: groups * cols * (cols + rows) * 4 bytes in float32, which is the problem.
        """
        self.check_complete()
        dtype, n, whole = weight.dtype, self.samples, _Whole.of(self.chunks)
        x, y = whole.inputs, whole.outputs
        if bias is not None:
            y = _Means(y.mean - bias, y.deviations)
        energy = whole.energy
        if not fits_bias:  # about zero: without a bias the weights must explain the means
            energy = energy + n * y.mean.square()
            x, y = x.about_zero(n), y.about_zero(n)
        scale = torch.ones_like(y.mean) if scale is None else scale
        cross = _moments(self.cross, y.deviations, x.deviations, n, scale, dtype)
        return Problem(
            weight=weight * scale.unsqueeze(-1).to(dtype),
            gram=_symmetric_moments(self.gram, x.deviations, n, dtype),
            cross=cross,
            energy=(energy / n * scale.square()).to(dtype),
            variance=whole.variance(n, scale).to(dtype),
            input_mean=x.mean.to(dtype),
            output_mean=(y.mean * scale).to(dtype),
            samples=n,
            fits_bias=fits_bias,
            patches=self._patches(scale, bias),
        )

    def _patches(self, scale: Tensor, bias: Tensor | None) -> Patches | None:
        if not self.stored:
            return None
        inputs, outputs = (torch.cat(parts, 1) for parts in zip(*self.stored, strict=True))
        if bias is not None:
            outputs = outputs - bias.unsqueeze(1)
        return Patches(inputs, outputs * scale.unsqueeze(1).to(outputs))


def merged(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all samples together; those given are used up."""
    whole, *rest = parts
    for part in rest:
        whole.merge(part)
    return whole


@dataclass(frozen=True)
class _Means:
    """The mean of all samples, and how far the chunks' means are from it.

    Attributes:
        mean: (groups, columns).
        deviations: (groups, chunks, columns), times the root of the chunk's number of samples:
            products of these count each sample once.
    """

    mean: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, means: Sequence[Tensor], counts: Tensor) -> _Means:
        stacked, weights = torch.stack(list(means), 1), counts.to(means[0]).view(-1, 1)
        mean = (stacked * weights).sum(1) / weights.sum()
        return cls(mean, (stacked - mean.unsqueeze(1)) * weights.sqrt())

    @property
    def squares(self) -> Tensor:
        """What the chunks' sums of squares, about their own means, lack to those about the mean."""
        return self.deviations.square().sum(1)

    def about_zero(self, samples: int) -> _Means:
        """The same with zero in the mean's place."""
        rest = samples**0.5 * self.mean.unsqueeze(1)
        return _Means(torch.zeros_like(self.mean), torch.cat([self.deviations, rest], 1))


@dataclass(frozen=True)
class _Whole:
    """All chunks together, but for the matrices."""

    inputs: _Means
    outputs: _Means
    dense: _Means
    energy: Tensor
    dense_energy: Tensor

    @classmethod
    def of(cls, chunks: Sequence[ChunkVectors]) -> _Whole:
        counts = torch.tensor([chunk.samples for chunk in chunks])
        inputs = _Means.of([chunk.inputs for chunk in chunks], counts)
        outputs = _Means.of([chunk.outputs for chunk in chunks], counts)
        dense = _Means.of([chunk.dense for chunk in chunks], counts)
        energy = torch.stack([chunk.energy for chunk in chunks]).sum(0)
        dense_energy = torch.stack([chunk.dense_energy for chunk in chunks]).sum(0)
        return cls(inputs, outputs, dense, energy + outputs.squares, dense_energy + dense.squares)

    def variance(self, samples: int, scale: Tensor) -> Float[Tensor, "groups rows"]:
        """See `Problem.variance`; what is left of equal values by rounding counts as nothing."""
        variance = self.dense_energy / samples * scale.square()
        square = self.dense.mean.square() * scale.square()
        return variance if variance.sum() > _CONSTANT * square.sum() else variance + square


def _moments(
    sums: Float[Tensor, "groups rows cols"],
    left: Float[Tensor, "groups chunks rows"],
    right: Float[Tensor, "groups chunks cols"],
    count: int,
    scale: Float[Tensor, "groups rows"],
    dtype: torch.dtype,
) -> Float[Tensor, "groups rows cols"]:
    """Sums and the products of the chunks' means, over a count, times a scale.

    Some rows at a time, so that no second matrix of float64 is held.
    """
    moments = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    for at in range(0, sums.shape[1], _ROWS):
        rows = slice(at, at + _ROWS)
        part = torch.baddbmm(sums[:, rows], left[:, :, rows].mT, right)
        moments[:, rows] = part.mul_(scale[:, rows].unsqueeze(-1) / count)
    return moments


def _symmetric_moments(
    sums: Stripes,
    factor: Float[Tensor, "groups chunks cols"],
    count: int,
    dtype: torch.dtype,
) -> Float[Tensor, "groups cols cols"]:
    """The same for a Gram matrix, the whole of it.

    Products of floats are symmetric only nearly: in the squares on the diagonal the mean with the
    transpose is taken.
    """
    groups, _, columns = sums[0].shape
    moments = torch.empty((groups, columns, columns), dtype=dtype, device=sums[0].device)
    for stripe in sums:
        first = columns - stripe.shape[2]
        for row in range(0, stripe.shape[1], _ROWS):
            some = stripe[:, row : row + _ROWS, row:]
            rest = slice(first + row, None)
            rows = slice(rest.start, rest.start + some.shape[1])
            part = torch.baddbmm(some, factor[:, :, rows].mT, factor[:, :, rest]).div_(count)
            square = part[:, :, : part.shape[1]]
            square.copy_((square + square.mT).div_(2))
            moments[:, rows, rest] = part
            moments[:, rest, rows] = part.mT
    return moments
