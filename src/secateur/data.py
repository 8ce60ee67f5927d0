"""Calibration and evaluation images from wherever they are, as one float tensor.

Accepted everywhere data are taken: a float tensor (N, C, ...), an array, a DataLoader or any
iterable of batches (labels in them are ignored), a Dataset of single images, a folder of images,
an `.npz` file, a reference `file.py:callable` / `package.module:callable` to any of these, or
synthetic images: "fractal:300" and, for comparison only, "gaussian:300" and "pink:300".
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from secateur.errors import DataError, OptionError
from secateur.fractals import fractal_images
from secateur.noise import gaussian_noise, pink_noise
from secateur.options import did_you_mean
from secateur.references import call, is_reference

FEW_IMAGES = 32  # below this a warning: the statistics of most layers are too thin
MAX_IMAGES = 1000
_SYNTHETIC = {
    "fractal": ("fractal images", fractal_images),
    "pink": ("1/f noise", pink_noise),
    "gaussian": ("Gaussian noise", gaussian_noise),
}
_NOT_IMAGES = {"labels.csv", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From an image to the network's input, as torchvision's evaluation transforms do it.

    Attributes:
        size: side of the square centre crop, in pixels; None = no crop.
        resize: the short side is resized to this before the crop (bilinear, antialiased);
            None = `size` where that is given.
        mean, std: per channel, for pixels scaled to [0, 1]; None = 0 and 1. Where neither is given,
            images come with a warning: few networks are trained so.
        channels: 3 (RGB) or 1 (grey); any number for synthetic images.
    """

    size: int | None = None
    resize: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise OptionError(f"channels is {self.channels}, expected 1 (grey) or 3 (RGB)")
        for name, least in (("size", self.size), ("resize", self.resize)):
            if least is not None and least < 1:
                raise OptionError(f"{name} is {least}, expected pixels, at least 1")
        if self.size and self.resize and self.resize < self.size:
            raise OptionError(
                f"resize is {self.resize} and size {self.size}, expected a crop no larger than "
                "the resized short side: raise resize or lower size"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise OptionError(
                    f"{name} has {len(values)} values, expected {self.channels} "
                    "(one per channel) or 1"
                )
        if self.std is not None and any(value <= 0 for value in self.std):
            raise OptionError(f"std is {tuple(self.std)}, expected numbers above 0")

    def __call__(self, image: Image.Image) -> Float[Tensor, "chan height width"]:
        """Converts, resizes, crops, scales to [0, 1] and normalises one image."""
        if self.channels not in (1, 3):
            raise OptionError(
                f"channels is {self.channels}, expected 1 (grey) or 3 (RGB) for images; "
                "other numbers are for synthetic ones such as fractal:300"
            )
        image = image.convert("RGB" if self.channels == 3 else "L")
        image = _center_crop(_resize_short(image, self.resize or self.size), self.size)
        pixels = torch.from_numpy(np.array(image))
        return self.normalise(pixels.reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1))

    def normalise(self, pixels: UInt8[Tensor, "*batch chan height width"]) -> Tensor:
        """Scales pixels to [0, 1], then by mean and std."""
        mean, std = (
            torch.tensor(tuple(of)).view(-1, 1, 1)
            for of in (
                (0.0,) if self.mean is None else self.mean,
                (1.0,) if self.std is None else self.std,
            )
        )
        return ((pixels.float() / 255 - mean) / std).contiguous()


def _resize_short(image: Image.Image, short: int | None) -> Image.Image:
    if short is None or min(image.size) == short:
        return image
    factor = short / min(image.size)
    width, height = (max(short, int(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _center_crop(image: Image.Image, size: int | None) -> Image.Image:
    if size is None:
        return image
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Images:
    """Images ready for the network.

    Attributes:
        tensor: float32, batch first.
        source: where they come from, for the report.
        labels: class numbers, where the source has them and they were asked for.
        notes: what a reader of the report should know.
        synthetic: generator and seed, when they were made rather than taken; None = real.
        classes: the class folders that the labels come from, in the order of their numbers.
        warnings: what may be wrong with them; the report begins with these.
    """

    tensor: Float[Tensor, "batch ..."]
    source: str
    labels: Int[Tensor, " batch"] | None = None
    notes: list[str] = field(default_factory=list)
    synthetic: str | None = None
    classes: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    def doubts(self, outputs: int) -> list[str]:
        """The warnings, and one where a network has more outputs than there are class folders."""
        if not self.classes or len(self.classes) >= outputs:
            return list(self.warnings)
        shown = ", ".join(f"{name} = {index}" for index, name in enumerate(self.classes[:3]))
        more = ", ..." if len(self.classes) > 3 else ""
        return [
            *self.warnings,
            f"{self.source} has {len(self.classes)} class folders for a network with {outputs} "
            f"outputs: the n-th in sorted order counts as class n, from 0 on ({shown}{more}); "
            "where that is wrong, give the numbers in a labels.csv",
        ]


Transform = Callable[[Image.Image], Tensor]


def load_images(
    data: Any,
    *,
    preprocess: Transform | None = None,
    max_images: int | None = MAX_IMAGES,
    seed: int = 0,
    labelled: bool = False,
) -> Images:
    """Reads images from any accepted source (see the module).

    Args:
        data: the source.
        preprocess: `Preprocess`, or any function from a PIL image to a float tensor; needed
            for uint8 arrays and for images of different sizes, refused for float arrays.
        max_images: at most this many are used: a random choice with `seed`, in their order
            (the first ones of an iterable); None = all.
        labelled: whether to return labels, where the source has them.

    Raises:
        DataError: the source does not exist, holds no images or broken ones, or they differ
            in size; the message names the file.
    """
    if max_images is not None and max_images < 1:
        raise OptionError(f"max_images is {max_images}, expected at least 1, or None for all")
    source = _Source(preprocess, max_images, seed, labelled)
    images = source.read(data)
    if len(images.tensor) == 0:
        raise DataError(f"{images.source} holds no images, expected at least one: add images")
    _check_values(images)
    return images


@dataclass
class _Source:
    preprocess: Transform | None
    max_images: int | None
    seed: int
    labelled: bool

    def read(self, data: Any, name: str = "") -> Images:
        if isinstance(data, Images):
            return data
        if isinstance(data, str | Path):
            return self._path(str(data))
        if isinstance(data, np.ndarray):
            data = _tensor(data)
        if isinstance(data, Tensor):
            return self._array(data, None, name or "tensor")
        if isinstance(data, tuple) and _is_pair(data) and (self.labelled or _is_labels(data[1])):
            return self._array(_tensor(data[0]), _tensor(data[1]), name or "tensors")
        if isinstance(data, torch.utils.data.Dataset):
            stream = isinstance(data, torch.utils.data.IterableDataset)
            items = data if stream else (data[index] for index in range(len(data)))  # type: ignore[arg-type]
            return self._batches(items, name or type(data).__name__, single=True)
        if isinstance(data, Iterable) and not isinstance(data, Mapping):
            return self._batches(data, name or type(data).__name__)
        raise DataError(
            f"the data are a {type(data).__name__}, expected a float tensor (N, C, H, W), "
            "batches, a folder of images, an .npz file, file.py:callable or fractal:300: pass one "
            "of these"
        )

    def _path(self, text: str) -> Images:
        path = Path(text)
        try:
            path.exists()
        except OSError as error:  # a name that is too long, for one
            raise DataError(f"{text[:60]}... is not a path ({error.strerror}): check it") from error
        kind, colon, number = text.partition(":")
        if not path.exists() and colon and kind in _SYNTHETIC:
            return self._synthetic(kind, number)
        if path.is_dir():
            return self._folder(path)
        if path.is_file() and path.suffix == ".npz":
            return self._npz(path)
        if not path.exists() and is_reference(text):
            return self.read(call(text, DataError), name=text)
        if not path.exists():
            made = [f"{known}:{number}" for known in _SYNTHETIC if number.isdecimal()]
            raise DataError(
                f"no such file or folder: {text}, expected images: check the path "
                f"(a function is written file.py:callable){did_you_mean(path.name, made)}"
            )
        raise DataError(
            f"{text} is a single file, expected a folder of images, an .npz file or "
            "file.py:callable: pass the folder that holds it"
        )

    def _synthetic(self, kind: str, number: str) -> Images:
        """Made images, as inputs of the network; see `secateur.fractals` and `secateur.noise`."""
        if not number.isdecimal() or int(number) < 1:
            raise DataError(f"got {kind}:{number}, expected how many to make, such as {kind}:300")
        if not isinstance(self.preprocess, Preprocess) or self.preprocess.size is None:
            raise DataError(
                f"{kind}:{number} has no size, expected the network's preprocessing: pass "
                "Preprocess(size=..., mean=..., std=...), or --size, --mean and --std"
            )
        count = min(int(number), self.max_images or int(number))
        what, make = _SYNTHETIC[kind]
        size, channels = self.preprocess.size, self.preprocess.channels
        images = make(count, size=size, channels=channels, seed=self.seed)
        if images.dtype == torch.uint8:  # noise comes as inputs
            images = self.preprocess.normalise(images)
        notes = [f"{count} of {number}, the most allowed"] if count < int(number) else []
        made = f"{count} {what}, seed {self.seed}"
        return Images(images, f"{kind}:{number}", notes=notes, synthetic=made)

    def _npz(self, path: Path) -> Images:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                arrays = {key: held[key] for key in held.files}
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds
            raise DataError(f"{path} is not a readable .npz file: {error}") from error
        images = arrays.get("images", next(iter(arrays.values())) if len(arrays) == 1 else None)
        if images is None:
            raise DataError(
                f"{path} holds the arrays {', '.join(arrays) or 'none'}, expected one named "
                "'images' (and, for evaluation, 'labels'): save it with np.savez(images=...)"
            )
        labels = arrays.get("labels")
        tensor = _tensor(images)
        return self._array(tensor, None if labels is None else _tensor(labels), str(path))

    def _array(self, images: Tensor, labels: Tensor | None, name: str) -> Images:
        if images.dim() < 2 or images.is_complex():
            raise DataError(
                f"{name} has shape {tuple(images.shape)}, expected a batch such as (N, C, H, W)"
            )
        _check_labels(images, labels, name)
        chosen, notes = self._choice(len(images))
        images = images[chosen]
        warnings = self._unscaled() if images.dtype == torch.uint8 else []
        if images.dtype == torch.uint8:
            images = self._from_bytes(images, name)
        elif not images.is_floating_point():
            raise DataError(
                f"{name} holds {images.dtype}, expected floats (preprocessed) or uint8 images"
            )
        elif self.preprocess is not None:
            raise DataError(
                f"{name} holds floats, which count as preprocessed, and a preprocess was given, "
                "expected one or the other: pass uint8 images or leave the preprocess out"
            )
        labels = labels.long()[chosen] if labels is not None and self.labelled else None
        return Images(images.detach().float(), name, labels, notes, warnings=warnings)

    def _from_bytes(self, images: UInt8[Tensor, "batch ..."], name: str) -> Tensor:
        """uint8 (N, C, H, W), (N, H, W, C) or (N, H, W) through the preprocess."""
        if images.dim() == 3:
            images = images.unsqueeze(-1)
        elif images.dim() == 4 and images.shape[1] in (1, 3):
            images = images.permute(0, 2, 3, 1)
        if images.dim() != 4 or images.shape[-1] not in (1, 3):
            raise DataError(
                f"{name} has shape {tuple(images.shape)} in uint8, expected (N, 3, H, W), "
                "(N, H, W, 3) or one channel"
            )
        preprocess = self.preprocess or Preprocess(channels=images.shape[-1])
        arrays = (image.squeeze(-1).cpu().numpy() for image in images)
        return _stack((name, preprocess(Image.fromarray(array))) for array in arrays)

    def _batches(self, batches: Iterable, name: str, single: bool = False) -> Images:
        parts: list[Tensor] = []
        labels: list[Tensor] = []
        count, notes = 0, []
        for batch in batches:
            images = _first_tensor(batch, name)
            if self.labelled and _is_pair(batch):
                labels.append(torch.as_tensor(batch[1]).reshape(-1))
            parts.append(images.unsqueeze(0) if single else images)
            count += len(parts[-1])
            if self.max_images is not None and count >= self.max_images:
                notes.append(f"the first {self.max_images} images of {name}")
                break
        if not parts:
            raise DataError(f"{name} gives no batches, expected at least one: check its length")
        _same_shape((f"batch {index}", part[0]) for index, part in enumerate(parts) if len(part))
        whole = _Source(self.preprocess, None, self.seed, self.labelled)
        limit = slice(self.max_images)
        kept = torch.cat(labels)[limit] if labels else None
        found = whole._array(torch.cat(parts)[limit], kept, name)
        return Images(found.tensor, name, found.labels, notes, warnings=found.warnings)

    def _folder(self, folder: Path) -> Images:
        files = sorted(path for path in folder.rglob("*") if _may_be_image(path, folder))
        if not files:
            raise DataError(f"{folder} holds no images, expected at least one: add images to it")
        labels, classes, warnings = None, (), self._unscaled()
        if self.labelled and (folder / "labels.csv").is_file():
            labels = _csv_labels(folder / "labels.csv", folder, files)
        elif self.labelled and (classes := _class_folders(folder, files)):
            labels = torch.tensor([classes.index(_top(path, folder)) for path in files])
            warnings += _nested(folder, files, classes)
        chosen, notes = self._choice(len(files))
        files = [files[index] for index in chosen.tolist()]
        preprocess = self.preprocess or Preprocess()
        tensor = _stack((str(path), preprocess(_open(path))) for path in files)
        labels = None if labels is None else labels[chosen]
        return Images(tensor, str(folder), labels, notes, classes=classes, warnings=warnings)

    def _unscaled(self) -> list[str]:
        """A warning where nobody has said what mean and spread the network wants."""
        how = Preprocess() if self.preprocess is None else self.preprocess
        if not isinstance(how, Preprocess) or how.mean is not None or how.std is not None:
            return []
        return [
            "pixels are fed in 0..1, for no mean and std were given: pass --mean and --std "
            "(Preprocess(mean=..., std=...)) as in the network's training, 0 and 1 if it had none"
        ]

    def _choice(self, count: int) -> tuple[Int[Tensor, " chosen"], list[str]]:
        if self.max_images is None or count <= self.max_images:
            return torch.arange(count), []
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(count, generator=generator)[: self.max_images].sort().values
        return chosen, [f"{self.max_images} of {count} images, chosen with seed {self.seed}"]


def _may_be_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and path.name.lower() not in _NOT_IMAGES


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} is not a readable image, expected only images in the folder: "
            "remove or repair it"
        ) from error


def _stack(named: Iterator[tuple[str, Tensor]]) -> Tensor:
    """Stacks images one by one; all of one shape."""
    return torch.stack([image for _, image in _same_shape(named)])


def _same_shape(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    held: list[tuple[str, Tensor]] = []
    for name, image in named:
        if held and image.shape != held[0][1].shape:
            raise DataError(
                f"{name} has shape {tuple(image.shape)} and {held[0][0]} "
                f"{tuple(held[0][1].shape)}, expected images of one size: pass "
                "Preprocess(size=...), or --size on the command line"
            )
        held.append((name, image))
    return held


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
            f"{loose} image{'s lie' if loose > 1 else ' lies'} beside the class folders of "
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
            by_name = {row["file"]: int(row["label"]) for row in csv.DictReader(lines)}
        except (KeyError, TypeError, ValueError) as error:
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


def same_images(images: Tensor, others: Tensor) -> int:
    """How many of some images are among others, value for value."""
    if images.shape[1:] != others.shape[1:]:
        return 0
    known = {_digest(image) for image in others}
    return sum(_digest(image) in known for image in images)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _first_tensor(batch: Any, name: str) -> Tensor:
    """The images of a batch: itself, or the first tensor in a tuple or mapping."""
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch)
    if isinstance(batch, Tensor):
        return batch
    held = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(held, Sequence) and not isinstance(held, str):
        for value in held:
            if isinstance(value, Tensor | np.ndarray):
                return _first_tensor(value, name)
    raise DataError(
        f"{name} gives batches of type {type(batch).__name__}, expected tensors, or tuples or "
        "mappings with the images first"
    )


def _is_labels(value: Any) -> bool:
    """Whether the second of a pair holds one class number per image."""
    whole = isinstance(value, Tensor | np.ndarray) and value.ndim == 1
    return whole and "int" in str(value.dtype)


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[1], str)


def _tensor(value: Any) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(np.ascontiguousarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"got an array of {getattr(value, 'dtype', type(value).__name__)}, expected numbers: "
            "save images as float32 or uint8 and labels as integers"
        ) from error


def _check_labels(images: Tensor, labels: Tensor | None, name: str) -> None:
    if labels is None:
        return
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise DataError(
            f"{name} has labels of shape {tuple(labels.shape)} and type {labels.dtype} for "
            f"{len(images)} images, expected one class number per image"
        )


def _check_values(images: Images) -> None:
    flat = images.tensor.flatten(1)
    bad = (~flat.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"{images.source} has NaN or Inf in {len(bad)} images (the first is number {bad[0]}), "
            "expected finite numbers: check the preprocessing"
        )
