"""A layer as linear algebra: sums over samples in, a least-squares problem out.

For a layer with weight W (rows = outputs, cols = inputs per output) the calibration loss is

    loss(W) = mean ||y - W x - b||^2 = energy - 2 <W, cross> + <W gram, W>

where x are the inputs the layer will see and y the outputs it should give. A bias that can be
fitted is eliminated by centring x and y (the Frisch-Waugh theorem), which is exact and leaves
methods with weights only. After one pass over the data a layer is the triple
(gram, cross, energy): no images, no framework, no model.

Every tensor has a leading `groups` axis: a grouped convolution is `groups` independent problems
of the same size, an ordinary layer is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.patterns import Pattern
from secateur.core.precision import widest_float


@dataclass(frozen=True)
class Patches:
    """Stored samples of a layer, for methods that train on them instead of on sums.

    Attributes:
        inputs: windows of the layer's input.
        outputs: the outputs they should give, less the present bias, scaled like the weights.
    """

    inputs: Float[Tensor, "groups samples cols"]
    outputs: Float[Tensor, "groups samples rows"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A layer's least-squares problem, with its rows scaled as the network weighs its outputs.

    Attributes:
        weight: dense weights (a following BatchNorm folded in), the point damping pulls to.
        gram: mean of x x^T, centred when `fits_bias`.
        cross: mean of y x^T, centred when `fits_bias`.
        energy: mean of y^2 per row, centred when `fits_bias`.
        variance: of the whole layer's dense outputs per row. Where the problem is that of some
            columns, y is what is left for these; the variance is that of all columns' outputs.
            The mean square of outputs that do not vary.
        input_mean, output_mean: means of x and y, zero unless `fits_bias`.
        samples: how many (x, y) pairs the sums hold.
        fits_bias: whether the layer has a place for a bias.
        patches: a part of the samples themselves, where they were stored.
        halves: the problems of one half of the samples and of the other, where they were kept
            apart; a fit to one half is judged on the other.
        free: where a weight may be other than zero; None = everywhere. The dense network's zeros
            are never filled.
        no_halves: why they cannot be kept apart; empty where they can, or nothing is known.
    """

    weight: Float[Tensor, "groups rows cols"]
    gram: Float[Tensor, "groups cols cols"]
    cross: Float[Tensor, "groups rows cols"]
    energy: Float[Tensor, "groups rows"]
    variance: Float[Tensor, "groups rows"]
    input_mean: Float[Tensor, "groups cols"]
    output_mean: Float[Tensor, "groups rows"]
    samples: int
    fits_bias: bool
    patches: Patches | None = None
    halves: tuple[Problem, Problem] | None = None
    no_halves: str = ""
    free: Bool[Tensor, "groups rows cols"] | None = None

    @property
    def columns(self) -> int:
        """Inputs per output."""
        return self.weight.shape[-1]

    def rows(self, chosen: slice) -> Problem:
        """The problem of some rows; the rest of it is shared, not copied. No patches, no halves."""
        return replace(
            self,
            weight=self.weight[:, chosen],
            cross=self.cross[:, chosen],
            energy=self.energy[:, chosen],
            variance=self.variance[:, chosen],
            output_mean=self.output_mean[:, chosen],
            patches=None,
            halves=None,
            free=None if self.free is None else self.free[:, chosen],
        )

    @cached_property
    def present(self) -> int:
        """How many weights may be other than zero."""
        return self.weight.numel() if self.free is None else int(self.free.sum())

    def mask(
        self, pattern: Pattern, scores: Float[Tensor, "groups rows cols"], kept: int
    ) -> Bool[Tensor, "groups rows cols"]:
        """A pattern's mask of `kept` entries, or of all that may be other than zero if fewer.

        Args:
            pattern: which zeros are allowed.
            scores: what each entry is worth, 0 or more.
            kept: how many are to stay.
        """
        if self.free is None:
            return pattern.mask(scores, kept)
        scores = torch.where(self.free, scores, -1.0)  # less than the least that may stay
        return pattern.mask(scores, min(kept, self.present)) & self.free

    def bias(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """The best change of the bias for given weights: mean(y) - W mean(x); 0 where unfitted."""
        return self.output_mean - torch.einsum("grc,gc->gr", weight, self.input_mean)

    def loss(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"] | None = None,
    ) -> Float[Tensor, "groups rows"]:
        """Mean squared output error per row.

        Args:
            weight: the weights to judge.
            bias: the change of the bias that goes with them; None leaves the bias as it is.
        """
        fit = (weight @ self.gram - 2 * self.cross).mul_(weight).sum(-1) + self.energy
        offset = self.bias(weight) if bias is None else self.bias(weight) - bias
        return fit.clamp_min(0) + offset.square()

    def spread(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """How much wider the wanted outputs spread than those of given weights, per row.

        sqrt(energy / (w G w)): a least-squares fit explains a part of the outputs only, so its
        own outputs spread less, and layer after layer the signal fades (regression dilution).
        One where the weights' outputs are zero.
        """
        found = (weight @ self.gram).mul_(weight).sum(-1)
        return torch.where(found > 0, self.energy / found, 1.0).sqrt()

    def relative_error(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"] | None = None,
    ) -> float:
        """Mean squared output error as a fraction of the variance of the dense outputs."""
        error, variance = self.loss(weight, bias).sum(), self.variance.sum()
        return float(error / variance.clamp_min(torch.finfo(variance.dtype).tiny))


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a method makes of a problem; a failure to converge is a note, not an exception.

    Attributes:
        weight: the new weights, exactly zero where `mask` is False.
        mask: True = kept.
        bias: change of the bias; None when the method leaves biases alone.
        damping: weight of the pull towards the dense weights, relative to the mean of the
            Gram matrix's diagonal; 0 when the method solves nothing.
        notes: what a reader of the report should know.
        before: the solution that this one improved, where there was one.
    """

    weight: Float[Tensor, "groups rows cols"]
    mask: Bool[Tensor, "groups rows cols"]
    bias: Float[Tensor, "groups rows"] | None = None
    damping: float = 0.0
    notes: tuple[str, ...] = ()
    before: Solution | None = None

    def refined(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"] | None,
    ) -> Solution:
        """This solution with other weights on the same mask; it remembers this one."""
        return replace(self, weight=weight, bias=bias, before=self)

    def steps(self) -> Iterator[Solution]:
        """The solutions on the way to this one, the first one first."""
        if self.before is not None:
            yield from self.before.steps()
        yield self


@dataclass(frozen=True)
class Shift:
    """What samples are shifted by before they are multiplied: about their means."""

    inputs: Float[Tensor, "groups 1 cols"]
    outputs: Float[Tensor, "groups 1 rows"]

    @classmethod
    def of(
        cls,
        inputs: Float[Tensor, "groups samples cols"],
        outputs: Float[Tensor, "groups samples rows"],
    ) -> Shift:
        """The means of some samples."""
        return cls(inputs.mean(1, keepdim=True), outputs.mean(1, keepdim=True))


class Statistics:
    """Streaming sums of a layer's samples: float32 products, float64 totals.

    Values are shifted by a mean before they are multiplied, so that inputs far from zero lose no
    digits when they are centred. The result does not depend on how the samples are split into
    blocks, up to rounding.

    Memory: groups * cols * (cols + rows) * 8 bytes, half as much again during `add`, plus the
    stored samples.
    """

    def __init__(self, shift: Shift | None = None) -> None:
        """Without a shift the mean of the first block is taken; sums to be merged need one."""
        self.samples = 0
        self.shift = shift
        self.stored: list[tuple[Tensor, Tensor]] = []

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
        """Adds a block of samples; cost: one product of cols x samples x (cols + rows).

        Args:
            inputs, outputs: what is given, and what the layer is to make of it.
            dense: what the dense layer makes of it in all, where `outputs` are a part of that.
        """
        if inputs.shape[1] == 0:
            return
        if self.samples == 0:
            self._start(inputs, outputs)
        assert self.shift is not None
        x, y = inputs - self.shift.inputs, outputs - self.shift.outputs
        whole = y if dense is None else dense - self.shift.outputs
        self.samples += x.shape[1]
        self.input_sum += x.sum(1)
        self.output_sum += y.sum(1)
        self.energy += y.square().sum(1)
        self.dense_sum += whole.sum(1)
        self.dense_energy += whole.square().sum(1)
        self.gram += x.mT @ x
        self.cross += y.mT @ x

    def merge(self, other: Statistics) -> None:
        """Adds another's sums, which have the same shift, and its stored samples.

        The other one is not to be used after that: the sums may be the same tensors.
        """
        self.stored += other.stored
        if other.samples == 0:
            return
        if self.samples == 0:
            stored = self.stored
            self.__dict__.update(other.__dict__)
            self.stored = stored
            return
        if self.shift is not other.shift:
            raise ValueError("the statistics have different shifts, expected the same one")
        self.samples += other.samples
        for name in _SUMS:
            getattr(self, name).add_(getattr(other, name))

    def _start(self, inputs: Tensor, outputs: Tensor) -> None:
        groups, _, cols = inputs.shape
        rows = outputs.shape[-1]
        self.shift = self.shift or Shift.of(inputs, outputs)
        total = widest_float(inputs.device)
        zeros = lambda *shape: torch.zeros(shape, dtype=total, device=inputs.device)  # noqa: E731
        self.input_sum, self.output_sum = zeros(groups, cols), zeros(groups, rows)
        self.gram, self.cross = zeros(groups, cols, cols), zeros(groups, rows, cols)
        self.energy = zeros(groups, rows)
        self.dense_sum, self.dense_energy = zeros(groups, rows), zeros(groups, rows)

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
            scale: factor per output row (a following BatchNorm's slope); None = 1.
            bias: the layer's present bias, subtracted from the outputs, so that the problem's
                own bias is the change of it.
            fits_bias: whether a bias may be fitted.

        Memory: groups * cols * (cols + rows) * 4 bytes in float32, which is the problem.
        """
        assert self.shift is not None
        dtype, n = weight.dtype, self.samples
        x, y = self.input_sum / n, self.output_sum / n
        energy = self.energy / n - y.square()
        mean_x = x + self.shift.inputs.squeeze(1)
        mean_y = y + self.shift.outputs.squeeze(1) - (0 if bias is None else bias)
        back_x = back_y = None
        if not fits_bias:  # put the means back: without a bias the weights must explain them
            back_x, back_y = (mean_x, mean_x), (mean_y, mean_x)
            energy += mean_y.square()
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        scale = torch.ones_like(mean_y) if scale is None else scale
        return Problem(
            weight=weight * scale.unsqueeze(-1).to(dtype),
            gram=_moments(self.gram, n, dtype, less=(x, x), plus=back_x, symmetric=True),
            cross=_moments(self.cross, n, dtype, less=(y, x), plus=back_y, scale=scale),
            energy=(energy * scale.square()).clamp_min(0).to(dtype),
            variance=self._variance(scale).to(dtype),
            input_mean=mean_x.to(dtype),
            output_mean=(mean_y * scale).to(dtype),
            samples=n,
            fits_bias=fits_bias,
            patches=self._patches(scale, bias),
        )

    def _variance(self, scale: Tensor) -> Float[Tensor, "groups rows"]:
        """See `Problem.variance`; what is left of equal values by rounding counts as nothing."""
        assert self.shift is not None
        mean = self.dense_sum / self.samples
        variance = (self.dense_energy / self.samples - mean.square()).clamp_min(0) * scale.square()
        square = (mean + self.shift.outputs.squeeze(1)).square() * scale.square()
        return variance if variance.sum() > _CONSTANT * square.sum() else variance + square

    def _patches(self, scale: Tensor, bias: Tensor | None) -> Patches | None:
        if not self.stored:
            return None
        inputs, outputs = (torch.cat(parts, 1) for parts in zip(*self.stored, strict=True))
        if bias is not None:
            outputs = outputs - bias.unsqueeze(1)
        return Patches(inputs, outputs * scale.unsqueeze(1).to(outputs))


_SUMS = ("input_sum", "output_sum", "energy", "dense_sum", "dense_energy", "gram", "cross")
_CONSTANT = 1e-12  # variance of outputs that do not vary, relative to their mean square
_ROWS = 128  # of a matrix of sums that are turned into float32 at a time


def merged(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all samples together; those given are used up."""
    whole, *others = parts
    for part in others:
        whole.merge(part)
    return whole


def _moments(
    sums: Float[Tensor, "groups rows cols"],
    count: int,
    dtype: torch.dtype,
    *,
    less: tuple[Tensor, Tensor],
    plus: tuple[Tensor, Tensor] | None = None,
    scale: Tensor | None = None,
    symmetric: bool = False,
) -> Float[Tensor, "groups rows cols"]:
    """Sums over a count, less one outer product, plus another, times a factor per row.

    Some rows at a time, so that no second matrix of float64 is held. Products of floats are
    symmetric only nearly: of those that should be, the mean with the transpose is taken.
    """
    found = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    for at in range(0, sums.shape[1], _ROWS):
        rows = slice(at, at + _ROWS)
        part = sums[:, rows] / count
        if symmetric:
            part.add_(sums[:, :, rows].mT / count).div_(2)
        part -= _outer(less[0][:, rows], less[1])
        if plus is not None:
            part += _outer(plus[0][:, rows], plus[1])
        if scale is not None:
            part *= scale[:, rows].unsqueeze(-1)
        found[:, rows] = part
    return found


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(-1) * right.unsqueeze(-2)
