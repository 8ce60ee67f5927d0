"""Time and peak memory of pruning a large network on random images, with and without a cap.

    python benchmarks/scale.py --images 256 --memory none
    python benchmarks/scale.py --images 256 --memory "1 GB"
    PYTHONPATH=TIMM python benchmarks/scale.py --network vit_large --sparsity 0.5 \\
        --memory "4 GB" --limit "16 GB" --work-dir RUN

The networks have random weights (ViT-L/16 is timm's), the images are noise: both cost what real
ones do, and accuracy means nothing here. Rows of benchmarks/results/scale.csv with the same
settings are replaced. One process measures one row, since the peak is of the whole process;
`sha256` of the pruned weights tells whether two rows came to the same bytes.

With a work folder a run may be stopped (Ctrl-C) and started again: its seconds are those of all its
processes, its peak is that of the largest.
"""

import argparse
import hashlib
import json
import resource
import time
import warnings
from pathlib import Path

import torch
from architectures import timm
from memory import load, peak_gb
from options import add_files
from results_table import MACHINE, key, machine, read_rows, write_rows
from torch import nn

import secateur
from secateur.support.sizes import bytes_of

KEY = ("network", "images", "sparsity", "memory", "limit")
COLUMNS = (
    *KEY,
    "processes",
    "seconds",
    "before_gb",
    "peak_gb",
    "sha256",
    "load_average",
    *MACHINE,
)


def network(options: argparse.Namespace) -> nn.Module:
    if options.network != "vit_large":
        return load(options.network, options.data)
    torch.manual_seed(0)
    return timm().create_model("vit_large_patch16_224").eval()


class Record:
    """Seconds and peaks of the processes that have worked on a row, in a file beside its folder."""

    def __init__(self, work_dir: Path | None) -> None:
        self.path = None if work_dir is None else work_dir.with_name(f"{work_dir.name}.json")
        there = self.path is not None and self.path.exists()
        self.processes = json.loads(self.path.read_text()) if self.path and there else []

    def add(self, seconds: float) -> None:
        """Notes what this process took."""
        self.processes.append((seconds, peak_gb()))
        if self.path is not None:
            self.path.write_text(json.dumps(self.processes))


def measure(options: argparse.Namespace) -> dict[str, object]:
    if options.limit != "none":
        most = bytes_of("--limit", options.limit)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    record = Record(options.work_dir)
    model = network(options)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.images, 3, options.size, options.size, generator=generator)
    memory = None if options.memory == "none" else options.memory
    before, start = peak_gb(), time.perf_counter()
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    try:
        result = secateur.prune(
            model,
            images,
            sparsity=options.sparsity,
            max_images=None,
            memory=memory,
            work_dir=options.work_dir,
            progress=options.progress,
        )
    finally:
        record.add(time.perf_counter() - start)
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
        "limit": options.limit,
        "processes": len(record.processes),
        "seconds": f"{sum(seconds for seconds, _ in record.processes):.1f}",
        "before_gb": f"{before:.3f}",
        "peak_gb": f"{max(peak for _, peak in record.processes):.3f}",
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
    parser.add_argument("--network", choices=["resnet50", "vit_large"], default="resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--memory", default="none", help="cap on the values, such as 1 GB")
    parser.add_argument("--limit", default="none", help="of the process's memory, such as 16 GB")
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--progress", action="store_true")
    add_files(parser, "scale.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
