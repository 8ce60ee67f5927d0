"""The charts of a page, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.render.sentences import percent
from secateur.render.svg import Line, bars, curves, intervals
from secateur.support.tables import printable
from secateur.support.wording import counted

if TYPE_CHECKING:
    from secateur.evaluation.results import Evaluation
    from secateur.hardware.latency import Bench
    from secateur.report.layers import LayerReport
    from secateur.report.model import Report
    from secateur.report.sweep import Sweep

_NAMED = 5  # curves with a colour and a name


def layer_charts(report: Report) -> list[dict[str, Any]]:
    """Zeros, error, bytes and multiplications of each pruned layer."""
    layers, totals = report.layers, report.totals
    sizes, packed = zip(*map(totals.bytes_shares, layers), strict=True)
    macs, left = zip(*map(totals.macs_shares, layers), strict=True)
    most = max(layers, key=lambda layer: layer.sparsity)
    worst = max(layers, key=lambda layer: layer.relative_error)
    return [
        _chart(
            "zeros",
            "Zeros by layer",
            f"From {percent(min(one.sparsity for one in layers), 1)} to "
            f"{percent(most.sparsity, 1)}, most in {printable(most.name)}.",
            [100 * layer.sparsity for layer in layers],
            ylabel="zeros, %",
        ),
        _chart(
            "error",
            "Error by layer",
            f"Largest, {percent(worst.relative_error, 2)}, in {printable(worst.name)}.",
            [100 * layer.relative_error for layer in layers],
            ylabel="error, % of variance",
        ),
        _chart(
            "size",
            "Share of the network's bytes by layer",
            "Grey: dense. Blue: packed, without zeros.",
            packed,
            ylabel="share of bytes, %",
            before=sizes,
        ),
        _chart(
            "macs",
            "Share of the network's multiplications by layer",
            "Grey: dense. Blue: with nonzero weights only.",
            left,
            ylabel="share of MACs, %",
            before=macs,
        ),
    ]


def _chart(
    name: str,
    title: str,
    caption: str,
    values: Sequence[float],
    *,
    ylabel: str,
    before: Sequence[float] = (),
) -> dict[str, Any]:
    svg = bars(
        f"chart-{name}",
        title,
        f"{caption} The table below has the numbers.",
        values,
        ylabel=ylabel,
        before=before,
    )
    return {"svg": svg, "caption": f"{title}. {caption}"}


def sensitivity(report: Report) -> dict[str, Any] | None:
    """The curves, the most sensitive layers with a name."""
    layers = [layer for layer in report.layers if layer.sensitivity is not None]
    if not layers:
        return None
    level = min(len(_curve(layer).sparsities) for layer in layers) - 1
    ranked = sorted(layers, key=lambda layer: -_curve(layer).loss_increase[level])
    named = {id(layer) for layer in ranked[:_NAMED]}
    lines = [
        Line(
            name=layer.name if id(layer) in named else "",
            x=[100 * s for s in _curve(layer).sparsities],
            y=_curve(layer).loss_increase,
        )
        for layer in [*ranked[:_NAMED], *ranked[_NAMED:]]
    ]
    names = ", ".join(printable(layer.name) for layer in ranked[:_NAMED])
    grey = len(layers) - _NAMED
    others = f" {counted(grey, 'other layer is', 'other layers are')} grey." if grey > 0 else ""
    return {
        "svg": curves(
            "chart-sensitivity",
            "Change of the output when one layer alone is pruned",
            f"The most sensitive layers, most first: {names}. The table below has the numbers.",
            lines,
            xlabel="zeros in this layer alone, %",
            ylabel="squared error relative to variance",
            marks=[mark for layer in ranked[:_NAMED] if (mark := _mark(layer)) is not None],
            logarithmic=True,
        ),
        "caption": "Change of the network's output against the zeros in one layer alone, on a "
        "logarithmic scale; higher is worse. Coloured: the most sensitive layers, at most "
        f"{_NAMED}.{others} A diamond marks the zeros that "
        "such a layer got, if they are in the measured range.",
    }


def _curve(layer: LayerReport) -> Any:
    return layer.sensitivity


def _mark(layer: LayerReport) -> tuple[float, float] | None:
    """Where a layer ended on its curve; None outside of what was measured."""
    x, y = _curve(layer).sparsities, _curve(layer).loss_increase
    if not x[0] <= layer.sparsity <= x[-1] or min(y) <= 0:
        return None
    return 100 * layer.sparsity, float(np.exp(np.interp(layer.sparsity, x, np.log(y))))


def latency_chart(bench: Bench) -> dict[str, Any]:
    """The measured latencies with their intervals."""
    rows = [
        (f"{of.runtime}: {bench.label(of)}", of.low, of.median, of.high) for of in bench.timings
    ]
    svg = intervals(
        "chart-latency",
        "Time for one run",
        "Typical times and their intervals. The table below has the numbers.",
        rows,
        xlabel="milliseconds",
    )
    caption = (
        f"Time of one run: the dot is the median, the bar its {bench.confidence:.0%} interval. The "
        "files took turns; the table says which differences are measurable."
    )
    return {"svg": svg, "caption": caption}


def sweep_charts(sweep: Sweep) -> list[dict[str, Any]]:
    """Accuracy, if the network gives scores, and the bytes and MACs left."""
    x = [100 * point.sparsity for point in sweep.points]
    known = [of for of in sweep.evaluations() if of is not None]
    charts = [_answers(x, known, sweep)]
    size, macs = "bytes, packed", "multiplications, without zeros"
    if sweep.removes_channels:
        size, macs = "bytes", "multiplications"
    left = {
        size: [100 * point.bytes_fraction for point in sweep.points],
        macs: [100 * point.macs_fraction for point in sweep.points],
    }
    title = "Bytes and multiplications left of the dense network"
    svg = curves(
        "chart-left",
        title,
        f"From {left[size][0]:.0f} to {left[size][-1]:.0f} % of the bytes.",
        [Line(name=name, x=x, y=y) for name, y in left.items()],
        xlabel=f"{_gone(sweep)} in pruned layers, %",
        ylabel="left, % of dense",
    )
    charts.append({"svg": svg, "caption": f"{title}."})
    return [chart for chart in charts if chart]


def _gone(sweep: Sweep) -> str:
    """What a sparsity is a share of."""
    return "weights removed" if sweep.removes_channels else "zeros"


@dataclass(frozen=True, kw_only=True)
class _Accuracy:
    """What a sweep's chart shows of the networks' accuracy.

    Attributes:
        name: of what is shown.
        values: of each point.
        ylabel: of the axis.
        errors: standard errors; empty = none are known.
        bars: what they are of.
        dense: the dense network's value, if it is not the best that there can be.
        digits: of the values in words, after the point.
        unit: behind them.
    """

    name: str
    values: Sequence[float | None]
    ylabel: str = "images, %"
    errors: Sequence[float | None] = ()
    bars: str = "the loss against the dense network"
    dense: float | None = None
    digits: int = 1
    unit: str = " %"


def _accuracy(known: Sequence[Evaluation], sweep: Sweep) -> _Accuracy | None:
    """The metric, top-1, the cosine, or agreement: the first that is known of all points."""
    per_token, ylabel = "", "images, %"
    if any(of.tokens is not None for of in known):
        per_token, ylabel = " per token", "tokens, %"
    if all(of.metric is not None for of in known):
        return _Accuracy(
            name="metric",
            values=[of.metric for of in known],
            ylabel="metric",
            dense=sweep.dense and sweep.dense.metric,
            digits=4,
            unit="",
        )
    if sweep.is_judged and all(of.top1 is not None for of in known):
        return _Accuracy(
            name=f"right answers (top-1{per_token})",
            values=[of.top1 for of in known],
            ylabel=ylabel,
            errors=[of.drop_error for of in known],
            dense=sweep.dense and sweep.dense.top1,
        )
    if all(of.cosine is not None for of in known):
        return _Accuracy(
            name="mean cosine with the dense network",
            values=[of.cosine for of in known],
            ylabel="cosine",
            errors=[of.cosine_error for of in known],
            bars="the cosine",
            digits=4,
            unit="",
        )
    if all(of.agreement is not None for of in known):
        return _Accuracy(
            name=f"same answer as the dense network{per_token}",
            values=[of.agreement for of in known],
            ylabel=ylabel,
        )
    return None


def _answers(x: Sequence[float], known: Sequence[Evaluation], sweep: Sweep) -> dict[str, Any]:
    """The accuracy against the zeros, where it has a figure for each point."""
    shown = _accuracy(known, sweep) if len(known) == len(x) else None
    if shown is None:
        return {}
    name, y = shown.name, [of or 0.0 for of in shown.values]
    errors = [of or 0.0 for of in shown.errors]
    lines = [Line(name=f"{name}, pruned", x=x, y=y, error=errors)]
    if shown.dense is not None:
        lines.append(Line(name="dense", x=[x[0], x[-1]], y=[shown.dense] * 2, dashed=True))
    bars = f" Bars: standard error of {shown.bars}." if errors else ""
    where = "evaluation images" if sweep.is_judged else "calibration images, which is optimistic"
    caption = f"{name[0].upper()}{name[1:]} against {_gone(sweep)}, on the {where}.{bars}"
    ends = [f"{y[at]:.{shown.digits}f}" for at in (0, -1)]
    svg = curves(
        "chart-answers",
        name,
        f"From {ends[0]} to {ends[1]}{shown.unit}. The table below has the numbers.",
        lines,
        xlabel=f"{_gone(sweep)} in pruned layers, %",
        ylabel=shown.ylabel,
    )
    return {"svg": svg, "caption": caption}
