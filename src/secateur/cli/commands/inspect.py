"""`secateur inspect`."""

from __future__ import annotations

import json

import typer

from secateur import api
from secateur.cli import options
from secateur.cli.inputs import asked_text
from secateur.cli.output import working
from secateur.data.preprocess import pair
from secateur.frontends.loading import load_model
from secateur.render.terminal import print_blocks


def run(asked: options.Inspect) -> None:
    """Prints a network's layers."""
    shape, text = asked.shape, asked_text(asked)
    if shape is None and asked.data is None and (asked.size is not None or asked.channels != 3):
        shape = (asked.channels, *pair(asked.size or 224))
    with working(asked.quiet) as teller:
        teller.step("loading the network")
        network = load_model(asked.model, asked.weights)
        teller.step("tracing the network")
        inspection = api.inspect(
            network, shape, data=asked.data, preprocess=text, pattern=asked.pattern
        )
    if asked.json:
        typer.echo(json.dumps(inspection.data(), indent=2, ensure_ascii=False))
    else:
        print_blocks(inspection.blocks(verbose=asked.verbose))
