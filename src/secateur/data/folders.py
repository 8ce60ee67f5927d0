"""Folders of images: which files count, and the class numbers that they come with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from secateur.errors import DataError
from secateur.support.model_files import steady
from secateur.support.wording import counted

_NOT_IMAGES = {"labels.csv", "thumbs.db", "desktop.ini"}


def image_files(folder: Path) -> list[Path]:
    """All files of a folder, however deep, that may be images, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if _may_be_image(path, folder))
    if not files:
        raise DataError(f"{folder} holds no images, expected at least one: add images to it")
    return files


def folder_labels(
    folder: Path, files: list[Path]
) -> tuple[Int[Tensor, " batch"] | None, tuple[str, ...], list[str]]:
    """Class numbers from `labels.csv` or class folders; these folders; and warnings.

    Raises:
        DataError: the table has not every image, or the folders cannot be numbered.
    """
    if (folder / "labels.csv").is_file():
        return _csv_labels(folder / "labels.csv", folder, files), (), []
    classes = _class_folders(folder, files)
    if not classes:
        return None, (), []
    labels = torch.tensor([classes.index(_top(path, folder)) for path in files])
    return labels, classes, _nested(folder, files, classes)


def open_image(path: Path) -> Image.Image:
    """An image, read whole.

    Raises:
        DataError: it is none, or broken, or several (pages of a TIFF, frames of a GIF).
    """
    try:
        with steady(path, DataError), Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a phone's photograph with its preview
                raise DataError(
                    f"{path} holds {frames} images, expected one in each file: save them as files "
                    "of their own"
                )
            image.load()
            return image
    except DataError:
        raise
    except Exception as error:  # each of Pillow's formats has its own
        raise DataError(
            f"{path} is not a readable image, expected only images in the folder: "
            "remove or repair it"
        ) from error


def _may_be_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and path.name.lower() not in _NOT_IMAGES


def _class_folders(folder: Path, files: list[Path]) -> tuple[str, ...]:
    """The subfolders in sorted order, whose places are class numbers; none where there are none.

    Raises:
        DataError: images lie beside them, or one holds no image: the numbers would be wrong.
    """
    full = sorted({_top(path, folder) for path in files if path.parent != folder})
    if not full:
        return ()
    loose = sum(path.parent == folder for path in files)
    if loose:
        raise DataError(
            f"{counted(loose, 'image lies', 'images lie')} beside the class folders of "
            f"{folder} ({_listed(full)}), expected all in class folders: move them into one, or "
            "number all in labels.csv"
        )
    found = (path.name for path in folder.iterdir() if path.is_dir())
    classes = tuple(sorted(name for name in found if not name.startswith(".")))
    empty = [name for name in classes if name not in full]
    if empty:
        raise DataError(
            f"{folder} has class folders without images ({_listed(empty)}), expected images in "
            "each, for its place is its class number: add images, or number all in labels.csv"
        )
    return classes


def _nested(folder: Path, files: list[Path], classes: Sequence[str]) -> list[str]:
    """A warning where class folders hold nothing but folders: these may be the classes."""
    full = {path.parent for path in files}
    hollow = [name for name in classes if folder / name not in full]
    if not hollow:
        return []
    return [
        f"{folder} has class folders with no images of their own ({_listed(hollow)}), only in "
        "folders below: each counts as one class; pass the folder right above the class folders"
    ]


def _top(path: Path, folder: Path) -> str:
    """The class folder that an image is in, however deep."""
    return path.relative_to(folder).parts[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _csv_labels(table: Path, folder: Path, files: list[Path]) -> Int[Tensor, " batch"]:
    with table.open(newline="", encoding="utf-8-sig") as lines:
        try:
            by_name = {row["file"]: _class_number(row["label"]) for row in csv.DictReader(lines)}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(
                f"{table} cannot be read ({type(error).__name__}: {error}), expected the columns "
                "file,label with class numbers"
            ) from error
    for path in files:
        if str(path.relative_to(folder)) not in by_name:
            raise DataError(
                f"{table} has no label for {path.relative_to(folder)}, expected one for every "
                "image: add the line or remove the image"
            )
    return torch.tensor([by_name[str(path.relative_to(folder))] for path in files])


def _class_number(text: str) -> int:
    """A whole number that a tensor can hold.

    Raises:
        ValueError: it is none.
    """
    number = int(text)
    if abs(number) >= 2**63:
        raise ValueError(f"a class number of {len(text)} digits")
    return number
