"""The main job on the embedded example: `python -m secateur.cli.demo`.

Prunes the Fashion-MNIST network at two sparsities, with the defaults and by magnitude alone,
measures each result on the test images, and leaves networks and reports in a folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import example
from secateur.api import prune
from secateur.errors import OutputError
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare
from secateur.evaluation.results import Evaluation
from secateur.export.files import save_safetensors
from secateur.export.packing import pack
from secateur.render.page import save_page
from secateur.render.terminal import print_blocks
from secateur.report.model import Report
from secateur.support.files import output_folder
from secateur.support.interruptions import clean_up_when_killed
from secateur.support.tables import Column, Table

SPARSITIES = (0.5, 0.7)
METHODS: dict[str, dict[str, Any]] = {  # by the name of the run, what `prune` is told
    "magnitude": {"method": "magnitude", "allocation": "normalized-magnitude"},
    "default": {},
}
WEIGHTS, PACKED, REPORT, PAGE = "model.safetensors", "model.packed", "report.json", "report.html"
_COLUMNS = (
    Column("network"),
    Column("zeros", "{:.0f}", unit="%"),
    Column("top-1", "{:.2f} ± {:.2f}", unit="%"),
    Column("points lost", "{:.2f} ± {:.2f}"),
    Column("packed", "{:.0f}", unit="KB"),
    Column("time", "{:.0f}", unit="s"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a run; all of it is measured.

    Attributes:
        name: its folder's.
        sparsity: zeros among the weights of the pruned layers.
        found: the network on the test images.
        packed: bytes of its weights once packed.
        seconds: of the call of `prune`.
    """

    name: str
    sparsity: float
    found: Evaluation
    packed: int
    seconds: float


def main() -> None:
    """Parses the command line and runs the demonstration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("-o", "--out", type=Path, default=Path("demo-output"))
    out = parser.parse_args().out
    clean_up_when_killed()
    torch.set_num_threads(1)  # threads that share tensors as small as these wait for each other
    try:
        demonstrate(out)
    except (OutputError, KeyboardInterrupt) as error:
        message = str(error) or "interrupted: nothing was written"
        parser.exit(2, f"{parser.prog}: error: {message}\n")


def demonstrate(out: Path) -> None:
    """Prunes in each way at each sparsity, fills the folder, and shows what came of it."""
    began = time.perf_counter()
    total = len(METHODS) * len(SPARSITIES)
    _tell(f"pruning a network for Fashion-MNIST in {total} runs; about a minute")
    runs = []
    with output_folder(out, overwrite=True) as folder:
        for run in _runs(folder):
            runs.append(run)
            if run.seconds:
                _tell(f"{len(runs) - 1} of {total}: {run.name} in {run.seconds:.0f} s")
        files = sorted(path.relative_to(folder) for path in (folder / runs[-1].name).iterdir())
    print_blocks([table_of(runs)])
    _tell(f"all in {time.perf_counter() - began:.0f} s; look at")
    for file in files:
        _tell(f"  {out / file}")
    _tell(
        "the same on the command line:\n"
        "  secateur prune secateur.example:trained --data secateur.example:calibration \\\n"
        f"    --eval secateur.example:test --sparsity {SPARSITIES[-1]} -o pruned"
    )


def _runs(folder: Path) -> Iterator[Run]:
    """The dense network, then each run; each has its files in a folder of its own."""
    dense, calibration = example.trained(), example.calibration()
    images, labels = example.test()
    scores = predict(dense, images)
    found = compare(scores, labels)
    packed = _save(dense, folder / "dense")
    yield Run(name="dense", sparsity=0.0, found=found, packed=packed, seconds=0.0)
    for sparsity in SPARSITIES:
        for name, options in METHODS.items():
            result = prune(dense, calibration, sparsity=sparsity, **options)
            cost = compare(predict(result.model, images), labels, scores)
            place = folder / f"{name}-{100 * sparsity:.0f}"
            packed = _save(result.model, place, result.report)
            result.report.evaluation |= {"dense": found, "pruned": cost}
            _write_report(result.report, place)
            yield Run(
                name=place.name,
                sparsity=result.report.sparsity,
                found=cost,
                packed=packed,
                seconds=result.report.seconds["total"],
            )


def _save(network: nn.Module, folder: Path, report: Report | None = None) -> int:
    """Writes the weights, as they are and packed; the bytes of the packed file."""
    folder.mkdir()
    facts = save_safetensors(network, folder / WEIGHTS)
    if report is not None:
        report.exports[WEIGHTS] = facts
    return pack(folder / WEIGHTS, folder / PACKED).packed


def _write_report(report: Report, folder: Path) -> None:
    report.save(folder / REPORT)
    save_page(report, folder / PAGE)


def table_of(runs: list[Run]) -> Table:
    """One line per network."""
    rows = (
        (
            run.name,
            100 * run.sparsity,
            (run.found.top1 or 0.0, run.found.standard_error or 0.0),
            None if run.found.drop is None else (run.found.drop, run.found.drop_error or 0.0),
            run.packed / 1000,
            run.seconds or None,
        )
        for run in runs
    )
    images = runs[0].found.images
    title = f"On {images} test images that nothing was fitted to"
    return Table(name="runs", columns=_COLUMNS, rows=tuple(rows), title=title)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
