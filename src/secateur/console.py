"""What people see on a terminal: progress bars and tables. Quiet when there is no terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from secateur.errors import OptionError

if TYPE_CHECKING:
    from secateur.evaluate import Evaluation
    from secateur.forecast import Forecast
    from secateur.packing import PackedSize
    from secateur.report import Inspection, Report, SearchReport

OnLayer = Callable[[str], Any]

_NETWORKS = ("dense", "pruned")
_STEP_COLUMNS = {  # field of Evaluation and its format by heading
    "top-1 %": ("top1", ".2f"),
    "± points": ("standard_error", ".2f"),
    "agreement %": ("agreement", ".2f"),
    "KL nats": ("kl", ".4f"),
}


@contextmanager
def layer_progress(
    progress: bool | Callable[[int, int, str], Any] | None, total: int
) -> Iterator[OnLayer]:
    """Yields a function to call after each layer: a bar, the caller's own, or nothing."""
    if callable(progress):
        yield _counting(progress, total)
    elif progress is True or (progress is None and sys.stderr.isatty()):
        with _bar() as bar:
            task = bar.add_task("pruning", total=total, layer="")
            yield lambda name: bar.update(task, advance=1, layer=name)
    elif progress in (None, False):
        yield lambda name: None
    else:
        raise OptionError(f"progress is {progress!r}, expected True, False, None or a function")


def _counting(progress: Callable[[int, int, str], Any], total: int) -> OnLayer:
    done = 0

    def on_layer(name: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, name)

    return on_layer


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[layer]}"),
        console=Console(stderr=True),
        transient=True,
    )


def render_report(report: Report) -> str:
    """The report as plain text, 100 columns wide."""
    return _plain(report_view(report))


def render_inspection(inspection: Inspection) -> str:
    """The layer table as plain text, 100 columns wide."""
    return _plain(inspection_view(inspection))


def render_forecast(forecast: Forecast) -> str:
    """The plan as plain text, 100 columns wide."""
    return _plain(forecast_view(forecast))


def _plain(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=100, no_color=True)
    console.print(view)
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]


def report_view(report: Report) -> Group:
    """Warnings first, then the layers, then what stayed dense and what it cost."""
    parts: list[RenderableType] = []
    if report.synthetic:
        line = f"calibrated on synthetic images, no real ones: {report.synthetic}"
        parts.append(Text(line, style="yellow"))
    parts += [Text(f"! {text}", style="yellow") for text in report.warnings]
    parts += [_layer_table(report), *_dense_lines(report), Text(_summary(report))]
    parts += [Text(line) for line in _search_lines(report)]
    parts += [Text(line) for line in _accuracy_lines(report)]
    if report.steps:
        parts += [Text("after each step:"), _step_table(report)]
    for name, facts in report.exports.items():
        shown = ", ".join(f"{key.replace('_', ' ')} {_number(of)}" for key, of in facts.items())
        parts.append(Text(f"{name}: {shown}"))
    return Group(*parts, *(Text(note) for note in (*report.data.notes, *report.notes)))


def _layer_table(report: Report) -> Table:
    table = Table("layer", "shape", box=None, pad_edge=False, header_style="bold")
    for heading in ("weights", "zeros", "error", "damping", "samples"):
        table.add_column(heading, justify="right")
    table.add_column("notes", overflow="fold")
    for layer in report.layers:
        table.add_row(
            layer.name,
            shape_text(layer.shape),
            f"{layer.weights:,}",
            f"{layer.sparsity:.1%}",
            f"{layer.relative_error:.2g}",
            f"{layer.damping:.2g}",
            f"{layer.samples:,}",
            "; ".join(layer.notes),
        )
    return table


def _step_table(report: Report) -> Table:
    """What each step of a recipe led to: on evaluation images where there are any."""
    table = Table("step", box=None, pad_edge=False, header_style="bold")
    judged = any(step.evaluation for step in report.steps)
    for heading in _STEP_COLUMNS:
        table.add_column(heading, justify="right")
    for step in report.steps:
        found = step.evaluation if judged else step.calibration
        cells = [(getattr(found, name, None), how) for name, how in _STEP_COLUMNS.values()]
        table.add_row(
            step.name, *("-" if value is None else format(value, how) for value, how in cells)
        )
    table.caption = "on the evaluation images" if judged else "on the calibration images"
    return table


def _dense_lines(report: Report) -> list[Text]:
    by_reason: dict[str, list[str]] = {}
    for layer in report.dense_layers:
        by_reason.setdefault(layer.reason, []).append(layer.name)
    return [Text(f"dense ({why}): {', '.join(names)}") for why, names in by_reason.items()]


def _summary(report: Report) -> str:
    weights = sum(layer.weights for layer in report.layers)
    return (
        f"{report.sparsity:.2%} of {weights:,} prunable weights are zero "
        f"({report.network_sparsity:.2%} of all parameters); "
        f"{_left(report.macs_fraction, report.bytes_fraction)}; "
        f"{report.data.images} images from {report.data.source}, {report.seconds['total']:.1f} s"
    )


def _left(macs: float, size: float) -> str:
    return f"{macs:.1%} of the MACs and {size:.1%} of the bytes (packed) are left"


def _search_lines(report: Report) -> list[str]:
    """The drop that was asked for, what was reached, and every try."""
    search = report.search
    if search is None:
        return []
    wanted = report.requested["target"]["value"]
    tries = [f"{one.sparsity:.2%}: {one.drop:.2f} ± {one.error:.2f}" for one in search.tries]
    return [
        f"{_lost(search)}, {wanted:g} allowed, on {search.images} {search.judged_on}",
        f"{len(tries)} walks, points lost by zeros: {', '.join(tries)}",
    ]


def _lost(search: SearchReport) -> str:
    return f"{search.drop:.2f} ± {search.error:.2f} points of {search.measure}"


def result_line(report: Report) -> str:
    """The outcome in one line, for pipes and logs."""
    parts = [f"{report.sparsity:.2%} of the prunable weights are zero"]
    parts.append(_left(report.macs_fraction, report.bytes_fraction))
    if report.synthetic:
        parts.append(f"calibrated on synthetic images ({report.synthetic})")
    if report.search is not None:
        parts.append(f"{_lost(report.search)} in {len(report.search.tries)} walks")
    if "pruned" in report.evaluation:
        parts.append(_evaluation_text(report.evaluation["pruned"]))
    for name, found in _files(report):
        judged = f"agreement {found.agreement:.2f} %" if found.top1 is None else top1_text(found)
        parts.append(f"{name} {judged}")
    return ", ".join(parts)


def _accuracy_lines(report: Report) -> list[str]:
    lines = []
    if report.calibration is not None:
        lines.append(
            "on the calibration images (optimistic, the layers were fitted to them): "
            + _label_free(report.calibration)
        )
    dense, pruned = report.evaluation.get("dense"), report.evaluation.get("pruned")
    if dense is not None and dense.top1 is not None:
        lines.append(f"dense:  top-1 {top1_text(dense)} on {dense.images} images")
    if pruned is not None:
        lines.append(f"pruned: {_evaluation_text(pruned)}")
    return lines + [f"{name}: {_evaluation_text(found)}" for name, found in _files(report)]


def _files(report: Report) -> list[tuple[str, Evaluation]]:
    """What was judged beyond the dense and the pruned network: INT8 and OpenVINO files."""
    return [(name, of) for name, of in report.evaluation.items() if name not in _NETWORKS]


def _evaluation_text(found: Evaluation) -> str:
    parts = []
    if found.top1 is not None:
        parts.append(f"top-1 {top1_text(found)}")
    if found.drop is not None:
        parts.append(f"{found.drop:.2f} ± {found.drop_error:.2f} points lost")
    if found.agreement is not None:
        parts.append(_label_free(found))
    return f"{', '.join(parts)} on {found.images} images"


def top1_text(found: Evaluation) -> str:
    """Top-1 with its standard error."""
    return f"{found.top1:.2f} % ± {found.standard_error:.2f}"


def _label_free(found: Evaluation) -> str:
    return f"agreement with dense {found.agreement:.2f} %, KL {found.kl:.4f} nats"


def verdict_lines(found: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """What `secateur evaluate` tells: each network, and how the first differs from the second."""
    name, first = found[0]
    lines = [
        f"{file}: top-1 {top1_text(one)} on {one.images} images"
        for file, one in found
        if one.top1 is not None
    ]
    for other, _ in found[1:]:
        if first.drop is not None:
            lines.append(
                f"{name} loses {first.drop:.2f} ± {first.drop_error:.2f} points against {other} "
                f"(paired; exact McNemar test: p = {first.p_value:.2g})"
            )
        same = f"the same answer for {first.agreement:.2f} % of {first.images} images"
        lines.append(f"{same}, KL({other} || {name}) {first.kl:.4f} nats")
    return lines


def forecast_view(forecast: Forecast) -> Group:
    """One line per layer that would be pruned, the sums below."""
    table = Table("layer", "shape", box=None, pad_edge=False, header_style="bold")
    for heading in ("weights", "kept", "zeros", "damage", "MACs left"):
        table.add_column(heading, justify="right")
    for layer in forecast.layers:
        table.add_row(
            layer.name,
            shape_text(layer.shape),
            f"{layer.weights:,}",
            f"{layer.kept:,}",
            f"{layer.sparsity:.1%}",
            "-" if layer.damage is None else f"{layer.damage:.2g}",
            f"{layer.macs:,}",
        )
    weights = sum(layer.weights for layer in forecast.layers)
    lines = [
        f"plan for {forecast.target} {forecast.value:g}: {forecast.sparsity:.2%} of {weights:,} "
        f"prunable weights zero; {_left(forecast.macs_fraction, forecast.bytes_fraction)}"
    ]
    if forecast.damage is not None:
        lines.append(
            f"expected damage to the output {forecast.damage:.2g} in sum (KL in nats for scores, "
            "else relative squared error; each layer alone)"
        )
    return Group(table, *(Text(line) for line in (*lines, *forecast.notes)))


def inspection_view(inspection: Inspection) -> Group:
    """One line per layer; what is pruned, what is protected and what cannot be pruned."""
    from secateur.report import status

    table = Table("layer", "kind", "shape", "output", box=None, pad_edge=False, header_style="bold")
    table.add_column("weights", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("pruned by default", overflow="fold")
    for layer in inspection.layers:
        why = status(layer)
        answer = f"no: {why}" if layer.obstacle else f"no: {why} (include= to prune)"
        table.add_row(
            layer.name,
            layer.kind,
            shape_text(layer.shape),
            shape_text(layer.output),
            f"{layer.weights:,}",
            f"{layer.macs:,}",
            answer if why else "yes",
        )
    total = sum(layer.weights for layer in inspection.layers)
    share = inspection.prunable_weights / total if total else 0.0
    line = f"{inspection.prunable_weights:,} of {total:,} weights ({share:.1%}) pruned by default"
    return Group(table, Text(line))


def size_view(size: PackedSize) -> Table:
    """What packing saves."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("dense bytes", "packed bytes", "ratio"):
        table.add_column(heading, justify="right")
    table.add_row(f"{size.dense:,}", f"{size.packed:,}", f"{size.ratio:.1%}")
    return table


def shape_text(shape: tuple[int, ...]) -> str:
    """64x3x7x7; N where a size depends on the batch."""
    return "x".join(str(size) if size else "N" for size in shape)


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}"
