"""`secateur evaluate`."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence

import typer

from secateur.cli import options
from secateur.cli.inputs import asked_judge, asked_preprocess, with_own
from secateur.cli.output import working
from secateur.core.outputs import judge_of
from secateur.data.sources import open_images
from secateur.errors import SecateurWarning
from secateur.evaluation.inference import answer
from secateur.evaluation.metrics import compare, one_answer
from secateur.evaluation.results import Evaluation, verdict_lines
from secateur.frontends.loading import load_network, open_to_run


def run(asked: options.Evaluate) -> None:
    """Prints how good a network is, and how it compares with another."""
    preprocess, judge = asked_preprocess(asked), asked_judge(asked.judge)
    with working(asked.quiet) as teller:
        teller.step("loading")
        network = load_network(asked.file, asked.model)
        others = [] if asked.against is None else [load_network(asked.against, asked.model)]
        preprocess = with_own(preprocess, asked.preprocess, network, *others)
        teller.step("evaluating")
        takes = open_to_run(network).signature.masking(asked.mask)
        images = open_images(asked.eval_data, preprocess=preprocess, takes=takes)
        answers = answer([network, *others], images, needs_labels=not others, output=asked.output)
    output, *references = answers.outputs
    reference = references[0] if references else None
    labels, weight = answers.labels, answers.weight
    judge = judge or judge_of(answers.outputs[-1], name=answers.name, labels=labels)
    found = compare(output, labels, reference, judge=judge, weight=weight)
    found = dataclasses.replace(found, noun=answers.noun)
    evaluations = [(asked.file, found)]
    cautions = images.warnings_for(answers.classes if judge == "classes" else 0)
    if reference is not None and labels is None:
        cautions += one_answer(reference, f"{answers.noun}s", judge=judge, weight=weight)
    for warning in cautions:
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    if reference is not None and asked.against is not None:
        other = compare(reference, labels, reference, judge=judge, weight=weight)
        other = dataclasses.replace(other, noun=answers.noun)
        evaluations.append((asked.against, other))
    typer.echo(_json(evaluations) if asked.json else "\n".join(verdict_lines(evaluations)))


def _json(evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    """The evaluations of a file and of the one that it is compared with."""
    plain = [{"file": file, **dataclasses.asdict(one)} for file, one in evaluations]
    both = dict(zip(("network", "against"), plain, strict=False))
    return json.dumps(both, indent=2, ensure_ascii=False)
