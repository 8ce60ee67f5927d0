"""Smaller files: zeros of .safetensors and .onnx files at next to no bytes, without loss.

A packed file knows no tensors: it holds the bytes of the original in blocks, coded as elements of
1, 2, 4 or 8 bytes or as plain bytes. Only `pack` looks into the original, to see which is which.
So `unpack` gives back the same bytes whatever they meant, and reads neither safetensors nor ONNX.
docs/packed-format.md describes the format.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from secateur.errors import OutputError, PackError
from secateur.support.file_kinds import SAFETENSORS, kind_of_head
from secateur.support.files import check_space, output_files
from secateur.support.model_files import (
    check_versions,
    demand,
    exactly,
    find_tensors,
    is_plain,
    reading,
    size_of,
    spans,
    version,
)
from secateur.support.settings import at_least, check_arguments

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAGIC = b"\x89SPK\r\n\x1a\n"  # like PNG's: no text, and broken by whatever changes line ends
_VERSION = 1
_HEAD, _BLOCK, _END = 1, 2, 3  # kinds of records
_PLAIN, _BITS, _GAPS = 0, 1, 2  # codings of a block
_RECORD = struct.Struct("<IB")  # bytes of the payload, kind; then the payload and a CRC-32
_CHECKSUM = struct.Struct("<I")
_FILE = struct.Struct("<QH")  # bytes of a file and of its name; then the name
_CODING = struct.Struct("<BBI")  # coding, bytes of an element, elements; then the parts
_PART = struct.Struct("<II")  # bytes before and after compression; then the latter

_BLOCK_BYTES = 1 << 20  # of the original in a block, at most; bounds the memory of both sides
_RECORD_BYTES = 2 * _BLOCK_BYTES
_TRUSTED_RATIO, _TRUSTED_BYTES = 256, 1 << 30  # what is unpacked without being asked for

_LEVEL = int(zstd.CompressionParameter.compression_level)
# Bytes of weights do not repeat, some are only more frequent than others. A search for repeats that
# finds next to none leaves zstd's Huffman coder, which beats level 19 in a hundredth of the time.
_HUFFMAN = {
    int(zstd.CompressionParameter.strategy): int(zstd.Strategy.dfast),
    int(zstd.CompressionParameter.hash_log): 6,
    int(zstd.CompressionParameter.chain_log): 6,
    int(zstd.CompressionParameter.min_match): 7,
}
_FOR_ELEMENTS = (_HUFFMAN, {_LEVEL: 3})  # the second for those that do repeat
_FOR_THE_REST = ({_LEVEL: 12},)
_DECODING = {int(zstd.DecompressionParameter.window_log_max): 20}  # a block's bytes

_WHOLE = "a whole packed file: fetch it again, or pack the model again"


@dataclass(frozen=True, kw_only=True)
class PackedSize:
    """Bytes of a model before and after packing.

    Attributes:
        dense: bytes of the original file and its external data.
        packed: bytes of the packed file.
    """

    dense: int
    packed: int

    @property
    def ratio(self) -> float:
        """Packed / dense; 1 for an empty file."""
        return self.packed / self.dense if self.dense else 1.0


def pack(path: str | Path, out: str | Path, *, overwrite: bool = False) -> PackedSize:
    """Writes a smaller file, from which `unpack` restores the same bytes.

    A mask marks the zeros, which are left out; the signs of negative zeros are kept. The other
    elements are split into their first, second, ... bytes, and zstd compresses each of these
    parts. The result is read back and compared. The same file gives the same packed bytes, with
    the same version of zstd.

    Example:
        >>> import secateur, torch
        >>> from safetensors.torch import save_file
        >>> save_file({"weight": torch.zeros(1000, 1000)}, "model.safetensors")
        >>> secateur.pack("model.safetensors", "model.packed").ratio < 0.01
        True
        >>> secateur.unpack("model.packed", "again.safetensors").ratio < 0.01
        True

    Args:
        path: a .safetensors or .onnx file. External data of an ONNX file are packed with it.
        out: the file to write.
        overwrite: whether `out` may replace a file.

    Returns:
        Bytes before and after.

    Raises:
        PackError: `path` is no such file, or it is damaged.
        OutputError: `out` exists and `overwrite` is not given, or it cannot be written.

    Memory does not grow with the weights: they are read in blocks of 1 MiB, one at a time.
    """
    check_arguments(pack, locals())
    path, out = Path(path), Path(out)
    size_of(path)
    versions = {path: version(path, PackError)}
    tensors = find_tensors(path)
    names = ["", *sorted({tensor.file for tensor in tensors} - {""})]
    paths = [path.parent / name if name else path for name in names]
    sizes = [size_of(file) for file in paths]
    versions |= {file: version(file, PackError) for file in paths[1:]}
    with (
        output_files(out.parent, [out.name], overwrite=overwrite) as staging,
        (staging / out.name).open("w+b") as target,
    ):
        target.write(_MAGIC)
        _write_record(target, _HEAD, _head(names, sizes))
        for name, file, size in zip(names, paths, sizes, strict=True):
            inside = (tensor for tensor in tensors if tensor.file == name)
            _write_blocks(target, _pieces(file, spans(inside, size)))
        packed = target.tell()
        check_versions(versions, PackError)
        _read_back(target, path)
    return PackedSize(dense=sum(sizes), packed=packed)


def unpack(
    path: str | Path, out: str | Path, *, overwrite: bool = False, max_bytes: int | None = None
) -> PackedSize:
    """Restores the file that was packed, bit for bit, and its external data if it had any.

    Args:
        path: a file made by `pack`.
        out: the file to write; its name ends like that of the file that was packed, or has no
            ending. External data of an ONNX file go beside it, under their former names.
        overwrite: whether files may be replaced.
        max_bytes: refuse to write more than this; by default 1 GiB, or 256 times the bytes of
            `path` if that is more.

    Returns:
        Bytes before and after packing.

    Raises:
        PackError: `path` is not a packed file, it is damaged, or it holds more than `max_bytes`.
        OutputError: a file exists and `overwrite` is not given, it cannot be written, or its name
            has the ending of another kind of file.

    Memory does not grow with the file, nor with the sizes that a damaged file claims.
    """
    check_arguments(unpack, locals(), max_bytes=at_least(0))
    path, out = Path(path), Path(out)
    packed = size_of(path)
    with reading(path, "a file that may be read: check its permissions"):
        source = path.open("rb")
    with source:
        files = _read_head(source)
        dense = sum(size for _, size in files)
        _check_size(path, packed, dense, max_bytes)
        names = [name or out.name for name, _ in files]
        if len(set(names)) < len(names):
            raise OutputError(
                f"{out.name} is also the name of a file with its weights, expected another: "
                "choose another"
            )
        # The model is renamed last, so that it is never there without its weights.
        with output_files(out.parent, [*names[1:], names[0]], overwrite=overwrite) as staging:
            check_space(staging.parent, dense)
            for name, (_, size) in zip(names, files, strict=True):
                with (staging / name).open("wb") as target:
                    blocks = _contents(source, size)
                    if name == out.name:
                        blocks = _as_named(out, blocks, size)
                    target.writelines(blocks)
            _read_end(source)
    return PackedSize(dense=dense, packed=packed)


def _as_named(out: Path, blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """A model's blocks, if its name has the ending of such a file, or none."""
    for number, raw in enumerate(blocks):
        is_safetensors = kind_of_head(raw[:16], size) is SAFETENSORS
        ending = ".safetensors" if is_safetensors else ".onnx"
        if number == 0 and out.suffix.lower() not in ("", ending):
            raise OutputError(
                f"{out.name} ends in {out.suffix}, expected {ending}, for such a file was packed: "
                f"call it {out.with_suffix(ending).name}"
            )
        yield raw


def _read_back(target: IO[bytes], path: Path) -> None:
    """Compares the checksums of what was just written."""
    target.seek(0)
    try:
        for _, size in _read_head(target):
            for _ in _contents(target, size):
                pass
        _read_end(target)
    except PackError as error:
        raise PackError(
            f"{path} was packed but does not come back: {error.__cause__}; expected the same "
            "bytes: check this machine's memory and disk, and report it"
        ) from error


def _check_size(path: Path, packed: int, dense: int, max_bytes: int | None) -> None:
    allowed = max(_TRUSTED_BYTES, _TRUSTED_RATIO * packed) if max_bytes is None else max_bytes
    if dense > allowed:
        raise PackError(
            f"{path} ({packed:,} bytes) would become {dense:,} bytes, expected at most "
            f"{allowed:,}: if you trust it, allow more (max_bytes, --max-bytes)"
        )


# Blocks


class _Part(NamedTuple):
    """Compressed bytes that become `size` bytes; not compressed where they are as many."""

    size: int
    held: memoryview


def _encoded(raw: bytes, width: int) -> bytes:
    """A block's payload; `width` 0 for bytes that are no elements."""
    if width == 0:
        return _plain(raw, _FOR_THE_REST)
    values = np.frombuffer(raw, f"<u{width}")  # (elements,)
    mask = values << 1 != 0  # -0.0, which multiplying by a mask leaves, is a zero too
    signs = values[~mask] != 0
    kept = values[mask].view(np.uint8).reshape(-1, width)  # (kept, bytes)
    coding, marks = _BITS, _part(_bits(mask))
    if 4 * len(kept) <= len(values):  # gaps never win where more is kept
        gaps = _part(_gaps(mask))
        coding, marks = min((coding, marks), (_GAPS, gaps), key=lambda way: len(way[1]))
    rest = (_part(_bits(signs) if signs.any() else b""), *(_part(of.tobytes()) for of in kept.T))
    coded = b"".join([_CODING.pack(coding, width, len(values)), marks, *rest])
    return min(coded, _plain(raw), key=len) if width == 1 else coded  # few zeros: no mask


def _plain(raw: bytes, ways: Iterable[dict[int, int]] = _FOR_ELEMENTS) -> bytes:
    return _CODING.pack(_PLAIN, 1, len(raw)) + _part(raw, ways)


def _decoded(payload: bytes) -> bytes:
    """The bytes of the original in a block."""
    coding, width, count = _CODING.unpack_from(payload)
    demand(width in (1, 2, 4, 8), "a block in it has elements of a wrong size")
    demand(0 < width * count <= _BLOCK_BYTES, "a block in it has a wrong size")
    first, *rest = _parts(memoryview(payload)[_CODING.size :])
    demand(len(rest) == (0 if coding == _PLAIN else 1 + width), "a block in it is not whole")
    if coding == _PLAIN:
        return _expanded(first, width * count)
    demand(coding in (_BITS, _GAPS), "a block in it is of an unknown kind")
    mask = _mask_of_bits(first, count) if coding == _BITS else _mask_of_gaps(first, count)
    kept = int(mask.sum())
    signs, *planes = rest
    values = np.zeros((count, width), np.uint8)
    for index, plane in enumerate(planes):
        values[mask, index] = np.frombuffer(_expanded(plane, kept), np.uint8)
    if signs.size:  # bit 7 of the last byte
        values[~mask, -1] = _mask_of_bits(signs, count - kept).view(np.uint8) << 7
    return values.tobytes()


def _bits(mask: np.ndarray) -> bytes:
    return np.packbits(mask, bitorder="little").tobytes()


def _mask_of_bits(part: _Part, count: int) -> np.ndarray:
    bits = np.frombuffer(_expanded(part, -(-count // 8)), np.uint8)
    return np.unpackbits(bits, count=count, bitorder="little").view(bool)


def _gaps(mask: np.ndarray) -> bytes:
    """How many zeros there are before each True; 255 for as many without a True after them."""
    zeros = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    longs = zeros // 255
    gaps = np.full(len(zeros) + longs.sum(), 255, np.uint8)
    gaps[np.arange(len(zeros)) + longs.cumsum()] = zeros % 255
    return gaps.tobytes()


def _mask_of_gaps(part: _Part, count: int) -> np.ndarray:
    demand(part.size <= count, "a mask in it is too long")
    gaps = np.frombuffer(_expanded(part, part.size), np.uint8)
    ends = np.cumsum(np.minimum(gaps, 254) + 1, dtype=np.int64)
    demand(not len(ends) or ends[-1] <= count, "a mask in it is too long")
    mask = np.zeros(count, bool)
    mask[ends[gaps < 255] - 1] = True
    return mask


def _part(raw: bytes, ways: Iterable[dict[int, int]] = _FOR_ELEMENTS) -> bytes:
    """`raw` in as few bytes as any of `ways` takes, with both sizes before it."""
    held = min(raw, *(zstd.compress(raw, options=way) for way in ways), key=len)
    return _PART.pack(len(raw), len(held)) + held


def _parts(payload: memoryview) -> list[_Part]:
    parts = []
    while payload or not parts:
        size, length = _PART.unpack_from(payload)
        held, payload = payload[_PART.size :][:length], payload[_PART.size + length :]
        demand(len(held) == length and len(parts) <= 9, "a block in it is not whole")
        parts.append(_Part(size, held))
    return parts


def _expanded(part: _Part, size: int) -> bytes:
    """A part's `size` bytes; zstd gets room for one more only."""
    demand(part.size == size, "a part of a block in it has a wrong size")
    if len(part.held) == size:
        return bytes(part.held)
    decompressor = zstd.ZstdDecompressor(options=_DECODING)
    raw = decompressor.decompress(part.held, max_length=size + 1)
    whole = decompressor.eof and not decompressor.unused_data
    demand(whole and len(raw) == size, "a part of a block in it has a wrong size")
    return raw


# Records


def _write_record(target: IO[bytes], kind: int, payload: bytes) -> None:
    content = _RECORD.pack(len(payload), kind) + payload
    target.write(content + _CHECKSUM.pack(zlib.crc32(content)))


def _read_record(source: IO[bytes]) -> tuple[int, bytes]:
    """A record's kind and payload."""
    head = exactly(source, _RECORD.size)
    length, kind = _RECORD.unpack(head)
    demand(length <= _RECORD_BYTES, "a record in it is too long")
    payload = exactly(source, length)
    (checksum,) = _CHECKSUM.unpack(exactly(source, _CHECKSUM.size))
    demand(checksum == zlib.crc32(payload, zlib.crc32(head)), "a checksum in it does not hold")
    return kind, payload


def _head(names: Iterable[str], sizes: Iterable[int]) -> bytes:
    encoded = ((name.encode(), size) for name, size in zip(names, sizes, strict=True))
    return bytes([_VERSION]) + b"".join(
        _FILE.pack(size, len(name)) + name for name, size in encoded
    )


def _read_head(source: IO[bytes]) -> list[tuple[str, int]]:
    """Names and sizes of the files; the first has the name ""."""
    with reading(source.name, _WHOLE):
        demand(source.read(len(_MAGIC)) == _MAGIC, "it does not begin like a packed file")
        kind, payload = _read_record(source)
        demand(kind == _HEAD and payload != b"", "it does not begin like a packed file")
        if payload[0] != _VERSION:
            raise PackError(
                f"{source.name} has version {payload[0]} of the packed format, expected "
                f"{_VERSION}: install a newer secateur"
            )
        files, at = [], 1
        while at < len(payload):
            size, length = _FILE.unpack_from(payload, at)
            at += _FILE.size + length
            demand(at <= len(payload), "its list of files is not whole")
            files.append((payload[at - length : at].decode(), size))
        names = [name for name, _ in files]
        demand(names[:1] == [""] and len(set(names)) == len(names), "its list of files is wrong")
        demand(all(map(is_plain, names[1:])), "a file in it has a name that may lead elsewhere")
    return files


def _write_blocks(target: IO[bytes], pieces: Iterable[tuple[bytes, int]]) -> None:
    """A whole file as blocks, then its checksum."""
    digest = hashlib.sha256()
    for raw, width in pieces:
        digest.update(raw)
        _write_record(target, _BLOCK, _encoded(raw, width))
    _write_record(target, _END, digest.digest())


def _pieces(path: Path, spans: Iterable[tuple[int, int, int]]) -> Iterator[tuple[bytes, int]]:
    """A whole file in pieces of at most a block, with the width of their elements."""
    with reading(path, "what the model was saved as: save it again"), path.open("rb") as file:
        for start, stop, width in spans:
            for at in range(start, stop, _BLOCK_BYTES):
                yield exactly(file, min(_BLOCK_BYTES, stop - at)), width
        demand(not file.read(1), "it grew while it was read")


def _contents(source: IO[bytes], size: int) -> Iterator[bytes]:
    """The bytes of one file, block by block; its checksum is compared after the last."""
    digest, left = hashlib.sha256(), size
    while True:
        with reading(source.name, _WHOLE, zstd.ZstdError):
            kind, payload = _read_record(source)
            if kind == _END:
                demand(not left and payload == digest.digest(), "its checksum does not hold")
                return
            demand(kind == _BLOCK, "a record in it is of an unknown kind")
            raw = _decoded(payload)
            demand(len(raw) <= left, "it holds more than it says")
        digest.update(raw)
        left -= len(raw)
        yield raw


def _read_end(source: IO[bytes]) -> None:
    with reading(source.name, _WHOLE):
        demand(not source.read(1), "something follows its end")
