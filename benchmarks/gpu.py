"""Pruning on a GPU against the CPU of the same machine: time, agreement, accuracy.

    python benchmarks/gpu.py --networks minilm vit_base --minilm MINILM

MiniLM with 400 sentences of STS-B, judged by Spearman's correlation; ResNet-56 with 1,000 images of
CIFAR-10, judged by top-1 on the choosing half; the ViT-B/16 of timm with random weights and 64
images of noise, judged by its own error alone. `seconds` is the second call on the GPU: the first
one of a process starts CUDA as well. `masks_equal` is the share of the pruned layers' weights that
are kept, or not, on both. Rows of benchmarks/results/gpu.csv with the same settings are replaced.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from options import add_files
from patterns import Encoder, Pictures
from results_table import MACHINE, key, machine, read_rows, write_rows
from torch import Tensor

import secateur
from secateur.evaluation.inference import first_output

KEY = ("network", "samples", "target", "device", "threads")
COLUMNS = (
    *KEY,
    "seconds",
    "peak_gpu_gb",
    "sparsity",
    "relative_error",
    "dense",
    "pruned",
    "masks_equal",
    "gpu",
    *MACHINE,
)
SAMPLES = {"minilm": 400, "resnet56": 1000, "vit_base": 64}


class Noise:
    """A ViT-B/16 with random weights: nothing to be judged by but its own outputs."""

    def __init__(self) -> None:
        import timm  # an extra that only this network needs

        torch.manual_seed(0)
        self.model = timm.create_model("vit_base_patch16_224").eval()

    def samples(self, draw: int, count: int) -> Tensor:
        return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(draw))

    def judge(self, model: Any) -> dict[str, str]:
        del model
        return {"dense": "", "pruned": ""}


def weights(result: secateur.PruneResult) -> dict[str, Tensor]:
    """Of the pruned layers, by name."""
    modules = dict(result.model.named_modules())
    layers = [of.name for of in result.report.layers if of.zeros]
    return {name: modules[name].weight.detach().cpu() for name in layers}


def share_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Which share of the weights is zero, or not, in both."""
    same = sum(int(((of != 0) == (other[at] != 0)).sum()) for at, of in one.items())
    return same / sum(of.numel() for of in one.values())


def measure(
    bench: Any, target: dict[str, Any], count: int, device: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a call took and gave, without the columns that tell it from others."""
    samples, peak = bench.samples(0, count), ""
    for _ in range(2 if device == "cuda" else 1):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = secateur.prune(bench.model, samples, device=device, progress=False, **target)
        seconds = time.perf_counter() - start
    if device == "cuda":
        peak = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"
    model = result.model.cpu()
    held = bench.samples(1, 32)
    before, after = (first_output(of, held) for of in (bench.model, model))
    error = float((before - after).square().sum() / (before - before.mean(0)).square().sum())
    judged = bench.judge(model)
    return {
        "seconds": f"{seconds:.1f}",
        "peak_gpu_gb": peak,
        "sparsity": f"{result.report.sparsity:.6f}",
        "relative_error": f"{error:.3g}",
        "dense": judged["dense"],
        "pruned": judged["pruned"],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        **machine(),
    }, weights(result)


def bench_of(name: str, options: argparse.Namespace) -> Any:
    if name == "vit_base":
        return Noise()
    if name == "minilm":
        return Encoder(options.data, options.minilm)
    return Pictures(name, options.data, "choose")


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    torch.set_num_threads(options.threads)
    for name in options.networks:
        bench, found = bench_of(name, options), dict[str, dict[str, Tensor]]()
        for device in options.devices:
            for asked in options.targets:
                target = {"pattern": asked} if ":" in asked else {"sparsity": float(asked)}
                values = name, SAMPLES[name], asked, device, options.threads
                case = dict(zip(KEY, values, strict=True))
                facts, mine = measure(bench, target, SAMPLES[name], device)
                other = found.setdefault(asked, mine)
                row = {**case, **facts, "masks_equal": ""}
                if other is not mine:
                    row["masks_equal"] = f"{share_equal(other, mine):.4f}"
                rows = [of for of in read_rows(options.out) if key(of, KEY) != key(row, KEY)]
                write_rows(options.out, COLUMNS, [*rows, row])
                print(row, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(SAMPLES), default=list(SAMPLES))
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=("cpu", "cuda"))
    parser.add_argument("--targets", nargs="+", default=("0.5",), help="zeros, or 2:4")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--minilm", type=Path, default=Path("minilm"), help="folder of the package")
    add_files(parser, "gpu.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
