"""Time and peak memory of pruning in several processes, against one.

    python benchmarks/processes.py --processes 2 --threads 1
    python benchmarks/processes.py --processes 1 --threads 2

The network is ResNet-50 with random weights, the images are noise: both cost what real ones do, and
accuracy means nothing here. Rows of benchmarks/results/processes.csv with the same settings are
replaced. `peak_gb` is that of the process that took most; `sha256` of the pruned weights tells
whether rows came to the same bytes, which they do with as many threads for each process.
"""

import argparse
import hashlib
import os
import socket
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory import load, peak_gb
from options import add_files
from results_table import MACHINE, key, machine, read_rows, write_rows

import secateur

KEY = ("network", "images", "size", "sparsity", "memory", "processes", "threads")
COLUMNS = (*KEY, "seconds", "before_gb", "peak_gb", "steps", "sha256", "load_average", *MACHINE)


def measure(rank: int, options: argparse.Namespace, port: int, rows: Any) -> None:
    """Prunes in one of the processes; puts what it took into a queue."""
    torch.set_num_threads(options.threads)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=options.processes)
    model = load(options.network, options.data)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.images, 3, options.size, options.size, generator=generator)
    memory = None if options.memory == "none" else options.memory
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    before, start = peak_gb(), time.perf_counter()
    result = secateur.prune(
        model, images, sparsity=options.sparsity, max_images=None, memory=memory
    )
    seconds = time.perf_counter() - start
    found = hashlib.sha256()
    for tensor in result.model.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    steps = {name: round(of) for name, of in result.report.seconds.items() if round(of)}
    rows.put((seconds, before, peak_gb(), found.hexdigest()[:16], str(steps)))
    dist.destroy_process_group()


def main() -> None:
    options = _options()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(measure, (options, port, rows), nprocs=options.processes, join=False)
    every = [rows.get() for _ in range(options.processes)]
    context.join()
    seconds, before, peak, digests, steps = zip(*every, strict=True)
    if len(set(digests)) > 1:
        raise SystemExit(f"the processes came to other bytes: {digests}")
    with open("/proc/loadavg") as file:
        load_average = file.read().split()[0]
    row = {
        **{name: getattr(options, name) for name in KEY},
        "seconds": f"{max(seconds):.1f}",
        "before_gb": f"{max(before):.3f}",
        "peak_gb": f"{max(peak):.3f}",
        "steps": steps[0],
        "sha256": digests[0],
        "load_average": load_average,
        **machine(),
    }
    others = [held for held in read_rows(options.out) if key(held, KEY) != key(row, KEY)]
    write_rows(options.out, COLUMNS, [*others, row])
    print({name: row[name] for name in COLUMNS if name not in MACHINE})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and peak memory in several processes.")
    parser.add_argument("--network", choices=["resnet50", "resnet20"], default="resnet50")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--memory", default="none")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    add_files(parser, "processes.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
