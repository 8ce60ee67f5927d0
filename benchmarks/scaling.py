"""A model of what pruning costs, fitted to measured runs, and what it says of larger networks.

    python benchmarks/scaling.py measure
    python benchmarks/scaling.py predict

`measure` prunes networks of random weights to 70 % zeros (two walks, no blocks trained), each in a
process of its own, on one thread, and writes a row with what the run has to compute, by kind, its
processor time and its peak memory into benchmarks/results/scaling.csv. `predict` fits the seconds
that each kind of work takes (non-negative least squares of relative errors) to these rows, prints
how far off the fit is, and then what it says of runs that nobody has made: see docs/scale.md.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from options import add_files
from results_table import MACHINE, append_row, key, machine, read_rows
from torch import Tensor, nn

import secateur
from secateur.frontends import open as open_model
from secateur.network.graph import Graph
from secateur.network.samples import as_samples
from secateur.pruning.layer_selection import select_layers
from secateur.pruning.sampling import Sampling

KEY = ("network", "samples", "sparsity")
KINDS = ("forward", "judged", "statistics", "solves", "factors", "layers")
COLUMNS = (*KEY, *KINDS, "seconds", "before_gb", "peak_gb", *MACHINE)
SPARSITY = 0.7

WALKS, FITS, LEVELS, RUN_LEVELS = 2, 4, 10, 3
JUDGED = 64  # samples; 16 where an output has 128 values (`enough_to_judge`)
PASSES = 2 + 2 * WALKS + 2  # measuring and the report; two streams a walk; measuring anew
STEPS = 40  # of ADMM and conjugate gradients together: a scale that the fit takes out


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


@dataclass(frozen=True)
class Work:
    """What a run computes, in 1e12 floating-point operations, but for the last kind.

    Attributes:
        forward: the network, for all samples, in each pass.
        judged: from each layer on, for the samples that tell what the network loses.
        statistics: second moments of the inputs of each layer, once a fit.
        solves: the steps of the fits, which grow with rows times columns squared.
        factors: factors of the second moments, which grow with columns cubed.
        layers: fits of layers, in thousands, however small they are.
    """

    forward: float
    judged: float
    statistics: float
    solves: float
    factors: float
    layers: float

    @property
    def listed(self) -> list[float]:
        """By kind, in the order of KINDS."""
        return [getattr(self, kind) for kind in KINDS]


@dataclass(frozen=True)
class Shape:
    """A layer as far as its cost goes."""

    rows: int
    columns: int
    positions: int  # of a sample
    macs: int  # of a sample
    after: int  # MACs of a sample that come behind it


def shapes(graph: Graph) -> list[Shape]:
    """Of the layers that are pruned."""
    total, found, done = sum(layer.macs for layer in graph.layers), list[Shape](), 0
    pruned = {layer.name for layer in select_layers(graph.layers, None, None)}
    for layer in graph.layers:
        done += layer.macs
        if layer.name in pruned:
            positions = max(1, layer.macs // layer.weights)
            found.append(
                Shape(layer.rows, layer.columns, positions, layer.macs, total - done + layer.macs)
            )
    return found


def work_of(layers: list[Shape], macs: int, samples: int, outputs: int) -> Work:
    """What a run to 70 % zeros computes."""
    taken = [min(Sampling().count(of.columns), of.positions * samples) for of in layers]
    judged = min(16 if outputs >= 128 else JUDGED, samples // 4)
    return Work(
        forward=PASSES * 2 * macs * samples / 1e12,
        judged=RUN_LEVELS * 2 * judged * sum(of.after for of in layers) / 1e12,
        statistics=FITS
        * sum(2 * of.columns**2 * count for of, count in zip(layers, taken, strict=True))
        / 1e12,
        solves=LEVELS * STEPS * sum(2 * of.rows * of.columns**2 for of in layers) / 1e12,
        factors=LEVELS * STEPS / 3 * sum(of.columns**3 for of in layers) / 1e12,
        layers=LEVELS * len(layers) / 1e3,
    )


@cache
def traced(network: str) -> Graph:
    make, size = NETWORKS[network]
    return open_model(make().eval()).trace(as_samples(torch.zeros(2, *size)))


def work(network: str, samples: int) -> Work:
    """What a run on one of NETWORKS computes."""
    graph = traced(network)
    macs = sum(layer.macs for layer in graph.layers)
    return work_of(shapes(graph), macs, samples, graph.layers[-1].rows)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


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
        command = [sys.executable, __file__, "measure", "--out", str(out)]
        subprocess.run([*command, "--network", network, "--samples", str(samples)], check=True)


def fitted(rows: list[dict[str, str]]) -> np.ndarray:
    """Seconds per 1e12 operations of each kind, none negative.

    Least squares of relative errors over all sets of kinds that may be zero; the best of those
    that are feasible (Lawson and Hanson's problem, small enough to try them all).
    """
    work = np.array([[float(row[kind]) for kind in KINDS] for row in rows])
    seconds = np.array([float(row["seconds"]) for row in rows])
    scaled, ones = work / seconds[:, None], np.ones(len(rows))
    best, least = np.zeros(len(KINDS)), np.inf
    for count in range(1, len(KINDS) + 1):
        for kept in map(list, itertools.combinations(range(len(KINDS)), count)):
            found = np.linalg.lstsq(scaled[:, kept], ones, rcond=None)[0]
            error = float(((scaled[:, kept] @ found - ones) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(len(KINDS)), error
                best[kept] = found
    return best


def predict(out: Path) -> None:
    """Prints the fit, its errors, and what it says of larger runs."""
    rows = read_rows(out)
    rates = fitted(rows)
    print("| kind of work | seconds of one thread per 1e12 operations, or 1000 fits |\n|---|---|")
    for kind, rate in zip(KINDS, rates, strict=True):
        print(f"| {kind} | {rate:.1f} |")
    print(
        "\n| network | samples | measured s | model s | off | peak GB |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        counts = np.array([float(row[kind]) for kind in KINDS])
        said, was = float(counts @ rates), float(row["seconds"])
        print(
            f"| {row['network']} | {row['samples']} | {was:.0f} | {said:.0f} "
            f"| {said / was - 1:+.0%} | {row['peak_gb']} |"
        )
    print("\n| run | " + " | ".join(KINDS) + " | all, hours | values GB | widest layer GB |")
    print("|---" * (len(KINDS) + 4) + "|")
    for name, plan in PLANS.items():
        hours = np.array(plan.work.listed) * rates / 3600
        told = " | ".join(f"{value:.2g}" for value in hours)
        print(
            f"| {name} | {told} | {hours.sum():.3g} | {plan.values / 1e9:.3g} "
            f"| {plan.statistics / 1e9:.2g} |"
        )


@dataclass(frozen=True)
class Plan:
    """A run that nobody has made."""

    work: Work
    values: float  # bytes between two layers, of all samples, dense and pruned
    statistics: float  # bytes of the widest layer's, and of its solution


def transformer(width: int, inner: int, depth: int, tokens: int, samples: int) -> Plan:
    """Of gated networks such as Llama: seven linear layers in each of its blocks."""
    sizes = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    each = [(rows, columns, rows * columns * tokens) for rows, columns in sizes * depth]
    total, done, layers = sum(macs for *_, macs in each), 0, list[Shape]()
    for rows, columns, macs in each:
        layers.append(Shape(rows, columns, tokens, macs, total - done))
        done += macs
    return Plan(
        work=work_of(layers, total, samples, width),
        values=2 * samples * tokens * width * 4,
        statistics=12 * 4 * max(columns for _, columns, _ in each) ** 2,
    )


def _shipped(network: str, samples: int, values: float) -> Plan:
    widest = max(of.columns for of in shapes(traced(network)))
    return Plan(work(network, samples), values, 12 * 4 * widest**2)


PLANS: Mapping[str, Plan] = {
    "ViT-L (1024, 4096, 24 blocks), 256 x 197 tokens": transformer(1024, 2730, 24, 197, 256),
    "the same, 1,000,000 images": transformer(1024, 2730, 24, 197, 10**6),
    "7 billion (4096, 11008, 32 blocks), 128 x 2048 tokens": transformer(
        4096, 11008, 32, 2048, 128
    ),
    "the same, 1,000,000 x 2048 tokens": transformer(4096, 11008, 32, 2048, 10**6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of what pruning costs.")
    parser.add_argument("task", choices=["measure", "predict"])
    parser.add_argument("--network", choices=[*NETWORKS])
    parser.add_argument("--samples", type=int, default=256)
    add_files(parser, "scaling.csv")
    options = parser.parse_args()
    if options.task == "predict":
        predict(options.out)
    elif options.network is None:
        measure_all(options.out)
    else:
        row = measure(options.network, options.samples)
        append_row(options.out, COLUMNS, row)
        print({name: row[name] for name in COLUMNS if name not in MACHINE}, flush=True)


if __name__ == "__main__":
    main()
