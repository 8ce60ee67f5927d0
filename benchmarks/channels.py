"""Whole channels removed: accuracy and cost at a share of the multiply-accumulates.

    python benchmarks/channels.py --networks resnet20 --draws 3

One row for each network, kind of images, share of the MACs, draw and recipe, into
benchmarks/results/channels.csv as it is measured; rows that are there are skipped. "one-walk" is
`Recipe()`: the default recipe without block reconstruction and without easier targets on the way.
The cost is that of the whole `prune` call, as in `default.py`. `digits_transformer` is trained
first, which needs scikit-learn, and has 500 calibration images:

    python benchmarks/channels.py --networks digits_transformer --data-kinds real --images 500
"""

import argparse
import functools
import itertools
import statistics
import time
from pathlib import Path

import accuracy
import torch
from accuracy import Bench, Subject
from cost import forward_seconds
from elsewhere_networks import Elsewhere, digits_transformer
from options import add_files, add_half, numbers, words
from paper import images_of
from results_table import MACHINE, SCORES, append_row, key, machine, read_rows, scores
from torch import Tensor

import secateur
from secateur.data.images import Images

SHARES = {  # of the MACs, by network
    "resnet20": [0.8, 0.7, 0.5],
    "resnet56": [0.7, 0.5, 0.3],
    "efficientnet_lite0": [0.8, 0.7, 0.6, 0.5],
    "digits_transformer": [0.7, 0.5],
}
RECIPES = {"default": "default", "tuned": "tuned", "one-walk": secateur.Recipe()}
KEY = ("network", "data", "max_macs", "images", "draw", "half", "test_images", "recipe", "multiple")
COLUMNS = (
    *KEY,
    "macs_fraction",
    "dense_top1",
    *SCORES,
    "allocation_seconds",
    "seconds",
    "forward_seconds",
    "ratio",
    *MACHINE,
)


@functools.cache
def digits() -> Elsewhere:
    """The transformer, trained here."""
    return digits_transformer(Path(), Path())


def _digits_calibration(folder: Path, count: int, draw: int) -> Tensor:
    images = digits().calibration
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(draw))
    return images[order[:count]]


def _digits_test(folder: Path, half: str) -> tuple[Tensor, Tensor]:
    count = _DIGITS_TEST
    own = slice(count) if half == "choose" else slice(count, 2 * count)
    return digits().test[own], digits().labels[own]


_DIGITS_TEST = 398  # of 797, in either half
SUBJECTS = accuracy.SUBJECTS | {
    "digits_transformer": Subject(
        load=lambda folder: digits().network,
        calibration=_digits_calibration,
        test=_digits_test,
        images=500,
        test_images=_DIGITS_TEST,
    )
}


def measure(bench: Bench, case: dict[str, object], images: Images) -> dict[str, object]:
    """The row of a case."""
    forward = statistics.median(forward_seconds(bench.model, images.tensor) for _ in range(3))
    result = secateur.prune(
        bench.model,
        images,
        pattern=secateur.Channels(multiple=int(str(case["multiple"]))),
        max_macs=float(str(case["max_macs"])),
        recipe=RECIPES[str(case["recipe"])],
        progress=False,
    )
    report, seconds = result.report, result.report.seconds
    return {
        **case,
        "macs_fraction": f"{report.macs_fraction:.4f}",
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
            shares = options.macs or SHARES[network]
            for share, recipe in itertools.product(shares, options.recipes):
                case = {
                    "network": network,
                    "data": kind,
                    "max_macs": share,
                    "images": options.images,
                    "draw": draw,
                    "half": options.half,
                    "test_images": SUBJECTS[network].test_images,
                    "recipe": recipe,
                    "multiple": options.multiple,
                }
                if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                    continue
                bench = bench or Bench(network, options.data, options.half, subjects=SUBJECTS)
                if images is None:
                    images = images_of(bench, network, kind, draw, options.images)
                row = measure(bench, case, images)
                append_row(options.out, COLUMNS, row)
                shown = f"{row['top1']} (KL {row['kl']}) at {row['macs_fraction']} of the MACs"
                costs = f"{row['seconds']} s, {row['ratio']} passes"
                print(
                    time.strftime("%H:%M"),
                    network,
                    kind,
                    recipe,
                    share,
                    draw,
                    shown,
                    costs,
                    flush=True,
                )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy and cost of removing channels.")
    parser.add_argument("--networks", type=words, default=list(accuracy.SUBJECTS))
    parser.add_argument("--macs", type=numbers, help="shares left, such as 0.7,0.5; by network")
    parser.add_argument("--data-kinds", type=words, default=["real", "fractal"], metavar="KINDS")
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--recipes", type=words, default=["default", "one-walk"])
    parser.add_argument("--draws", type=int, default=1, help="choices or seeds of the images")
    parser.add_argument("--multiple", type=int, default=8, help="of which widths are one")
    add_half(parser)
    add_files(parser, "channels.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
