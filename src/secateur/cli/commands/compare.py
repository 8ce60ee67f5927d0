"""`secateur compare`."""

from __future__ import annotations

from secateur.cli import options
from secateur.render.terminal import print_blocks
from secateur.report.comparison import compare_reports
from secateur.report.model import Report


def run(asked: options.Compare) -> None:
    """Prints what differs between two reports."""
    names = str(asked.first), str(asked.second)
    comparison = compare_reports(Report.load(asked.first), Report.load(asked.second), names)
    print_blocks(comparison.blocks())
