"""Latency of networks of equal multiply-accumulates: Secateur's and those of other tools.

    PYTHONPATH=RIVALS python benchmarks/channel_latency.py --networks efficientnet_lite0 --macs 0.7

Each network is exported to ONNX, and all take turns on one thread (`secateur.bench`). Writes
benchmarks/results/channel_latency.csv; `rival_tools.py` says what RIVALS has to hold. The weights
make no difference to latency: Secateur's network is made in one walk. Needs an idle machine.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accuracy import Bench
from channels import RECIPES, SHARES
from options import add_files, numbers, words
from paper import images_of
from results_table import MACHINE, machine, write_rows
from rival_tools import RIVALS, counted
from torch import Tensor, nn

import secateur
from secateur.export.files import save_onnx

TOOLS = ("low-rank", "torch-pruning magnitude", "torch-pruning magnitude, isomorphic", "onnxsim l2")
RATIO = ("ratio_low", "ratio", "ratio_high")
COLUMNS = (
    "network",
    "max_macs",
    "tool",
    "macs_fraction",
    "runtime",
    "threads",
    "batch",
    "rounds",
    "median_ms",
    "low_ms",
    "high_ms",
    *RATIO,
    "against_dense",
    "onnxruntime",
    "openvino",
    *MACHINE,
)


def files_of(
    bench: Bench, images: Tensor, share: float, tools: list[str], folder: Path
) -> dict[str, Path]:
    """ONNX files of the dense network and of each tool's."""
    own = secateur.prune(
        bench.model,
        images,
        pattern="channels",
        max_macs=share,
        recipe=RECIPES["one-walk"],
        progress=False,
    ).model
    made = {"dense": bench.model, "Secateur": own}
    for tool in tools:
        try:
            made[tool] = RIVALS[tool].prepare(bench.model, images)(share)
        except Exception as error:  # of another tool
            print(f"{tool}: {type(error).__name__}: {error}", flush=True)
    files = {}
    for number, (tool, network) in enumerate(made.items()):
        files[tool] = folder / f"{number}.onnx"
        if isinstance(network, nn.Module):
            save_onnx(network, files[tool], images[:4], [])
        else:
            files[tool].write_bytes(network.read_bytes())
    return files


def rows_of(
    case: dict[str, object], files: dict[str, Path], images: Tensor, rounds: int
) -> Iterator[dict[str, object]]:
    """One row per file and runtime."""
    found = secateur.bench(*files.values(), threads=1, rounds=rounds)
    print(found, flush=True)
    tools = {str(path): tool for tool, path in files.items()}
    dense = counted(files["dense"], images)
    for one in found.timings:
        yield {
            **case,
            "tool": tools[one.file],
            "macs_fraction": f"{counted(Path(one.file), images) / dense:.4f}",
            "runtime": one.runtime,
            "threads": found.threads,
            "batch": found.batch,
            "rounds": found.rounds,
            "median_ms": f"{one.median:.4g}",
            "low_ms": f"{one.low:.4g}",
            "high_ms": f"{one.high:.4g}",
            **dict(zip(RATIO, (f"{of:.4f}" for of in found.ratio(one)), strict=True)),
            "against_dense": found.verdict(one),
            **{name: found.versions.get(name, "") for name in ("onnxruntime", "openvino")},
            **machine(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency at equal multiply-accumulates.")
    parser.add_argument("--networks", type=words, default=["efficientnet_lite0", "resnet56"])
    parser.add_argument("--macs", type=numbers, help="shares left, such as 0.7,0.5; by network")
    parser.add_argument("--tools", type=lambda text: text.split(";"), default=list(TOOLS))
    parser.add_argument("--images", type=int, default=200, help="calibration images")
    parser.add_argument("--rounds", type=int, default=100)
    add_files(parser, "channel_latency.csv")
    options = parser.parse_args()
    rows = []
    for network in options.networks:
        bench = Bench(network, options.data, "choose", test_images=50)
        images = images_of(bench, network, "real", 0, options.images).tensor
        for share in options.macs or SHARES[network]:
            with tempfile.TemporaryDirectory() as folder:
                files = files_of(bench, images, share, options.tools, Path(folder))
                case: dict[str, object] = {"network": network, "max_macs": share}
                rows += rows_of(case, files, images, options.rounds)
            write_rows(options.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
