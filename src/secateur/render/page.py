"""A report as a page: one HTML file for people, with everything in it and nothing loaded.

The templates are in `templates/`, the charts are drawn by `secateur.render.charts`. All text is
escaped: names of layers and files are whatever a model file says.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from secateur.hardware.requirements import NO_SPEED_UP, speed_up_expected
from secateur.render.charts import Line, bars, curves, intervals, printable
from secateur.render.terminal import bench_conditions, lost_text, percent_text, shape_text
from secateur.report.model import LayerReport, Report
from secateur.support.serialization import to_plain

if TYPE_CHECKING:
    from secateur.evaluation.inference import Evaluation
    from secateur.hardware.bench import Bench
    from secateur.report.sweep import Sweep

_NAMED = 5  # curves with a colour and a name
_METHODS = {
    "admm": "Which weights of a layer go, and what the others become, was decided together, "
    "step by step (by ADMM, a method for such problems).",
    "least-squares": "In each layer the weights that matter least went, by their size, and the "
    "others were fitted again (by least squares).",
    "magnitude": "In each layer the smallest weights went. The others were not changed.",
    "weight-correction": "In each layer the smallest weights went, and the outputs were scaled and "
    "shifted back to the mean and spread that they had.",
    "bias-correction": "In each layer the smallest weights went, and the mean outputs were "
    "corrected.",
    "adam-calibration": "In each layer the smallest weights went, and the others were trained to "
    "give the layer's old outputs (with Adam).",
}
_ALLOCATIONS = {
    "sensitivity": "How many zeros each layer gets was measured: each layer was pruned alone, and "
    "zeros went where they hurt the network's output least.",
    "normalized-magnitude": "How many zeros each layer gets follows from the size of its weights.",
    "uniform": "Each layer got the same share of zeros.",
}


def report_page(report: Report, bench: Bench | None = None) -> str:
    """A report as a self-contained HTML page; the same report gives the same bytes.

    Args:
        report: what `secateur.prune` has reported.
        bench: latencies to show with it (`secateur.Bench`); None = none.
    """
    totals = _Totals(report)
    return render(
        "report.html.j2",
        title="What pruning did",
        versions=report.versions,
        report=report,
        lede=_lede(report),
        cards=_cards(report),
        done=_done(report),
        evaluation_rows=_by_network(report.evaluation),
        **_steps(report),
        charts=_layer_charts(report, totals),
        rows=[_layer_row(layer, totals) for layer in report.layers],
        sensitivity=_sensitivity(report),
        size_sentence=_size_sentence(report),
        speed_sentence=_speed_sentence(report),
        data_sentence=_data_sentence(report),
        bench=None if bench is None else _latency(bench),
    )


def sweep_page(sweep: Sweep) -> str:
    """A sweep as a self-contained HTML page; the same sweep gives the same bytes."""
    judged = any(point.evaluation for point in sweep.points)
    return render(
        "sweep.html.j2",
        title="How far the network can be pruned",
        versions=sweep.versions,
        sweep=sweep,
        judged=judged,
        rows=[(one, one.evaluation if judged else one.calibration) for one in sweep.points],
        charts=_sweep_charts(sweep, judged),
        data_sentence=_data_sentence(sweep),
    )


def _sweep_charts(sweep: Sweep, judged: bool) -> list[dict[str, Any]]:
    """The answers, where the network gives scores, and what is left of bytes and MACs."""
    x = [100 * point.sparsity for point in sweep.points]
    found = [point.evaluation if judged else point.calibration for point in sweep.points]
    charts = [_answers(x, [one for one in found if one is not None], sweep, judged)]
    left = {
        "bytes, packed": [100 * point.bytes_fraction for point in sweep.points],
        "multiplications, those with zeros left out": [
            100 * point.macs_fraction for point in sweep.points
        ],
    }
    title = "What is left of the dense network's bytes and multiplications"
    svg = curves(
        "chart-left",
        title,
        f"From {left['bytes, packed'][0]:.0f} to {left['bytes, packed'][-1]:.0f} % of the bytes.",
        [Line(name=name, x=x, y=y) for name, y in left.items()],
        xlabel="zeros in pruned layers, %",
        ylabel="left, % of dense",
    )
    charts.append({"svg": svg, "caption": f"{title}."})
    return [chart for chart in charts if chart]


def _answers(
    x: Sequence[float], found: Sequence[Evaluation], sweep: Sweep, judged: bool
) -> dict[str, Any]:
    """Top-1, or agreement with the dense network where there are no labels."""
    if len(found) < len(x) or any(one.output_error is not None for one in found):
        return {}
    labelled = judged and all(one.top1 is not None for one in found)
    y = [one.top1 if labelled else one.agreement for one in found]
    name = "right answers (top-1)" if labelled else "same answer as the dense network"
    error = [one.drop_error or 0.0 for one in found] if labelled else []
    lines = [Line(name=f"{name}, pruned", x=x, y=[of or 0.0 for of in y], error=error)]
    if labelled and sweep.dense is not None and sweep.dense.top1 is not None:
        lines.append(Line(name="dense", x=[x[0], x[-1]], y=[sweep.dense.top1] * 2, dashed=True))
    bars = " Bars: standard error of the loss against the dense network." if labelled else ""
    where = "evaluation images" if judged else "calibration images, which is optimistic"
    caption = f"{name[0].upper()}{name[1:]} against zeros, on the {where}.{bars}"
    svg = curves(
        "chart-answers",
        name,
        f"From {y[0]:.1f} to {y[-1]:.1f} %. The table below has the numbers.",
        lines,
        xlabel="zeros in pruned layers, %",
        ylabel="images, %",
    )
    return {"svg": svg, "caption": caption}


def render(template: str, **values: Any) -> str:
    """A template as text, everything escaped."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secateur.render"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "percent": percent,
        "error_percent": percent_text,
        "fixed": lambda value, digits: f"{value:.{digits}f}",
        "signed": _signed,
        "count": lambda value: f"{value:,}",
        "shape": shape_text,
        "fact": lambda value: f"{value:.2g}" if isinstance(value, float) else f"{value:,}",
        "plain": lambda value: _plain(value),
    }
    return environment


def percent(value: float, digits: int) -> str:
    """A fraction in percent."""
    return f"{100 * value:.{digits}f} %"


def _signed(value: float) -> str:
    """Points with a true minus, and without a sign on zero."""
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")


def _plain(value: Any) -> Any:
    text = json.dumps(to_plain(value, "page"), indent=2, ensure_ascii=False)
    return Markup("\n").join(escape(printable(line)) for line in text.splitlines())


class _Totals:
    """What shares are of: all layers with weights, pruned or not."""

    def __init__(self, report: Report) -> None:
        every = [*report.layers, *report.dense_layers]
        self.bytes = sum(layer.bytes for layer in every) or 1
        self.macs = sum(layer.macs for layer in every) or 1

    def shares(self, layer: LayerReport) -> tuple[float, float, float, float]:
        """Of bytes before and after, of MACs before and after."""
        macs = layer.macs / self.macs
        left = macs * (1 - layer.sparsity)
        return layer.bytes / self.bytes, layer.packed_bytes / self.bytes, macs, left


def _lede(report: Report) -> str:
    many = f"{len(report.layers)} layer{'s' * (len(report.layers) > 1)}"
    fitted = "" if _method(report) == "magnitude" else " The others were fitted again."
    return (
        f"{percent(report.sparsity, 1)} of the weights of {many} of a trained network were set to "
        f"zero.{fitted} The network was not trained again."
    )


def _cards(report: Report) -> list[dict[str, str]]:
    return [
        _card(
            "zeros",
            percent(report.sparsity, 1),
            f"of the weights of pruned layers, {percent(report.network_sparsity, 1)} of all",
        ),
        _accuracy_card(report),
        _card("size, packed", percent(report.bytes_fraction, 1), "of the dense network's bytes"),
        _card(
            "multiplications left",
            percent(report.macs_fraction, 1),
            "if a runtime leaves out those with zeros; most do not",
        ),
        _card("took", _duration(report.seconds.get("total", 0.0)), "for the whole call"),
    ]


def _card(what: str, figure: str, small: str) -> dict[str, str]:
    return {"what": what, "figure": figure, "small": small}


def _accuracy_card(report: Report) -> dict[str, str]:
    found = report.evaluation.get("pruned")
    if found is None:
        return _card("accuracy", "not measured", "no evaluation images were given")
    if found.drop is not None and found.top1 is not None:
        figure = lost_text(found.drop, found.drop_error)
        right = f"{found.top1 + found.drop:.2f} % before, {found.top1:.2f} % now (top-1)"
        return _card("accuracy", figure, f"{right}, on {found.images:,} images")
    if found.output_error is not None:
        figure = percent_text(found.output_error)
        return _card("output error", figure, f"of the variance, on {found.images:,} images")
    agreement = 0.0 if found.agreement is None else found.agreement
    return _card(
        "same answer as before", f"{agreement:.2f} %", f"on {found.images:,} images without labels"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _method(report: Report) -> str:
    return str(_recipe(report, "method").get("name", ""))


def _recipe(report: Report, part: str) -> Mapping[str, Any]:
    recipe = report.requested.get("recipe")
    held = recipe.get(part) if isinstance(recipe, Mapping) else None
    return held if isinstance(held, Mapping) else {}


def _done(report: Report) -> list[str]:
    method, allocation = _method(report), str(_recipe(report, "allocation").get("name", ""))
    return [
        "The network was gone through once, layer by layer, with the images listed below running "
        "through it. No labels and no training were used. "
        + _METHODS.get(method, f"Weights were chosen and fitted by the method {method}."),
        _ALLOCATIONS.get(allocation, f"Zeros were divided among the layers by {allocation}."),
        _asked(report),
    ]


def _asked(report: Report) -> str:
    target = report.requested.get("target")
    if not isinstance(target, Mapping):
        return ""
    meaning = {
        "sparsity": "this share of zeros among the weights of the pruned layers",
        "max_macs": "at most this share of the multiplications left",
        "max_bytes": "at most this share of the bytes left, packed",
        "max_drop": "as many zeros as possible with at most so many points lost",
    }
    name, value = str(target.get("name")), target.get("value")
    return f"Asked for: {name} {value}, {meaning.get(name, 'see the settings')}."


def _by_network(held: Mapping[str, Evaluation]) -> list[tuple[str, Evaluation]]:
    return [(name, held[name]) for name in ("dense", "pruned") if name in held]


def _steps(report: Report) -> dict[str, Any]:
    judged = any(step.evaluation for step in report.steps)
    found = [(step.name, step.evaluation if judged else step.calibration) for step in report.steps]
    on = "the evaluation images" if judged else "the images that the layers were fitted to"
    return {
        "step_rows": [(name, one) for name, one in found if one is not None],
        "step_caption": f"The network after each step of the recipe, on {on}.",
    }


def _layer_charts(report: Report, totals: _Totals) -> list[dict[str, Any]]:
    layers = report.layers
    shares = [totals.shares(layer) for layer in layers]
    sizes, packed, macs, left = ([100 * of[i] for of in shares] for i in range(4))
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
            "Grey: dense. Blue: packed, zeros left out.",
            packed,
            ylabel="share of bytes, %",
            before=sizes,
        ),
        _chart(
            "macs",
            "Share of the network's multiplications by layer",
            "Grey: dense. Blue: those with weights that are not zero.",
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


def _layer_row(layer: LayerReport, totals: _Totals) -> dict[str, Any]:
    size, packed, macs, left = totals.shares(layer)
    fit = [gate.runtime for gate in layer.gates if gate.passed]
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": shape_text(layer.shape),
        "weights": layer.weights,
        "sparsity": layer.sparsity,
        "error": layer.relative_error,
        "bytes": size,
        "bytes_after": packed,
        "macs": macs,
        "macs_after": left,
        "runtimes": ", ".join(fit) or "none",
        "notes": "; ".join(layer.notes),
    }


def _sensitivity(report: Report) -> dict[str, Any] | None:
    """The curves, the most sensitive layers with a name."""
    layers = [layer for layer in report.layers if layer.sensitivity is not None]
    if not layers:
        return None
    level = min(len(_curve(layer).sparsities) for layer in layers) - 1
    ranked = sorted(layers, key=lambda layer: -_curve(layer).damage[level])
    named = {id(layer) for layer in ranked[:_NAMED]}
    lines = [
        Line(
            name=layer.name if id(layer) in named else "",
            x=[100 * s for s in _curve(layer).sparsities],
            y=_curve(layer).damage,
        )
        for layer in [*ranked[:_NAMED], *ranked[_NAMED:]]
    ]
    names = ", ".join(printable(layer.name) for layer in ranked[:_NAMED])
    others = f" The other {len(layers) - _NAMED} layers are grey." if len(layers) > _NAMED else ""
    levels = _curve(layers[0]).sparsities
    return {
        "chart": curves(
            "chart-sensitivity",
            "Damage to the output when one layer alone is pruned",
            f"The most sensitive layers, most first: {names}. The table below has the numbers.",
            lines,
            xlabel="zeros in this layer alone, %",
            ylabel="squared error relative to variance",
            marks=[mark for layer in ranked[:_NAMED] if (mark := _mark(layer)) is not None],
            logarithmic=True,
        ),
        "caption": "Change of the network's output against the zeros in one layer, on a "
        "logarithmic scale: higher is worse. Coloured: the "
        f"{min(_NAMED, len(layers))} most sensitive.{others} A diamond marks how many zeros such "
        "a layer got, where that is among those measured.",
        "levels": levels,
        "rows": [
            {
                "number": number,
                "name": layer.name,
                "damage": [f"{value:.2g}" for value in layer.sensitivity.damage],
                "measured": layer.sensitivity.measured,
            }
            for number, layer in enumerate(report.layers, 1)
            if layer.sensitivity is not None and layer.sensitivity.sparsities == levels
        ],
    }


def _curve(layer: LayerReport) -> Any:
    return layer.sensitivity


def _mark(layer: LayerReport) -> tuple[float, float] | None:
    """Where a layer ended on its curve; None outside of what was measured."""
    x, y = _curve(layer).sparsities, _curve(layer).damage
    if not x[0] <= layer.sparsity <= x[-1] or min(y) <= 0:
        return None
    return 100 * layer.sparsity, float(np.exp(np.interp(layer.sparsity, x, np.log(y))))


def _latency(bench: Bench) -> dict[str, Any]:
    """The measured latencies, as the template shows them."""
    rows = [
        (f"{one.runtime}: {bench.label(one)}", one.low, one.median, one.high)
        for one in bench.timings
    ]
    return {
        "sentence": " ".join(f"{note}." for note in (*bench.warnings, *bench.notes)),
        "confidence": f"{bench.confidence:.0%}",
        "chart": intervals(
            "chart-latency",
            "Time for one run",
            "Typical times and their intervals. The table below has the numbers.",
            rows,
            xlabel="milliseconds",
        ),
        "caption": bench_conditions(bench),
        "rows": [
            {
                "runtime": one.runtime,
                "file": bench.label(one),
                "median": f"{one.median:.3g}",
                "interval": f"{one.low:.3g} to {one.high:.3g}",
                "memory": "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.1f}",
                "verdict": bench.verdict(one),
                "sparse": f"{bench.sparse_text(one)}; {one.precision}",
            }
            for one in bench.timings
        ],
    }


def _size_sentence(report: Report) -> str:
    return (
        "Zeros do not make a model file smaller by themselves: it holds them like other numbers. "
        f"Packed (secateur pack), the network takes about {percent(report.bytes_fraction, 1)} of "
        "the dense one's bytes or less: a bit per weight, and the weights that are not zero."
    )


def _speed_sentence(report: Report) -> str:
    if speed_up_expected(report.runtimes):
        names = ", ".join(one.name for one in report.runtimes if one.passed)
        return f"A speed-up is possible here with {names}. Measure it on your own inputs."
    return (
        f"On this machine: {NO_SPEED_UP}. Most programs that run networks multiply with zeros as "
        "slowly as with other numbers; the table says what each would need."
    )


def _data_sentence(report: Report | Sweep) -> str:
    data = report.data
    many = "" if data.images == 1 else "s"
    real = "" if report.synthetic is None else "synthetic "
    return (
        f"{data.images:,} {real}image{many} of shape {shape_text(data.shape)} from {data.source}. "
        "The network is fitted to images like these: on others it may do worse, which this page "
        "cannot show."
    )
