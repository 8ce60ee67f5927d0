"""Measured runs that the model of `scaling_model.py` is fitted to.

    python benchmarks/scaling.py

Prunes networks of random weights to 70 % zeros (two walks, no blocks trained), each in a process of
its own on one thread, and writes a row with what the run has to compute, by kind, its processor
time and its peak memory into benchmarks/results/scaling.csv. Rows that are there are kept.
"""

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import networks
import torch
from memory import peak_gb
from options import add_files
from results_table import MACHINE, append_row, key, machine, read_rows
from scaling_model import KINDS, SPARSITY, Shape, Work, work_of
from torch import Tensor, nn

import secateur
from secateur.frontends import open as open_model
from secateur.network.graph import Graph
from secateur.network.samples import as_samples
from secateur.pruning.layer_selection import select_layers

KEY = ("network", "samples", "sparsity")
COLUMNS = (*KEY, *KINDS, "seconds", "before_gb", "peak_gb", *MACHINE)


class Encoder(nn.Module):
    """Encoder layers as in BERT, and a head; inputs are vectors."""

    def __init__(self, width: int, inner: int, depth: int, heads: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, inner, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def encoder(width: int, inner: int, depth: int, heads: int) -> nn.Module:
    torch.manual_seed(0)
    return Encoder(width, inner, depth, heads)


def _plain(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (partial(_plain, networks.resnet20), (3, 32, 32)),
    "resnet56": (partial(_plain, networks.resnet56), (3, 32, 32)),
    "efficientnet_lite0": (partial(_plain, networks.efficientnet_lite0), (3, 224, 224)),
    "resnet50": (partial(networks.resnet50, 0), (3, 224, 224)),
    "encoder 256": (partial(encoder, 256, 1024, 4, 4), (64, 256)),
    "encoder 384": (partial(encoder, 384, 1536, 6, 6), (64, 384)),
    "encoder 768": (partial(encoder, 768, 3072, 4, 12), (64, 768)),
}
RUNS = [
    ("resnet20", 256),
    ("resnet20", 1000),
    ("resnet56", 256),
    ("efficientnet_lite0", 64),
    ("efficientnet_lite0", 128),
    ("resnet50", 16),
    ("resnet50", 48),
    ("encoder 256", 128),
    ("encoder 256", 512),
    ("encoder 384", 256),
    ("encoder 768", 128),
]


def shapes(graph: Graph) -> list[Shape]:
    """Of the layers that are pruned."""
    total, found, done = sum(layer.macs for layer in graph.layers), list[Shape](), 0
    pruned = {layer.name for layer in select_layers(graph.layers, None, None)}
    for layer in graph.layers:
        done += layer.macs
        if layer.name in pruned:
            positions = max(1, layer.macs // layer.weights)
            found.append(Shape(layer.rows, layer.columns, positions, total - done + layer.macs))
    return found


@cache
def traced(network: str) -> Graph:
    make, size = NETWORKS[network]
    return open_model(make().eval()).trace(as_samples(torch.zeros(2, *size)))


def work(network: str, samples: int) -> Work:
    """What a run on one of NETWORKS computes."""
    graph = traced(network)
    macs = sum(layer.macs for layer in graph.layers)
    return work_of(shapes(graph), macs, samples, graph.layers[-1].rows)


def measure(network: str, samples: int) -> dict[str, Any]:
    """The row of a run, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make, size = NETWORKS[network]
    inputs = torch.randn(samples, *size, generator=torch.Generator().manual_seed(0))
    model, counts = make().eval(), work(network, samples)
    before, start = peak_gb(), time.process_time()
    secateur.prune(model, inputs, sparsity=SPARSITY, max_images=None, progress=False)
    seconds = time.process_time() - start
    return {
        "network": network,
        "samples": samples,
        "sparsity": SPARSITY,
        **{kind: f"{getattr(counts, kind):.4g}" for kind in KINDS},
        "seconds": f"{seconds:.1f}",
        "before_gb": f"{before:.3f}",
        "peak_gb": f"{peak_gb():.3f}",
        **machine(),
    }


def measure_all(out: Path) -> None:
    """Each run in a process of its own; rows that are there are kept."""
    for network, samples in RUNS:
        case = {"network": network, "samples": samples, "sparsity": SPARSITY}
        if key(case, KEY) in {key(row, KEY) for row in read_rows(out)}:
            continue
        command = [sys.executable, __file__, "--out", str(out)]
        subprocess.run([*command, "--network", network, "--samples", str(samples)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of what pruning costs.")
    parser.add_argument("--network", choices=[*NETWORKS])
    parser.add_argument("--samples", type=int, default=256)
    add_files(parser, "scaling.csv")
    options = parser.parse_args()
    if options.network is None:
        measure_all(options.out)
    else:
        row = measure(options.network, options.samples)
        append_row(options.out, COLUMNS, row)
        print({name: row[name] for name in COLUMNS if name not in MACHINE}, flush=True)


if __name__ == "__main__":
    main()
