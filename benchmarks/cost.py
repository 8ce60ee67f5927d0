"""Time of pruning EfficientNet-Lite0, next to one dense forward pass over the same images.

    python benchmarks/cost.py

Both are measured in one process, by turns, so that a busy machine slows both down. The forward
pass runs channels-last, without gradients, at the batch size that prune uses. Writes
benchmarks/results/cost.csv, one row a repeat.
"""

import argparse
import statistics
import time

import networks
import shared_data
import torch
from options import add_files
from results_table import MACHINE, machine, write_rows
from torch import Tensor, nn

import secateur
from secateur.network.layout import to_channels_last
from secateur.network.samples import Samples, chunk_size

COLUMNS = (
    "network",
    "images",
    "sparsity",
    "batch",
    "run",
    "runs",
    "forward_seconds",
    "prune_seconds",
    "ratio",
    *MACHINE,
)


def batch_of(images: Tensor) -> int:
    """Images in a forward pass, as in `secateur.prune`."""
    return chunk_size(Samples({"images": images}))


def forward_seconds(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for batch in to_channels_last(images).split(batch_of(images)):
            model(batch)
    return time.perf_counter() - start


def prune_seconds(model: nn.Module, images: Tensor, sparsity: float) -> float:
    start = time.perf_counter()
    secateur.prune(model, images, sparsity=sparsity, progress=False)
    return time.perf_counter() - start


def main() -> None:
    options = _options()
    model = networks.load_efficientnet_lite0(options.data).to(memory_format=torch.channels_last)
    images = shared_data.imagenet_calibration(options.data, count=options.images, draw=0)
    forward_seconds(model, images[: batch_of(images)])  # the first pass sets up kernels
    rows = []
    for run in range(options.repeats):
        forward = forward_seconds(model, images)
        prune = prune_seconds(model, images, options.sparsity)
        rows.append(
            {
                "network": "efficientnet_lite0",
                "images": options.images,
                "sparsity": options.sparsity,
                "batch": batch_of(images),
                "run": run,
                "runs": options.repeats,
                "forward_seconds": f"{forward:.2f}",
                "prune_seconds": f"{prune:.2f}",
                "ratio": f"{prune / forward:.2f}",
                **machine(),
            }
        )
        print(f"forward {forward:.1f} s, prune {prune:.1f} s, ratio {prune / forward:.2f}")
    write_rows(options.out, COLUMNS, rows)
    print(f"median ratio {statistics.median(float(row['ratio']) for row in rows):.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of pruning against a dense forward pass.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--sparsity", type=float, default=0.5)
    add_files(parser, "cost.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
