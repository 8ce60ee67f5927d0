"""Accuracy after pruning: networks x sparsities x methods x inputs x draws of the images.

    python benchmarks/accuracy.py --networks resnet20 --sparsities 0.7

Each row goes to benchmarks/results/accuracy.csv as soon as it is measured; rows that are there
are skipped, so an interrupted run can be resumed. The default method (ADMM, pruned inputs) is run
first, with every draw; the others with draw 0 only, unless --all-draws is given. Magnitude
pruning fits nothing: it does not depend on inputs or draws and is run once.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import networks
import shared_data
import torch
from options import add_files, add_half, numbers, words
from results_table import MACHINE, SCORES, append_row, key, machine, read_rows, scores
from torch import Tensor, nn

import secateur
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare

ALLOCATION = "normalized-magnitude"
KEY = (
    "network",
    "sparsity",
    "method",
    "inputs",
    "allocation",
    "draw",
    "images",
    "half",
    "test_images",
)
COLUMNS = (
    *KEY,
    "dense_top1",
    *SCORES,
    "prune_seconds",
    "reached_sparsity",
    *MACHINE,
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with its images."""

    load: Callable[[Path], nn.Module]
    calibration: Callable[..., Tensor]
    test: Callable[[Path, str], tuple[Tensor, Tensor]]
    images: int
    test_images: int  # in either half


CIFAR10 = {
    "calibration": shared_data.cifar10_calibration,
    "test": shared_data.cifar10_test,
    "images": 500,
    "test_images": 5000,
}
SUBJECTS = {
    "resnet20": Subject(load=networks.load_resnet20, **CIFAR10),
    "resnet56": Subject(load=networks.load_resnet56, **CIFAR10),
    "efficientnet_lite0": Subject(
        load=networks.load_efficientnet_lite0,
        calibration=shared_data.imagenet_calibration,
        test=shared_data.imagenet_val,
        images=300,
        test_images=650,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row to measure."""

    network: str
    sparsity: float
    method: str
    inputs: str
    draw: int
    images: int
    half: str
    test_images: int
    allocation: str = ALLOCATION


class Bench:
    """A network and its dense scores, read and computed once."""

    def __init__(
        self,
        name: str,
        folder: Path,
        half: str,
        test_images: int | None = None,
        subjects: Mapping[str, Subject] = SUBJECTS,
    ) -> None:
        self.subject, self.folder = subjects[name], folder
        self.model = self.subject.load(folder).to(memory_format=torch.channels_last)
        images, labels = self.subject.test(folder, half)
        self.test, self.labels = images[:test_images], labels[:test_images]
        self.dense = predict(self.model, self.test)
        self.dense_top1 = compare(self.dense, self.labels).top1

    def judge(self, model: nn.Module) -> secateur.Evaluation:
        return compare(predict(model, self.test), self.labels, self.dense)

    def measure(self, case: Case) -> dict[str, object]:
        images = self.subject.calibration(self.folder, count=case.images, draw=case.draw)
        start = time.perf_counter()
        result = secateur.prune(
            self.model,
            images,
            sparsity=case.sparsity,
            recipe=secateur.Recipe(),  # in one walk
            method=case.method,
            allocation=case.allocation,
            inputs="pruned" if case.inputs == "none" else case.inputs,
            progress=False,
        )
        seconds = time.perf_counter() - start
        return {
            **vars(case),
            "dense_top1": f"{self.dense_top1:.2f}",
            **scores(self.judge(result.model)),
            "prune_seconds": f"{seconds:.1f}",
            "reached_sparsity": f"{result.report.sparsity:.6f}",
            **machine(),
        }


def cases(options: argparse.Namespace) -> list[Case]:
    """Default method first, with all draws; then the others."""
    found = []
    combinations = itertools.product(options.methods, options.inputs)
    for method, inputs in sorted(combinations, key=lambda pair: pair != ("admm", "pruned")):
        if method == "magnitude" and inputs != options.inputs[0]:
            continue
        every = (method, inputs) == ("admm", "pruned") or options.all_draws
        draws = options.draws if every and method != "magnitude" else 1
        for name, sparsity in itertools.product(options.networks, options.sparsities):
            subject = SUBJECTS[name]
            found += [
                Case(
                    network=name,
                    sparsity=sparsity,
                    method=method,
                    inputs="none" if method == "magnitude" else inputs,
                    draw=draw,
                    images=options.images or subject.images,
                    half=options.half,
                    test_images=options.test_images or subject.test_images,
                )
                for draw in range(draws)
            ]
    return found


def rows(missing: list[Case], folder: Path) -> Iterator[dict[str, object]]:
    benches: dict[str, Bench] = {}
    for case in missing:
        if case.network not in benches:
            benches[case.network] = Bench(case.network, folder, case.half, case.test_images)
        yield benches[case.network].measure(case)


def main() -> None:
    options = _options()
    known = {key(row, KEY) for row in read_rows(options.out)}
    wanted = cases(options)
    missing = [case for case in wanted if key(vars(case), KEY) not in known]
    print(f"{len(wanted)} rows, {len(wanted) - len(missing)} there already", flush=True)
    for number, row in enumerate(rows(missing, options.data), 1):
        append_row(options.out, COLUMNS, row)
        shown = " ".join(str(row[column]) for column in KEY[:6])
        times = f"dense {row['dense_top1']}, {row['prune_seconds']} s"
        print(f"{number}/{len(missing)} {shown}: top-1 {row['top1']} ({times})", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy after pruning, as rows of a CSV file.")
    parser.add_argument("--networks", type=words, default=list(SUBJECTS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.7, 0.8])
    parser.add_argument("--methods", type=words, default=["admm", "least-squares", "magnitude"])
    parser.add_argument("--inputs", type=words, default=["pruned", "dense"])
    parser.add_argument("--draws", type=int, default=3, help="choices of calibration images")
    parser.add_argument("--all-draws", action="store_true", help="for every method")
    parser.add_argument("--images", type=int, help="calibration images; default by network")
    parser.add_argument("--test-images", type=int, help="the first so many; default: all")
    add_half(parser)
    add_files(parser, "accuracy.csv")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(SUBJECTS):
        sys.exit(f"unknown networks {sorted(unknown)}, expected some of {', '.join(SUBJECTS)}")
    return options


if __name__ == "__main__":
    main()
