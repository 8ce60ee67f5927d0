"""Time and peak memory of pruning a large network on random images, with and without a cap.

    python benchmarks/scale.py --images 256 --memory none
    python benchmarks/scale.py --images 256 --memory "1 GB"

The network is ResNet-50 with random weights, the images are noise: both cost what real ones do, and
accuracy means nothing here. Rows of benchmarks/results/scale.csv with the same settings are
replaced. One process measures one row, since the peak is of the whole process; `sha256` of the
pruned weights tells whether two rows came to the same bytes.
"""

import argparse
import hashlib
import time
import warnings

import torch
from memory import load, peak_gb
from options import add_files
from results_table import MACHINE, key, machine, read_rows, write_rows

import secateur

KEY = ("network", "images", "sparsity", "memory")
COLUMNS = (*KEY, "seconds", "before_gb", "peak_gb", "sha256", "load_average", *MACHINE)


def measure(options: argparse.Namespace) -> dict[str, object]:
    model = load(options.network, options.data)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.images, 3, options.size, options.size, generator=generator)
    memory = None if options.memory == "none" else options.memory
    before, start = peak_gb(), time.perf_counter()
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    result = secateur.prune(
        model,
        images,
        sparsity=options.sparsity,
        max_images=None,
        memory=memory,
        progress=options.progress,
    )
    seconds = time.perf_counter() - start
    for note in result.report.notes:
        print(note)
    print({name: round(of) for name, of in result.report.seconds.items()})
    found = hashlib.sha256()
    for tensor in result.model.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    with open("/proc/loadavg") as file:
        load_average = file.read().split()[0]
    return {
        "network": options.network,
        "images": options.images,
        "sparsity": options.sparsity,
        "memory": options.memory,
        "seconds": f"{seconds:.1f}",
        "before_gb": f"{before:.3f}",
        "peak_gb": f"{peak_gb():.3f}",
        "sha256": found.hexdigest()[:16],
        "load_average": load_average,
        **machine(),
    }


def main() -> None:
    options = _options()
    row = measure(options)
    others = [held for held in read_rows(options.out) if key(held, KEY) != key(row, KEY)]
    write_rows(options.out, COLUMNS, [*others, row])
    print({name: row[name] for name in COLUMNS if name not in MACHINE})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and peak memory with a cap and without.")
    parser.add_argument("--network", choices=["resnet50"], default="resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--memory", default="none")
    parser.add_argument("--progress", action="store_true")
    add_files(parser, "scale.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
