"""Networks' outputs compared: class scores, scores per token, embeddings, and other values."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from secateur.core.distance import as_scores, value_error
from secateur.core.outputs import (
    Judge,
    check_judge,
    has_one_answer,
    is_scores,
    judge_of,
    rows_of,
)
from secateur.core.precision import widened
from secateur.errors import DataError, ModelError
from secateur.evaluation.results import Evaluation
from secateur.support.wording import counted

_ROWS = 4096  # of scores that are compared at once, in float64
_LARGEST = 700.0  # nats per token, whose exp is still a number


def compare(
    output: Float[Tensor, "batch ..."],
    labels: Int[Tensor, "batch ..."] | None = None,
    reference: Float[Tensor, "batch ..."] | None = None,
    *,
    judge: Judge | None = None,
    weight: Tensor | None = None,
) -> Evaluation:
    """`evaluate` on outputs that are at hand.

    Args:
        output: of the network.
        labels: class numbers, (batch,), or (batch, positions) for scores at each position, where
            negative ones are no labels. Unused where it is judged by embeddings or values.
        reference: the other network's output.
        judge: what it is judged by; None = see `secateur.core.outputs.judge_of`.
        weight: (batch, positions), 0 where a position is left out (padding); of outputs
            (batch, positions, ...). None = all count.

    Raises:
        ModelError: the outputs have different shapes, or labels are of no scores.
        OptionError: an output has another shape than what it is to be judged by.
        DataError: a label is not the number of a class.
    """
    judge = judge or judge_of(output if reference is None else reference, labels=labels)
    if judge not in ("classes", "tokens"):
        labels = None
    if labels is not None:
        check_labels(labels, output, judge)
    check_judge(judge, output.shape)
    if reference is not None and reference.shape != output.shape:
        raise ModelError(
            f"the outputs have shapes {tuple(output.shape)} and {tuple(reference.shape)}, expected "
            "the same: compare networks with the same outputs"
        )
    reference = None if reference is None else reference.to(output.device)
    if judge == "values":
        error = None if reference is None else output_error(reference, output, weight)
        return Evaluation(images=len(output), output_error=error)
    if judge == "embeddings":
        return _compare_embeddings(output, reference, weight)
    if judge == "tokens":
        return _compare_tokens(output, labels, reference, weight)
    return _compare_classes(output, labels, reference)


def _compare_classes(logits: Tensor, labels: Tensor | None, reference: Tensor | None) -> Evaluation:
    count = len(logits)
    hits = None if labels is None else logits.argmax(1) == labels.to(logits.device)
    found: dict[str, Any] = {}
    if hits is not None:
        share = float(widened(hits).mean())
        found["top1"] = 100 * share
        found["standard_error"] = 100 * math.sqrt(share * (1 - share) / count)
    if reference is not None:
        found["agreement"] = 100 * float(widened(logits.argmax(1) == reference.argmax(1)).mean())
        found["kl"] = kl_divergence(reference, logits)
        if hits is not None and labels is not None:
            lost = widened(reference.argmax(1) == labels.to(logits.device)) - widened(hits)
            found["drop"] = 100 * float(lost.mean())
            found["drop_error"] = 100 * float(lost.std(correction=0)) / math.sqrt(count)
            found["p_value"] = mcnemar(int((lost > 0).sum()), int((lost < 0).sum()))
    return Evaluation(images=count, **found)


def _compare_tokens(
    output: Tensor, labels: Tensor | None, reference: Tensor | None, weight: Tensor | None
) -> Evaluation:
    """Scores at each position, one row for each that counts."""
    scores, sample = rows_of(output, weight), sample_of_rows(output, weight)
    answers = scores.argmax(1)
    found: dict[str, Any] = {"images": len(output), "tokens": len(scores)}
    numbers = None
    if labels is not None:
        numbers = rows_of(labels.unsqueeze(-1), weight).squeeze(1).to(output.device)
        labelled = numbers >= 0
        hits = widened(answers == numbers)[labelled]
        share, error = mean_of_samples(hits, sample[labelled])
        found["top1"], found["standard_error"] = 100 * share, 100 * error
        found["perplexity"] = perplexity(scores[labelled], numbers[labelled])
    if reference is not None:
        expected = rows_of(reference, weight)
        before = expected.argmax(1)
        share, error = mean_of_samples(widened(answers == before), sample)
        found["agreement"], found["agreement_error"] = 100 * share, 100 * error
        found["kl"] = kl_divergence(expected, scores)
        if numbers is not None:
            labelled = numbers >= 0
            lost = widened(before == numbers) - widened(answers == numbers)
            share, error = mean_of_samples(lost[labelled], sample[labelled])
            found["drop"], found["drop_error"] = 100 * share, 100 * error
    return Evaluation(**found)


def _compare_embeddings(
    output: Tensor, reference: Tensor | None, weight: Tensor | None
) -> Evaluation:
    """Rows by the cosines of their angles; those that are zero in both are the same."""
    if reference is None:
        return Evaluation(images=len(output))
    rows, expected = widened(rows_of(output, weight)), widened(rows_of(reference, weight))
    zero = ~(rows.any(1) | expected.any(1))
    cosines = torch.where(zero, 1.0, cosine_similarity(rows, expected, dim=1, eps=1e-30))
    cosine, error = mean_of_samples(cosines, sample_of_rows(output, weight))
    return Evaluation(images=len(output), cosine=cosine, cosine_error=error)


def sample_of_rows(output: Tensor, weight: Tensor | None = None) -> Int[Tensor, " rows"]:
    """The number of the sample that each row of `rows_of` belongs to."""
    numbers = torch.arange(len(output), device=output.device)
    numbers = numbers.reshape(-1, *[1] * (output.dim() - 1)).expand(*output.shape[:-1], 1)
    return rows_of(numbers, weight).squeeze(1)


def mean_of_samples(
    values: Float[Tensor, " rows"], sample: Int[Tensor, " rows"]
) -> tuple[float, float]:
    """The mean of rows, and its standard error where rows of one sample go together.

    With r_s the sum over a sample's rows of (value - mean), it is sqrt(sum_s r_s^2) / rows: the
    linearised variance of a ratio of sums over samples. With a row for each sample it is
    sqrt(variance / samples).

    Raises:
        DataError: there are no rows.

    Source: Cochran, Sampling Techniques (1977), section 6.3.
    """
    if not len(values):
        raise DataError(
            "no position counts, expected at least one: check the attention mask and the labels"
        )
    mean = values.mean()
    sums = values.new_zeros(int(sample.max()) + 1).index_add(0, sample, values - mean)
    return float(mean), float(sums.square().sum().sqrt()) / len(values)


def perplexity(scores: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]) -> float:
    """exp of the mean of -log p(label), p the softmax of the scores, or the probabilities given."""
    scores, _ = as_scores(scores, scores)
    parts = zip(scores.split(_ROWS), labels.split(_ROWS), strict=True)
    total = math.fsum(
        float(-widened(one).log_softmax(1).gather(1, own[:, None]).sum()) for one, own in parts
    )
    return math.exp(min(total / len(scores), _LARGEST))


def one_answer(
    dense: Tensor, images: str, *, judge: Judge | None = None, weight: Tensor | None = None
) -> list[str]:
    """A warning where agreement with the dense network's answers, without labels, means nothing.

    Args:
        dense: the dense network's output.
        images: what the samples are called.
        judge, weight: as for `compare`.
    """
    judge = judge or judge_of(dense)
    if judge not in ("classes", "tokens") or not has_one_answer(rows_of(dense, weight)):
        return []
    return [
        f"the dense network gives the same answer for all {len(dense)} {images}, so that agreement "
        f"tells nothing: judge on {images.split()[-1]} of several classes or with labels, or, "
        "where its outputs are no scores of classes (regression), by their own error"
    ]


def output_error(
    reference: Float[Tensor, "batch ..."],
    output: Float[Tensor, "batch ..."],
    weight: Tensor | None = None,
) -> float:
    """Mean squared difference over the reference's variance; see `secateur.core.distance`."""
    weights = None if weight is None else weight.to(output.device).split(16)
    return value_error(reference.to(output.device).split(16), output.split(16), weights)


def check_labels(labels: Tensor, output: Tensor, judge: Judge = "classes") -> None:
    """Raises where a network has no scores, or a label is no number of one, from 0 on.

    Labels of tokens may be negative: then they are none.
    """
    per_token = judge == "tokens"
    if output.dim() < 3 if per_token else not is_scores(output):
        positions = "positions, " if per_token else ""
        raise ModelError(
            f"the model returns {tuple(output.shape)}, expected scores of shape (batch, "
            f"{positions}classes), for the images have labels: leave these out to compare outputs "
            "with another network's"
        )
    if labels.shape != output.shape[:-1]:
        raise DataError(
            f"got labels of shape {tuple(labels.shape)} for outputs of shape "
            f"{tuple(output.shape)}, expected one for each row of scores: check their shape"
        )
    outputs, what = output.shape[-1], "token" if per_token else "image"
    wrong = labels[(labels >= outputs) | (labels < 0) & (not per_token)]
    if len(wrong):
        have = "has a label" if len(wrong) == 1 else "have labels"
        raise DataError(
            f"{len(wrong)} of {counted(labels.numel(), what)} {have} such as {int(wrong[0])} for a "
            f"network with {counted(outputs, 'output')}, expected class numbers from 0 to "
            f"{outputs - 1}: check the number and the order of the classes"
        )


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value of McNemar's test, in [0, 1].

    Of lost + won images that just one of two networks gets right, either is as likely as the
    other where both are equally good: p = min(1, 2 P(X <= min(lost, won))), X binomial with 1/2.

    Args:
        lost: images that the first alone gets right.
        won: images that the second alone gets right.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    count = lost + won
    logs = (
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(min(lost, won) + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(of - count * math.log(2)) for of in logs))


def kl_divergence(
    reference: Float[Tensor, "batch classes"], logits: Float[Tensor, "batch classes"]
) -> float:
    """Mean KL(softmax(reference) || softmax(logits)), in nats; of probabilities as they are."""
    reference, logits = as_scores(reference, logits)
    pairs = zip(reference.split(_ROWS), logits.split(_ROWS), strict=True)
    found = sum(_kl_sum(one, other) for one, other in pairs) / len(logits)
    return found if math.isnan(found) else max(0.0, found)


def _kl_sum(reference: Tensor, logits: Tensor) -> float:
    p, q = widened(reference).log_softmax(1), widened(logits).log_softmax(1)
    return float((p.exp() * (p - q)).sum())
