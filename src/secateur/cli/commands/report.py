"""`secateur report`."""

from __future__ import annotations

import typer

from secateur.cli import options
from secateur.cli.output import file_line
from secateur.hardware.latency import Bench
from secateur.render.page import save_page
from secateur.render.terminal import print_blocks
from secateur.report.model import Report


def run(asked: options.Report) -> None:
    """Prints a report, or writes it as a page."""
    report = Report.load(asked.file)
    if asked.out is None:
        print_blocks(report.blocks())
        return
    bench = None if asked.bench is None else Bench.load(asked.bench)
    save_page(report, asked.out, bench=bench, overwrite=asked.force)
    typer.echo(file_line(asked.out, asked.out.stat().st_size))
