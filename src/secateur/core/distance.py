"""How far a network's outputs are from the dense network's: the one measure of all that judges.

Outputs may hold quantities of different scales side by side, such as boxes in pixels and scores
in 0..1: each has to count by its own variance, or the small ones are lost unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import normalize

from secateur.core.outputs import (
    Judge,
    counts_positions,
    has_one_answer,
    is_probabilities,
    judge_of,
    of_one_length,
    rows_of,
)
from secateur.core.precision import widened

_CONSTANT = 1e-12  # of the largest variance, or of its own square: rounding of float32
_SUM = 1e-3  # how far probabilities may be from 1 in sum, in float16


def logarithms(probabilities: Tensor) -> Tensor:
    """The scores that a softmax turns into probabilities, up to a shift of each row."""
    return widened(probabilities).clamp_min(torch.finfo(torch.float32).tiny).log()


def as_scores(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two tables of scores, as what a softmax takes; either may hold probabilities.

    Those of an INT8 network are rounded: they need not sum to 1 where the other's do.
    """
    if not (is_probabilities(one) or is_probabilities(other)):
        return one, other
    one, other = (logarithms(table) if _fractions(table) else table for table in (one, other))
    return one, other


def _fractions(output: Tensor) -> bool:
    return bool(((output >= -_SUM) & (output <= 1 + 10 * _SUM)).all())


def relative_error(
    dense: Sequence[Tensor],
    outputs: Sequence[Tensor],
    judge: Judge | None = None,
    weights: Sequence[Tensor] | None = None,
) -> float:
    """Mean squared error relative to the dense outputs' variance, of what the network is judged by.

    - classes, and tokens, whose scores at each position are a row of their own: of what a softmax
      sees (`score_error`). A table where every sample has the same highest column holds no scores:
      then as of values.
    - embeddings: of the rows divided by their lengths (`direction_error`).
    - values: as they are (`value_error`).

    Args:
        dense: batches of the dense network's outputs.
        outputs: as many batches of the other's.
        judge: what they are judged by; None = see `judge_of`.
        weights: (samples, positions) of each batch, 0 where a position is left out; of outputs
            (samples, positions, ...). None = all count.
    """
    judge = judge or judge_of(dense[0])
    if judge == "values":
        return value_error(dense, outputs, weights)
    masks = weights or [None] * len(dense)
    dense, outputs = (
        [rows_of(part, mask) for part, mask in zip(parts, masks, strict=True)]
        for parts in (dense, outputs)
    )
    return (direction_error if judge == "embeddings" else score_error)(dense, outputs)


def score_error(dense: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Mean squared error of scores relative to their variance, less the mean of each row.

    Not the KL divergence: a network is sure of the images it was trained on, so that KL hangs on
    the few it is not sure of. With squared errors ResNet-56 keeps a point more at 80 % zeros.

    Args:
        dense: batches of the dense network's scores, (rows, classes).
        outputs: as many batches of the other's.
    """
    whole = torch.cat(list(dense))
    if has_one_answer(whole):
        return value_error(dense, outputs)
    if is_probabilities(whole):
        dense, outputs = ([logarithms(part) for part in parts] for parts in (dense, outputs))
    expected, scores = (torch.cat([_seen(part) for part in parts]) for parts in (dense, outputs))
    error = (scores - expected).square().mean()
    variance = expected.var(correction=0)
    return float(error / variance.clamp_min(torch.finfo(variance.dtype).tiny))


def _seen(scores: Tensor) -> Tensor:
    """Scores less the mean of each row, which a softmax does not see."""
    scores = widened(scores)
    return (scores - scores.mean(1, keepdim=True)).flatten()


def direction_error(dense: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Mean squared error of embeddings divided by their lengths, relative to their variance.

    Embeddings are compared by their cosines, which see no lengths: of rows u and v of length 1
    |u - v|^2 = 2 - 2 cos(u, v). Relative to the mean of |u - mean u|^2, for embeddings often all
    lie close to one direction, and differ by what is left.

    Args:
        dense: batches of the dense network's embeddings, (rows, width).
        outputs: as many batches of the other's.
    """
    expected, found = (
        torch.cat([normalize(widened(part), dim=1) for part in parts]) for parts in (dense, outputs)
    )
    error = (found - expected).square().sum(1).mean()
    variance = expected.var(0, correction=0).sum()
    return float(error / torch.where(variance <= _CONSTANT, 1.0, variance))


def value_error(
    dense: Sequence[Tensor], outputs: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> float:
    """Mean squared error relative to the dense outputs' variance, of values of any kind.

    Taken of all values together, and along each axis but the batch: of each index (a channel, a
    column) relative to its own variance, averaged over the indices. The largest of these counts.

    Args:
        dense: batches of the dense network's outputs.
        outputs: as many batches of the other's.
        weights: (samples, positions) of each batch, 0 where a position is left out; of outputs
            (samples, positions, ...). None = all count.

    Memory: three times one sample's output, and a batch, in float64.
    """
    dense, even = of_one_length(dense, weights)
    outputs, _ = of_one_length(outputs, weights)
    if even is not None and counts_positions(dense[0], even[0]):
        mean, variance, error, weight = _weighted(dense, outputs, even)
    else:
        count, weight = sum(map(len, dense)), None
        mean = _total(widened(batch).sum(0) for batch in dense) / count
        variance = _total((widened(batch) - mean).square().sum(0) for batch in dense) / count
        pairs = zip(dense, outputs, strict=True)
        error = _total((widened(b) - widened(a)).square().sum(0) for a, b in pairs) / count
    smallest = torch.finfo(torch.float32).tiny
    whole = (_mean(variance, weight) + _variance(mean, weight)).clamp_min(smallest)
    views = [_mean(error, weight) / whole]
    for axis in range(mean.dim()):
        means, variances, errors = (_by_index(v, axis) for v in (mean, variance, error))
        shares = None if weight is None else _by_index(weight, axis)
        index_variance = _mean(variances, shares, 1) + _variance(means, shares, 1)
        floor = _CONSTANT * torch.maximum(
            index_variance.max(), index_variance + _mean(means.square(), shares, 1)
        )
        index_variance = torch.where(index_variance <= floor, whole, index_variance)
        each = _mean(errors, shares, 1) / index_variance
        views.append(_mean(each, None if shares is None else shares.sum(1)))
    return float(torch.stack(views).max())


def _weighted(
    dense: Sequence[Tensor], outputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances and errors over the samples at each position, and how many count there."""
    masks = [
        (of != 0).reshape(*of.shape, *[1] * (part.dim() - 2)).to(part.device)
        for of, part in zip(weights, dense, strict=True)
    ]
    count = _total(widened(mask).sum(0) for mask in masks)
    divisor = count.clamp_min(1)

    def mean_of(values: Iterable[Tensor]) -> Tensor:
        kept = (torch.where(mask, of, 0.0) for of, mask in zip(values, masks, strict=True))
        return _total(of.sum(0) for of in kept) / divisor

    mean = mean_of(widened(batch) for batch in dense)
    variance = mean_of((widened(batch) - mean).square() for batch in dense)
    pairs = zip(dense, outputs, strict=True)
    error = mean_of((widened(b) - widened(a)).square() for a, b in pairs)
    return mean, variance, error, count.expand_as(mean)


def _mean(values: Tensor, weight: Tensor | None, *axis: int) -> Tensor:
    """A mean in which each value counts as often as its weight says."""
    if weight is None:
        return values.mean(*axis)
    return (values * weight).sum(*axis) / weight.sum(*axis).clamp_min(1)


def _variance(values: Tensor, weight: Tensor | None, *axis: int) -> Tensor:
    if weight is None:
        return values.var(*axis, correction=0)
    mean = _mean(values, weight, *axis)
    return _mean((values - (mean.unsqueeze(*axis) if axis else mean)).square(), weight, *axis)


def _by_index(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, 0).reshape(values.shape[axis], -1)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)
