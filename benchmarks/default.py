"""The default recipe and "tuned": accuracy and cost, with photographs or without any data.

    python benchmarks/default.py --networks resnet20 --sparsities 0.8 --draws 3

One row for each network, kind of images, sparsity and draw, into benchmarks/results/default.csv
as it is measured; rows that are there are skipped. The cost is the time of the whole `prune` call,
allocation included, over that of a dense forward pass over the same images, the median of three
taken right before it in the same process.
"""

import argparse
import itertools
import statistics
import time

from accuracy import SUBJECTS, Bench
from cost import forward_seconds
from options import add_files, add_half, numbers, words
from paper import images_of
from results_table import MACHINE, SCORES, append_row, key, machine, read_rows, scores

import secateur
from secateur.data.images import Images

KEY = ("network", "data", "sparsity", "images", "draw", "half", "test_images", "recipe")
COLUMNS = (
    *KEY,
    "dense_top1",
    *SCORES,
    "allocation_seconds",
    "seconds",
    "forward_seconds",
    "ratio",
    *MACHINE,
)


def measure(bench: Bench, case: dict[str, object], images: Images) -> dict[str, object]:
    """The row of a case."""
    forward = statistics.median(forward_seconds(bench.model, images.tensor) for _ in range(3))
    result = secateur.prune(
        bench.model,
        images,
        sparsity=float(case["sparsity"]),
        recipe=str(case["recipe"]),
        progress=False,
    )
    seconds = result.report.seconds
    return {
        **case,
        "dense_top1": f"{bench.dense_top1:.2f}",
        **scores(bench.judge(result.model)),
        "allocation_seconds": f"{seconds['allocation']:.1f}",
        "seconds": f"{seconds['total']:.1f}",
        "forward_seconds": f"{forward:.2f}",
        "ratio": f"{seconds['total'] / forward:.1f}",
        **machine(),
    }


def main() -> None:
    options = _options()
    for network in options.networks:
        bench = None
        for kind, draw in itertools.product(options.data_kinds, range(options.draws)):
            images = None
            for sparsity in options.sparsities:
                case = {
                    "network": network,
                    "data": kind,
                    "sparsity": sparsity,
                    "images": options.images,
                    "draw": draw,
                    "half": options.half,
                    "test_images": SUBJECTS[network].test_images,
                    "recipe": options.recipe,
                }
                if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                    continue
                bench = bench or Bench(network, options.data, options.half)
                if images is None:
                    images = images_of(bench, network, kind, draw, options.images)
                row = measure(bench, case, images)
                append_row(options.out, COLUMNS, row)
                shown = f"{row['top1']} (KL {row['kl']}), {row['seconds']} s, {row['ratio']} passes"
                print(time.strftime("%H:%M"), network, kind, sparsity, draw, shown, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy and cost of the default recipe.")
    parser.add_argument("--networks", type=words, default=list(SUBJECTS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.65, 0.75, 0.8, 0.9])
    parser.add_argument("--data-kinds", type=words, default=["real", "fractal"], metavar="KINDS")
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--recipe", default="default", help='or "tuned"')
    parser.add_argument("--draws", type=int, default=1, help="choices or seeds of the images")
    add_half(parser)
    add_files(parser, "default.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
