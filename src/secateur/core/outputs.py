"""What a network's output is, and so what a pruned network is judged by.

Class scores, scores at each position, embeddings, or values of any other kind. A shape does not
tell them apart: rows (batch, width) may be scores or embeddings, and (batch, positions, width)
scores, hidden states or boxes. `judge_of` has the rules; users may say it themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from secateur.core.precision import widened
from secateur.errors import OptionError

Judge = Literal["classes", "tokens", "embeddings", "values"]
JUDGES: tuple[Judge, ...] = get_args(Judge)

ENOUGH = 16  # samples with one answer, from which on that is no chance
_UNIT = 1e-3  # how far probabilities may be from 1 in sum, and rows in length, in float16
_EMBEDDINGS = ("pooler_output", "embeds", "embedding", "embeddings")  # as names end


def judge_of(output: Tensor, *, name: str = "", labels: Tensor | None = None) -> Judge:
    """What an output is judged by where nobody says it; the first rule that fits.

    1. Labels: one for each sample, classes; one for each position, tokens.
    2. Rows (batch, width) of an output whose name ends in "embeds", "embedding", "embeddings" or
       "pooler_output": embeddings.
    3. Rows (batch, classes) of probabilities: classes. Of length 1: embeddings. All others:
       classes.
    4. An output (batch, positions, classes) whose name is "logits" or ends in ".logits": tokens.
    5. Anything else: values.

    Args:
        output: of the dense network, with a row for each sample.
        name: what the network calls it, if it does.
        labels: class numbers, if there are some.
    """
    if labels is not None:
        return "tokens" if labels.dim() == 2 else "classes"
    if is_scores(output):
        if name.endswith(_EMBEDDINGS):
            return "embeddings"
        return "embeddings" if has_unit_rows(output) else "classes"
    is_logits = output.dim() == 3 and name.rpartition(".")[2] == "logits"
    return "tokens" if is_logits else "values"


def is_scores(output: Tensor) -> bool:
    """Whether an output has the shape of class scores: (batch, classes), of two at least."""
    return output.dim() == 2 and output.shape[1] > 1


def is_probabilities(output: Tensor) -> bool:
    """Whether a table of scores comes from a softmax: nothing below 0, rows that sum to 1."""
    if not is_scores(output) or bool((output < 0).any()):
        return False
    return bool((widened(output).sum(1) - 1).abs().max() <= _UNIT)


def has_unit_rows(output: Tensor) -> bool:
    """Whether rows (batch, width) were divided by their lengths, and are no probabilities."""
    if not is_scores(output) or not len(output) or is_probabilities(output):
        return False
    return bool((widened(output).square().sum(1).sqrt() - 1).abs().max() <= _UNIT)


def has_one_answer(output: Tensor) -> bool:
    """Whether all of many samples have the same highest score: then agreement means nothing."""
    if not is_scores(output) or len(output) < ENOUGH:
        return False
    answers = output.argmax(1)
    return bool((answers == answers[0]).all())


def counts_positions(output: Tensor, weight: Tensor | None) -> bool:
    """Whether a weight (samples, positions) is of the positions that an output has.

    The axis behind the samples has to be that of the positions: (samples, positions, ...).
    """
    return weight is not None and output.dim() > 2 and output.shape[:2] == weight.shape


def rows_of(output: Tensor, weight: Tensor | None = None) -> Tensor:
    """The last axis at each position that counts, (rows, width): scores of tokens, say.

    Args:
        output: (samples, ..., width).
        weight: (samples, positions), 0 where a position is left out; None = all count.
    """
    if weight is not None and counts_positions(output, weight):
        output = output[weight.to(output.device) != 0]
    return output.reshape(-1, output.shape[-1])


def of_one_length(
    parts: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Outputs (samples, positions, ...) of batches that have other numbers of positions.

    The shorter ones are filled up with zeros that have no weight. As they are where all have the
    same number.

    Args:
        parts: of each batch.
        weights: (samples, positions) of each batch; None = all positions count.
    """
    if len({part.shape[1:2] for part in parts}) < 2:
        return list(parts), None if weights is None else list(weights)
    if weights is None:
        weights = [torch.ones(part.shape[:2], device=part.device) for part in parts]
    longest = max(part.shape[1] for part in parts)
    filled = [pad(part, [*[0, 0] * (part.dim() - 2), 0, longest - part.shape[1]]) for part in parts]
    return filled, [pad(of, [0, longest - of.shape[1]]) for of in weights]


_DIMENSIONS = {"classes": (2, 2), "tokens": (3, 64), "embeddings": (2, 64), "values": (1, 64)}
_SHAPES = {
    "classes": "scores of shape (batch, classes)",
    "tokens": "scores of shape (batch, positions, classes)",
    "embeddings": "rows of shape (batch, width) or (batch, positions, width)",
}


def check_judge(judge: Judge, shape: Sequence[int]) -> None:
    """Raises OptionError where an output has another shape than what it is to be judged by."""
    least, most = _DIMENSIONS[judge]
    is_wide = judge == "values" or tuple(shape[-1:]) > (1,)
    if least <= len(shape) <= most and is_wide:
        return
    expected = _SHAPES.get(judge, "a row for each sample")
    raise OptionError(
        f"judge is {judge!r}, and the output has shape {tuple(shape)}, expected {expected}: "
        "choose another output or judge"
    )
