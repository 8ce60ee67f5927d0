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

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
        input_mean, output_mean: means of x and y, zero unless `fits_bias`.
        samples: how many (x, y) pairs the sums hold.
        fits_bias: whether the layer has a place for a bias.
        patches: a part of the samples themselves, where they were stored.
        halves: the problems of one half of the images and of the other, where they were kept
            apart; a fit to one half is judged on the other.
    """

    weight: Float[Tensor, "groups rows cols"]
    gram: Float[Tensor, "groups cols cols"]
    cross: Float[Tensor, "groups rows cols"]
    energy: Float[Tensor, "groups rows"]
    input_mean: Float[Tensor, "groups cols"]
    output_mean: Float[Tensor, "groups rows"]
    samples: int
    fits_bias: bool
    patches: Patches | None = None
    halves: tuple[Problem, Problem] | None = None

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
            output_mean=self.output_mean[:, chosen],
            patches=None,
            halves=None,
        )

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
        """Output error as a fraction of the outputs' own energy (variance when centred)."""
        error, energy = self.loss(weight, bias).sum(), self.energy.sum()
        return float(error / energy.clamp_min(torch.finfo(energy.dtype).tiny))


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


class Statistics:
    """Streaming sums of a layer's samples: float32 products, float64 totals.

    Values are shifted by the mean of the first block before they are multiplied, so that inputs
    far from zero lose no digits when they are centred. The result does not depend on how the
    samples are split into blocks, up to rounding.

    Memory: groups * cols^2 * 8 bytes, plus a float32 block of the same shape during `add`, plus
    the stored samples.
    """

    def __init__(self) -> None:
        self.samples = 0
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
    ) -> None:
        """Adds a block of samples; cost: one product of cols x samples x (cols + rows)."""
        if inputs.shape[1] == 0:
            return
        if self.samples == 0:
            self._start(inputs, outputs)
        x, y = inputs - self.input_shift, outputs - self.output_shift
        self.samples += x.shape[1]
        self.input_sum += x.sum(1)
        self.output_sum += y.sum(1)
        self.gram += x.mT @ x
        self.cross += y.mT @ x
        self.energy += y.square().sum(1)

    def merge(self, other: Statistics) -> None:
        """Adds another's sums, shifted from its origin to this one's, and its stored samples."""
        if self.samples == 0:
            self.__dict__.update(copy.deepcopy(other.__dict__))
            return
        self.stored += other.stored
        if other.samples == 0:
            return
        n = other.samples
        dx = (other.input_shift - self.input_shift).squeeze(1).to(self.gram)
        dy = (other.output_shift - self.output_shift).squeeze(1).to(self.gram)
        sum_x, sum_y = other.input_sum, other.output_sum
        self.gram += other.gram
        self.gram += _outer(sum_x + n * dx, dx) + _outer(dx, sum_x)
        self.cross += other.cross
        self.cross += _outer(sum_y + n * dy, dx) + _outer(dy, sum_x)
        self.energy += other.energy + 2 * dy * sum_y + n * dy.square()
        self.input_sum += sum_x + n * dx
        self.output_sum += sum_y + n * dy
        self.samples += n

    def _start(self, inputs: Tensor, outputs: Tensor) -> None:
        groups, _, cols = inputs.shape
        rows = outputs.shape[-1]
        self.input_shift = inputs.mean(1, keepdim=True)
        self.output_shift = outputs.mean(1, keepdim=True)
        total = torch.float32 if inputs.device.type == "mps" else torch.float64
        zeros = lambda *shape: torch.zeros(shape, dtype=total, device=inputs.device)  # noqa: E731
        self.input_sum, self.output_sum = zeros(groups, cols), zeros(groups, rows)
        self.gram, self.cross = zeros(groups, cols, cols), zeros(groups, rows, cols)
        self.energy = zeros(groups, rows)

    def problem(
        self,
        weight: Float[Tensor, "groups rows cols"],
        *,
        scale: Float[Tensor, "groups rows"] | None = None,
        bias: Float[Tensor, "groups rows"] | None = None,
        fits_bias: bool = True,
    ) -> Problem:
        """Turns the sums into a problem; they are used up (their memory becomes the problem's).

        Args:
            weight: dense weights, before scaling; its dtype is the problem's.
            scale: factor per output row (a following BatchNorm's slope); None = 1.
            bias: the layer's present bias, subtracted from the outputs, so that the problem's
                own bias is the change of it.
            fits_bias: whether a bias may be fitted.
        """
        dtype, n = weight.dtype, self.samples
        mean_x, mean_y = self.input_sum / n, self.output_sum / n
        gram, cross = self.gram.div_(n), self.cross.div_(n)
        energy = self.energy.div_(n).sub_(mean_y.square())
        gram -= _outer(mean_x, mean_x)
        cross -= _outer(mean_y, mean_x)
        mean_x = mean_x + self.input_shift.squeeze(1)
        mean_y = mean_y + self.output_shift.squeeze(1) - (0 if bias is None else bias)
        if not fits_bias:  # put the means back: without a bias the weights must explain them
            gram += _outer(mean_x, mean_x)
            cross += _outer(mean_y, mean_x)
            energy += mean_y.square()
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        if scale is None:
            scale = torch.ones_like(mean_y)
        return Problem(
            weight=weight * scale.unsqueeze(-1).to(dtype),
            gram=symmetric(gram).to(dtype),
            cross=(cross * scale.unsqueeze(-1)).to(dtype),
            energy=(energy * scale.square()).clamp_min(0).to(dtype),
            input_mean=mean_x.to(dtype),
            output_mean=(mean_y * scale).to(dtype),
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
    """The statistics of all samples together; those given stay as they are."""
    if len(parts) == 1:
        return parts[0]
    whole = Statistics()
    for part in parts:
        whole.merge(part)
    return whole


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def symmetric(gram: Float[Tensor, "groups cols cols"]) -> Float[Tensor, "groups cols cols"]:
    """The mean of a matrix and its transpose: products of floats are symmetric only nearly."""
    return (gram + gram.mT).div_(2)
