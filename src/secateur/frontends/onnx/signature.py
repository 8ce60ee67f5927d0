"""What an ONNX model takes: its one input, how many images at a time, of what shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError

_LARGEST_BATCH = 1024  # that a file may be fixed to
_LARGEST_IMAGE = 2**28  # values, where nobody said what shape
_KINDS = frozenset(TensorProto.DataType.values())


def declared_batch(model: ModelProto) -> int:
    """The batch size that the file's input is fixed to; 0 = any."""
    axes = images_input(model).type.tensor_type.shape.dim
    batch = axes[0].dim_value if axes else 0
    if batch > _LARGEST_BATCH:
        raise ModelError(
            f"the ONNX model takes {batch} images at a time, expected any number, or at most "
            f"{_LARGEST_BATCH}: export it with a dynamic batch"
        )
    return max(0, batch)


def input_shape(model: ModelProto) -> tuple[int, ...]:
    """Of one image; 3 channels and 224 pixels where the file leaves a size open.

    Raises:
        ModelError: it would be too large to try.
    """
    axes = images_input(model).type.tensor_type.shape.dim
    usual = [0, 3, *[224] * len(axes)] if len(axes) > 2 else [0, 224]
    shape = tuple(axis.dim_value or usual[index] for index, axis in enumerate(axes))[1:]
    if min(shape, default=1) < 1 or math.prod(shape) > _LARGEST_IMAGE:
        raise ModelError(
            f"the ONNX model takes images of shape {shape}, expected at most {_LARGEST_IMAGE} "
            "values: pass the shape to look at (shape=, --shape)"
        )
    return shape


def check_images(model: ModelProto, shape: Sequence[int]) -> None:
    """Raises ModelError where the file is fixed to images of another shape.

    Args:
        model: with a single input.
        shape: of one image.
    """
    declared = [axis.dim_value for axis in images_input(model).type.tensor_type.shape.dim][1:]
    fits = [want in (0, got) for want, got in zip(declared, shape, strict=False)]
    if not declared or (len(declared) == len(shape) and all(fits)):
        return
    wanted, way_out = declared, "check the channels and the preprocessing"
    if len(declared) == len(shape) == 3 and fits[0]:
        wanted = declared[1:]
        way_out = f"pass --size {wanted[0]}" if wanted[0] == wanted[1] else "resize them"
    raise ModelError(
        f"the ONNX model takes {_times(wanted)} images, got {_times(shape[-len(wanted) :])}, "
        f"expected the same: {way_out}"
    )


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) if size else "any" for size in sizes)


def images_input(model: ModelProto) -> onnx.ValueInfoProto:
    """The input that takes the images.

    Raises:
        ModelError: there are several inputs or none, or it does not take float32.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(
            f"the ONNX model takes {len(inputs)} inputs ({names}), expected one (a batch of "
            "images): export it with the others fixed"
        )
    kind = inputs[0].type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind).lower() if kind in _KINDS else f"type {kind}"
        raise ModelError(
            f"the ONNX model's input {inputs[0].name} takes {found}, expected float32 images: "
            "export it with a float32 input"
        )
    return inputs[0]


def several(model: ModelProto, images: Tensor) -> Tensor:
    """Three images by repeating a few, or four where the file is made for three.

    A number that it was not made for shows whether any number will do.
    """
    return torch.cat([images] * 4)[: 4 if declared_batch(model) == 3 else 3]
