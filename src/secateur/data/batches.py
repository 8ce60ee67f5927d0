"""What data loaders give: the images of a batch, and class numbers wherever a batch has them.

Understood are images alone, tuples and named tuples with the images first, mappings such as
{"pixel_values": ..., "labels": ...}, lists of images, and lists of samples of these kinds; images
are tensors, arrays or PIL images. Class numbers are the first entry with one whole number per
image: beside the images in a tuple, or under a usual name in a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from secateur.errors import DataError

IMAGE_KEYS = ("pixel_values", "image", "images", "img", "inputs", "input", "x")
LABEL_KEYS = ("labels", "label", "targets", "target", "class", "y")
_DETECTION_KEYS = {"boxes", "masks", "bboxes", "bbox"}

Pictures = Tensor | np.ndarray | Sequence[Image.Image]


@dataclass(frozen=True)
class Batch:
    """The images of a batch, and its labels.

    Attributes:
        images: with a first axis of images, or a list of PIL images.
        labels: a class number for each image; None = the batch has none.
        unused: what a batch without class numbers holds beside the images, in words.
    """

    images: Pictures
    labels: Int[Tensor, " batch"] | None = None
    unused: str = ""


def read_batch(batch: Any, name: str, *, single: bool = False) -> Batch:
    """Finds images and class numbers in what a loader gives.

    Args:
        batch: of any kind that the module tells of.
        name: of the source, for the message.
        single: whether it is one sample; PIL images and those with one whole number always are.

    Raises:
        DataError: there are no images.
    """
    if not single and _is_list_of_samples(batch):
        return _together([read_batch(sample, name, single=True) for sample in batch])
    images, others = _fields(batch)
    if images is None:
        raise DataError(
            f"{name} gives batches of type {type(batch).__name__}, expected tensors, or tuples or "
            "mappings with the images first"
        )
    single = single or isinstance(images, Image.Image) or _is_sample(images, others)
    if isinstance(images, Image.Image):
        images = [images]
    elif isinstance(images, list | tuple):
        images = list(images) if isinstance(images[0], Image.Image) else _stacked(images, name)
    elif single:
        images = images[None]
    labels = next(filter(_is_given, (class_numbers(of, len(images)) for of in others)), None)
    unused = "" if labels is not None else " and ".join(in_words(of) for of in others)
    return Batch(images, labels, unused)


def class_numbers(value: Any, count: int) -> Int[Tensor, " count"] | None:
    """A class number for each of so many images; None where a value is something else."""
    if isinstance(value, Mapping):
        if _DETECTION_KEYS & set(value):  # a label for each object, or of a crop
            return None
        found = (class_numbers(of, count) for of in _candidates(value))
        return next(filter(_is_given, found), None)
    if isinstance(value, list | tuple) and all(map(_is_whole, value)):
        value = torch.tensor([int(of) for of in value], dtype=torch.long)
    elif _is_whole(value):
        value = torch.tensor([int(value)], dtype=torch.long)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        value = torch.from_numpy(value.astype(np.int64))
    if not isinstance(value, Tensor) or not _is_integral(value):
        return None
    return value.long().reshape(-1) if tuple(value.shape) in ((count,), (count, 1)) else None


def _fields(batch: Any) -> tuple[Any, list[Any]]:
    """The images, or None; and what may be labels: of a mapping, all the rest in one."""
    if _is_image(batch) or _are_pictures(batch):
        return batch, []
    if isinstance(batch, Mapping):
        known = [key for key in IMAGE_KEYS if key in batch]
        key = next((key for key in (*known, *batch) if _are_images(batch[key])), None)
        rest = {other: of for other, of in batch.items() if other != key and of is not None}
        return (None if key is None else batch[key]), [rest] * bool(rest)
    if not isinstance(batch, Sequence) or isinstance(batch, str | bytes):
        return None, []
    place = next((place for place, of in enumerate(batch) if _are_images(of)), None)
    if place is None:
        return None, []
    return batch[place], [of for of in batch[place + 1 :] if of is not None]


def _is_image(value: Any) -> bool:
    """Whether a value is one PIL image, or an array of one image or many."""
    return isinstance(value, Image.Image) or (
        isinstance(value, Tensor | np.ndarray) and value.ndim > 0
    )


def _are_pictures(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_picture, value))


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image)


def _are_images(value: Any) -> bool:
    """Whether an entry of a batch may be its images; a list may hold them one by one."""
    if _is_image(value) or _are_pictures(value):
        return True
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(of, Tensor | np.ndarray) and of.ndim in (2, 3) for of in value)


def _is_list_of_samples(batch: Any) -> bool:
    """Whether a batch is a list of tuples or mappings with one image each, as if not collated."""
    if not isinstance(batch, list | tuple) or not batch or _fields(batch)[0] is not None:
        return False
    return all(
        isinstance(of, list | tuple | Mapping) and _fields(of)[0] is not None for of in batch
    )


def _is_sample(images: Any, others: Sequence[Any]) -> bool:
    """Whether an array is one image: it comes with a single whole number."""
    if isinstance(images, list | tuple) or images.ndim > 3:
        return False
    return any(_is_whole(of) for other in others for of in _candidates(other))


def _candidates(value: Any) -> list[Any]:
    """A value, or of a mapping those that may be class numbers."""
    if not isinstance(value, Mapping):
        return [value]
    return [value[key] for key in LABEL_KEYS if key in value]


def _stacked(images: Sequence[Any], name: str) -> Tensor:
    """A list of images as one tensor."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        first, second, *_ = sorted(shapes)
        raise DataError(
            f"{name} gives lists of images of shapes {first} and {second}, expected images of one "
            "size: resize them in the dataset"
        )
    return torch.stack([torch.as_tensor(image) for image in images])


def _together(samples: Sequence[Batch]) -> Batch:
    """Samples as one batch."""
    images = [sample.images for sample in samples]
    labels = [sample.labels for sample in samples if sample.labels is not None]
    whole: Any = (
        [image for of in images for image in of]
        if isinstance(images[0], list)
        else torch.cat([torch.as_tensor(of) for of in images])
    )
    found = torch.cat(labels) if len(labels) == len(samples) else None
    return Batch(whole, found, samples[0].unused)


def _is_given(value: Any) -> bool:
    return value is not None


def _is_whole(value: Any) -> TypeGuard[Tensor | int]:
    """Whether a value is a single whole number, in whatever type."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and _is_integral(value)
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iu"
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_integral(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def in_words(value: Any) -> str:
    """What a value is, for the warning that it holds no class numbers."""
    if isinstance(value, Tensor | np.ndarray):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"
