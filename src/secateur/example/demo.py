"""The main job on the embedded example: `python -m secateur.example.demo`.

Prunes the Fashion-MNIST network at several sparsities with each method, prints the accuracy on
the test images, and leaves the networks and reports in a folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secateur import example
from secateur.api import PruneResult, prune
from secateur.errors import OutputError
from secateur.evaluate import Evaluation, compare, predict
from secateur.export import save_safetensors
from secateur.output import clean_up_when_killed, output_folder

METHODS = ("magnitude", "least-squares", "admm")  # those that take seconds
SPARSITIES = (0.5, 0.7, 0.8, 0.9)


def main() -> None:
    """Parses the command line and runs the demonstration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("-o", "--out", type=Path, default=Path("demo-output"))
    out = parser.parse_args().out
    clean_up_when_killed()
    try:
        demonstrate(out)
    except (OutputError, KeyboardInterrupt) as error:
        told = str(error) or "interrupted: nothing was written"
        parser.exit(2, f"{parser.prog}: error: {told}\n")


def demonstrate(out: Path) -> None:
    """Prunes with each method at each sparsity, and fills the folder."""
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    total = len(METHODS) * len(SPARSITIES)
    console.print(f"{total} runs, which take a few minutes on two idle cores; files go to {out}/")
    dense, calibration = example.trained(), example.calibration()
    images, labels = example.test()
    scores = predict(dense, images)
    found = compare(scores, labels)
    console.print(
        f"dense network: {found.top1:.2f} % ± {found.standard_error:.2f} on {found.images} images"
    )
    table = Table("sparsity", *METHODS, "seconds", title="top-1 (points lost)", box=None)
    done = 0
    with output_folder(out, force=True) as folder:
        for sparsity in SPARSITIES:
            cells, seconds = [], []
            for method in METHODS:
                result = prune(dense, calibration, sparsity=sparsity, method=method)
                cost = compare(predict(result.model, images), labels, scores)
                result.report.evaluation |= {"dense": found, "pruned": cost}
                _save(result, folder / f"{method}-{sparsity:.0%}".replace("%", ""))
                cells.append(_cell(cost))
                seconds.append(result.report.seconds["total"])
                done += 1
                console.print(
                    f"{done:2} of {total}: {sparsity:.0%} zeros, {method}: {cells[-1]} "
                    f"in {seconds[-1]:.0f} s"
                )
            times = "/".join(f"{value:.0f}" for value in seconds)
            table.add_row(f"{sparsity:.0%}", *cells, times)
    console.print(table)
    _show_next(console, out)


def _save(result: PruneResult, folder: Path) -> None:
    folder.mkdir()
    weights = folder / "model.safetensors"
    result.report.exports[weights.name] = save_safetensors(result.model, weights)
    result.report.save(folder / "report.json")


def _cell(cost: Evaluation) -> str:
    return f"{cost.top1:.2f} ({cost.drop:.2f} ± {cost.drop_error:.2f})"


def _show_next(console: Console, out: Path) -> None:
    console.print(f"files: {out}/<method>-<sparsity>/model.safetensors and report.json")
    console.print(
        "the same on the command line:\n"
        "  secateur prune secateur.example:trained --data secateur.example:calibration \\\n"
        "    --eval secateur.example:test --sparsity 0.7 -o pruned"
    )


if __name__ == "__main__":
    main()
