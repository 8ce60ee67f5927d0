"""ONNX files of other people's packages: loaded, pruned, written, read back and run.

    pip download --no-deps -d WHEELS nudenet==3.4.2 rapidocr-onnxruntime==1.4.4 \
        silero-vad==6.2.3 magika==1.0.3
    python benchmarks/third_party.py WHEELS

The files are taken out of the wheels; nothing of the packages is installed or run. Networks that
take images are pruned to half on fractals of a shape they take, through a file as a user would;
the zeros are counted in the file written, which ONNX Runtime runs on other fractals beside the
dense one. Of the others the reason that Secateur gives is written down. Rewrites
benchmarks/results/third_party.csv.
"""

import argparse
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from options import add_files
from results_table import MACHINE, machine, write_rows
from torch import Tensor

import secateur
from secateur.export.files import save_model
from secateur.export.onnx_weights import layer_weights
from secateur.frontends.onnx import read

FILES = {  # package: files in its wheel, and the height and width of an input
    "nudenet": {"nudenet/320n.onnx": (320, 320)},
    "rapidocr_onnxruntime": {
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": (320, 320),
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": (48, 320),
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": (48, 192),
    },
    "silero_vad": {"silero_vad/data/silero_vad.onnx": (1, 576)},
    "magika": {"magika/models/standard_v3_3/model.onnx": (1, 2048)},
}
SPARSITY = 0.5
JUDGED = 16  # images that the written file is run on, not fitted to
COLUMNS = (
    "package",
    "version",
    "file",
    "shape",
    "images",
    "layers",
    "pruned_layers",
    "weights",
    "zeros",
    "output_error",
    "seconds",
    "result",
    *MACHINE,
)


def images_of(shape: tuple[int, int], count: int, seed: int) -> Tensor:
    """Fractals from -1 to 1, (count, 3, height, width), cut out of square ones."""
    height, width = shape
    pixels = secateur.fractal_images(count, size=max(shape), seed=seed)[:, :, :height, :width]
    return torch.as_tensor(pixels).float() / 127.5 - 1


def measure(path: Path, shape: tuple[int, int], count: int, out: Path) -> dict[str, Any]:
    """What came of one file."""
    try:
        found = secateur.inspect(path, (3, *shape))
        start = time.perf_counter()
        images = images_of(shape, count, seed=0)
        result = secateur.prune(path, images, sparsity=SPARSITY, progress=False)
        seconds = time.perf_counter() - start
    except secateur.SecateurError as error:
        return {"result": str(error)}
    save_model(result.model, out, images, [])
    dense, written = layer_weights(read(path)), layer_weights(read(out))
    pruned = [weight for name, weight in written.items() if (weight != dense[name]).any()]
    return {
        "shape": "x".join(str(size) for size in (3, *shape)),
        "images": count,
        "layers": len(found.layers),
        "pruned_layers": len(pruned),
        "weights": sum(weight.size for weight in pruned),
        "zeros": sum(int((weight == 0).sum()) for weight in pruned),
        "output_error": f"{output_error(path, out, shape):.4f}",
        "seconds": f"{seconds:.0f}",
        "result": "pruned",
    }


def output_error(dense: Path, pruned: Path, shape: tuple[int, int]) -> float:
    """Squared error of the first output over its variance, on fractals of another seed."""
    images = images_of(shape, JUDGED, seed=1).numpy()
    wanted, got = (first_output(path, images).astype(np.float64) for path in (dense, pruned))
    return float(np.square(got - wanted).mean() / wanted.var())


def first_output(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX files of other people's packages.")
    parser.add_argument("wheels", type=Path, help="folder of the wheels")
    parser.add_argument("--images", type=int, default=64, help="fractals to prune on")
    add_files(parser, "third_party.csv")
    options = parser.parse_args()
    rows = []
    for package, files in FILES.items():
        (wheel,) = options.wheels.glob(f"{package}-*.whl")
        for name, shape in files.items():
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as content:
                path = Path(content.extract(name, folder))
                found = measure(path, shape, options.images, Path(folder) / "pruned.onnx")
            row = {"package": package, "version": wheel.name.split("-")[1], "file": path.name}
            rows.append({**dict.fromkeys(COLUMNS, ""), **row, **found, **machine()})
            print(*rows[-1].values(), flush=True)
    write_rows(options.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
