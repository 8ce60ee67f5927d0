"""2:4 on a GPU by PyTorch's semi-structured kernels, against the dense network in float16.

    python benchmarks/semi_structured.py --widths 768 2048 4096 --batches 8 64

An encoder of four layers with random weights, sequences of 128 positions of noise, its smaller
weights of each four zeroed: how fast a network is does not depend on which. Each is measured with
kernels launched from Python one by one, and in a CUDA graph; `forced` rows have the 2:4 kernel in
every layer, the others where it is faster. Rows of benchmarks/results/semi_structured.csv with the
same settings are replaced.
"""

import argparse
import itertools
import warnings

import torch
from options import add_files
from results_table import MACHINE, key, machine, read_rows, write_rows
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

import secateur

KEY = ("width", "batch", "launched", "kernels")
COLUMNS = (
    *KEY,
    "float32_ms",
    "float16_ms",
    "accelerated_ms",
    "against_float16",
    "sparse_layers",
    "layers",
    "relative_error",
    "gpu",
    *MACHINE,
)
POSITIONS, HEAD = 128, 64


class Layer(nn.Module):
    """Attention and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.joined(self.first(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        looked_up = scaled_dot_product_attention(*heads)
        x = x + self.out(looked_up.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.second(x))))


def encoder(width: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer(width) for _ in range(4))).eval()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            fours = part.weight.detach().view(len(part.weight), -1, 4)
            fours.scatter_(2, fours.abs().topk(2, 2, largest=False).indices, 0.0)
    return model


def main() -> None:
    options = _options()
    warnings.simplefilter("ignore", secateur.SecateurWarning)
    for width, batch in itertools.product(options.widths, options.batches):
        model = encoder(width)
        data = torch.randn(16, POSITIONS, width, generator=torch.Generator().manual_seed(0))
        for graph, forced in itertools.product((False, True), (False, True)):
            report = secateur.accelerate(
                model,
                data,
                runtime="torch-cuda-2:4",
                batch=batch,
                cuda_graph=graph,
                kernels="sparse" if forced else ("sparse", "dense"),
            ).report
            times = report.milliseconds
            row = {
                "width": width,
                "batch": batch,
                "launched": "CUDA graph" if graph else "one by one",
                "kernels": "forced" if forced else "chosen",
                "float32_ms": f"{times['float']:.3f}",
                "float16_ms": f"{times['half']:.3f}",
                "accelerated_ms": f"{times['accelerated']:.3f}",
                "against_float16": f"{times['half'] / times['accelerated']:.3f}",
                "sparse_layers": report.count("sparse"),
                "layers": sum(not of.reason for of in report.layers),
                "relative_error": f"{report.relative_error:.2g}",
                "gpu": torch.cuda.get_device_name(),
                **machine(),
            }
            rows = [of for of in read_rows(options.out) if key(of, KEY) != key(row, KEY)]
            write_rows(options.out, COLUMNS, [*rows, row])
            print(row, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", type=int, default=(768, 2048, 4096))
    parser.add_argument("--batches", nargs="+", type=int, default=(8, 64))
    add_files(parser, "semi_structured.csv")
    return parser.parse_args()


if __name__ == "__main__":
    main()
