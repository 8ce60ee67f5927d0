"""Accuracy: top-1 with its uncertainty and, without labels, agreement and KL divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.distance import as_scores, has_one_answer, is_scores, value_error
from secateur.core.precision import widened
from secateur.errors import DataError, ModelError
from secateur.support.serialization import demand
from secateur.support.tables import Cell, Column, Table
from secateur.support.wording import counted

_ROWS = 4096  # of scores that are compared at once, in float64


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network's accuracy on some images, alone and against a reference network.

    Attributes:
        images: number of images.
        top1: percentage of images whose label has the highest score; None without labels.
        standard_error: standard error of top1, in points (binomial).
        drop: top1 of the reference minus this one, in points; None without labels or reference.
        drop_error: standard error of the drop, in points, paired on the same images.
        p_value: probability of a drop or gain at least as large if both networks were equally
            good (McNemar's test, exact, two-sided).
        agreement: percentage of images whose highest score is of the same class as in the
            reference.
        kl: mean KL(reference || this) of the softmax outputs, in nats; if a network ends in a
            softmax, of its outputs themselves.
        output_error: for an output that is not (batch, classes) scores: mean squared difference
            from the reference's first output / its variance, each channel by its own (see
            `secateur.core.distance`). Agreement and KL are then None.
    """

    images: int
    top1: float | None = None
    standard_error: float | None = None
    drop: float | None = None
    drop_error: float | None = None
    p_value: float | None = None
    agreement: float | None = None
    kl: float | None = None
    output_error: float | None = None

    def __post_init__(self) -> None:
        pairs = (("top1", "standard_error"), ("drop", "drop_error"), ("agreement", "kl"))
        for one, other in pairs:
            both = (getattr(self, one) is None) == (getattr(self, other) is None)
            demand(both, f"{one} is there without {other}, or the other way round")

    @property
    def accuracy_text(self) -> str:
        """Top-1 with its standard error."""
        return f"{self.top1:.2f} % ± {self.standard_error:.2f}"

    @property
    def lost_text(self) -> str:
        """Points lost, or gained."""
        return lost_text(self.drop or 0.0, self.drop_error)

    @property
    def difference_text(self) -> str:
        """The difference from the reference's outputs, for which no labels are needed."""
        if self.output_error is not None:
            return f"{self.error_text} (no table of scores: agreement does not apply)"
        return f"agreement with dense {self.agreement:.2f} %, KL {self.kl:.4f} nats"

    @property
    def error_text(self) -> str:
        """The difference from the reference's first output, if it is not class scores."""
        return f"output error {percent_text(self.output_error or 0.0)} of the variance"

    def __str__(self) -> str:
        parts = []
        if self.top1 is not None:
            parts.append(f"top-1 {self.accuracy_text}")
        if self.drop is not None:
            parts.append(self.lost_text)
        if self.agreement is not None or self.output_error is not None:
            parts.append(self.difference_text)
        return f"{', '.join(parts)} on {counted(self.images, 'image')}"


def evaluation_table(
    rows: Sequence[tuple[str, Evaluation | None]],
    *,
    name: str,
    what: str = "network",
    title: str = "",
    note: str = "",
) -> Table:
    """A row for each network; what is known of none of them has no column.

    Args:
        rows: a label and the evaluation that belongs to it; None = not evaluated.
        name, title, note: of the table.
        what: the labels are.
    """
    columns, none = (Column(what), *_COLUMNS), (None,) * len(_COLUMNS)
    cells = tuple((label, *(none if of is None else evaluation_cells(of))) for label, of in rows)
    table = Table(name=name, columns=columns, rows=cells, title=title, note=note)
    return table.without_empty_columns()


_COLUMNS = (
    Column("images", "{:,}"),
    Column("top-1", "{:.2f} ± {:.2f}", unit="%"),
    Column("points lost", "{:.2f} ± {:.2f}"),
    Column("agreement", "{:.2f}", unit="%"),
    Column("KL", "{:.4f}", unit="nats"),
    Column("output error", "{}", unit="% of variance"),
)


def evaluation_cells(of: Evaluation) -> tuple[Cell, ...]:
    """What is known of a network, for the columns after its name."""
    error = of.output_error
    return (
        of.images,
        _with_error(of.top1, of.standard_error),
        _with_error(of.drop, of.drop_error),
        of.agreement,
        of.kl,
        None if error is None else percent_text(error).removesuffix(" %"),
    )


def _with_error(value: float | None, error: float | None) -> Cell:
    """A figure with its standard error, and without a sign where it comes to zero."""
    if value is None:
        return None
    value = round(value, 2) + 0.0
    return f"{value:.2f}" if error is None else (value, error)


def lost_text(drop: float, error: float | None) -> str:
    """Points lost or, where the drop is negative, gained."""
    what = "gained" if round(drop, 2) < 0 else "lost"
    deviation = "" if error is None else f" ± {error:.2f}"
    return f"{abs(drop):.2f}{deviation} points {what}"


def percent_text(share: float) -> str:
    """A share in percent with two digits that count, never as a power of ten above 1 %."""
    percent = float(f"{100 * share:.2g}")
    return f"{percent:,.0f} %" if percent >= 10 else f"{percent:.2g} %"


def verdict_lines(results: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """Each network by its name, and how the first differs from the second, if there is one."""
    name, first = results[0]
    lines = [
        f"{file}: top-1 {of.accuracy_text} on {counted(of.images, 'image')}"
        for file, of in results
        if of.top1 is not None
    ]
    for other, _ in results[1:]:
        if first.drop is not None:
            verb = "gains" if round(first.drop, 2) < 0 else "loses"
            lines.append(
                f"{name} {verb} {abs(first.drop):.2f} ± {first.drop_error:.2f} points against "
                f"{other} (paired; exact McNemar test: p = {first.p_value:.2g})"
            )
        if first.output_error is not None:
            lines.append(
                f"{name} against {other}: {first.error_text} on {counted(first.images, 'image')} "
                "(no table of scores: agreement does not apply)"
            )
            continue
        same = f"the same answer for {first.agreement:.2f} % of {counted(first.images, 'image')}"
        lines.append(f"{same}, KL({other} || {name}) {first.kl:.4f} nats")
    return lines


def compare(
    logits: Float[Tensor, "batch ..."],
    labels: Int[Tensor, " batch"] | None = None,
    reference: Float[Tensor, "batch ..."] | None = None,
) -> Evaluation:
    """`evaluate` on scores, or first outputs of another kind, that are at hand."""
    count = len(logits)
    if labels is not None:
        check_labels(labels, logits)
    if reference is not None and reference.shape != logits.shape:
        raise ModelError(
            f"the outputs have shapes {tuple(logits.shape)} and {tuple(reference.shape)}, expected "
            "the same: compare networks with the same outputs"
        )
    if not is_scores(logits):
        error = None if reference is None else output_error(reference, logits)
        return Evaluation(images=count, output_error=error)
    hits = None if labels is None else logits.argmax(1) == labels.to(logits.device)
    found: dict[str, float] = {}
    if hits is not None:
        share = float(widened(hits).mean())
        found["top1"] = 100 * share
        found["standard_error"] = 100 * math.sqrt(share * (1 - share) / count)
    if reference is not None:
        reference = reference.to(logits.device)
        found["agreement"] = 100 * float(widened(logits.argmax(1) == reference.argmax(1)).mean())
        found["kl"] = kl_divergence(reference, logits)
        if hits is not None and labels is not None:
            lost = widened(reference.argmax(1) == labels.to(logits.device)) - widened(hits)
            found["drop"] = 100 * float(lost.mean())
            found["drop_error"] = 100 * float(lost.std(correction=0)) / math.sqrt(count)
            found["p_value"] = mcnemar(int((lost > 0).sum()), int((lost < 0).sum()))
    return Evaluation(images=count, **found)


def one_answer(dense: Tensor, images: str) -> list[str]:
    """A warning where agreement with the dense network's answers, without labels, means nothing.

    Args:
        dense: the dense network's first output.
        images: what they are called.
    """
    if not has_one_answer(dense):
        return []
    return [
        f"the dense network gives the same answer for all {len(dense)} {images}, so that agreement "
        "tells nothing: judge on images of several classes or with labels, or, where its outputs "
        "are no scores of classes (regression), by their own error"
    ]


def output_error(
    reference: Float[Tensor, "batch ..."], output: Float[Tensor, "batch ..."]
) -> float:
    """Mean squared difference over the reference's variance; see `secateur.core.distance`."""
    return value_error(reference.to(output.device).split(16), output.split(16))


def check_labels(labels: Int[Tensor, " batch"], output: Float[Tensor, "batch ..."]) -> None:
    """Raises where a network has no scores, or a label is no number of one, from 0 on."""
    if not is_scores(output):
        raise ModelError(
            f"the model returns {tuple(output.shape)}, expected scores of shape (batch, classes), "
            "for the images have labels: leave these out to compare outputs with another network's"
        )
    outputs = output.shape[1]
    wrong = labels[(labels < 0) | (labels >= outputs)]
    if len(wrong):
        have = "has a label" if len(wrong) == 1 else "have labels"
        raise DataError(
            f"{len(wrong)} of {counted(len(labels), 'image')} {have} such as {int(wrong[0])} for a "
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
    return max(0.0, sum(_kl_sum(one, other) for one, other in pairs) / len(logits))


def _kl_sum(reference: Tensor, logits: Tensor) -> float:
    p, q = widened(reference).log_softmax(1), widened(logits).log_softmax(1)
    return float((p.exp() * (p - q)).sum())
