"""Where .safetensors and .onnx files hold which elements; the elements themselves are not read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from secateur.errors import PackError, UserError
from secateur.support.file_kinds import EMPTY, LFS_POINTER, WEB_PAGE, kind_of

LEAST_BYTES = 1024  # of a tensor that is worth coding by itself


class Tensor(NamedTuple):
    """Bytes [start, stop) of a file, elements of `width` bytes; "" is the model file itself."""

    file: str
    start: int
    stop: int | None  # None: the file's end
    width: int


def find_tensors(path: Path) -> list[Tensor]:
    """The tensors in a model file and in the files beside it that it refers to.

    Raises:
        PackError: it is no .safetensors or .onnx file, or it is damaged.
    """
    size = size_of(path)
    suffix = path.suffix.lower()
    finders = {".safetensors": _safetensors, ".onnx": _onnx}
    if suffix not in finders:
        raise PackError(
            f"{path} ends in {suffix!r}, expected .safetensors or .onnx: save the model as one"
        )
    with reading(path, f"a whole {suffix} file: save the model again"), path.open("rb") as file:
        kind = kind_of(path)
        if kind in (EMPTY, LFS_POINTER, WEB_PAGE):
            raise PackError(kind.message(path, "a .safetensors or .onnx file"))
        return list(finders[suffix](file, size))


def spans(tensors: Iterable[Tensor], size: int) -> Iterator[tuple[int, int, int]]:
    """Start, stop and width of the pieces of one whole file; width 0 between tensors."""
    at = 0
    for start, stop, width in _joined(tensors, size):
        first = max(start, at)  # tensors may share their bytes
        last = stop - (stop - first) % width
        if last - first < LEAST_BYTES:
            continue
        if first > at:
            yield at, first, 0
        yield first, last, width
        at = last
    if at < size:
        yield at, size, 0


def _joined(tensors: Iterable[Tensor], size: int) -> list[tuple[int, int, int]]:
    """Start, stop and width, by start; a short tensor as one with a neighbour of its width.

    Long ones stay apart: the bytes of two layers are seldom alike (1.5 % fewer bytes packed).
    """
    joined: list[tuple[int, int, int]] = []
    for _, start, end, width in sorted(tensors, key=lambda tensor: tensor.start):
        stop = size if end is None else end
        if joined and joined[-1][1:] == (start, width):
            before = joined[-1][0]
            if min(start - before, stop - start) < LEAST_BYTES:
                joined.pop()
                start = before
        joined.append((start, stop, width))
    return joined


_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
_SAFETENSORS_WIDTHS = {  # 1 where not listed; a complex number is two elements
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32", "C64"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


def _safetensors(file: IO[bytes], size: int) -> Iterator[Tensor]:
    """The tensors that the header lists: eight bytes with its length, then JSON."""
    length = int.from_bytes(exactly(file, 8), "little")
    demand(length <= min(size - 8, _LONGEST_HEADER), "its header goes beyond its end")
    header = json.loads(exactly(file, length).decode())
    demand(isinstance(header, dict), "its header is not a table")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(dtype), "data_offsets": [int(start), int(stop)]}:
                inside = 0 <= start <= stop <= size - 8 - length
                demand(inside, f"its tensor {name!r:.99} goes beyond its end")
                width = _SAFETENSORS_WIDTHS.get(dtype, 1)
                yield Tensor("", 8 + length + start, 8 + length + stop, width)
            case _:
                raise ValueError(f"its tensor {name!r:.99} has no type or no place")


# onnx.proto by the numbers of its fields: the messages that lead to tensors,
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# what tells of a tensor, and the fields with elements and how wide these are: varints are bytes
# of which most are 0, and raw_data is as the type says,
_DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 2, 13, 14
_ELEMENTS = {4: 4, 5: 1, 7: 1, 9: None, 10: 8, 11: 1}
_ONNX_WIDTHS = {  # by data type, 1 where not listed; a complex number is two elements
    **dict.fromkeys((4, 5, 10, 16), 2),  # uint16 int16 float16 bfloat16
    **dict.fromkeys((1, 6, 12, 14), 4),  # float int32 uint32 complex64
    **dict.fromkeys((7, 11, 13, 15), 8),  # int64 double uint64 complex128
}
_DEEPEST = 100  # messages within each other, as in protobuf libraries
_LONGEST_TEXT = 4096  # bytes of a file's name


class _Field(NamedTuple):
    """A field of a protobuf message, with its contents in bytes [start, stop) of the file."""

    number: int
    value: int | None  # of a varint
    start: int
    stop: int


def _onnx(file: IO[bytes], size: int) -> Iterator[Tensor]:
    numbers = {field.number for field in _fields(file, 0, size)}
    demand(7 in numbers, "it has no graph")
    yield from _in_message(file, 0, size, "model", 0)


def _in_message(
    file: IO[bytes], start: int, stop: int, message: str, depth: int
) -> Iterator[Tensor]:
    demand(depth <= _DEEPEST, "its graphs are too deep within each other")
    for field in _fields(file, start, stop):
        inner = _MESSAGES[message].get(field.number)
        if inner == "tensor":
            yield from _in_tensor(file, field.start, field.stop)
        elif inner is not None:
            yield from _in_message(file, field.start, field.stop, inner, depth + 1)


def _in_tensor(file: IO[bytes], start: int, stop: int) -> Iterator[Tensor]:
    values = {field.number: field.value for field in _fields(file, start, stop)}
    width = _ONNX_WIDTHS.get(values.get(_DATA_TYPE) or 0, 1)
    outside: dict[str, str] = {}
    for field in _fields(file, start, stop):
        if field.number == _EXTERNAL_DATA:
            outside.update(_entry(file, field))
        elif field.number in _ELEMENTS and field.stop - field.start >= LEAST_BYTES:
            yield Tensor("", field.start, field.stop, _ELEMENTS[field.number] or width)
    if values.get(_DATA_LOCATION) == 1:
        yield _outside(outside, width)


def _outside(entries: Mapping[str, str], width: int) -> Tensor:
    """A tensor in another file: `entries` have its location, and may have offset and length."""
    name = str(PurePosixPath(entries.get("location", "")))
    demand(is_plain(name), f"it keeps weights in {name!r:.99}, which is no file beside it")
    start, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
    demand(start >= 0 and length >= 0, "it keeps weights at a negative place")
    return Tensor(name, start, start + length if "length" in entries else None, width)


def _entry(file: IO[bytes], entry: _Field) -> dict[str, str]:
    """A message of a key and a value."""
    texts = {}
    for field in _fields(file, entry.start, entry.stop):
        demand(field.stop - field.start <= _LONGEST_TEXT, "a name of a file in it is too long")
        file.seek(field.start)
        texts[field.number] = exactly(file, field.stop - field.start).decode()
    return {texts.get(1, ""): texts.get(2, "")}


def _fields(file: IO[bytes], start: int, stop: int) -> Iterator[_Field]:
    """The fields of the protobuf message in bytes [start, stop)."""
    while start < stop:
        file.seek(start)
        number, kind = divmod(_varint(file), 8)
        value = _varint(file) if kind in (0, 2) else 0
        start = file.tell()
        length = {0: 0, 1: 8, 2: value, 5: 4}.get(kind, stop)  # nobody writes the other kinds
        demand(start + length <= stop, "a message in it goes beyond its end")
        yield _Field(number, value if kind == 0 else None, start, start + length)
        start += length


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = exactly(file, 1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number in it has no end")


# Reading any file


@contextmanager
def reading(path: str | Path, expected: str, *errors: type[Exception]) -> Iterator[None]:
    """Makes a PackError of whatever goes wrong while a file is read, `errors` included."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise PackError(f"{path} cannot be read ({error.strerror}), expected {expected}") from error
    except (ValueError, RecursionError, struct.error, *errors) as error:
        raise PackError(f"{path} cannot be used: {error}; expected {expected}") from error


_TICK = 0.01  # seconds: what file systems' clocks may fall behind
_TICKS = 5  # to wait for at most; a file that changes all the time is told after reading
_FRESH = 1.0  # seconds; a writer may still be in the middle of such a file, at an older time

Version = tuple[int | bytes, ...]


@contextmanager
def steady(path: str | Path, error: type[UserError]) -> Iterator[None]:
    """Raises `error` when a file has been written to by the end of a block that reads it.

    What the block has read may then be partly the old contents and partly the new. Errors of the
    system on the way, such as a file that disappears, become `error` too; those that a library
    makes of the contents (Pillow's "cannot identify image file" is an OSError) pass as they are.
    """
    before = {path: version(path, error)}
    try:
        yield
    except OSError as problem:
        if problem.errno is None:  # not the system's, but a reader's, such as Pillow's
            check_versions(before, error)
            raise
        raise _unreadable(path, problem, error) from problem
    check_versions(before, error)


def version(path: str | Path, error: type[UserError]) -> Version:
    """What changes when a file is written to: its place, size and time, and a digest while fresh.

    One write of many bytes sets a file's time once, when it begins.
    """
    return _version(path, error)


def _version(path: str | Path, error: type[UserError], *, digested: bool | None = None) -> Version:
    try:
        state = os.stat(path)
        for _ in range(_TICKS):
            if time.time() - state.st_mtime >= _TICK:
                break
            time.sleep(_TICK)  # a change now would leave the time as it is
            state = os.stat(path)
        if digested is None:
            digested = time.time() - state.st_mtime < _FRESH and stat.S_ISREG(state.st_mode)
        digest = _digest(path) if digested else b""
    except OSError as problem:
        raise _unreadable(path, problem, error) from problem
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, digest


def check_versions(before: Mapping[Any, Version], error: type[UserError]) -> None:
    """Raises `error` when a file is not of its version any more."""
    for path, held in before.items():
        if _version(path, error, digested=bool(held[-1])) != held:
            raise error(
                f"{path} changed while it was read, expected a file that nobody writes to: wait "
                "until it is finished, and run again"
            )


def _digest(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _unreadable(path: str | Path, problem: OSError, error: type[UserError]) -> UserError:
    reason = problem.strerror or type(problem).__name__
    return error(f"{path} cannot be read ({reason}), expected a file: check it")


def demand(condition: bool, otherwise: str) -> None:
    """Raises ValueError for contents that cannot be."""
    if not condition:
        raise ValueError(otherwise)


def exactly(file: IO[bytes], count: int) -> bytes:
    """The next `count` bytes."""
    held = file.read(count)
    demand(len(held) == count, "it ends too early")
    return held


def size_of(path: Path) -> int:
    """Bytes of a file that has to be there."""
    with reading(path, "a file: check the path"):
        if not path.is_file():
            raise PackError(f"no such file: {path}, expected one: check the path")
        return path.stat().st_size


def is_plain(name: str) -> bool:
    """Whether it names a file in the same folder, on every system."""
    plain = name == PurePosixPath(name).name and name not in ("", "..")
    return plain and name.isprintable() and not set(name) & set("\\:")
