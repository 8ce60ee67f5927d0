"""Prunes a model of timm with the preprocessing that it was trained for.

`pip install timm` alone may replace PyTorch by a build with CUDA. Name the one that you have:

pip install timm torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
python examples/prune_timm_model.py efficientnet_lite0 images/ --labelled validation/
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import timm

import secateur


def main(arguments: Sequence[str] | None = None) -> None:
    """Prunes, evaluates on labelled images if there are any, and writes weights and report."""
    parser = argparse.ArgumentParser(description="Prune a model of timm.")
    parser.add_argument("model", help="a name that timm.list_models() gives")
    parser.add_argument("images", help="calibration images: a folder, or fractal:300")
    parser.add_argument("--labelled", help="evaluation images: a folder with labels")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--random", action="store_true", help="random weights, to try this out")
    parser.add_argument("-o", "--out", type=Path, default=Path("pruned-timm"))
    options = parser.parse_args(arguments)

    model = timm.create_model(options.model, pretrained=not options.random).eval()
    config = timm.data.resolve_model_data_config(model)
    result = secateur.prune(
        model,
        options.images,
        sparsity=options.sparsity,
        evaluation=options.labelled,
        preprocess=secateur.Preprocess.from_timm(config),
    )
    print(result.report)
    result.save(options.out)


if __name__ == "__main__":
    main()
