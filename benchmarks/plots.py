"""Draws the figures of docs from the CSV files in benchmarks/results; needs matplotlib.

python benchmarks/plots.py
"""

import argparse
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from results_table import FOLDER, read_rows
from tables import NAMES, ROOT

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "secateur", "font.size": 10, "axes.spines.top": False})


def sensitivity(rows: list[dict[str, str]], path: Path) -> None:
    """One panel per network, one line per layer: loss against sparsity."""
    networks = [name for name in NAMES if any(row["network"] == name for row in rows)]
    figure, panels = plt.subplots(
        1, len(networks), figsize=(4.2 * len(networks), 3.6), sharey=True, layout="constrained"
    )
    for panel, network in zip(panels if len(networks) > 1 else [panels], networks, strict=True):
        here = [row for row in rows if row["network"] == network]
        layers = list(dict.fromkeys(row["layer"] for row in here))
        colours = mpl.colormaps["viridis"].resampled(len(layers))
        for number, layer in enumerate(layers):
            points = [row for row in here if row["layer"] == layer]
            panel.semilogy(
                [100 * float(row["sparsity"]) for row in points],
                [float(row["loss_increase"]) for row in points],
                color=colours(number),
                linewidth=1,
            )
        panel.set(title=f"{NAMES[network]}, {len(layers)} layers", xlabel="zeros in the layer, %")
        panel.grid(alpha=0.3)
    figure.supylabel("relative squared error of the outputs")
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), "viridis")
    bar = figure.colorbar(scale, ax=panels, ticks=[0, 1], shrink=0.8)
    bar.ax.set_yticklabels(["first layer", "last layer"])
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of docs from the CSV files.")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="FOLDER")
    options = parser.parse_args()
    rows = read_rows(options.results / "curves.csv")
    exhaustive = [row for row in rows if row["allocation"] == "exhaustive"]
    sensitivity(exhaustive, options.docs / "sensitivity.svg")


if __name__ == "__main__":
    main()
