"""What an ONNX model takes: its inputs, how many samples at a time, of what shapes and types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.network.samples import Samples, Signature

_LARGEST_BATCH = 1024  # that a file may be fixed to
_LARGEST_IMAGE = 2**28  # values, where nobody said what shape
_KINDS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}
_NAMES = frozenset(TensorProto.DataType.values())


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of a file.

    Attributes:
        name: of its value.
        kind: of its numbers.
        number: ONNX's number for that.
        axes: their sizes, 0 where any will do; None where the file does not even say how many.
        sizes: the file's names for those that it leaves open; empty where there is none.
    """

    name: str
    kind: torch.dtype
    number: int
    axes: tuple[int, ...] | None
    sizes: tuple[str, ...] = ()

    @property
    def run_as(self) -> torch.dtype:
        """The type in which its values go through the layers: half precision as float32."""
        is_half = self.kind in (torch.float16, torch.bfloat16)
        return torch.float32 if is_half else self.kind

    def usual(self, known: dict[str, int]) -> tuple[int, ...]:
        """The shape of one sample, with the usual sizes where the file leaves one open.

        Args:
            known: sizes by the file's names for them, which are added to.
        """
        axes = self.axes or ()
        size = 224 if self.kind.is_floating_point or len(axes) > 2 else 16
        channels = [3] if len(axes) > 2 else []
        usual = [0, *channels, *[size] * len(axes)]
        return tuple(
            axis or (known.setdefault(name, usual[at]) if name else usual[at])
            for at, (axis, name) in enumerate(zip(axes, self.sizes, strict=True))
        )[1:]


def inputs(model: ModelProto) -> list[Input]:
    """The inputs that a file has to be given, in its order.

    Raises:
        ModelError: there are none, or one takes something else than numbers or truth values.
    """
    given = _given(model)
    if not given:
        raise ModelError(
            "the ONNX model takes 0 inputs (none), expected at least one: export it with the "
            "samples as an input"
        )
    return [_input(value) for value in given]


def _given(model: ModelProto) -> list[onnx.ValueInfoProto]:
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def _input(value: onnx.ValueInfoProto) -> Input:
    number = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or number not in _KINDS:
        raise ModelError(
            f"the ONNX model's input {value.name} takes {_kind_name(value)}, expected a tensor of "
            "numbers or of truth values: export it with one"
        )
    tensor = value.type.tensor_type
    axes = tuple(max(0, axis.dim_value) for axis in tensor.shape.dim)
    return Input(
        name=value.name,
        kind=_KINDS[number],
        number=number,
        axes=axes if tensor.HasField("shape") else None,
        sizes=tuple(axis.dim_param for axis in tensor.shape.dim),
    )


def _kind_name(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return f"a {str(value.type.WhichOneof('value')).removesuffix('_type')}"
    number = value.type.tensor_type.elem_type
    return TensorProto.DataType.Name(number).lower() if number in _NAMES else f"type {number}"


def signature(taken: Sequence[Input]) -> Signature:
    """Some inputs as the rest of the package knows them."""
    names = tuple(of.name for of in taken)
    return Signature(
        names=names,
        required=names,
        once=_once(taken),
        kinds={of.name: of.run_as for of in taken},
    )


def _once(taken: Sequence[Input]) -> tuple[str, ...]:
    """Inputs that cannot have the samples on their first axis.

    Those without axes, and those whose first one is fixed where that of others is open; where all
    are fixed, those with another number there than the first.
    """
    firsts = {of.name: of.axes[:1] for of in taken if of.axes is not None}
    sizes = [size for sizes in firsts.values() for size in sizes]
    batch = 0 if 0 in sizes else next(iter(sizes), 0)
    return tuple(name for name, sizes in firsts.items() if sizes != (batch,))


def bound(model: ModelProto, samples: Samples) -> Samples:
    """Samples by the file's own names, in its order, and in the types that the layers run in.

    Raises:
        DataError: an input is missing, unknown, or of numbers that the file's type cannot hold.
    """
    return signature(inputs(model)).bind(samples)


def fed(model: ModelProto, samples: Samples) -> dict[str, np.ndarray]:
    """Bound samples as arrays of the file's own types, by name."""
    return {
        of.name: samples.tensors[of.name].to("cpu", of.kind).contiguous().numpy()
        for of in inputs(model)
    }


def declared_batch(model: ModelProto) -> int:
    """The batch size that the file's inputs are fixed to; 0 = any.

    Raises:
        ModelError: it is too large, or inputs are fixed to different ones.
    """
    firsts = {of.name: of.axes[0] for of in inputs(model) if of.axes and of.axes[0]}
    if len({*firsts.values()}) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in firsts.items())
        raise ModelError(
            f"the ONNX model's inputs are fixed to different numbers of samples ({listed}), "
            "expected one: export it with a dynamic batch"
        )
    batch = next(iter(firsts.values()), 0)
    if batch > _LARGEST_BATCH:
        raise ModelError(
            f"the ONNX model takes {batch} images at a time, expected any number, or at most "
            f"{_LARGEST_BATCH}: export it with a dynamic batch"
        )
    return batch


def input_shape(model: ModelProto) -> tuple[int, ...]:
    """Of one sample of the first input, as `blank` has it."""
    return next(iter(blank(model).shapes.values()))


def blank(model: ModelProto, shape: Sequence[int] | None = None) -> Samples:
    """Two samples of zeros, and of ones for whole numbers and masks.

    Args:
        model: the file.
        shape: of one sample of the first input; None = as the file says, with 3 channels, 224
            pixels and 16 tokens where it leaves a size open.

    Raises:
        ModelError: a sample would be too large to try.
    """
    taken, names = inputs(model), dict[str, int]()
    takes, tensors, constants = signature(taken), dict[str, Tensor](), dict[str, Tensor]()
    for of in taken:
        if of.name in takes.once:
            constants[of.name] = _blank([size or 1 for size in of.axes or ()], of)
            continue
        sizes = of.usual(names) if shape is None or tensors else tuple(shape)
        tensors[of.name] = _blank([2, *_tried(sizes)], of)
    return Samples(tensors, constants=constants)


def _blank(sizes: Sequence[int], taken: Input) -> Tensor:
    return torch.full(sizes, not taken.kind.is_floating_point, dtype=taken.run_as)


def _tried(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes that are not too large to try."""
    if min(sizes, default=1) < 1 or math.prod(sizes) > _LARGEST_IMAGE:
        raise ModelError(
            f"the ONNX model takes images of shape {sizes}, expected at most {_LARGEST_IMAGE} "
            "values: pass the shape to look at (shape=, --shape)"
        )
    return sizes


def check_shapes(model: ModelProto, samples: Samples) -> None:
    """Raises ModelError where the file is fixed to samples of other shapes.

    Args:
        model: the file.
        samples: by its own names.
    """
    taken = inputs(model)
    for of in taken:
        _check_shape(of, tuple(samples.tensors[of.name].shape[1:]), alone=len(taken) == 1)


def _check_shape(taken: Input, shape: Sequence[int], *, alone: bool) -> None:
    if not taken.axes:
        return
    declared = taken.axes[1:]
    fits = [want in (0, got) for want, got in zip(declared, shape, strict=False)]
    if (alone and not declared) or (len(declared) == len(shape) and all(fits)):
        return
    wanted, way_out = declared, "check the channels and the preprocessing"
    if len(declared) == len(shape) == 3 and fits[0]:
        wanted = declared[1:]
        way_out = f"pass --size {wanted[0]}" if wanted[0] == wanted[1] else "resize them"
    if not alone:
        raise ModelError(
            f"the ONNX model's input {taken.name} takes samples of shape {_sizes(declared)}, got "
            f"{_sizes(shape)}, expected the same: check which input is which"
        )
    raise ModelError(
        f"the ONNX model takes {_times(wanted)} images, got {_times(shape[-len(wanted) :])}, "
        f"expected the same: {way_out}"
    )


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) if size else "any" for size in sizes)


def _sizes(sizes: Sequence[int]) -> str:
    return f"({', '.join(str(size) if size else 'any' for size in sizes)})"


def described(shapes: dict[str, tuple[int, ...]]) -> str:
    """What a file was run on, for messages: by the shapes of one sample."""
    if len(shapes) == 1:
        return f"images of shape {next(iter(shapes.values()))}"
    return "samples of " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def images_input(model: ModelProto) -> onnx.ValueInfoProto:
    """The one input of a file that takes images and nothing else.

    Raises:
        ModelError: there are several inputs or none, or it does not take float32.
    """
    given = _given(model)
    if len(given) != 1:
        names = ", ".join(value.name for value in given) or "none"
        raise ModelError(
            f"the ONNX model takes {len(given)} inputs ({names}), expected one (a batch of "
            "images): export it with the others fixed"
        )
    if given[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ModelError(
            f"the ONNX model's input {given[0].name} takes {_kind_name(given[0])}, expected "
            "float32 images: export it with a float32 input"
        )
    return given[0]


def several(model: ModelProto, samples: Samples) -> Samples:
    """Three samples by repeating a few, or four where the file is made for three.

    A number that it was not made for shows whether any number will do.
    """
    every: Any = Samples.joined([samples] * 4)
    return every[: 4 if declared_batch(model) == 3 else 3]
