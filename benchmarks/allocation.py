"""How many zeros in each layer: `Sensitivity` against the exhaustive curves and cheaper ways.

    python benchmarks/allocation.py --networks resnet20 --sparsities 0.8

Each network is pruned by ADMM in one walk, with one allocation after the other: `sensitivity` as
it is, `exhaustive` (the same measurement at eight sparsities of every layer, none left out),
`normalized-magnitude` (the paper) and `uniform`. Accuracy, and what each allocation took in dense
forward passes over the same images, measured right before it in the same process, go to
benchmarks/results/allocation.csv as they are measured; rows that are there are skipped. The
measured curves go to benchmarks/results/curves.csv.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

from accuracy import SUBJECTS, Bench
from cost import forward_seconds
from options import add_files, add_half, numbers, words
from results_table import FOLDER, MACHINE, append_row, key, machine, read_rows, scores
from torch import Tensor

import secateur
from secateur.pruning.allocations import NormalizedMagnitude, Sensitivity, Uniform

LEVELS = (0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.98)
ALLOCATIONS = {
    "sensitivity": Sensitivity(),
    "exhaustive": Sensitivity(levels=LEVELS, small=0.0),
    "normalized-magnitude": NormalizedMagnitude(),
    "uniform": Uniform(),
}
KEY = ("network", "sparsity", "allocation", "images", "draw", "half", "test_images")
COLUMNS = (
    *KEY,
    "dense_top1",
    "top1",
    "drop",
    "drop_error",
    "kl",
    "allocation_seconds",
    "forward_seconds",
    "ratio",
    *MACHINE,
)
CURVES = (
    "network",
    "images",
    "draw",
    "allocation",
    "layer",
    "sparsity",
    "loss_increase",
    "measured",
)


def measure(
    bench: Bench, case: dict[str, object], images: Tensor
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """A row of accuracy and cost, and one per measured point of the curves."""
    forward = statistics.median(forward_seconds(bench.model, images) for _ in range(3))
    result = secateur.prune(
        bench.model,
        images,
        sparsity=float(case["sparsity"]),
        recipe=secateur.Recipe(),  # in one walk
        allocation=ALLOCATIONS[str(case["allocation"])],
        progress=False,
    )
    seconds = result.report.seconds["allocation"]
    row = {
        **case,
        "dense_top1": f"{bench.dense_top1:.2f}",
        **scores(bench.judge(result.model), "top1", "drop", "drop_error", "kl"),
        "allocation_seconds": f"{seconds:.1f}",
        "forward_seconds": f"{forward:.2f}",
        "ratio": f"{seconds / forward:.1f}",
        **machine(),
    }
    points = [
        {
            **{name: case[name] for name in ("network", "images", "draw", "allocation")},
            "layer": layer.name,
            "sparsity": sparsity,
            "loss_increase": f"{loss:.5g}",
            "measured": layer.sensitivity.measured,
        }
        for layer in result.report.layers
        if layer.sensitivity is not None
        for sparsity, loss in zip(
            layer.sensitivity.sparsities, layer.sensitivity.loss_increase, strict=True
        )
    ]
    return row, points


def add_curves(path: Path, points: list[dict[str, object]]) -> None:
    """Adds the points of a network and allocation that are not there yet."""
    seen = {key(row, CURVES[:4]) for row in read_rows(path)}
    for point in points:
        if key(point, CURVES[:4]) not in seen:
            append_row(path, CURVES, point)


def main() -> None:
    options = _options()
    for network in options.networks:
        bench = None
        cases = itertools.product(range(options.draws), options.sparsities, options.allocations)
        for draw, sparsity, allocation in cases:
            case = {
                "network": network,
                "sparsity": sparsity,
                "allocation": allocation,
                "images": options.images,
                "draw": draw,
                "half": options.half,
                "test_images": SUBJECTS[network].test_images,
            }
            if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                continue
            bench = bench or Bench(network, options.data, options.half)
            images = bench.subject.calibration(bench.folder, count=options.images, draw=draw)
            row, points = measure(bench, case, images)
            append_row(options.out, COLUMNS, row)
            add_curves(options.curves, points)
            shown = f"{row['top1']} (KL {row['kl']}), {row['ratio']} passes"
            print(time.strftime("%H:%M"), network, sparsity, allocation, draw, shown, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy and cost of the allocations.")
    parser.add_argument("--networks", type=words, default=list(SUBJECTS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.65, 0.8])
    parser.add_argument("--allocations", type=words, default=list(ALLOCATIONS), metavar="NAMES")
    parser.add_argument("--images", type=int, default=300, help="calibration images")
    parser.add_argument("--draws", type=int, default=1, help="choices of the images")
    parser.add_argument("--curves", type=Path, default=FOLDER / "curves.csv", metavar="CSV")
    add_half(parser)
    add_files(parser, "allocation.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
