"""A layer as linear algebra: sums over samples in, a least-squares problem out.

For a layer with weight W (rows = outputs, cols = inputs per output) the calibration loss is

    loss(W) = mean ||y - W x - b||^2 = energy - 2 <W, cross> + <W gram, W>

where x are the inputs the layer will see and y the outputs it should give. A bias that can be
fitted is eliminated by centring x and y (the Frisch-Waugh theorem), which is exact and leaves
methods with weights only. After one pass over the data a layer is the triple
(gram, cross, energy), see `secateur.core.statistics`: no images, no framework, no model.

Every tensor has a leading `groups` axis: a grouped convolution is `groups` independent problems
of the same size, an ordinary layer is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.patterns import Pattern


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
        folds: the problems of one half of the samples and of the other, where they were kept
            apart, for two-fold cross-validation: a fit to one is judged on the other.
        free: where a weight may be other than zero; None = everywhere. The dense network's zeros
            are never filled.
        no_folds: why they cannot be kept apart; empty where they can, or nothing is known.
        damping: what a method has chosen on the folds, which are not there any more; None = they
            are, or there were none.
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
    folds: tuple[Problem, Problem] | None = None
    no_folds: str = ""
    damping: float | None = None
    free: Bool[Tensor, "groups rows cols"] | None = None

    @property
    def columns(self) -> int:
        """Inputs per output."""
        return self.weight.shape[-1]

    def rows(self, chosen: slice) -> Problem:
        """The problem of some rows; the rest of it is shared, not copied. No patches, no folds."""
        return replace(
            self,
            weight=self.weight[:, chosen],
            cross=self.cross[:, chosen],
            energy=self.energy[:, chosen],
            variance=self.variance[:, chosen],
            output_mean=self.output_mean[:, chosen],
            patches=None,
            folds=None,
            free=None if self.free is None else self.free[:, chosen],
        )

    def reproducing(
        self,
        target: Float[Tensor, "groups rows cols"],
        *,
        start: Float[Tensor, "groups rows cols"],
    ) -> Problem:
        """The problem of making what given weights make of the same inputs. No patches, no folds.

        Args:
            target: those weights.
            start: the point that damping pulls to.
        """
        cross = target @ self.gram
        return replace(
            self,
            weight=start,
            cross=cross,
            energy=(cross * target).sum(-1),
            output_mean=torch.einsum("grc,gc->gr", target, self.input_mean),
            patches=None,
            folds=None,
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

    def std_ratio(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """Standard deviation of the wanted outputs over that of given weights' outputs, per row.

        sqrt(energy / (w G w)): a least-squares fit explains a part of the outputs only, so its
        own outputs vary less, and layer after layer the signal fades (regression dilution).
        One where the weights' outputs are zero.
        """
        variance = (weight @ self.gram).mul_(weight).sum(-1)
        return torch.where(variance > 0, self.energy / variance, 1.0).sqrt()

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
        previous: the solution that this one improved, where there was one.
    """

    weight: Float[Tensor, "groups rows cols"]
    mask: Bool[Tensor, "groups rows cols"]
    bias: Float[Tensor, "groups rows"] | None = None
    damping: float = 0.0
    notes: tuple[str, ...] = ()
    previous: Solution | None = None

    def refined(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"] | None,
    ) -> Solution:
        """This solution with other weights on the same mask; it remembers this one."""
        return replace(self, weight=weight, bias=bias, previous=self)

    def stages(self) -> Iterator[Solution]:
        """The solutions on the way to this one, the first one first."""
        if self.previous is not None:
            yield from self.previous.stages()
        yield self
