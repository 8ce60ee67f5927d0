"""`secateur runtimes`."""

from __future__ import annotations

import json

import typer

from secateur.cli import options
from secateur.hardware.catalogue import runtimes
from secateur.render.terminal import print_blocks


def run(asked: options.Runtimes) -> None:
    """Lists the runtimes, with what this machine can do."""
    found = runtimes()
    if asked.json:
        typer.echo(json.dumps(found.data(), indent=2, ensure_ascii=False))
    else:
        print_blocks(found.blocks())
