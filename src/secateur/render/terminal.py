"""What people see: tables, and lines about evaluations."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.support.progress import on_terminal

if TYPE_CHECKING:
    from secateur.evaluation.inference import Evaluation
    from secateur.hardware.bench import Bench
    from secateur.hardware.requirements import RuntimeReport
    from secateur.report.comparison import Comparison, Figure
    from secateur.report.model import Inspection, Report
    from secateur.report.plan import Plan
    from secateur.report.sweep import Sweep

_NETWORKS = ("dense", "pruned")
_STEP_COLUMNS = {  # field of Evaluation and its format by heading
    "top-1 %": ("top1", ".2f"),
    "± points": ("standard_error", ".2f"),
    "agreement %": ("agreement", ".2f"),
    "KL nats": ("kl", ".4f"),
}


_NO_LIMIT = 1_000_000  # columns
_OUTPUT_COLUMNS = {"output error": ("output_error", ".2g")}  # where there are no scores


def render_report(report: Report) -> str:
    """The report as plain text, each line as long as it has to be."""
    return _plain(report_view(report))


def render_inspection(inspection: Inspection) -> str:
    """The layer table as plain text, each line as long as it has to be."""
    return _plain(inspection_view(inspection))


def render_plan(plan: Plan) -> str:
    """The plan as plain text, each line as long as it has to be."""
    return _plain(plan_view(plan))


def render_comparison(comparison: Comparison) -> str:
    """Both reports as plain text, each line as long as it has to be."""
    return _plain(comparison_view(comparison))


def render_sweep(sweep: Sweep) -> str:
    """The table of a sweep as plain text, each line as long as it has to be."""
    return _plain(sweep_view(sweep))


def render_bench(bench: Bench) -> str:
    """The table of latencies as plain text, each line as long as it has to be."""
    return _plain(bench_view(bench))


def print_view(view: RenderableType) -> None:
    """Prints on standard output; what is too long for a terminal is folded, never cut."""
    if on_terminal(sys.stdout):
        Console().print(view)
    else:
        print(_plain(view))


def _plain(view: RenderableType) -> str:
    """For files and pipes: nothing is folded, so that names can be searched for and pasted."""
    file = io.StringIO()
    console = Console(file=file, width=_NO_LIMIT, color_system=None, force_terminal=False)
    console.print(view)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))


def new_table(*left: str, right: Sequence[str] = (), last: Sequence[str] = ()) -> Table:
    """Columns of text, of numbers (aligned right), and of text again, in this order."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (*left, *right, *last):
        table.add_column(heading, overflow="fold")  # the default cuts
    for column in table.columns[len(left) : len(left) + len(right)]:
        column.justify = "right"
    return table


def add_row(table: Table, *cells: str) -> None:
    """Adds a row, with the text of its cells as it is."""
    table.add_row(*map(_cell, cells))


def _cell(text: str) -> Text:
    """Text as it is: names may hold what Rich takes for markup, or a terminal for a command."""
    return Text("".join(of if of.isprintable() else ascii(of)[1:-1] for of in text))


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
    parts += _runtime_lines(report.runtimes)
    if report.steps:
        parts += [Text("after each step:"), _step_table(report)]
    for name, facts in report.exports.items():
        shown = ", ".join(f"{key.replace('_', ' ')} {_number(of)}" for key, of in facts.items())
        parts.append(Text(f"{name}: {shown}"))
    return Group(*parts, *(Text(note) for note in (*report.data.notes, *report.notes)))


def _layer_table(report: Report) -> Table:
    numbers = ("weights", "zeros", "error", "damping", "samples")
    table = new_table("layer", "shape", right=numbers, last=("notes",))
    for layer in report.layers:
        add_row(
            table,
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
    judged = any(step.evaluation for step in report.steps)
    columns = _columns(*(of for step in report.steps for of in (step.evaluation, step.calibration)))
    table = new_table("step", right=tuple(columns))
    for step in report.steps:
        found = step.evaluation if judged else step.calibration
        cells = [(getattr(found, name, None), how) for name, how in columns.values()]
        add_row(
            table,
            step.name,
            *("-" if value is None else format(value, how) for value, how in cells),
        )
    table.caption = "on the evaluation images" if judged else "on the calibration images"
    return table


def _columns(*found: Evaluation | None) -> dict[str, tuple[str, str]]:
    """The columns for networks that give scores, or for others."""
    others = any(one is not None and one.output_error is not None for one in found)
    return _OUTPUT_COLUMNS if others else _STEP_COLUMNS


def _dense_lines(report: Report) -> list[Text]:
    by_reason: dict[str, list[str]] = {}
    for layer in report.dense_layers:
        by_reason.setdefault(layer.reason, []).append(layer.name)
    return [_cell(f"dense ({why}): {', '.join(names)}") for why, names in by_reason.items()]


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
    """The drop that was asked for, and every try."""
    search = report.search
    if search is None:
        return []
    tries = [f"{one.sparsity:.2%}: {one.drop:.2f} ± {one.error:.2f}" for one in search.tries]
    return [
        f"{_search_text(report)}, judged on {search.images} {search.judged_on}",
        f"points lost by zeros, in each try: {', '.join(tries)}",
    ]


def _search_text(report: Report) -> str:
    """How many zeros were found to stay within the drop that was asked for."""
    search, wanted = report.search, report.requested["target"]["value"]
    if search is None:
        return ""
    measure = "agreement" if search.measure == "disagreement" else search.measure
    return (
        f"the most zeros in {_count(len(search.tries), 'tries', 'try')} that lose at most "
        f"{_count(wanted, 'points', 'point')} of {measure}"
    )


def _count(number: float, many: str, one: str) -> str:
    return f"{number:g} {one if number == 1 else many}"


def result_line(report: Report) -> str:
    """The outcome in one line, for pipes and logs."""
    parts = [f"{report.sparsity:.2%} of the prunable weights are zero"]
    parts.append(_left(report.macs_fraction, report.bytes_fraction))
    if report.synthetic:
        parts.append(f"calibrated on synthetic images ({report.synthetic})")
    search = report.search
    if search is not None:
        parts.append(_search_text(report))
    if "pruned" in report.evaluation:
        parts.append(evaluation_text(report.evaluation["pruned"]))
    elif search is not None:
        lost = lost_text(search.drop, search.error)
        parts.append(f"{lost} on {search.images} {search.judged_on}")
    elif report.calibration is not None:
        parts.append(
            f"{_label_free(report.calibration)} on the {report.data.images} calibration "
            f"image{'s' * (report.data.images > 1)} that the layers were fitted to (optimistic)"
        )
    for name, found in _files(report):
        if found.output_error is not None:
            judged = output_error_text(found)
        else:
            judged = (
                f"agreement {found.agreement:.2f} %" if found.top1 is None else top1_text(found)
            )
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
        lines.append(f"pruned: {evaluation_text(pruned)}")
    return lines + [f"{name}: {evaluation_text(found)}" for name, found in _files(report)]


def _files(report: Report) -> list[tuple[str, Evaluation]]:
    """What was judged beyond the dense and the pruned network: INT8 and OpenVINO files."""
    return [(name, of) for name, of in report.evaluation.items() if name not in _NETWORKS]


def evaluation_text(found: Evaluation) -> str:
    """What is known of an evaluation, in one line."""
    parts = []
    if found.top1 is not None:
        parts.append(f"top-1 {top1_text(found)}")
    if found.drop is not None:
        parts.append(lost_text(found.drop, found.drop_error))
    if found.agreement is not None or found.output_error is not None:
        parts.append(_label_free(found))
    return f"{', '.join(parts)} on {found.images} images"


def lost_text(drop: float, error: float | None) -> str:
    """Points lost or, where the drop is negative, gained."""
    what = "gained" if round(drop, 2) < 0 else "lost"
    spread = "" if error is None else f" ± {error:.2f}"
    return f"{abs(drop):.2f}{spread} points {what}"


def top1_text(found: Evaluation) -> str:
    """Top-1 with its standard error."""
    return f"{found.top1:.2f} % ± {found.standard_error:.2f}"


def output_error_text(found: Evaluation) -> str:
    """How far the first output is from the reference's, where it is no table of scores."""
    return f"output error {percent_text(found.output_error or 0.0)} of the variance"


def percent_text(share: float) -> str:
    """A share in percent with two digits that count, never as a power of ten above 1 %."""
    percent = float(f"{100 * share:.2g}")
    return f"{percent:,.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _label_free(found: Evaluation) -> str:
    if found.output_error is not None:
        return f"{output_error_text(found)} (no table of scores: agreement does not apply)"
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
            verb = "gains" if round(first.drop, 2) < 0 else "loses"
            lines.append(
                f"{name} {verb} {abs(first.drop):.2f} ± {first.drop_error:.2f} points against "
                f"{other} (paired; exact McNemar test: p = {first.p_value:.2g})"
            )
        if first.output_error is not None:
            lines.append(
                f"{name} against {other}: {output_error_text(first)} on {first.images} images "
                "(no table of scores: agreement does not apply)"
            )
            continue
        same = f"the same answer for {first.agreement:.2f} % of {first.images} images"
        lines.append(f"{same}, KL({other} || {name}) {first.kl:.4f} nats")
    return lines


def plan_view(plan: Plan) -> Group:
    """One line per layer that would be pruned, the sums below."""
    table = new_table("layer", "shape", right=("weights", "kept", "zeros", "damage", "MACs left"))
    for layer in plan.layers:
        add_row(
            table,
            layer.name,
            shape_text(layer.shape),
            f"{layer.weights:,}",
            f"{layer.kept:,}",
            f"{layer.sparsity:.1%}",
            "-" if layer.damage is None else f"{layer.damage:.2g}",
            f"{layer.macs:,}",
        )
    weights = sum(layer.weights for layer in plan.layers)
    lines = [
        f"plan for {plan.target} {plan.value:g}: {plan.sparsity:.2%} of {weights:,} "
        f"prunable weights zero; {_left(plan.macs_fraction, plan.bytes_fraction)}"
    ]
    if plan.damage is not None:
        lines.append(
            f"expected damage to the output {plan.damage:.2g} in sum (squared error "
            "relative to the outputs' variance; each layer alone)"
        )
    return Group(table, *(Text(line) for line in (*lines, *plan.notes)))


def inspection_view(inspection: Inspection, *, verbose: bool = False) -> Group:
    """One line per layer: what is pruned, what is protected and what cannot be pruned.

    With `verbose` also which layers each runtime could make use of, and what the others lack.
    """
    from secateur.report.model import status

    headings = ("layer", "kind", "shape", "output")
    table = new_table(*headings, right=("weights", "MACs"), last=("pruned by default",))
    for layer in inspection.layers:
        why = status(layer)
        answer = f"no: {why}" if layer.obstacle else f"no: {why} (include= to prune)"
        add_row(
            table,
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
    parts: list[RenderableType] = [Text(_gain_text(inspection.runtimes)), Text(), table, Text(line)]
    if verbose:
        parts += [Text(), *(_cell(of) for of in _gate_lines(inspection))]
    return Group(*parts)


def _gain_text(runtimes: Sequence[RuntimeReport]) -> str:
    """What zeros are good for on this machine, in a sentence."""
    faster = [f"{of.name} ({_zeros_needed(of.name)})" for of in runtimes if of.passed]
    if faster:
        return f"On this machine zeros may make faster: {', '.join(faster)}. Measure it."
    return (
        "On this machine no runtime is expected to get faster with zeros; what you gain is a "
        "smaller packed file."
    )


def _zeros_needed(runtime: str) -> str:
    from secateur.hardware.requirements import RUNTIMES

    (needs,) = (of.zeros for of in RUNTIMES if of.name == runtime)
    return f"from {needs} zeros on" if needs else "any zeros"


def _gate_lines(inspection: Inspection) -> Iterator[str]:
    """Each runtime, and its layers by what they lack."""
    yield "Which runtimes could leave out the zeros of which layers:"
    for runtime, line in zip(inspection.runtimes, _reasons(inspection.runtimes), strict=True):
        yield line
        layers: dict[str, list[str]] = {}
        for layer, gates in zip(inspection.layers, inspection.gates, strict=True):
            for gate in gates:
                if gate.runtime == runtime.name:
                    lacks = "; ".join(gate.obstacles) or "they fit"
                    layers.setdefault(lacks, []).append(layer.name)
        for lacks, names in layers.items():
            yield f"    {lacks}: {', '.join(names)}"


def comparison_view(comparison: Comparison, names: tuple[str, str] = ("first", "second")) -> Group:
    """What differs in the settings, what came of it, and in which layers."""
    settings = new_table("setting", "A", "B")
    for one in comparison.settings:
        add_row(settings, one.name, _value(one.first), _value(one.second))
    figures = new_table("", right=("A", "B", "B - A"), last=("",))
    for one in comparison.figures:
        add_row(
            figures,
            f"{one.name}, {one.unit}",
            *("-" if of is None else f"{of:.{_digits(one)}f}" for of in (one.first, one.second)),
            _difference(one),
            one.note,
        )
    parts: list[RenderableType] = [
        _cell(f"{of}: {name}") for of, name in zip("AB", names, strict=True)
    ]
    parts += [Text(), settings if comparison.settings else Text("same settings")]
    parts += [Text(), figures, Text()]
    if comparison.layers:
        parts.append(_pair_table(comparison))
    same = comparison.same_layers
    parts.append(Text(f"{same} layer{'s' * (same != 1)} without a difference"))
    return Group(*parts)


def _pair_table(comparison: Comparison) -> Table:
    numbers = ("zeros A", "zeros B", "B - A", "error A", "error B", "B - A")
    table = new_table("layer", right=numbers)
    for pair in comparison.layers:
        add_row(
            table,
            pair.name,
            *(f"{of:.1%}" for of in pair.sparsities),
            f"{100 * pair.difference:+.1f}",
            *(f"{of:.2g}" for of in pair.errors),
            f"{pair.errors[1] - pair.errors[0]:+.2g}",
        )
    return table


def _difference(figure: Figure) -> str:
    if figure.difference is None:
        return "-"
    error = "" if figure.error is None else f" ± {figure.error:.2f}"
    return f"{figure.difference:+.{_digits(figure)}f}{error}"


def _digits(figure: Figure) -> int:
    return {"nats": 4, "s": 1}.get(figure.unit, 2)


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def sweep_view(sweep: Sweep) -> Group:
    """One line per sparsity."""
    judged = any(point.evaluation for point in sweep.points)
    columns = _columns(*(point.calibration for point in sweep.points))
    table = new_table(right=("zeros", *columns, "points lost", "bytes left", "MACs left", "s"))
    for point in sweep.points:
        found = point.evaluation if judged else point.calibration
        cells = [(getattr(found, name, None), how) for name, how in columns.values()]
        lost = getattr(found, "drop", None)
        add_row(
            table,
            f"{point.sparsity:.2%}",
            *("-" if value is None else format(value, how) for value, how in cells),
            "-" if found is None or lost is None else f"{lost:.2f} ± {found.drop_error:.2f}",
            f"{point.bytes_fraction:.1%}",
            f"{point.macs_fraction:.1%}",
            f"{point.seconds:.1f}",
        )
    lines = [Text(f"! {text}", style="yellow") for text in sweep.warnings]
    if sweep.synthetic:
        line = f"calibrated on synthetic images, no real ones: {sweep.synthetic}"
        lines.insert(0, Text(line, style="yellow"))
    on = "evaluation images" if judged else "calibration images (optimistic)"
    last = [Text(f"judged on the {on}; {sweep.seconds['total']:.1f} s in all")]
    if sweep.dense is not None and sweep.dense.top1 is not None:
        last.insert(0, Text(f"dense: top-1 {top1_text(sweep.dense)}"))
    return Group(*lines, table, *last)


def _runtime_lines(runtimes: Sequence[RuntimeReport]) -> list[Text]:
    """What each runtime could gain on the machine that was looked at."""
    if not runtimes:
        return []
    head = "zeros on the machine where the network was pruned:"
    return [Text(line) for line in (head, *_reasons(runtimes))]


def _reasons(runtimes: Sequence[RuntimeReport]) -> list[str]:
    return [f"  {' '.join(filter(None, (of.name, of.version)))}: {of.reason}" for of in runtimes]


def bench_view(bench: Bench) -> Group:
    """One line per file and runtime, the pruned files against the first."""
    table = new_table(
        "runtime",
        "file",
        right=("median ms", "interval", "peak MB"),
        last=("against the first", "zeros left out", "precision"),
    )
    for one in bench.timings:
        add_row(
            table,
            one.runtime,
            bench.label(one),
            f"{one.median:.3g}",
            f"{one.low:.3g} to {one.high:.3g}",
            "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.1f}",
            bench.verdict(one),
            bench.sparse_text(one),
            one.precision,
        )
    warnings = [Text(f"! {text}", style="yellow") for text in bench.warnings]
    notes = [Text(note) for note in bench.notes]
    return Group(*warnings, table, Text(bench_conditions(bench)), *notes)


def bench_conditions(bench: Bench) -> str:
    """How it was measured, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    return (
        f"{bench.rounds} rounds in {bench.processes} processes, the files taking turns; "
        f"{bench.confidence:.0%} intervals; slower or faster in percent of the first file's time; "
        f"{bench.threads} thread{'s' * (bench.threads > 1)}, batch {bench.batch}, "
        f"sparse path from {bench.sparse_rate:.0%} zeros on; {bench.cpu}; {versions}"
    )


def shape_text(shape: tuple[int, ...]) -> str:
    """64x3x7x7; N where a size depends on the batch, - where there is nothing of a shape."""
    return "x".join(str(size) if size else "N" for size in shape) or "-"


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}"
