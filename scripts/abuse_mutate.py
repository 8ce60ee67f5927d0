"""Mutations that know what a file holds, so that most of them get past its first check.

A case is a folder of small files. One of them is decoded by its suffix, one thing in it is changed,
and it is encoded again, with lengths and checksums that hold. Everything random comes from `rng`.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import onnx
import tomli_w
from google.protobuf.descriptor import FieldDescriptor

Case = dict[str, bytes]
_INTEGERS = (0, 1, -1, 2, 3, 7, 127, 255, 2**16, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1)
_FLOATS = (0.0, -1.0, 0.5, 1.0, 1e300, -1e-300, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "", ".", "..", "/", "../outside", "../../etc/passwd", "a/b", "a\\b", "weights.bin", "out",
    "\0", "a\nb", "ü\u202e", "x" * 300, "%s%n", "name", "input", "-1", "1e999", "9" * 5000, "nan",
    "[/x]", "[red]", "\x1b[2J", "{0}", "\ud800",
)  # fmt: skip


def encode(case: Case) -> bytes:
    """A case as the bytes that the fuzzer keeps."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in sorted(case.items()):
            archive.writestr(zipfile.ZipInfo(name), content)
    return held.getvalue()


def decode(data: bytes) -> Case:
    """The inverse; an empty case for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return {}


def mutate(case: Case, rng: Random) -> Case:
    """A case with one to four changes in its files."""
    held = dict(case)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(sorted(held))
        how = _BY_SUFFIX.get(name[name.rfind(".") :], _bytes)
        if rng.random() < 0.15:
            how = _bytes
        try:
            held[name] = how(held[name], rng)
        except Exception:  # it was broken already
            held[name] = _bytes(held[name], rng)
    return held


def _bytes(data: bytes, rng: Random) -> bytes:
    """Flipped, cut, repeated or inserted bytes, or a little-endian number."""
    held = bytearray(data)
    at, length = rng.randint(0, len(held)), rng.choice((1, 1, 2, 4, 8, 64))
    match rng.randrange(6):
        case 0:
            held[at : at + length] = rng.randbytes(length)
        case 1:
            del held[at : at + length]
        case 2:
            held[at:at] = held[at : at + length] * rng.choice((1, 3, 100))
        case 3:
            del held[at:]
        case 4:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(_INTEGERS) % 256**width
            held[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        case _:
            held[at : at + length] = rng.choice(_TEXTS).encode("utf-8", "surrogatepass")
    return bytes(held)


def _lines(data: bytes, rng: Random) -> bytes:
    """A cell, a line or a separator changed."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    at = rng.randrange(len(lines))
    cells = lines[at].split(",")
    match rng.randrange(4):
        case 0:
            cells[rng.randrange(len(cells))] = rng.choice((*_TEXTS, *map(str, _INTEGERS), '"'))
        case 1:
            cells.insert(rng.randrange(len(cells) + 1), rng.choice(_TEXTS))
        case 2:
            cells = cells[:-1]
        case _:
            cells = lines[rng.randrange(len(lines))].split(",")
    lines[at] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "surrogateescape")


# Plain data: JSON and TOML


def _plain(held: Any, rng: Random) -> Any:
    """Plain data with one value changed, taken away, repeated or nested."""
    held = copy.deepcopy(held)
    places = list(_places(held))
    if not places:
        return _other(held, rng)
    parent, key = rng.choice(places)
    value = parent[key]
    match rng.randrange(8):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(_TEXTS)] = value
        case 2:
            parent[key] = [value] * rng.choice((0, 1, 2, 50))
        case 3:
            parent[key] = {rng.choice(_TEXTS): value}
        case 4:
            other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name])
        case _:
            parent[key] = _other(value, rng)
    return held


def _places(held: Any) -> Any:
    keys = held if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
    for key in keys:
        yield held, key
        yield from _places(held[key])


def _other(value: Any, rng: Random) -> Any:
    """Another value, of the same type more often than not."""
    same = [of for of in (_INTEGERS, _FLOATS, _TEXTS) if type(value) is type(of[0])]
    table = rng.choice(same or [_INTEGERS, _FLOATS, _TEXTS])
    return rng.choice(table) if rng.random() < 0.8 else rng.choice((None, True, [], {}, 0, "", 1.5))


def _json(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.02:
        depth = rng.choice((100, 1000, 100_000))
        return b"[" * depth + b"]" * depth
    return json.dumps(_plain(json.loads(data), rng)).encode()


def _toml(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.02:
        depth = rng.choice((100, 1000, 100_000))
        return b"a = " + b"[" * depth + b"]" * depth
    return tomli_w.dumps(_plain(tomllib.loads(data.decode()), rng)).encode()


# Archives and files with a header


def _archive(data: bytes, rng: Random) -> bytes:
    """A zip file with another member: its bytes, its NumPy header, its name, or none."""
    members = decode(data)
    name = rng.choice(sorted(members))
    content = members[name]
    match rng.randrange(6):
        case 0:
            del members[name]
        case 1:
            members[rng.choice(_TEXTS) or "x"] = content
        case 2 if content[:6] == b"\x93NUMPY":
            members[name] = _numpy_header(content, rng)
        case _:
            members[name] = _bytes(content, rng)
    way = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", way) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


def _numpy_header(content: bytes, rng: Random) -> bytes:
    length = int.from_bytes(content[8:10], "little")
    header, rest = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    shape = tuple(rng.choice((*_INTEGERS, 1, 2, 3)) for _ in range(rng.randrange(5)))
    kind = rng.choice(("|u1", "<f4", "<f8", "<i8", ">f4", "|O", "<U9", "|V3", "<c8", "<M8[s]", "?"))
    wrong = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"
    header = rng.choice((wrong, header.replace("(", "((", 1), header.replace("False", "True")))
    return content[:8] + len(header).to_bytes(2, "little") + header.encode() + rest


def _safetensors(data: bytes, rng: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(_plain(json.loads(data[8 : 8 + length]), rng)).encode()
    if rng.random() < 0.1:
        header = _bytes(header, rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _packed(data: bytes, rng: Random) -> bytes:
    """A packed file with one record changed, its checksum put right."""
    records, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from("<IB", data, at)
        records.append((kind, data[at + 5 : at + 5 + length]))
        at += 9 + length
    at = rng.randrange(len(records))
    kind, payload = records[at]
    match rng.randrange(5):
        case 0:
            del records[at]
        case 1:
            records.insert(at, rng.choice(records))
        case 2:
            records[at] = (rng.choice((0, 1, 2, 3, 255)), payload)
        case _:
            records[at] = (kind, _bytes(payload, rng))
    out = data[:8]
    for kind, payload in records:
        content = struct.pack("<IB", len(payload), kind) + payload
        out += content + struct.pack("<I", zlib.crc32(content))
    return out


# Protobuf: any message


def _onnx(data: bytes, rng: Random) -> bytes:
    model = onnx.ModelProto.FromString(data)
    messages = list(_messages(model))
    for _ in range(20):
        message = rng.choice(messages)
        fields = message.DESCRIPTOR.fields
        present = [field for field, _ in message.ListFields()]
        field = rng.choice(present if present and rng.random() < 0.8 else fields)
        if _change(message, field, messages, rng):
            break
    return model.SerializeToString()


def _messages(message: Any) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if _is_repeated(value) else [value]:
                yield from _messages(inner)


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "extend")


def _change(message: Any, field: Any, messages: list[Any], rng: Random) -> bool:
    """Changes one field; False where there is nothing to change it to."""
    name, value = field.name, getattr(message, field.name)
    if rng.random() < 0.1:
        message.ClearField(name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        alike = [of for of in messages if of.DESCRIPTOR is field.message_type]
        if not alike:
            return False
        chosen = copy.deepcopy(rng.choice(alike))
        if not _is_repeated(value):
            value.CopyFrom(chosen)
        elif value and rng.random() < 0.3:
            del value[rng.randrange(len(value))]
        elif value and rng.random() < 0.5:
            value[rng.randrange(len(value))].CopyFrom(chosen)
        else:
            value.append(chosen)
    elif _is_repeated(value):
        if value and rng.random() < 0.6:
            at = rng.randrange(len(value))
            value[at] = _scalar(field, value[at], messages, rng)
        elif value and rng.random() < 0.5:
            del value[rng.randrange(len(value))]
        else:
            value.append(_scalar(field, value[0] if value else None, messages, rng))
    else:
        setattr(message, name, _scalar(field, value, messages, rng))
    return True


def _scalar(field: Any, old: Any, messages: list[Any], rng: Random) -> Any:
    kinds = FieldDescriptor
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == kinds.TYPE_BYTES:
        return _bytes(old or b"", rng)
    if field.type == kinds.TYPE_STRING:
        return rng.choice((*_TEXTS, *_names(messages)))
    if field.type == kinds.TYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    bits, signed = {
        kinds.CPPTYPE_INT32: (32, True),
        kinds.CPPTYPE_INT64: (64, True),
        kinds.CPPTYPE_UINT32: (32, False),
        kinds.CPPTYPE_UINT64: (64, False),
    }[field.cpp_type]
    value = rng.choice((*_INTEGERS, *range(24))) % 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _names(messages: list[Any]) -> list[str]:
    """Names that the model uses, and operations of the standard."""
    found = [message.name for message in messages if "name" in message.DESCRIPTOR.fields_by_name]
    return [*found, "Conv", "Gemm", "MatMul", "Add", "Reshape", "Transpose", "Identity", "Constant"]


_BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    ".onnx": _onnx,
    ".json": _json,
    ".toml": _toml,
    ".csv": _lines,
    ".npz": _archive,
    ".pt": _archive,
    ".pt2": _archive,
    ".safetensors": _safetensors,
    ".packed": _packed,
}
