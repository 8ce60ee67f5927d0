"""Labelled images of the shared data folder, read in memory; its README.md describes the files.

Each evaluation set has two halves: settings and ideas are judged on "choose", and figures in
README.md and docs come from "quote", on which nothing is chosen.

Images come out as the networks of `networks.py` take them: float32, normalised,
(count, 3, height, width). Functions named `*_calibration` draw from training images, the others
return a half of an evaluation set, or all of it.
"""

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Beside the repository; the data's licences forbid shipping them.
FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"

CIFAR_MEAN = (0.485, 0.456, 0.406)
CIFAR_STD = (0.229, 0.224, 0.225)
LITE0_MEAN = (127 / 255,) * 3  # of pixels in [0, 1]: (pixel - 127) / 128
LITE0_STD = (128 / 255,) * 3


def cifar10_test(folder: Path = FOLDER, half: str = "choose") -> tuple[Tensor, Tensor]:
    """Read half of the CIFAR-10 test set.

    Args:
        folder: The shared data folder.
        half: "choose" (images 0 to 4,999), "quote" (the others) or "all".

    Returns:
        Images (5000, 3, 32, 32) float32 and their classes (5000,) int64 in 0..9.
    """
    part = {"choose": slice(5000), "quote": slice(5000, None), "all": slice(None)}[half]
    images = _cifar_images(folder / "cifar10" / "test_batch.png")[part]
    labels = json.loads((folder / "cifar10" / "test_labels.json").read_text())[part]
    return _normalise_cifar(images), torch.tensor(labels)


def cifar10_calibration(folder: Path = FOLDER, *, count: int, draw: int) -> Tensor:
    """Draw CIFAR-10 training images without replacement.

    Args:
        folder: The shared data folder.
        count: How many, at most 3,000.
        draw: Seed of the draw.

    Returns:
        Images (count, 3, 32, 32) float32.
    """
    images = _cifar_images(folder / "cifar10" / "train_first3000.png")
    return _normalise_cifar(images[_draw(len(images), count, draw)])


def imagenet_val(folder: Path = FOLDER, half: str = "choose") -> tuple[Tensor, Tensor]:
    """Read 650 images of the ImageNet validation split, for EfficientNet-Lite.

    Args:
        folder: The shared data folder.
        half: "choose" or "quote": each has images that the other has not.

    Returns:
        Centre crops (650, 3, 224, 224) float32 scaled by (pixel - 127) / 128, and their classes
        (650,) int64 in 0..999. 391 MB.
    """
    held = folder / {"choose": "imagenet_val_650", "quote": "imagenet_val_650b"}[half]
    names, labels = _listed(held / "labels.csv")
    return _crops(held / "images.tar", names), torch.tensor(labels)


def imagenet_calibration(folder: Path = FOLDER, *, count: int, draw: int) -> Tensor:
    """Draw ImageNet training images, one a class, without replacement.

    Args:
        folder: The shared data folder.
        count: How many, at most 1,000.
        draw: Seed of the draw.

    Returns:
        Centre crops (count, 3, 224, 224) float32 scaled by (pixel - 127) / 128.
    """
    names, _ = _listed(folder / "imagenet_train_1000" / "labels.csv")
    chosen = [names[i] for i in _draw(len(names), count, draw).tolist()]
    return _crops(folder / "imagenet_train_1000" / "images_256.tar", chosen)


def _draw(available: int, count: int, seed: int) -> Tensor:
    if not 0 < count <= available:
        raise ValueError(f"count is {count}; expected 1 to {available}, the images there are")
    return torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:count]


def _cifar_images(path: Path) -> Tensor:
    """Read a PNG with one image a row, as (images, 32, 32, 3) uint8."""
    with Image.open(path) as png:
        rows = np.array(png.convert("RGB"))  # (images, 1024, 3)
    return torch.from_numpy(rows).reshape(-1, 32, 32, 3)


def _normalise_cifar(pixels: Tensor) -> Tensor:
    """Turn (images, 32, 32, 3) uint8 into (images, 3, 32, 32) float32."""
    scaled = (pixels / 255 - torch.tensor(CIFAR_MEAN)) / torch.tensor(CIFAR_STD)
    return scaled.permute(0, 3, 1, 2).contiguous()


def _listed(path: Path) -> tuple[list[str], list[int]]:
    """Read a table of columns `file` and `label`."""
    with path.open(newline="") as table:
        rows = list(csv.DictReader(table))
    return [row["file"] for row in rows], [int(row["label"]) for row in rows]


def _crops(path: Path, names: Sequence[str], size: int = 224) -> Tensor:
    """Decode the named members of a tar, as centre crops (names, 3, size, size) float32."""
    with tarfile.open(path) as archive:
        crops = [_centre_crop(_member(archive, name), size) for name in names]
    return torch.stack(crops).float().sub_(127).div_(128)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} in {archive.name} is not a file")
    return file.read()


def _centre_crop(jpeg: bytes, size: int) -> Tensor:
    """Decode an image and cut its middle out, as (3, size, size) uint8."""
    with Image.open(io.BytesIO(jpeg)) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (height, width, 3)
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size].permute(2, 0, 1)
