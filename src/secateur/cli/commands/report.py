"""`secateur report`."""

from __future__ import annotations

import typer

from secateur.cli import options
from secateur.cli.output import file_line
from secateur.hardware.bench import Bench
from secateur.render.terminal import print_view, report_view
from secateur.report.model import Report


def run(asked: options.Report) -> None:
    """Prints a report, or writes it as a page."""
    report = Report.load(asked.file)
    if asked.out is None:
        print_view(report_view(report))
        return
    bench = None if asked.bench is None else Bench.load(asked.bench)
    report.save_page(asked.out, bench=bench, force=asked.force)
    typer.echo(file_line(asked.out, asked.out.stat().st_size))
