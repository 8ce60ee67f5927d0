"""Latency of pruned files, on ONNX Runtime and OpenVINO: `secateur bench` on two networks.

    python benchmarks/speed.py
    python benchmarks/speed.py --networks int8_stack --rounds 20 --out /tmp/speed.csv

Writes benchmarks/results/speed.csv anew. Latency does not depend on which weights are zero, so
they are the smallest: EfficientNet-Lite0 is pruned by normalised magnitude (the first layer and
depthwise convolutions stay dense). The stack is shaped like a transformer's feed-forward parts:
INT8 linear layers 768 to 3072 and back, on 128 tokens, with random weights. Wants a quiet machine.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import networks
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from options import add_files, numbers
from packing import pruned_state
from results_table import MACHINE, machine, write_rows

import secateur
from secateur.export.files import save_onnx
from secateur.hardware.latency import Bench, Timing

COLUMNS = (
    "network",
    "runtime",
    "sparsity",
    "threads",
    "batch",
    "rounds",
    "median_ms",
    "low_ms",
    "high_ms",
    "ratio",
    "ratio_low",
    "ratio_high",
    "against_dense",
    "layers",
    "sparse_layers",
    "peak_mb",
    "precision",
    "note",
    "onnxruntime",
    "openvino",
    *MACHINE,
)
RATIO = ("ratio_low", "ratio", "ratio_high")  # to the dense file's time
TOKENS, WIDTH, HIDDEN, BLOCKS = 128, 768, 3072, 4
Files = dict[float, Path]  # by sparsity, the dense one first


def efficientnet_lite0(data: Path, folder: Path, sparsities: list[float]) -> Files:
    """The trained network as ONNX files."""
    model, files = networks.load_efficientnet_lite0(data), {}
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for sparsity in (0.0, *sparsities):
        model.load_state_dict(dense)
        model.load_state_dict(pruned_state(model, sparsity))
        files[sparsity] = folder / f"efficientnet_lite0-{sparsity:g}.onnx"
        save_onnx(model, files[sparsity], torch.zeros(2, 3, 224, 224), [])
    return files


def int8_stack(data: Path, folder: Path, sparsities: list[float]) -> Files:
    """Linear layers with INT8 weights and inputs, in QDQ form."""
    files = {}
    for sparsity in (0.0, *sparsities):
        files[sparsity] = folder / f"int8_stack-{sparsity:g}.onnx"
        onnx.save(stack(sparsity, TOKENS, WIDTH, HIDDEN, BLOCKS), files[sparsity])
    return files


def stack(sparsity: float, tokens: int, width: int, hidden: int, blocks: int) -> onnx.ModelProto:
    """Blocks of two linear layers, width to hidden to width, with a ReLU between them."""
    rng, nodes, held = np.random.default_rng(0), [], []
    held += [numpy_helper.from_array(np.array(0.05, np.float32), "scale")]
    held += [numpy_helper.from_array(np.array(128, np.uint8), "zero")]
    held += [numpy_helper.from_array(np.array(0, np.int8), "none")]
    value = "input"
    for index in range(2 * blocks):
        rows, columns = (hidden, width) if index % 2 == 0 else (width, hidden)
        held += weight_of(rng, rows, columns, sparsity, index)
        nodes += linear(value, index)
        value = f"relu{index}"
    info = helper.make_tensor_value_info
    inputs, outputs = [info("input", 1, [tokens, width])], [info(value, 1, [tokens, width])]
    graph = helper.make_graph(nodes, "stack", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def weight_of(
    rng: np.random.Generator, rows: int, columns: int, sparsity: float, index: int
) -> Iterator[onnx.TensorProto]:
    """Rounded normal weights of which the smallest are zero, and their scale."""
    dense = rng.standard_normal((rows, columns))
    kept = np.abs(dense) > (np.quantile(np.abs(dense), sparsity) if sparsity else -1.0)
    steps = np.clip(np.round(dense * 32), -127, 127)
    steps = np.where(steps == 0, 1, steps) * kept  # zeros where they are meant, nowhere else
    yield numpy_helper.from_array(steps.astype(np.int8), f"weight{index}")
    scale = np.array(1 / (32 * columns**0.5), np.float32)
    yield numpy_helper.from_array(scale, f"scale{index}")


def linear(value: str, index: int) -> list[onnx.NodeProto]:
    """One layer in QDQ form, and a ReLU."""
    node = helper.make_node
    return [
        node("QuantizeLinear", [value, "scale", "zero"], [f"q{index}"]),
        node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"x{index}"]),
        node("DequantizeLinear", [f"weight{index}", f"scale{index}", "none"], [f"w{index}"]),
        node("Gemm", [f"x{index}", f"w{index}"], [f"y{index}"], transB=1),
        node("Relu", [f"y{index}"], [f"relu{index}"]),
    ]


NETWORKS = {"efficientnet_lite0": efficientnet_lite0, "int8_stack": int8_stack}


def rows_of(network: str, files: Files, found: Bench) -> Iterator[dict[str, object]]:
    """One row per file and runtime."""
    sparsities = {str(path): sparsity for sparsity, path in files.items()}
    for one in found.timings:
        yield {
            "network": network,
            "runtime": one.runtime,
            "sparsity": sparsities[one.file],
            "threads": found.threads,
            "batch": found.batch,
            "rounds": found.rounds,
            **dict(zip(RATIO, (f"{of:.4f}" for of in found.ratio(one)), strict=True)),
            "against_dense": found.verdict(one),
            "note": "; ".join(found.notes),
            **numbers_of(one),
            **{name: found.versions.get(name, "") for name in ("onnxruntime", "openvino")},
            **machine(),
        }


def numbers_of(one: Timing) -> dict[str, object]:
    """What was measured of a file in a runtime."""
    return {
        "median_ms": f"{one.median:.4g}",
        "low_ms": f"{one.low:.4g}",
        "high_ms": f"{one.high:.4g}",
        "layers": "" if one.layers is None else one.layers,
        "sparse_layers": "" if one.sparse_layers is None else one.sparse_layers,
        "peak_mb": "" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.1f}",
        "precision": one.precision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of pruned files.")
    add_files(parser, "speed.csv")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsities", type=numbers, default=[0.5, 0.7, 0.9])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            files = NETWORKS[network](options.data, Path(folder), options.sparsities)
            found = secateur.bench(*files.values(), rounds=options.rounds, threads=options.threads)
            print(found, flush=True)
            rows += rows_of(network, files, found)
    write_rows(options.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
