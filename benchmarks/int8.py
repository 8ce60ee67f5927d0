"""INT8 after pruning: accuracy of each file that is deployed, and whether its zeros are the same.

    python benchmarks/int8.py --networks resnet20 --sparsities 0.65

Four rows for each network, sparsity and draw, one per file: ONNX and OpenVINO, in float32 and in
INT8, all of the same pruned network. They go into benchmarks/results/int8.csv as soon as they are
measured; networks whose rows are there are skipped. `drop` is against the dense network,
`int8_drop` against the pruned one as float32 ONNX, both paired on the same test images. `zeros`
are those of the weights of all layers of the pruned network; each of them was found in the file of
the row, or the program would have ended with an error.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accuracy import SUBJECTS, Bench
from options import add_files, add_half, numbers, words
from results_table import MACHINE, append_row, key, machine, read_rows, scores
from torch import Tensor

import secateur
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare
from secateur.export.files import save_int8, save_model, save_openvino
from secateur.export.int8 import check_zeros, quantize
from secateur.export.onnx_weights import layer_weights
from secateur.frontends import open as open_model
from secateur.frontends.onnx import read

CASE = ("network", "sparsity", "images", "draw", "half", "test_images")
COLUMNS = (
    *CASE,
    "file",
    "dense_top1",
    "top1",
    "drop",
    "drop_error",
    "int8_drop",
    "int8_drop_error",
    "agreement",
    "kl",
    "zeros",
    "bytes",
    "largest_difference",
    "seconds",
    *MACHINE,
)


def measure(bench: Bench, case: dict[str, Any]) -> Iterator[dict[str, object]]:
    """The rows of one pruned network; seconds are those of making, writing and checking a file."""
    images = bench.subject.calibration(bench.folder, count=case["images"], draw=case["draw"])
    start = time.perf_counter()
    result = secateur.prune(bench.model, images, sparsity=case["sparsity"], progress=False)
    pruned = open_model(result.model).to_onnx(images)
    print(f"pruned in {time.perf_counter() - start:.0f} s", flush=True)
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "model.onnx": lambda path: _save(pruned, path, images),
        "model-int8.onnx": lambda path: save_int8(quantize(pruned, images), path, images, pruned),
        "openvino/model.xml": lambda path: save_openvino(pruned, path, images),
        "openvino/model-int8.xml": lambda path: save_openvino(pruned, path, images, int8=images),
    }
    base = predict(pruned, bench.test)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers.items():
            start = time.perf_counter()
            facts = make(Path(folder) / name)
            seconds = time.perf_counter() - start
            logits = predict(Path(folder) / name, bench.test)
            against_dense = compare(logits, bench.labels, bench.dense)
            against_pruned = compare(logits, bench.labels, base)
            yield {
                **case,
                "file": name,
                "dense_top1": f"{bench.dense_top1:.2f}",
                **scores(against_dense),
                "int8_drop": f"{against_pruned.drop:.2f}",
                "int8_drop_error": f"{against_pruned.drop_error:.3f}",
                "zeros": facts["zeros"],
                "bytes": facts["bytes"],
                "largest_difference": f"{facts['largest_difference']:.3g}",
                "seconds": f"{seconds:.1f}",
                **machine(),
            }


def _save(pruned: Any, path: Path, images: Tensor) -> dict[str, Any]:
    """The float32 file, its zeros looked for as in the others."""
    facts = save_model(pruned, path, images, [])
    zeros = check_zeros(layer_weights(pruned), layer_weights(read(path)), path.name)
    return {**facts, "zeros": zeros}


def main() -> None:
    options = _options()
    for network in options.networks:
        bench = None
        for sparsity, draw in itertools.product(options.sparsities, range(options.draws)):
            case = {
                "network": network,
                "sparsity": sparsity,
                "images": options.images,
                "draw": draw,
                "half": options.half,
                "test_images": options.test_images or SUBJECTS[network].test_images,
            }
            if key(case, CASE) in {key(row, CASE) for row in read_rows(options.out)}:
                continue
            bench = bench or Bench(network, options.data, options.half, int(case["test_images"]))
            for row in list(measure(bench, case)):
                append_row(options.out, COLUMNS, row)
                shown = f"top-1 {row['top1']}, {row['int8_drop']} ± {row['int8_drop_error']} lost"
                print(time.strftime("%H:%M"), network, sparsity, row["file"], shown, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy of pruned networks in INT8.")
    parser.add_argument("--networks", type=words, default=list(SUBJECTS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.65])
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--draws", type=int, default=1, help="choices of the images")
    parser.add_argument("--test-images", type=int, help="the first so many; default: all")
    add_half(parser)
    add_files(parser, "int8.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
