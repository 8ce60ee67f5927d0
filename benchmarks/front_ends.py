"""The same network pruned as a PyTorch module and as an ONNX file: masks, accuracy and cost.

    python benchmarks/front_ends.py --networks resnet20

The network is exported to ONNX, and both are pruned with the default recipe on the same images.
One row per network, sparsity and draw into benchmarks/results/front_ends.csv: the share of weights
that are zero in both or in neither, both accuracies, and the seconds of both calls, one after the
other in one process.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import onnx
from accuracy import SUBJECTS, Bench
from options import add_files, add_half, numbers, words
from results_table import MACHINE, append_row, key, machine, read_rows
from torch import Tensor

import secateur
from secateur.export.files import save_onnx
from secateur.frontends import open as open_model

KEY = ("network", "sparsity", "images", "draw", "half", "test_images")
COLUMNS = (
    *KEY,
    "dense_top1",
    "torch_top1",
    "onnx_top1",
    "masks_equal",
    "torch_seconds",
    "onnx_seconds",
    "ratio",
    *MACHINE,
)


def equal_masks(first: secateur.PruneResult, second: secateur.PruneResult) -> float:
    """Share of the pruned layers' weights that are zero in both networks or in neither."""
    tensors, others = (open_model(of.model).tensors() for of in (first, second))
    names = [f"{layer.name}.weight" for layer in first.report.layers]
    same = sum(int(((tensors[name] == 0) == (of(others, name) == 0)).sum()) for name in names)
    return same / sum(tensors[name].numel() for name in names)


def of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight by its PyTorch name; the exporter keeps these for layers."""
    return tensors[name]


def measure(bench: Bench, case: dict[str, object], images: Tensor) -> dict[str, object]:
    """A row: the module and its ONNX file pruned one after the other."""
    sparsity = float(str(case["sparsity"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        save_onnx(bench.model, path, images[:2], [])
        model = onnx.load(path)
    results, seconds = [], []
    for network in (bench.model, model):
        start = time.perf_counter()
        results.append(secateur.prune(network, images, sparsity=sparsity, progress=False))
        seconds.append(time.perf_counter() - start)
    top1 = [bench.judge(result.model).top1 for result in results]
    return {
        **case,
        "dense_top1": f"{bench.dense_top1:.2f}",
        "torch_top1": f"{top1[0]:.2f}",
        "onnx_top1": f"{top1[1]:.2f}",
        "masks_equal": f"{equal_masks(*results):.6f}",
        "torch_seconds": f"{seconds[0]:.1f}",
        "onnx_seconds": f"{seconds[1]:.1f}",
        "ratio": f"{seconds[1] / seconds[0]:.2f}",
        **machine(),
    }


def main() -> None:
    options = _options()
    for network in options.networks:
        bench = Bench(network, options.data, options.half)
        for draw, sparsity in itertools.product(range(options.draws), options.sparsities):
            case = {
                "network": network,
                "sparsity": sparsity,
                "images": options.images,
                "draw": draw,
                "half": options.half,
                "test_images": SUBJECTS[network].test_images,
            }
            if key(case, KEY) in {key(row, KEY) for row in read_rows(options.out)}:
                continue
            images = bench.subject.calibration(bench.folder, count=options.images, draw=draw)
            row = measure(bench, case, images)
            append_row(options.out, COLUMNS, row)
            print({name: row[name] for name in COLUMNS[:-3]}, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="PyTorch's front-end against ONNX's.")
    parser.add_argument("--networks", type=words, default=list(SUBJECTS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5])
    parser.add_argument("--images", type=int, default=300, help="calibration images")
    parser.add_argument("--draws", type=int, default=1, help="choices of the images")
    add_half(parser)
    add_files(parser, "front_ends.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
