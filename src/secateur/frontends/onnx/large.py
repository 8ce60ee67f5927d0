"""Models over 2 GB, which are too large for one protobuf message: their weights go beside them.

In memory such a model is like any other. Wherever it has to be bytes (a file, a session, a function
of the package onnx), its large tensors are taken out.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import EncodeError, Message
from onnx import ModelProto, TensorProto

from secateur.errors import ModelError
from secateur.frontends.onnx.messages import within

MOST_BYTES = 2**31 - 2**26  # protobuf's limit for one message, less what is beside the weights
APART = 2**16  # bytes of a tensor that is taken out

_WIDTHS = {  # bytes of a number, 1 where not listed
    **dict.fromkeys((4, 5, 10, 16), 2),  # uint16 int16 float16 bfloat16
    **dict.fromkeys((1, 6, 12), 4),  # float int32 uint32
    **dict.fromkeys((7, 11, 13, 14, 15), 8),  # int64 double uint64 complex64 complex128
}


def is_large(model: ModelProto) -> bool:
    """Whether a model cannot be one message, as the shapes of its tensors say.

    A look at their numbers would copy them.
    """
    tensors = within(model, TensorProto)
    sizes = (math.prod(of.dims) * _WIDTHS.get(of.data_type, 1) for of in tensors)
    return sum(sizes) > MOST_BYTES


def content(model: ModelProto) -> bytes:
    """A model as bytes, always the same ones.

    Raises:
        ModelError: it is over 2 GB.
    """
    try:
        return model.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ModelError(
            "the ONNX model holds over 2 GB that cannot be stored beside it, expected large "
            "tensors with raw data: write it with onnx.save and save_as_external_data=True, and "
            "pass the file's path"
        ) from error


def digest(model: ModelProto, weights: Sequence[TensorProto] = ()) -> bytes:
    """What tells a model from others.

    Args:
        model: of any size, or what `apart` leaves of it, where
        weights: are those beside it; those that it does not name any more are left out.
    """
    if is_large(model) and not weights:
        model, weights = apart(model)
    found, beside = hashlib.sha256(content(model)), _by_offset(weights)
    for held in _outside(model):
        found.update(beside[_offset(held)].raw_data)
    return found.digest()


def apart(model: ModelProto, location: str = "weights") -> tuple[ModelProto, list[TensorProto]]:
    """A copy of a model whose large tensors are in a file, and these, in their order there.

    Args:
        model: not changed; the tensors given are its own.
        location: the file's name.
    """
    twin, found = ModelProto(), _Apart(location)
    found.copy(model, twin)
    return twin, found.tensors


class _Apart:
    """Copies messages but for the numbers of large tensors, which it lists."""

    def __init__(self, location: str) -> None:
        self.location, self.tensors, self.size = location, list[TensorProto](), 0

    def copy(self, source: Message, twin: Message) -> None:
        if not isinstance(source, TensorProto):
            for field, value in source.ListFields():
                self._copy_field(field, value, twin)
        elif isinstance(twin, TensorProto) and (size := len(source.raw_data)) >= APART:
            self._put_apart(source, twin, size)
        else:
            twin.CopyFrom(source)

    def _copy_field(self, field: FieldDescriptor, value: Any, twin: Message) -> None:
        own, several = getattr(twin, field.name), hasattr(value, "extend")
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            own.extend(value) if several else setattr(twin, field.name, value)
        elif several:
            for inner in value:
                self.copy(inner, own.add())
        else:
            own.SetInParent()
            self.copy(value, own)

    def _put_apart(self, source: TensorProto, twin: TensorProto, size: int) -> None:
        twin.name, twin.data_type = source.name, source.data_type
        twin.dims.extend(source.dims)
        twin.data_location = TensorProto.EXTERNAL
        entries = {"location": self.location, "offset": self.size, "length": size}
        for key, value in entries.items():
            twin.external_data.add(key=key, value=str(value))
        self.tensors.append(source)
        self.size += size


def changed(model: ModelProto, change: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """What a function of the package onnx makes of a model, which only sees its small tensors."""
    if not is_large(model):
        return change(model)
    twin, weights = apart(model)
    made, beside = change(twin), _by_offset(weights)
    for held in _outside(made):
        held.raw_data = beside[_offset(held)].raw_data
        _put_inside(held)
    return made


def without_numbers(model: ModelProto) -> ModelProto:
    """A model for the checker, which would look for tensors that are in files: with empty ones."""
    twin, _ = apart(model)
    for held in _outside(twin):
        _put_inside(held)
        held.dims[:] = [0]
    return twin


def _outside(model: ModelProto) -> list[TensorProto]:
    tensors = within(model, TensorProto)
    return [held for held in tensors if held.data_location == TensorProto.EXTERNAL]


def _put_inside(held: TensorProto) -> None:
    held.data_location = TensorProto.DEFAULT
    del held.external_data[:]


def _offset(held: TensorProto) -> int:
    return next(int(entry.value) for entry in held.external_data if entry.key == "offset")


def _by_offset(weights: Sequence[TensorProto]) -> dict[int, TensorProto]:
    """Tensors by where they begin in the file that holds them behind each other."""
    ends = itertools.accumulate(len(held.raw_data) for held in weights)
    return dict(zip((0, *ends), weights, strict=False))


def write(model: ModelProto, path: Path) -> None:
    """Writes a model as a file; one over 2 GB with a file of its weights beside it."""
    if not is_large(model):
        path.write_bytes(model.SerializeToString())
        return
    beside = path.with_name(f"{path.name}.data")
    twin, weights = apart(model, beside.name)
    with beside.open("wb") as file:
        for held in weights:
            file.write(held.raw_data)
    path.write_bytes(content(twin))


@contextmanager
def loadable(model: ModelProto) -> Iterator[bytes | str]:
    """What ONNX Runtime loads: a model as bytes; of one over 2 GB the path of a file, meanwhile."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        write(model, path)
        yield str(path)
