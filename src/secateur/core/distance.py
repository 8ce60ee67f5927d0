"""How far a network's outputs are from the dense network's: the one measure of all that judges.

Outputs may hold quantities of different scales side by side, such as boxes in pixels and scores
in 0..1: each has to count by its own variance, or the small ones are lost unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from secateur.core.precision import widened

ENOUGH = 16  # images with one answer, from which on that is no chance
_CONSTANT = 1e-12  # of the largest variance, or of its own square: rounding of float32
_SUM = 1e-3  # how far probabilities may be from 1 in sum, in float16


def is_scores(output: Tensor) -> bool:
    """Whether a network's output is a table of scores (batch, classes), of two classes at least."""
    return output.dim() == 2 and output.shape[1] > 1


def is_probabilities(output: Tensor) -> bool:
    """Whether a table of scores comes from a softmax: nothing below 0, rows that sum to 1."""
    if not is_scores(output) or bool((output < 0).any()):
        return False
    return bool((widened(output).sum(1) - 1).abs().max() <= _SUM)


def has_one_answer(output: Tensor) -> bool:
    """Whether all of many images have the same highest score: then agreement means nothing."""
    if not is_scores(output) or len(output) < ENOUGH:
        return False
    answers = output.argmax(1)
    return bool((answers == answers[0]).all())


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


def relative_error(dense: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Mean squared error relative to the dense outputs' variance; of scores what a softmax sees.

    Not the KL divergence: a network is sure of the images it was trained on, so that KL hangs on
    the few it is not sure of. With squared errors ResNet-56 keeps a point more at 80 % zeros.

    A table where every image has the same highest column holds no scores: see `value_error`.

    Args:
        dense: batches of the dense network's outputs.
        outputs: as many batches of the other's.
    """
    if not is_scores(dense[0]):
        return value_error(dense, outputs)
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
    """Scores less the mean of each image's, which a softmax does not see."""
    scores = widened(scores)
    return (scores - scores.mean(1, keepdim=True)).flatten()


def value_error(dense: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Mean squared error relative to the dense outputs' variance, of values of any kind.

    Taken of all values together, and along each axis but the batch: of each index (a channel, a
    column) relative to its own variance, averaged over the indices. The largest of these counts.

    Args:
        dense: batches of the dense network's outputs.
        outputs: as many batches of the other's.

    Memory: three times one image's output, and a batch, in float64.
    """
    count = sum(map(len, dense))
    mean = _total(widened(batch).sum(0) for batch in dense) / count
    variance = _total((widened(batch) - mean).square().sum(0) for batch in dense) / count
    pairs = zip(dense, outputs, strict=True)
    error = _total((widened(b) - widened(a)).square().sum(0) for a, b in pairs) / count
    smallest = torch.finfo(torch.float32).tiny
    whole = (variance.mean() + mean.var(correction=0)).clamp_min(smallest)
    views = [error.mean() / whole]
    for axis in range(mean.dim()):
        means, variances, errors = (_by_index(v, axis) for v in (mean, variance, error))
        index_variance = variances.mean(1) + means.var(1, correction=0)
        floor = _CONSTANT * torch.maximum(
            index_variance.max(), index_variance + means.square().mean(1)
        )
        index_variance = torch.where(index_variance <= floor, whole, index_variance)
        views.append((errors.mean(1) / index_variance).mean())
    return float(torch.stack(views).max())


def _by_index(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, 0).reshape(values.shape[axis], -1)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)
