"""Images and labels in arrays: which is which, and pixels as inputs of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from secateur.data.preprocess import ModelPreprocess, Preprocess, Transform, apply
from secateur.errors import DataError
from secateur.support.wording import counted

PIXELS = (torch.uint8, torch.uint16, torch.bool)  # scaled to [0, 1] by the range of the type


def is_pair(data: Any) -> TypeGuard[Sequence[Any]]:
    """Whether data are (images, labels), not two batches: labels have fewer axes than images."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    images, labels = map(_axes, data)
    if images is None or labels is None or not 0 < labels < images:
        return False
    return labels == 1 or len(data[0]) == len(data[1])


def _axes(value: Any) -> int | None:
    """Of an array, or 1 of a list of whole numbers; None of anything else."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim
    whole = isinstance(value, list | tuple) and all(
        isinstance(of, int | np.integer) for of in value
    )
    return 1 if whole and value else None


def check_are_batches(data: Any, name: str) -> None:
    """Raises where a list holds arrays that may be single images: of (C, H, W), or of one axis."""
    arrays = isinstance(data, list | tuple) and all(
        isinstance(of, Tensor | np.ndarray) for of in data
    )
    if not arrays or not data or not {of.ndim for of in data} <= {1, 3}:
        return
    raise DataError(
        f"{name} holds {len(data)} arrays, the first of shape {tuple(data[0].shape)}, which may be "
        "single images or batches, expected one tensor: pass torch.stack of single images, or "
        "torch.cat of batches"
    )


def as_tensor(value: Any) -> Tensor:
    """A tensor of what may be an array or a list.

    Raises:
        DataError: it holds no numbers, or not one for each place.
    """
    if isinstance(value, Tensor):
        _check_whole(value)
        return value
    try:
        return torch.as_tensor(np.asarray(value, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"got an array of {getattr(value, 'dtype', type(value).__name__)}, expected numbers: "
            "save images as float32 or uint8 and labels as integers"
        ) from error


def _check_whole(tensor: Tensor) -> None:
    """Raises where a tensor is sparse, nested or without values."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        kind = "nested" if tensor.is_nested else "on the device meta" * tensor.is_meta or "sparse"
        raise DataError(
            f"got a tensor that is {kind}, expected an ordinary one with every value: "
            "make a dense one of it, such as images.to_dense()"
        )


def check_labels(images: Tensor, labels: Tensor | None, name: str) -> None:
    """Raises where labels, if there are any, are not a class number for each image."""
    if labels is None:
        return
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise DataError(
            f"{name} has labels of shape {tuple(labels.shape)} and type {labels.dtype} for "
            f"{counted(len(images), 'image')}, expected one class number per image"
        )


def check_kind(images: Tensor, preprocess: Transform | None, name: str) -> None:
    """Raises where numbers are neither inputs nor pixels, or cannot be preprocessed."""
    if images.dtype in PIXELS:
        return
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(
            f"{name} holds {kind}, whose range is not known, expected floats (preprocessed), "
            "or pixels in uint8 (0 to 255) or uint16 (0 to 65535): convert it to one of these"
        )
    if preprocess is not None and not isinstance(preprocess, ModelPreprocess):
        raise DataError(
            f"{name} holds floats, which count as preprocessed, and a preprocess was given, "
            "expected one or the other: pass uint8 images or leave the preprocess out"
        )


def as_inputs(
    images: Tensor, preprocess: Transform | None, name: str
) -> Float[Tensor, "batch ..."]:
    """Floats as they are; pixels (N, C, H, W), (N, H, W, C) or (N, H, W) preprocessed."""
    check_kind(images, preprocess, name)
    if images.is_floating_point():
        return images.detach().float()
    if images.dim() == 3:
        images = images.unsqueeze(-1)
    elif images.dim() == 4 and images.shape[1] in (1, 3):
        images = images.permute(0, 2, 3, 1)
    if images.dim() != 4 or images.shape[-1] not in (1, 3):
        raise DataError(
            f"{name} has shape {tuple(images.shape)} in {images.dtype}, expected "
            "(N, 3, H, W), (N, H, W, 3) or one channel"
        )
    how = preprocess or Preprocess(channels=images.shape[-1])
    return torch.stack([_from_pixels(how, image, name) for image in images])


def _from_pixels(
    preprocess: Transform, image: Shaped[Tensor, "height width chan"], name: str
) -> Tensor:
    """An image of pixels in 8 or 16 bits or of bools, through a preprocess."""
    pixels = image.cpu().numpy()
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16 and isinstance(preprocess, Preprocess):
        return preprocess.from_unit(pixels.astype(np.float64) / 65535)
    if pixels.dtype == np.uint16 and pixels.shape[-1] == 3:
        raise DataError(
            f"{name} holds RGB in 16 bits, which PIL images cannot hold for a preprocess of your "
            "own, expected 8 bits: use secateur.Preprocess, or pass preprocessed floats"
        )
    picture = Image.fromarray(
        np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    )
    return apply(preprocess, picture, f"an image of {name}")


def rows_of(images: Tensor, at: slice | Tensor) -> Tensor:
    """Some images; of uint16 by NumPy, for PyTorch cannot choose among them."""
    if isinstance(at, slice) or images.dtype != torch.uint16:
        return images[at]
    return torch.from_numpy(images.cpu().numpy()[at.numpy()])


def own_memory(inputs: Tensor, given: Tensor) -> Tensor:
    """Inputs in memory of their own: a loader may write its next batch where this one lies."""
    same = inputs.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return inputs.clone() if same else inputs
