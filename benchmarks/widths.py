"""Which widths are worth stopping at: times of single layers against a fine sweep of one width.

    python benchmarks/widths.py
    python benchmarks/widths.py --runtimes openvino --by 4 --rounds 30 --out /tmp/widths.csv

Writes benchmarks/results/widths.csv anew: for each runtime, layer and axis the median time of its
nodes at every width, all widths taking turns, one thread. Needs no data.
"""

import argparse
from collections.abc import Iterator
from importlib import metadata
from itertools import product

from options import add_files, words
from results_table import MACHINE, machine, write_rows

from secateur.hardware.latency import median_interval
from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.layer_worker import cells_of, clock_for, take_turns

COLUMNS = (
    "runtime",
    "version",
    "layer",
    "axis",
    "width",
    "median_us",
    "low_us",
    "high_us",
    "least_us",
    "rounds",
    *MACHINE,
)
FULL = 128  # the other width


def conv(size: int, kernel: int, groups: int = 1) -> LayerShape:
    """A convolution of 128 channels that keeps its size, with ReLU6 behind it."""
    return LayerShape(
        kind="conv",
        inputs=FULL,
        outputs=FULL,
        size=(size, size),
        kernel=(kernel, kernel),
        stride=(1, 1),
        dilation=(1, 1),
        pads=((kernel // 2, kernel // 2),) * 2,
        groups=groups,
        activation="relu6",
    )


LAYERS = {"1x1": conv(28, 1), "3x3": conv(14, 3), "depthwise": conv(28, 3, FULL)}


def at(shape: LayerShape, axis: str, width: int) -> LayerShape:
    """The layer with one of its widths changed."""
    return shape.at(width, FULL) if axis == "inputs" else shape.at(FULL, width)


def sweep(
    runtime: str, layer: str, axis: str, widths: list[int], rounds: int
) -> Iterator[dict[str, object]]:
    """A row for each width of a layer."""
    with cells_of(runtime, 1) as make:
        cells = [make(at(LAYERS[layer], axis, width)) for width in widths]
        take_turns(cells, least=rounds + 1, most=rounds + 1, until=0, clock=clock_for(1))
        for width, cell in zip(widths, cells, strict=True):
            samples = [1e6 * seconds for seconds in cell.seconds()[1:]]
            low, median, high = median_interval(samples)
            yield {
                "runtime": runtime,
                "version": metadata.version(runtime),
                "layer": layer,
                "axis": axis,
                "width": width,
                "median_us": f"{median:.4g}",
                "low_us": f"{low:.4g}",
                "high_us": f"{high:.4g}",
                "least_us": f"{min(samples):.4g}",
                "rounds": len(samples),
                **machine(),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of layers against a fine sweep of widths.")
    add_files(parser, "widths.csv")
    parser.add_argument("--runtimes", type=words, default=["onnxruntime", "openvino"])
    parser.add_argument("--by", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    widths = list(range(8, FULL + 1, options.by))
    rows = []
    for runtime, layer, axis in product(options.runtimes, LAYERS, ("outputs", "inputs")):
        if axis == "outputs" or layer != "depthwise":
            rows += sweep(runtime, layer, axis, widths, options.rounds)
            print(runtime, layer, axis, flush=True)
    write_rows(options.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
