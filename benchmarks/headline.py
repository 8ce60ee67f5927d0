"""The paper's headline rows, given trained weights and ImageNet as folders.

    python benchmarks/headline.py --weights resnet50.pth --calibration train --val val

The weights are those of torchvision's ResNet-50 (a state dict with its names); `--val` is a folder
with one subfolder per class, in the sorted order of the class numbers, or with a `labels.csv` of
columns file and label. Measured for each data kind and sparsity: the paper's recipe after each of
its steps, and the default recipe. Writes a CSV file, one row a step.

Of the validation images a batch is held at a time; of each image its scores are kept, 4 kB;
`--sparsities` without a number evaluates the dense network alone and tells the memory it took.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import networks
import torch
from results_table import append_row, scores
from shared_data import LITE0_MEAN, LITE0_STD
from torch import nn

import secateur
from secateur.data.sources import Images, open_images
from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.evaluation.metrics import compare
from secateur.frontends.torch.checkpoints import read_state

IMAGENET = secateur.Preprocess(
    size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
NETWORKS = {
    "resnet50": (lambda: networks.resnet50(seed=0), IMAGENET),
    "efficientnet_lite0": (
        networks.efficientnet_lite0,
        secateur.Preprocess(size=224, mean=LITE0_MEAN, std=LITE0_STD),
    ),
}
COLUMNS = (
    "network",
    "data",
    "images",
    "test_images",
    "sparsity",
    "recipe",
    "step",
    "dense_top1",
    "top1",
    "drop",
    "drop_error",
    "seconds",
)


def network(options: argparse.Namespace) -> nn.Module:
    model = NETWORKS[options.network][0]()
    model.load_state_dict(read_state(options.weights))
    return model.eval().to(memory_format=torch.channels_last)


def measure(
    model: nn.Module, images: Images, evaluation_set: EvaluationSet, sparsity: float, recipe: str
) -> list[dict[str, object]]:
    """Prune and evaluate: one row per step of the recipe."""
    start = time.perf_counter()
    result = secateur.prune(model, images, sparsity=sparsity, recipe=recipe)
    seconds = time.perf_counter() - start
    models = {step: result.after(step) for step in result.steps} or {recipe: result.model}
    rows = []
    for step, pruned in models.items():
        found = evaluation_set.evaluate(pruned)
        rows.append(
            {
                "images": len(images.tensor),
                "test_images": found.images,
                "sparsity": sparsity,
                "recipe": recipe,
                "step": step,
                "dense_top1": f"{compare(evaluation_set.dense, evaluation_set.labels).top1:.2f}",
                **scores(found, "top1", "drop", "drop_error"),
                "seconds": f"{seconds:.0f}",
            }
        )
    return rows


def main() -> None:
    options = _options()
    preprocess, model = NETWORKS[options.network][1], network(options)
    test = open_images(str(options.val), preprocess=preprocess, max_images=options.test_images)
    evaluation_set = EvaluationSet.of(model, test)
    if evaluation_set.labels is None:
        sys.exit(f"{options.val} has no labels: use one subfolder per class, or a labels.csv")
    print(f"dense: {compare(evaluation_set.dense, evaluation_set.labels)}; {_peak()}", flush=True)
    for kind in (str(options.calibration), f"fractal:{options.images}") * bool(options.sparsities):
        images = secateur.load_images(kind, preprocess=preprocess, max_images=options.images)
        for sparsity in options.sparsities:
            for recipe in options.recipes:
                for row in measure(model, images, evaluation_set, sparsity, recipe):
                    data = "fractal" if images.synthetic else "real"
                    full = {"network": options.network, "data": data, **row}
                    append_row(options.out, COLUMNS, full)
                    print(*(full[column] for column in COLUMNS), flush=True)
    print(_peak())


def _peak() -> str:
    """The most memory that this process has had."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"peak memory {kibibytes / 2**20:.2f} GiB"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's headline rows on ImageNet.")
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    parser.add_argument("--calibration", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--val", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=300, help="for calibration")
    parser.add_argument("--test-images", type=int, help="a random choice; default: all")
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.5, 0.65])
    parser.add_argument("--recipes", nargs="+", default=["paper", "default"])
    parser.add_argument("--out", type=Path, default=Path("headline.csv"), metavar="CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
