"""The paper's recipe, step by step, against least squares and ADMM: accuracy and cost.

    python benchmarks/paper.py --networks resnet20 --sparsities 0.5

For each network, kind of images and sparsity, one run of `recipe="paper"` gives the rows of its
steps, and one run each of least squares and ADMM (pruned inputs, normalised magnitudes) the two
others. "admm-for-adam" is the paper's recipe with ADMM on pruned inputs in place of the two
corrections and Adam: alignment, allocation and schedule are the same, only the method differs.

Images: real ones, or as many fractals, pink or Gaussian noise with the network's preprocessing.
Cost is the time of the whole `prune` call over that of a dense forward pass over the same images,
both measured in this process right before. The seconds of a step of the recipe are those of the
whole recipe. Rows go to benchmarks/results/paper.csv as they are measured, and those that are
there are skipped.
"""

import argparse
import itertools
import statistics
import time

from accuracy import SUBJECTS, Bench
from cost import forward_seconds
from options import add_files, add_half, numbers, words
from results_table import MACHINE, append_row, key, machine, read_rows, scores
from shared_data import CIFAR_MEAN, CIFAR_STD, LITE0_MEAN, LITE0_STD

import secateur
from secateur.data.images import Images
from secateur.pruning.recipe import choose_recipe

PREPROCESS = {
    "resnet20": secateur.Preprocess(size=32, mean=CIFAR_MEAN, std=CIFAR_STD),
    "resnet56": secateur.Preprocess(size=32, mean=CIFAR_MEAN, std=CIFAR_STD),
    "efficientnet_lite0": secateur.Preprocess(size=224, mean=LITE0_MEAN, std=LITE0_STD),
}
IMAGES = 300
KINDS = ("real", "fractal", "pink", "gaussian")
DIVISION = secateur.NormalizedMagnitude()
RUNS = {
    "paper": {"recipe": "paper"},
    "least-squares": {
        "recipe": secateur.Recipe(method=secateur.LeastSquares(), allocation=DIVISION)
    },
    "admm": {"recipe": secateur.Recipe(allocation=DIVISION)},
    "admm-for-adam": {
        "recipe": choose_recipe("paper", method="admm", inputs="pruned", recalibration="synthetic")
    },
    "default": {},
}
KEY = ("network", "data", "sparsity", "run", "draw", "images", "half", "test_images")
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
    *MACHINE,
)


def images_of(bench: Bench, network: str, kind: str, draw: int, count: int = IMAGES) -> Images:
    """Calibration inputs; the draw is the seed of synthetic ones."""
    if kind == "real":
        return secateur.load_images(bench.subject.calibration(bench.folder, count=count, draw=draw))
    source, preprocess = f"{kind}:{count}", PREPROCESS[network]
    return secateur.load_images(source, preprocess=preprocess, seed=draw)


def measure(bench: Bench, case: dict[str, object], images: Images) -> list[dict[str, object]]:
    """One row per step of the paper's recipe; other runs have one."""
    forward = statistics.median(forward_seconds(bench.model, images.tensor) for _ in range(3))
    start = time.perf_counter()
    result = secateur.prune(
        bench.model, images, sparsity=case["sparsity"], progress=False, **RUNS[str(case["run"])]
    )
    seconds = time.perf_counter() - start
    models = {case["run"]: result.model}
    if case["run"] == "paper":
        models = {step: result.after(step) for step in result.steps}
    return [
        {
            **case,
            "step": step,
            "dense_top1": f"{bench.dense_top1:.2f}",
            **scores(bench.judge(model), "top1", "drop", "drop_error", "kl"),
            "seconds": f"{seconds:.1f}",
            "forward_seconds": f"{forward:.2f}",
            "ratio": f"{seconds / forward:.1f}",
            **machine(),
        }
        for step, model in models.items()
    ]


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
                    "half": options.half,
                    "test_images": SUBJECTS[network].test_images,
                }
                if key(case, KEY) in known:
                    continue
                bench = bench or Bench(network, options.data, options.half)
                images = images_of(bench, network, kind, draw) if images is None else images
                rows = measure(bench, case, images)
                for row in rows:
                    append_row(options.out, COLUMNS, row)
                shown = ", ".join(f"{row['step']} {row['top1']}" for row in rows)
                costs = f"{rows[0]['seconds']} s, {rows[0]['ratio']} forward passes"
                print(network, kind, sparsity, draw, f"{shown} ({costs})", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's recipe against the default one.")
    parser.add_argument("--networks", type=words, default=list(PREPROCESS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.6, 0.65, 0.7, 0.8])
    parser.add_argument("--data-kinds", type=words, default=list(KINDS), metavar="KINDS")
    parser.add_argument("--runs", type=words, default=list(RUNS))
    parser.add_argument("--draws", type=int, default=1, help="choices or seeds of the images")
    add_half(parser)
    add_files(parser, "paper.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
