"""Prunes your ONNX file on your images, and says what it cost: a script to start from.

    python examples/prune_onnx_file.py model.onnx images/ --size 224 -o out

The command line does the same, and with --int8 and --openvino also writes INT8 and OpenVINO files:

    secateur prune model.onnx --data images/ --size 224 --sparsity 0.6 -o out --int8 --openvino
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import secateur


def numbers(text: str) -> list[float]:
    """0.485,0.456,0.406 as numbers."""
    return [float(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prunes, compares both files on images that were kept back, and writes the pruned one."""
    parser = argparse.ArgumentParser(description="Prune an ONNX file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("images", help="a folder, or another source of images")
    parser.add_argument("--size", type=int, help="side of the square crop, in pixels")
    parser.add_argument("--mean", type=numbers, default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", type=numbers, default=[0.229, 0.224, 0.225])
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)

    print(secateur.inspect(options.model))
    preprocess = secateur.Preprocess(
        size=options.size, mean=options.mean, std=options.std, channels=len(options.mean)
    )
    images = secateur.load_images(options.images, preprocess=preprocess).tensor
    calibration, kept_back = images[: len(images) * 4 // 5], images[len(images) * 4 // 5 :]

    result = secateur.prune(options.model, calibration, sparsity=options.sparsity)
    print(result.report)

    cost = secateur.evaluate(result.model, kept_back, reference=options.model)
    print(f"the same answer for {cost.agreement:.1f} % of {cost.images} other images")
    result.save(options.out)


if __name__ == "__main__":
    main()
