"""`secateur advise`."""

from __future__ import annotations

import json
from typing import Any

import typer

from secateur.advice import advise
from secateur.cli import options
from secateur.cli.inputs import asked_judge, asked_preprocess, evaluation_images, with_own
from secateur.cli.output import working
from secateur.frontends.loading import load_model
from secateur.frontends.loading import open as open_model
from secateur.render.terminal import print_blocks
from secateur.support.progress import Teller
from secateur.support.serialization import to_plain


def run(asked: options.Advise) -> None:
    """Tries each pattern and prints the table."""
    preprocess, judge = asked_preprocess(asked), asked_judge(asked.judge)
    with working(asked.quiet) as teller:
        teller.step("loading the network")
        network = load_model(asked.model, asked.weights)
        preprocess = with_own(preprocess, asked.preprocess, network)
        takes = open_model(network).signature.masking(asked.mask)
        found = advise(
            network,
            asked.data,
            evaluation=evaluation_images(asked.eval_data, preprocess, takes),
            sparsity=asked.sparsity,
            blocks=asked.blocks,
            max_macs=asked.max_macs,
            seconds=asked.seconds,
            threads=asked.threads,
            preprocess=preprocess,
            include=asked.include or None,
            exclude=asked.exclude or None,
            max_images=asked.max_images,
            seed=asked.seed,
            mask=asked.mask,
            output=asked.output,
            judge=judge,
            device=asked.device,
            **_progress(teller),
        )
    if asked.json:
        typer.echo(json.dumps(to_plain(found, "advice"), indent=2, ensure_ascii=False))
    else:
        print_blocks(found.blocks())


def _progress(teller: Teller) -> dict[str, Any]:
    """A command's own, which tells steps as well as layers."""
    return {"progress": teller}
