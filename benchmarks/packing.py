"""Bytes of pruned weights, packed and not: `secateur pack` next to zip and zstd.

    python benchmarks/packing.py

Writes benchmarks/results/packing.csv anew. EfficientNet-Lite0 is pruned by normalised magnitude
(the first layer and depthwise convolutions stay dense), and made INT8 by symmetric rounding per
output channel, normalisation and scales left in float32; the rest is random. Zip and zstd get the
whole .safetensors file, at their strongest usual settings. Seconds are of the processor.
"""

import argparse
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import networks
import torch
from options import add_files, numbers
from results_table import MACHINE, machine, write_rows
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur
from secateur.export.packing import zstd

COLUMNS = (
    "weights",
    "type",
    "sparsity",
    "zeros",
    "float32_bytes",
    "bytes",
    "zip",
    "zstd19",
    "packed",
    "zstd19_seconds",
    "pack_seconds",
    "unpack_seconds",
    "zstd",
    *MACHINE,
)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RANDOM = 1_000_000  # weights
State = dict[str, Tensor]
Result = TypeVar("Result")


def random_states(sparsities: list[float]) -> Iterator[tuple[str, float, State]]:
    """Gaussian weights of which the smallest are zero, in each type."""
    dense = torch.randn(RANDOM // 1000, 1000, generator=torch.Generator().manual_seed(0))
    for sparsity in sparsities:
        threshold = dense.abs().flatten().kthvalue(max(1, round(sparsity * dense.numel()))).values
        pruned = torch.where(dense.abs() <= threshold, 0.0, dense) if sparsity else dense
        for name, kind in TYPES.items():
            yield name, sparsity, {"weight": pruned.to(kind)}
        yield "int8", sparsity, rounded({"weight": pruned})


def network_states(folder: Path, sparsities: list[float]) -> Iterator[tuple[str, float, State]]:
    """EfficientNet-Lite0 in float32 and in INT8."""
    model = networks.load_efficientnet_lite0(folder)
    for sparsity in sparsities:
        state = pruned_state(model, sparsity)
        yield "float32", sparsity, state
        yield "int8", sparsity, rounded(state)


def pruned_state(model: nn.Module, sparsity: float) -> State:
    """The state with the smallest weights of the layers that are pruned by default set to zero."""
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    names = [
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > 3)
    ]
    scores = {name: state[name].abs() / state[name].norm() for name in names}
    pool = torch.cat([score.flatten() for score in scores.values()])
    if sparsity:
        threshold = pool.kthvalue(round(sparsity * len(pool))).values
        for name, score in scores.items():
            state[name] = torch.where(score <= threshold, 0.0, state[name])
    return state


def rounded(state: State) -> State:
    """Every weight in steps of 1/127 of the largest of its row, and these steps."""
    found = dict(state)
    for name, weight in state.items():
        if weight.ndim > 1:
            scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            steps = weight / scale.view(-1, *[1] * (weight.ndim - 1))
            found |= {name: steps.round().to(torch.int8), f"{name}_scale": scale}
    return found


def measure(state: State, folder: Path) -> dict[str, object]:
    path, packed = folder / "m.safetensors", folder / "m.packed"
    save_file(state, path)
    content = path.read_bytes()
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(path, path.name)
    squeezed, zstd_seconds = timed(lambda: zstd.compress(content, 19))
    size, pack_seconds = timed(lambda: secateur.pack(path, packed, overwrite=True))
    _, unpack_seconds = timed(lambda: secateur.unpack(packed, folder / "back", overwrite=True))
    if (folder / "back").read_bytes() != content:
        raise AssertionError(f"{path} did not come back")
    weights = [tensor for name, tensor in state.items() if tensor.ndim > 1]
    count = sum(tensor.numel() for tensor in weights)
    return {
        "zeros": f"{sum(int((tensor == 0).sum()) for tensor in weights) / count:.4f}",
        "bytes": len(content),
        "zip": (folder / "m.zip").stat().st_size,
        "zstd19": len(squeezed),
        "packed": size.packed,
        "zstd19_seconds": f"{zstd_seconds:.2f}",
        "pack_seconds": f"{pack_seconds:.2f}",
        "unpack_seconds": f"{unpack_seconds:.2f}",
        "zstd": zstd.zstd_version,
        **machine(),
    }


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of pruned weights, packed and not.")
    add_files(parser, "packing.csv")
    parser.add_argument("--sparsities", type=numbers, default=[0, 0.5, 0.65, 0.9])
    options = parser.parse_args()
    rows, dense = [], {}
    cases = [("random", case) for case in random_states([0.65])]
    cases += [
        ("efficientnet_lite0", case) for case in network_states(options.data, options.sparsities)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for weights, (kind, sparsity, state) in cases:
            found = measure(state, Path(folder))
            dense.setdefault(weights, found["bytes"])  # the first is float32
            of = {"weights": weights, "type": kind, "sparsity": sparsity}
            rows.append({**of, "float32_bytes": dense[weights], **found})
            print(*(rows[-1][column] for column in COLUMNS[:-4]), flush=True)
    write_rows(options.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
