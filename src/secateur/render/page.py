"""A report as a page: one self-contained HTML file for people.

The templates are in `templates/`, the charts are in `charts.py`, drawn by `svg.py`. All text is
escaped: names of layers and files are whatever a model file says.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from secateur.evaluation.results import percent_text
from secateur.hardware.latency import Bench
from secateur.render.charts import latency_chart, layer_charts, sensitivity, sweep_charts
from secateur.render.sentences import cards, data_sentence, lede, size_sentence, speed_sentence
from secateur.report.layers import sensitivity_table
from secateur.report.model import Report
from secateur.report.sweep import Sweep
from secateur.support.files import write_file
from secateur.support.serialization import to_plain
from secateur.support.settings import check_arguments
from secateur.support.tables import printable


def save_page(
    report: Report | Sweep, path: str | Path, *, bench: Bench | None = None, overwrite: bool = False
) -> None:
    """Writes a report or a sweep as one HTML file that loads nothing.

    Args:
        report: the report or sweep to show.
        path: the file to write.
        bench: latencies to show with a report; None = none.
        overwrite: whether to replace a file that exists.

    Raises:
        OutputError: the file exists and `overwrite` is not given, or it cannot be written.
    """
    check_arguments(save_page, locals())
    page = sweep_page(report) if isinstance(report, Sweep) else report_page(report, bench)
    write_file(Path(path), page.encode(), overwrite=overwrite)


def report_page(report: Report, bench: Bench | None = None) -> str:
    """A report as a self-contained HTML page; the same report gives the same bytes.

    Args:
        report: the report of `secateur.prune`.
        bench: latencies to show with it (`secateur.Bench`); None = none.
    """
    return render(
        "report.html.j2",
        title="Pruning report",
        versions=report.versions,
        report=report,
        lede=lede(report),
        cards=cards(report),
        charts=layer_charts(report),
        sensitivity=sensitivity(report),
        curves=sensitivity_table(report.layers),
        size_sentence=size_sentence(report),
        speed_sentence=speed_sentence(report),
        data_sentence=data_sentence(report),
        bench=bench,
        latency=None if bench is None else latency_chart(bench),
    )


def sweep_page(sweep: Sweep) -> str:
    """A sweep as a self-contained HTML page; the same sweep gives the same bytes."""
    return render(
        "sweep.html.j2",
        title="Accuracy against sparsity",
        versions=sweep.versions,
        sweep=sweep,
        charts=sweep_charts(sweep),
        data_sentence=data_sentence(sweep),
    )


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
        "error_percent": percent_text,
        "fixed": lambda value, digits: f"{value:.{digits}f}",
        "plain": lambda value: _plain(value),
    }
    return environment


def _plain(value: Any) -> Any:
    text = json.dumps(to_plain(value, "page"), indent=2, ensure_ascii=False)
    return Markup("\n").join(escape(printable(line)) for line in text.splitlines())
