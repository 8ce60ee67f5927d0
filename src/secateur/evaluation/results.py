"""What an evaluation found, in figures, in words and in tables; and what a loss is counted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from secateur.support.serialization import demand
from secateur.support.tables import Cell, Column, Table
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a network loses, and how that is told.

    Attributes:
        name: in reports.
        of: what it is lost of.
        unit: that it is counted in, such as "point"; empty = the measure's own.
        digits: after the point.
        counts_answers: whether it is a share of answers, of which one at least may be lost.
    """

    name: str
    of: str
    unit: str = "point"
    digits: int = 2
    counts_answers: bool = True

    @property
    def heading(self) -> str:
        """Of a column of losses."""
        return f"{self.unit}s lost" if self.unit else f"{self.name} lost"

    def amount(self, limit: float) -> str:
        """So much of it, such as "2 points of top-1"."""
        units = counted(limit, self.unit) if self.unit else f"{limit:g}"
        return f"{units} of {self.of}"

    def figure(self, amount: float, error: float | None) -> str:
        """A loss with its standard error, without its unit; no sign where it comes to zero."""
        deviation = "" if error is None else f" ± {error:.{self.digits}f}"
        return f"{round(amount, self.digits) + 0.0:.{self.digits}f}{deviation}"

    def with_unit(self, amount: float, error: float | None) -> str:
        """The same with its unit, such as "1.50 ± 0.90 points"."""
        units = f" {self.unit}s" if self.unit else f" of {self.of}"
        of = f" of {self.of}" if self.unit and self.unit != "point" else ""
        return f"{self.figure(amount, error)}{units}{of}"

    def lost(self, amount: float, error: float | None) -> str:
        """What was lost or, where it is negative, gained."""
        what = "gained" if round(amount, self.digits) < 0 else "lost"
        return f"{self.with_unit(abs(amount), error)} {what}"


TOP1 = Measure(name="top-1", of="top-1")
AGREEMENT = Measure(name="disagreement", of="agreement")
TOKEN_TOP1 = Measure(name="top-1 per token", of="top-1 per token")
TOKEN_AGREEMENT = Measure(name="disagreement per token", of="agreement per token")
COSINE = Measure(name="cosine", of="mean cosine", unit="hundredth", counts_answers=False)
METRIC = Measure(name="metric", of="the metric", unit="", digits=4, counts_answers=False)
MEASURES = {of.name: of for of in (TOP1, AGREEMENT, TOKEN_TOP1, TOKEN_AGREEMENT, COSINE, METRIC)}


@dataclass(frozen=True)
class Loss:
    """How much a network has lost, in the measure's unit.

    Attributes:
        measure: what is counted.
        amount: below 0 where it has gained.
        error: standard error of it; None = not known.
    """

    measure: Measure
    amount: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good a network is on some images or other samples, alone and against a reference network.

    What is known depends on what it is judged by (`secateur.core.outputs.judge_of`): of class
    scores top-1, agreement and KL; of scores at each position the same per token, and perplexity;
    of embeddings the cosine; of other values the output error. All else is None.

    Attributes:
        images: number of images, or of other samples; 0 where only a metric was measured.
        tokens: number of positions that were compared, of scores at each position.
        top1: percentage of images (tokens) whose label has the highest score; None without labels.
        standard_error: standard error of top1, in points. Tokens of one sample go together.
        drop: top1 of the reference minus this one, in points; None without labels or reference.
        drop_error: standard error of the drop, in points, paired on the same images.
        p_value: probability of a drop or gain at least as large if both networks were equally
            good (McNemar's test, exact, two-sided); None of tokens, which depend on each other.
        perplexity: exp of the mean negative log-likelihood of the tokens' labels.
        agreement: percentage of images (tokens) whose highest score is of the same class as in
            the reference.
        agreement_error: standard error of the agreement of tokens, in points.
        kl: mean KL(reference || this) of the softmax outputs, in nats; if a network ends in a
            softmax, of its outputs themselves.
        cosine: mean cosine of the angle between an embedding and the reference's.
        cosine_error: standard error of the cosine.
        output_error: of other values: mean squared difference from the reference's output / its
            variance, each channel by its own (see `secateur.core.distance`).
        metric: what the user's own function says of the network.
        metric_drop: the dense network's metric minus this one.
        noun: what a sample is called.
    """

    images: int
    tokens: int | None = None
    top1: float | None = None
    standard_error: float | None = None
    drop: float | None = None
    drop_error: float | None = None
    p_value: float | None = None
    perplexity: float | None = None
    agreement: float | None = None
    agreement_error: float | None = None
    kl: float | None = None
    cosine: float | None = None
    cosine_error: float | None = None
    output_error: float | None = None
    metric: float | None = None
    metric_drop: float | None = None
    noun: str = field(default="image", compare=False)

    def __post_init__(self) -> None:
        pairs = (
            ("top1", "standard_error"),
            ("drop", "drop_error"),
            ("agreement", "kl"),
            ("cosine", "cosine_error"),
        )
        for one, other in pairs:
            both = (getattr(self, one) is None) == (getattr(self, other) is None)
            demand(both, f"{one} is there without {other}, or the other way round")

    @property
    def lost(self) -> Loss | None:
        """What was lost in the measure that counts most; None where nothing has a unit.

        The metric before top-1, top-1 before agreement.
        """
        per_token = self.tokens is not None
        if self.metric_drop is not None:
            return Loss(METRIC, self.metric_drop, None)
        if self.drop is not None:
            return Loss(TOKEN_TOP1 if per_token else TOP1, self.drop, self.drop_error)
        if self.agreement is not None:
            share, error = 1 - self.agreement / 100, self.agreement_error
            if not per_token:
                error = 100 * (share * (1 - share) / self.images) ** 0.5
            return Loss(TOKEN_AGREEMENT if per_token else AGREEMENT, 100 * share, error)
        if self.cosine is not None and self.cosine_error is not None:
            return Loss(COSINE, 100 * (1 - self.cosine), 100 * self.cosine_error)
        return None

    @property
    def is_compared(self) -> bool:
        """Whether the outputs were compared with the reference's."""
        return any(of is not None for of in (self.agreement, self.cosine, self.output_error))

    @property
    def accuracy_text(self) -> str:
        """Top-1 with its standard error."""
        per_token = "" if self.tokens is None else " per token"
        return f"{self.top1:.2f} % ± {self.standard_error:.2f}{per_token}"

    @property
    def lost_text(self) -> str:
        """Points lost, or gained."""
        return TOP1.lost(self.drop or 0.0, self.drop_error)

    @property
    def metric_text(self) -> str:
        """The metric, and what was lost of it."""
        lost = "" if self.metric_drop is None else f", {METRIC.lost(self.metric_drop, None)}"
        return f"metric {self.metric:.4f}{lost}"

    @property
    def difference_text(self) -> str:
        """The difference from the reference's outputs, for which no labels are needed."""
        if self.output_error is not None:
            return f"{self.error_text} (no table of scores: agreement does not apply)"
        if self.cosine is not None:
            return f"mean cosine with dense {self.cosine:.4f}"
        per_token = "" if self.tokens is None else " per token"
        return f"agreement with dense {self.agreement:.2f} %{per_token}, KL {self.kl:.4f} nats"

    @property
    def error_text(self) -> str:
        """The difference from the reference's output, if it is neither scores nor embeddings."""
        return f"output error {percent_text(self.output_error or 0.0)} of the variance"

    @property
    def on_text(self) -> str:
        """On how many images; empty where there were none."""
        if not self.images:
            return ""
        tokens = "" if self.tokens is None else f" with {counted(self.tokens, 'token')}"
        return f" on {counted(self.images, self.noun)}{tokens}"

    def __str__(self) -> str:
        parts = []
        if self.metric is not None:
            parts.append(self.metric_text)
        if self.top1 is not None:
            parts.append(f"top-1 {self.accuracy_text}")
        if self.drop is not None:
            parts.append(self.lost_text)
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.2f}")
        if self.is_compared:
            parts.append(self.difference_text)
        return ", ".join(parts) + self.on_text


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
    Column("tokens", "{:,}"),
    Column("metric", "{:.4f}"),
    Column("metric lost", "{:.4f}"),
    Column("top-1", "{:.2f} ± {:.2f}", unit="%"),
    Column("points lost", "{:.2f} ± {:.2f}"),
    Column("perplexity", "{:.2f}"),
    Column("agreement", "{:.2f}", unit="%"),
    Column("KL", "{:.4f}", unit="nats"),
    Column("cosine", "{:.4f} ± {:.4f}"),
    Column("output error", "{}", unit="% of variance"),
)


def evaluation_cells(of: Evaluation) -> tuple[Cell, ...]:
    """What is known of a network, for the columns after its name."""
    error = of.output_error
    return (
        of.images or None,
        of.tokens,
        of.metric,
        None if of.metric_drop is None else round(of.metric_drop, METRIC.digits) + 0.0,
        _with_error(of.top1, of.standard_error),
        _with_error(of.drop, of.drop_error),
        of.perplexity,
        of.agreement,
        of.kl,
        _with_error(of.cosine, of.cosine_error, 4),
        None if error is None else percent_text(error).removesuffix(" %"),
    )


def _with_error(value: float | None, error: float | None, digits: int = 2) -> Cell:
    """A figure with its standard error, and without a sign where it comes to zero."""
    if value is None:
        return None
    value = round(value, digits) + 0.0
    return f"{value:.{digits}f}" if error is None else (value, error)


def percent_text(share: float) -> str:
    """A share in percent with two digits that count, never as a power of ten above 1 %."""
    percent = float(f"{100 * share:.2g}")
    return f"{percent:,.0f} %" if percent >= 10 else f"{percent:.2g} %"


def verdict_lines(results: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """Each network by its name, and how the first differs from the second, if there is one."""
    name, first = results[0]
    lines = [
        f"{file}: top-1 {of.accuracy_text}{_perplexity(of)}{of.on_text}"
        for file, of in results
        if of.top1 is not None
    ]
    for other, _ in results[1:]:
        if first.drop is not None:
            lines.append(_drop_line(name, other, first))
        lines.append(_difference_line(name, other, first))
    return lines


def _perplexity(of: Evaluation) -> str:
    return "" if of.perplexity is None else f", perplexity {of.perplexity:.2f},"


def _drop_line(name: str, other: str, first: Evaluation) -> str:
    drop = first.drop or 0.0
    verb = "gains" if round(drop, 2) < 0 else "loses"
    how = "paired; tokens of one sample go together"
    if first.p_value is not None:
        how = f"paired; exact McNemar test: p = {first.p_value:.2g}"
    return f"{name} {verb} {abs(drop):.2f} ± {first.drop_error:.2f} points against {other} ({how})"


def _difference_line(name: str, other: str, first: Evaluation) -> str:
    if first.output_error is not None:
        return (
            f"{name} against {other}: {first.error_text}{first.on_text} "
            "(no table of scores: agreement does not apply)"
        )
    if first.cosine is not None:
        error = f"{first.cosine:.4f} ± {first.cosine_error:.4f}"
        return f"{name} against {other}: mean cosine {error}{first.on_text}"
    what, count = (first.noun, first.images) if first.tokens is None else ("token", first.tokens)
    same = f"the same answer for {first.agreement:.2f} % of {counted(count, what)}"
    return f"{same}, KL({other} || {name}) {first.kl:.4f} nats"
