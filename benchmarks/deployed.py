"""Channels removed and INT8 on a runtime: accuracy and time of the files that are deployed.

    python benchmarks/deployed.py --networks efficientnet_lite0 --targets max_latency=0.7
    python benchmarks/deployed.py --targets max_macs=0.7

Four rows for each network, target and runtime, one per file: the dense network and the one without
channels, in float32 and in INT8. Times are those of one image on one thread, all files in turns in
processes of their own, after the call of `prune` has ended. `drop` is against the dense float32
network, `float_drop` against the float32 file of the same row's network, both paired on the same
images. A `max_latency` is asked for on the runtime of the row; with other targets the same network
runs on all of them. Rows go to benchmarks/results/deployed.csv as they are measured; those that are
there are skipped. Keep the machine idle meanwhile.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from accuracy import Bench
from channels import RECIPES
from options import add_files, add_half, words
from paper import images_of
from results_table import MACHINE, append_row, key, machine, read_rows, scores

import secateur
from secateur.data.images import Images
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare
from secateur.frontends import open as open_model
from secateur.hardware.compare_latency import compare as compare_times

CASE = ("network", "target", "value", "planned_for", "images", "draw", "half", "recipe", "multiple")
TIMES = ("milliseconds", "ratio_low", "ratio", "ratio_high", "rounds")
COLUMNS = (
    *CASE,
    "file",
    "runtime",
    "version",
    "macs_fraction",
    "test_images",
    "dense_top1",
    "top1",
    "drop",
    "drop_error",
    "kl",
    "float_drop",
    "float_drop_error",
    "bytes",
    *TIMES,
    "prune_seconds",
    *MACHINE,
)


def files_of(
    bench: Bench, case: dict[str, Any], images: Images, folder: Path
) -> tuple[dict[str, Path], secateur.Report]:
    """The four files, and the report of the call."""
    latency = case["target"] == "max_latency"
    result = secateur.prune(
        bench.model,
        images,
        pattern=secateur.Channels(multiple=case["multiple"]),
        recipe=RECIPES[case["recipe"]],
        quantize="int8",
        progress=False,
        **{case["target"]: case["value"]},
        **({"runtime": case["planned_for"]} if latency else {}),
    )
    dense = open_model(bench.model).to_onnx(images.tensor[:8])
    models = {
        "dense": dense,
        "dense, INT8": secateur.quantize(dense, images.tensor),
        "channels": result.exported,
        "channels, INT8": result.quantized,
    }
    files = {}
    for number, (name, model) in enumerate(models.items()):
        files[name] = folder / f"{number}.onnx"
        onnx.save(model, files[name])
    return files, result.report


def rows_of(
    bench: Bench, case: dict[str, Any], images: Images, runtimes: list[str], seconds: float
) -> Iterator[dict[str, object]]:
    """A row for each file and runtime."""
    with tempfile.TemporaryDirectory() as name:
        files, report = files_of(bench, case, images, Path(name))
        logits = {file: predict(path, bench.test) for file, path in files.items()}
        for runtime in runtimes:
            times = compare_times(list(files.values()), images.tensor[:2], runtime, seconds)
            for (file, path), timed in zip(files.items(), times, strict=True):
                against_dense = compare(logits[file], bench.labels, logits["dense"])
                own = logits[file.removesuffix(", INT8")]
                against_float = compare(logits[file], bench.labels, own)
                yield {
                    **case,
                    "file": file,
                    "runtime": runtime,
                    "version": metadata.version(runtime),
                    "macs_fraction": f"{1.0 if 'dense' in file else report.macs_fraction:.4f}",
                    "test_images": len(bench.labels),
                    "dense_top1": f"{bench.dense_top1:.2f}",
                    **scores(against_dense, "top1", "drop", "drop_error", "kl"),
                    "float_drop": f"{against_float.drop:.2f}",
                    "float_drop_error": f"{against_float.drop_error:.3f}",
                    "bytes": path.stat().st_size,
                    "milliseconds": f"{1e3 * timed.seconds:.4g}",
                    "ratio_low": f"{timed.low:.4f}",
                    "ratio": f"{timed.ratio:.4f}",
                    "ratio_high": f"{timed.high:.4f}",
                    "rounds": timed.rounds,
                    "prune_seconds": f"{report.seconds['total']:.1f}",
                    **machine(),
                }


def main() -> None:
    options = _options()
    for network in options.networks:
        bench, images = None, None
        for target, value, planned_for, runtimes in _targets(options):
            case = {
                "network": network,
                "target": target,
                "value": value,
                "planned_for": planned_for,
                "images": options.images,
                "draw": options.draw,
                "half": options.half,
                "recipe": options.recipe,
                "multiple": options.multiple,
            }
            if key(case, CASE) in {key(row, CASE) for row in read_rows(options.out)}:
                continue
            bench = bench or Bench(network, options.data, options.half)
            images = images or images_of(bench, network, "real", options.draw, options.images)
            for row in list(rows_of(bench, case, images, runtimes, options.seconds)):
                append_row(options.out, COLUMNS, row)
                shown = f"{row['ratio']} of the time, top-1 {row['top1']}"
                print(time.strftime("%H:%M"), network, row["runtime"], row["file"], shown)


def _targets(options: argparse.Namespace) -> Iterator[tuple[str, float, str, list[str]]]:
    """Name and value of each target, the runtime that it is about, and those to measure on."""
    for text in options.targets:
        name, value = text.split("=")
        if name == "max_latency":
            yield from ((name, float(value), of, [of]) for of in options.runtimes)
        else:
            yield name, float(value), "", options.runtimes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy and time of files that are deployed.")
    parser.add_argument("--networks", type=words, default=["efficientnet_lite0", "resnet56"])
    parser.add_argument("--targets", type=words, default=["max_latency=0.7", "max_macs=0.7"])
    parser.add_argument("--runtimes", type=words, default=["onnxruntime", "openvino"])
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--draw", type=int, default=0, help="choice of the images")
    parser.add_argument("--recipe", choices=list(RECIPES), default="one-walk")
    parser.add_argument("--multiple", type=int, default=8, help="of which widths are one")
    parser.add_argument("--seconds", type=float, default=60, help="of measuring, for each runtime")
    add_half(parser)
    add_files(parser, "deployed.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
