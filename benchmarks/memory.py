"""Peak memory of pruning a network on random images, in a process of its own.

    python benchmarks/memory.py --network resnet50

Random images cost as much memory as real ones. Accuracy means nothing here. The row of the same
network and number of images in benchmarks/results/memory.csv is replaced. One process measures
one row, since the peak is of the whole process.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import networks
import torch
from options import add_files
from results_table import MACHINE, key, machine, read_rows, write_rows
from torch import nn

import secateur

KEY = ("network", "images")
COLUMNS = (
    *KEY,
    "sparsity",
    "input_gb",
    "before_gb",
    "peak_gb",
    "seconds",
    *MACHINE,
)
SIZES = {"resnet50": 224, "efficientnet_lite0": 224, "resnet20": 32}


def peak_gb() -> float:
    """Largest resident memory of this process so far, in 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def load(name: str, folder: Path) -> nn.Module:
    loaders = {
        "efficientnet_lite0": networks.load_efficientnet_lite0,
        "resnet20": networks.load_resnet20,
    }
    model = networks.resnet50(seed=0) if name == "resnet50" else loaders[name](folder)
    return model.to(memory_format=torch.channels_last)


def measure(name: str, count: int, sparsity: float, folder: Path) -> dict[str, object]:
    model, size = load(name, folder), SIZES[name]
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    before, start = peak_gb(), time.perf_counter()
    secateur.prune(model, images, sparsity=sparsity, max_images=None, progress=False)
    seconds = time.perf_counter() - start
    return {
        "network": name,
        "images": count,
        "sparsity": sparsity,
        "input_gb": f"{images.nbytes / 1e9:.3f}",
        "before_gb": f"{before:.3f}",
        "peak_gb": f"{peak_gb():.3f}",
        "seconds": f"{seconds:.1f}",
        **machine(),
    }


def main() -> None:
    options = _options()
    row = measure(options.network, options.images, options.sparsity, options.data)
    others = [held for held in read_rows(options.out) if key(held, KEY) != key(row, KEY)]
    write_rows(options.out, COLUMNS, [*others, row])
    print(
        f"{row['network']}, {row['images']} images: {row['before_gb']} GB before, "
        f"{row['peak_gb']} GB at the peak, {row['seconds']} s"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of pruning.")
    parser.add_argument("--network", choices=SIZES, default="resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--sparsity", type=float, default=0.7)
    add_files(parser, "memory.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
