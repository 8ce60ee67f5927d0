"""`secateur unpack`."""

from __future__ import annotations

import typer

from secateur.cli import options
from secateur.cli.output import file_line
from secateur.export.packing import unpack


def run(asked: options.Unpack) -> None:
    """Restores a packed file."""
    size = unpack(asked.file, asked.out, overwrite=asked.force, max_bytes=asked.max_bytes)
    typer.echo(file_line(asked.out, size.dense))
