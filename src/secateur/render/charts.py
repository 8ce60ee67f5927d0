"""The charts of a page, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.render.sentences import percent
from secateur.render.svg import Line, bars, curves, intervals
from secateur.support.tables import printable
from secateur.support.wording import counted

if TYPE_CHECKING:
    from secateur.evaluation.metrics import Evaluation
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


def _answers(x: Sequence[float], known: Sequence[Evaluation], sweep: Sweep) -> dict[str, Any]:
    """Top-1, or agreement with the dense network where there are no labels."""
    if len(known) < len(x) or any(one.output_error is not None for one in known):
        return {}
    labelled = sweep.is_judged and all(one.top1 is not None for one in known)
    y = [one.top1 if labelled else one.agreement for one in known]
    name = "right answers (top-1)" if labelled else "same answer as the dense network"
    error = [one.drop_error or 0.0 for one in known] if labelled else []
    lines = [Line(name=f"{name}, pruned", x=x, y=[of or 0.0 for of in y], error=error)]
    if labelled and sweep.dense is not None and sweep.dense.top1 is not None:
        lines.append(Line(name="dense", x=[x[0], x[-1]], y=[sweep.dense.top1] * 2, dashed=True))
    bars = " Bars: standard error of the loss against the dense network." if labelled else ""
    where = "evaluation images" if sweep.is_judged else "calibration images, which is optimistic"
    caption = f"{name[0].upper()}{name[1:]} against {_gone(sweep)}, on the {where}.{bars}"
    svg = curves(
        "chart-answers",
        name,
        f"From {y[0]:.1f} to {y[-1]:.1f} %. The table below has the numbers.",
        lines,
        xlabel=f"{_gone(sweep)} in pruned layers, %",
        ylabel="images, %",
    )
    return {"svg": svg, "caption": caption}
