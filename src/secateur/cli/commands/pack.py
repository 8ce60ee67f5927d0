"""`secateur pack`."""

from __future__ import annotations

import typer

from secateur.cli import options
from secateur.cli.output import file_line
from secateur.export.packing import pack


def run(asked: options.Pack) -> None:
    """Packs a file and prints how small it became."""
    size = pack(asked.file, asked.out, overwrite=asked.force)
    typer.echo(f"{file_line(asked.out, size.packed)}, {size.ratio:.1%} of {asked.file}")
