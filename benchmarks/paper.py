"""The paper's recipe, step by step, against least squares and ADMM: accuracy and cost.

    python benchmarks/paper.py --networks resnet20 --sparsities 0.5

For each network, kind of images and sparsity, one run of `recipe="paper"` gives the rows of its
steps, and one run each of least squares and ADMM (pruned inputs, normalised magnitudes) the two
others. Images: real ones, or as many fractals, pink or Gaussian noise with the network's
preprocessing. Cost is the time of the whole `prune` call over that of a dense forward pass over
the same images, both measured in this process right before. The seconds of a step of the recipe
are those of the whole recipe. Rows go to benchmarks/results/paper.csv as they are measured, and
those that are there are skipped.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from accuracy import SUBJECTS, Bench
from cost import forward_seconds
from results_table import FOLDER, append_row, cpu_name, key, read_rows
from shared_data import CIFAR_MEAN, CIFAR_STD
from shared_data import FOLDER as DATA
from torch import Tensor

import secateur
from secateur.evaluate import compare, predict

PREPROCESS = {
    "resnet20": secateur.Preprocess(size=32, mean=CIFAR_MEAN, std=CIFAR_STD),
    "resnet56": secateur.Preprocess(size=32, mean=CIFAR_MEAN, std=CIFAR_STD),
    "efficientnet_lite0": secateur.Preprocess(
        size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    ),
}
IMAGES = 300
KINDS = ("real", "fractal", "pink", "gaussian")
RUNS = {
    "paper": {"recipe": "paper"},
    "least-squares": {"method": "least-squares"},
    "admm": {"method": "admm"},
}
KEY = ("network", "data", "sparsity", "run", "draw", "images", "test_images")
COLUMNS = (
    *KEY,
    "step",
    "dense_top1",
    "top1",
    "drop",
    "drop_error",
    "kl",
    "seconds",
    "forward_seconds",
    "ratio",
    "secateur",
    "torch",
    "cpu",
)


def images_of(bench: Bench, network: str, kind: str, draw: int) -> Tensor:
    """Calibration inputs (300, 3, height, width); the draw is the seed of synthetic ones."""
    if kind == "real":
        return bench.subject.calibration(bench.folder, count=IMAGES, draw=draw)
    source, preprocess = f"{kind}:{IMAGES}", PREPROCESS[network]
    return secateur.load_images(source, preprocess=preprocess, seed=draw).tensor


def measure(bench: Bench, case: dict[str, object], images: Tensor) -> list[dict[str, object]]:
    """One row per step of a run; runs of a single step have one."""
    forward = statistics.median(forward_seconds(bench.model, images) for _ in range(3))
    start = time.perf_counter()
    result = secateur.prune(
        bench.model, images, sparsity=case["sparsity"], progress=False, **RUNS[str(case["run"])]
    )
    seconds = time.perf_counter() - start
    models = {step: result.after(step) for step in result.steps} or {case["run"]: result.model}
    return [
        {
            **case,
            "step": step,
            **_scores(compare(predict(model, bench.test), bench.labels, bench.dense)),
            "dense_top1": f"{bench.dense_top1:.2f}",
            "seconds": f"{seconds:.1f}",
            "forward_seconds": f"{forward:.2f}",
            "ratio": f"{seconds / forward:.1f}",
            "secateur": secateur.__version__,
            "torch": torch.__version__,
            "cpu": cpu_name(),
        }
        for step, model in models.items()
    ]


def _scores(found: secateur.Evaluation) -> dict[str, str]:
    formats = {"top1": ".2f", "drop": ".2f", "drop_error": ".3f", "kl": ".5g"}
    return {name: format(getattr(found, name), how) for name, how in formats.items()}


def main() -> None:
    options = _options()
    known = {key(row, KEY) for row in read_rows(options.out)}
    for network in options.networks:
        bench = None
        for kind, draw in itertools.product(options.data_kinds, range(options.draws)):
            images = None
            for sparsity, run in itertools.product(options.sparsities, options.runs):
                case = {
                    "network": network,
                    "data": kind,
                    "sparsity": sparsity,
                    "run": run,
                    "draw": draw,
                    "images": IMAGES,
                    "test_images": SUBJECTS[network].test_images,
                }
                if key(case, KEY) in known:
                    continue
                bench = bench or Bench(network, options.data, SUBJECTS[network].test_images)
                images = images_of(bench, network, kind, draw) if images is None else images
                rows = measure(bench, case, images)
                for row in rows:
                    append_row(options.out, COLUMNS, row)
                shown = ", ".join(f"{row['step']} {row['top1']}" for row in rows)
                costs = f"{rows[0]['seconds']} s, {rows[0]['ratio']} forward passes"
                print(network, kind, sparsity, draw, f"{shown} ({costs})", flush=True)


def _options() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description="The paper's recipe against the default one.")
    parser.add_argument("--networks", type=words, default=list(PREPROCESS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.6, 0.65, 0.7, 0.8])
    parser.add_argument("--data-kinds", type=words, default=list(KINDS), metavar="KINDS")
    parser.add_argument("--runs", type=words, default=list(RUNS))
    parser.add_argument("--draws", type=int, default=1, help="choices or seeds of the images")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=FOLDER / "paper.csv", metavar="CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
