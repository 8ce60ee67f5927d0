"""Packed files: every bit comes back, damage is told, and nobody's disk or memory is filled."""

import contextlib
import errno
import hashlib
import json
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_models import as_onnx, network
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import secateur
from secateur import OutputError, PackError
from secateur.cli.app import app
from secateur.export import packing
from secateur.export.packing import zstd
from secateur.support.model_files import Tensor, spans

WIDTHS = {"BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
WIDTHS |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}
PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEADER = struct.Struct("<IB")  # of a record


def safetensors_bytes(tensors, metadata=None):
    """A file of (dtype, shape, bytes) by name, written as the format says."""
    header = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    contents = b"".join(content for _, _, content in tensors.values())
    return len(text).to_bytes(8, "little") + text + contents


def sparse_bytes(rng, count, width, sparsity):
    """Random bits, some of them set back to zero."""
    bits = rng.integers(0, 256, (count, width), np.uint8)
    bits[rng.random(count) < sparsity] = 0
    return bits.tobytes()


@st.composite
def tensors(draw):
    """Any types, shapes (also empty and without axes), bits and sparsities."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = {}
    for index in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(WIDTHS)))
        shape = draw(st.lists(st.integers(0, 40), max_size=3))
        sparsity = draw(st.sampled_from([0, 0.5, 0.65, 0.95, 0.999, 1]))
        content = sparse_bytes(rng, int(np.prod(shape)), WIDTHS[dtype], sparsity)
        found[f"layer{index}.weight"] = (dtype, shape, content)
    return found


def there_and_back(folder, content, suffix=".safetensors"):
    """What unpack makes of what pack makes of `content`, and the packed bytes."""
    path = folder / f"model{suffix}"
    path.write_bytes(content)
    sizes = secateur.pack(path, folder / "packed", overwrite=True)
    packed = (folder / "packed").read_bytes()
    assert (sizes.dense, sizes.packed) == (len(content), len(packed))
    assert secateur.unpack(folder / "packed", folder / "back", overwrite=True) == sizes
    return (folder / "back").read_bytes(), packed


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def weights():
    """Four tensors, among them negative zeros and NaNs with payloads."""
    rng = np.random.default_rng(0)
    odd = np.array([0x80000000, 0x7FC0DEAD, 0xFFFFFFFF, 0x7F800001, 0, 1], np.uint32)
    return safetensors_bytes(
        {
            "a": ("F32", [40, 50], sparse_bytes(rng, 2000, 4, 0.65)),
            "b": ("I8", [2000], sparse_bytes(rng, 2000, 1, 0.97)),
            "c": ("F32", [600], np.tile(odd, 100).tobytes()),
            "d": ("BF16", [], b"\x00\x80"),
        },
        metadata={"format": "pt"},
    )


@pytest.fixture
def packed(tmp_path, weights):
    """A packed file, alone in its folder, and what was packed."""
    _, content = there_and_back(tmp_path, weights)
    for path in tmp_path.iterdir():
        path.unlink()
    path = tmp_path / "packed"
    path.write_bytes(content)
    return path


# nothing is lost


@PROPERTY
@given(tensors())
def test_every_bit_of_any_tensors_comes_back(tmp_path, found):
    content = safetensors_bytes(found)
    assert there_and_back(tmp_path, content)[0] == content


def test_negative_zeros_and_nan_payloads_come_back(tmp_path, weights):
    back, _ = there_and_back(tmp_path, weights)
    assert back == weights


@PROPERTY
@given(st.data(), st.sampled_from([0, 1, 2, 4, 8]), st.floats(0, 1))
def test_a_block_decodes_to_what_was_encoded(data, width, sparsity):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    raw = sparse_bytes(rng, data.draw(st.integers(1, 3000)), width or 1, sparsity)
    assert packing._decoded(packing._encoded(raw, width)) == raw


@PROPERTY
@given(st.lists(st.integers(0, 3000), max_size=40), st.integers(0, 600))
def test_gaps_give_back_the_mask(places, after):
    mask = np.zeros(max(places, default=0) + 1 + after, bool)
    mask[places] = True
    gaps = packing._gaps(mask)
    part = packing._Part(len(gaps), memoryview(gaps))
    assert np.array_equal(packing._mask_of_gaps(part, len(mask)), mask)


@PROPERTY
@given(st.integers(0, 2**32), st.integers(0, 20))
def test_spans_cover_the_file_once_in_order(seed, count):
    """Wherever the tensors are: overlapping, unaligned, empty, or up to the end."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(0, 20_000))
    found = []
    for _ in range(count):
        start, stop = sorted(rng.integers(0, size + 1, 2).tolist())
        stop = rng.choice([stop, None, start])
        found.append(Tensor("", start, stop, int(rng.choice([1, 2, 4, 8]))))
    at = 0
    for start, stop, width in spans(found, size):
        assert start == at < stop
        assert width == 0 or (stop - start) % width == 0
        at = stop
    assert at == size


def test_short_tensors_join_a_neighbour_of_their_width_and_long_ones_stay_apart():
    widths = {"long": (5000, 4), "short": (300, 4), "other": (2000, 8), "lone": (8, 2)}
    names = ["long", "short", "short", "long", "other", "other", "lone", "short"]
    found, at = [], 0
    for length, width in (widths[name] for name in names):
        found.append(Tensor("", at, at + length, width))
        at += length
    joined = [(5600, 4), (5000, 4), (2000, 8), (2000, 8), (308, 0)]
    assert [(stop - start, width) for start, stop, width in spans(found[::-1], at)] == joined


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
@PROPERTY
@given(content=st.binary(max_size=200))
def test_any_bytes_come_back_or_are_refused(tmp_path, suffix, content):
    """A file that only looks like a model may be packed, but then without loss."""
    with contextlib.suppress(PackError):
        assert there_and_back(tmp_path, content, suffix)[0] == content


def test_blocks_of_a_long_file_come_back_in_order(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 256)
    back, packed = there_and_back(tmp_path, weights)
    assert back == weights
    assert len(list(records(packed))) > len(weights) // 256


def test_tensors_written_by_the_library_load_again(tmp_path):
    torch.manual_seed(0)
    sparse = torch.nn.functional.dropout(torch.randn(64, 64), 0.65)
    state = {"a": sparse, "b": sparse.bfloat16(), "c": sparse.to(torch.int8), "d": sparse.half()}
    save_file(state, tmp_path / "a.safetensors")
    secateur.pack(tmp_path / "a.safetensors", tmp_path / "a.packed")
    secateur.unpack(tmp_path / "a.packed", tmp_path / "b.safetensors")
    back = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


# ONNX


def onnx_model():
    """Weights in raw and typed fields, in constants, subgraphs, functions and sparse tensors."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto as T
    from onnx import helper as h

    rng = np.random.default_rng(0)
    kept = rng.random(700) < 0.35
    floats = np.where(kept, rng.standard_normal(700), 0).astype(np.float32)
    small = (rng.integers(-127, 128, 700) * kept).astype(np.int8)
    half = floats.astype(np.float16).tobytes()

    def tensors(prefix):
        return [
            h.make_tensor(f"{prefix}f", T.FLOAT, [700], floats.tobytes(), raw=True),
            h.make_tensor(f"{prefix}g", T.FLOAT, [700], floats),
            h.make_tensor(f"{prefix}d", T.DOUBLE, [700], floats),
            h.make_tensor(f"{prefix}h", T.FLOAT16, [7, 100], half, raw=True),
            h.make_tensor(f"{prefix}i", T.INT8, [700], small.tobytes(), raw=True),
            h.make_tensor(f"{prefix}j", T.INT8, [700], small),
            h.make_tensor(f"{prefix}k", T.INT64, [700], small),
            h.make_tensor(f"{prefix}u", T.UINT64, [700], kept),
            h.make_tensor(f"{prefix}s", T.STRING, [2], [b"a", b"b" * 600]),
            h.make_tensor(f"{prefix}e", T.FLOAT, [0], b"", raw=True),
            h.make_tensor(f"{prefix}0", T.FLOAT, [], [0.0]),
        ]

    values, indices = tensors("s")[0], h.make_tensor("si", T.INT64, [700], range(700))
    inner = h.make_graph([], "inner", [], [], tensors("inner"))
    nodes = [
        h.make_node("Constant", [], ["c"], value=tensors("c")[0]),
        h.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
        h.make_node("Own", ["y"], ["z"], domain="own", many=tensors("m")[:2]),
    ]
    graph = h.make_graph(nodes, "outer", [], [], tensors("o"))
    graph.sparse_initializer.append(h.make_sparse_tensor(values, indices, [900]))
    function = h.make_function("own", "Own", ["y"], ["z"], nodes[:1], [])
    return onnx, h.make_model(graph, functions=[function]), floats


def test_an_onnx_file_comes_back_and_its_weights_are_found_wherever_they_are(tmp_path):
    _, model, floats = onnx_model()
    content = model.SerializeToString()
    back, packed = there_and_back(tmp_path, content, ".onnx")
    assert back == content
    found = secateur.support.model_files.find_tensors(tmp_path / "model.onnx")
    raw = [t for t in found if content[t.start : t.stop] == floats.tobytes()]
    assert len(raw) == 2 + 2 * 2 + 1 + 2 + 1 + 1  # outer, inner twice, constant, many, sparse, own
    assert {t.width for t in raw} == {4}
    assert {t.width for t in found} == {1, 2, 4, 8}
    assert len(packed) < 0.45 * len(content)


@pytest.mark.parametrize("one_file", [True, False])
def test_files_beside_an_onnx_file_come_back_too(tmp_path, one_file):
    onnx, model, _ = onnx_model()
    (tmp_path / "a").mkdir()
    where = {"location": "m.onnx.data"} if one_file else {}
    onnx.save(
        model,
        tmp_path / "a" / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        size_threshold=500,
        convert_attribute=True,
        **where,
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert len(before) > 1
    sizes = secateur.pack(tmp_path / "a" / "m.onnx", tmp_path / "packed")
    assert sizes.dense == sum(map(len, before.values()))
    assert sizes.ratio < 0.45
    (tmp_path / "b").mkdir()
    secateur.unpack(tmp_path / "packed", tmp_path / "b" / "other.onnx")
    back = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert back.pop("other.onnx") == before.pop("m.onnx")
    assert back == before
    taken = sorted(before)[0]
    with pytest.raises(OutputError, match="is also the name"):
        secateur.unpack(tmp_path / "packed", tmp_path / taken)
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / taken).write_text("mine")
    with pytest.raises(OutputError, match=f"{taken} exists"):
        secateur.unpack(tmp_path / "packed", tmp_path / "b" / "other.onnx")
    assert everything_in(tmp_path / "b") == [taken]


def external(**entries):
    """An ONNX file with one tensor elsewhere."""
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(data_type=1, dims=[300], data_location=1)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"location": "../secret"}, "no file beside it"),
        ({"location": "/etc/passwd"}, "no file beside it"),
        ({"location": "deep/data"}, "no file beside it"),
        ({"location": "c:data"}, "no file beside it"),
        ({"location": "a\\b"}, "no file beside it"),
        ({}, "no file beside it"),
        ({"location": "x" * 5000}, "too long"),
        ({"location": "absent"}, "no such file"),
        ({"location": "data", "offset": "-1"}, "negative"),
        ({"location": "data", "offset": "many"}, "many"),
        ({"location": "data", "length": "1300"}, "too early"),
    ],
)
def test_a_wrong_file_beside_an_onnx_file_is_refused(tmp_path, entries, says):
    (tmp_path / "data").write_bytes(bytes(1200))
    (tmp_path / "m.onnx").write_bytes(external(**entries))
    with pytest.raises(PackError, match=says):
        secateur.pack(tmp_path / "m.onnx", tmp_path / "packed")
    assert everything_in(tmp_path) == ["data", "m.onnx"]


@pytest.mark.parametrize("entries", [{}, {"offset": "0", "length": "1200"}, {"offset": "100"}])
def test_a_part_of_a_file_beside_an_onnx_file_may_be_named(tmp_path, entries):
    (tmp_path / "data").write_bytes(bytes(1200))
    (tmp_path / "m.onnx").write_bytes(external(location="./data", **entries))
    secateur.pack(tmp_path / "m.onnx", tmp_path / "packed")
    (tmp_path / "data").unlink()
    secateur.unpack(tmp_path / "packed", tmp_path / "m.onnx", overwrite=True)
    assert (tmp_path / "data").read_bytes() == bytes(1200)


def test_an_onnx_file_that_is_not_whole_is_refused(tmp_path):
    _, model, _ = onnx_model()
    content = model.graph.SerializeToString()
    content = b"\x08\x0a" + b"\x3a" + varint(len(content)) + content  # version, graph
    (tmp_path / "m.onnx").write_bytes(content)
    secateur.pack(tmp_path / "m.onnx", tmp_path / "packed")
    rng = np.random.default_rng(0)
    for length in {*range(40), *rng.integers(0, len(content), 40).tolist(), len(content) - 1}:
        (tmp_path / "m.onnx").write_bytes(content[:length])
        with pytest.raises(PackError, match=r"m\.onnx (cannot be used|is an empty file)"):
            secateur.pack(tmp_path / "m.onnx", tmp_path / "again")
    assert everything_in(tmp_path) == ["m.onnx", "packed"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is an empty file"),
        (b"\x08\x0a", "no graph"),
        (b"\x3a\x05\x08", "beyond its end"),
        (b"\x3a" + b"\xff" * 12, "has no end"),
        (b"\x3a\x01\x0b", "beyond its end"),  # a group, which protobuf has given up
    ],
)
def test_an_onnx_file_of_something_else_is_refused(tmp_path, content, says):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(PackError, match=says):
        secateur.pack(tmp_path / "m.onnx", tmp_path / "packed")


def varint(number):
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def test_graphs_too_deep_in_each_other_are_refused(tmp_path):
    message = b""
    for field in [*[6, 5, 1] * 60, 7]:  # a graph in an attribute in a node in a graph in ...
        message = bytes([field << 3 | 2]) + varint(len(message)) + message
    (tmp_path / "m.onnx").write_bytes(message)
    with pytest.raises(PackError, match="too deep"):
        secateur.pack(tmp_path / "m.onnx", tmp_path / "packed")


# what is packed, and how small


def read_slowly(packed):
    """What docs/packed-format.md says, without a look at packing.py: contents by file name."""
    files, found, content = [], {}, b""
    for kind, payload in records(packed):
        if kind == 1:
            assert payload[0] == 1
            payload = payload[1:]
            while payload:
                size, length = struct.unpack_from("<QH", payload)
                files.append((payload[10 : 10 + length].decode(), size))
                payload = payload[10 + length :]
        elif kind == 2:
            content += block_slowly(payload)
        else:
            name, size = files[len(found)]
            assert (kind, len(content)) == (3, size)
            assert payload == hashlib.sha256(content).digest()
            found[name], content = content, b""
    assert len(found) == len(files)
    return found


def block_slowly(payload):
    """The bytes of a block, element by element."""
    coding, width, count = struct.unpack_from("<BBI", payload)
    parts, payload = [], payload[6:]
    while payload:
        size, length = struct.unpack_from("<II", payload)
        held, payload = payload[8 : 8 + length], payload[8 + length :]
        parts.append(held if size == length else zstd.decompress(held))
        assert len(parts[-1]) == size
    if coding == 0:
        return parts[0]
    marks, signs, *planes = parts
    kept, at = [], 0
    if coding == 1:
        kept = [index for index in range(count) if marks[index // 8] >> index % 8 & 1]
    else:
        for gap in marks:
            at += gap
            if gap < 255:
                kept.append(at)
                at += 1
    elements = [bytes(width)] * count
    for place, element in zip(kept, zip(*planes, strict=True), strict=True):
        elements[place] = bytes(element)
    for index, place in enumerate(sorted({*range(count)} - {*kept}) if signs else ()):
        elements[place] = bytes(width - 1) + bytes([128 * (signs[index // 8] >> index % 8 & 1)])
    return b"".join(elements)


def records(packed):
    """Kind and payload of each record of a packed file, checksums checked."""
    assert packed[:8] == b"\x89SPK\r\n\x1a\n"
    at = 8
    while at < len(packed):
        length, kind = HEADER.unpack_from(packed, at)
        end = at + 5 + length
        assert zlib.crc32(packed[at:end]) == int.from_bytes(packed[end : end + 4], "little")
        yield kind, packed[at + 5 : end]
        at = end + 4


def from_records(found):
    """A packed file of any records, with their checksums."""
    content = b"\x89SPK\r\n\x1a\n"
    for kind, payload in found:
        record = HEADER.pack(len(payload), kind) + payload
        content += record + zlib.crc32(record).to_bytes(4, "little")
    return content


def test_the_format_is_as_documented(tmp_path, weights):
    _, packed = there_and_back(tmp_path, weights)
    assert read_slowly(packed) == {"": weights}
    codings = {payload[0] for kind, payload in records(packed) if kind == 2}
    assert codings == {0, 1, 2}


def test_signs_of_zeros_cost_a_bit_each_and_nothing_where_all_are_the_same(tmp_path):
    """Multiplying by a mask makes negative zeros: half of them."""
    torch.manual_seed(0)
    dense = torch.randn(80_000)
    mask = dense.abs() > dense.abs().quantile(0.65)
    sizes = {}
    for name, pruned in {"plain": torch.where(mask, dense, 0.0), "signed": dense * mask}.items():
        save_file({"w": pruned}, tmp_path / f"{name}.safetensors")
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        back, packed = there_and_back(tmp_path, content)
        assert back == content
        assert read_slowly(packed) == {"": content}
        sizes[name] = len(packed)
    assert abs(sizes["signed"] - sizes["plain"] - (~mask).sum() / 8) < 20


def test_the_same_file_gives_the_same_bytes(tmp_path, weights):
    _, first = there_and_back(tmp_path, weights)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.safetensors").write_bytes(weights)
    secateur.pack(tmp_path / "deep" / "other.safetensors", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == first


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.65, 0.9, 0.99])
def test_int8_weights_take_little_more_than_their_entropy(tmp_path, sparsity):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(200_000)
    values[np.abs(values) <= np.quantile(np.abs(values), sparsity) * (sparsity > 0)] = 0
    steps = np.round(values / np.abs(values).max() * 127).astype(np.int8)
    shares = np.unique(steps, return_counts=True)[1] / len(steps)
    entropy = -(shares * np.log2(shares)).sum() * len(steps) / 8
    content = safetensors_bytes({"w": ("I8", [len(steps)], steps.tobytes())})
    _, packed = there_and_back(tmp_path, content)
    assert entropy < len(packed) < 1.04 * entropy + 400


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_dense_floats_shrink_by_their_exponents_and_never_grow(tmp_path, dtype):
    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    torch.manual_seed(0)
    save_file({"w": torch.randn(50_000).to(kind)}, tmp_path / "m.safetensors")
    sizes = secateur.pack(tmp_path / "m.safetensors", tmp_path / "packed")
    assert sizes.ratio < {"F32": 0.86, "BF16": 0.7, "F16": 0.87}[dtype]
    noise = np.random.default_rng(0).bytes(50_000)
    (tmp_path / "n.safetensors").write_bytes(safetensors_bytes({"w": ("U8", [50_000], noise)}))
    sizes = secateur.pack(tmp_path / "n.safetensors", tmp_path / "noise")
    assert sizes.packed < sizes.dense + 250


@pytest.mark.shared
def test_an_int8_efficientnet_at_65_percent_takes_15_percent(shared_data, tmp_path):
    """Of its float32 bytes, all biases and normalisation included, which stay float32."""
    path = shared_data / "efficientnet_lite0" / "efficientnet-lite0-57934424.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    dense = sum(tensor.nbytes for tensor in state.values())
    for name, weight in list(state.items()):
        if weight.ndim < 2:
            continue
        pruned = weight.flatten(1)
        if weight.shape[1] > 3:  # neither depthwise nor the first
            pruned = pruned * (pruned.abs() > pruned.abs().quantile(0.65, dim=1, keepdim=True))
        scale = pruned.abs().amax(1, keepdim=True) / 127
        state[name] = (pruned / scale).round().to(torch.int8).reshape(weight.shape).contiguous()
        state[f"{name}.scale"] = scale
    save_file(state, tmp_path / "m.safetensors")
    sizes = secateur.pack(tmp_path / "m.safetensors", tmp_path / "packed")
    assert sizes.packed <= 0.15 * dense
    secateur.unpack(tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


# damage


def refused_or_same(path, content, wanted):
    """Unpacks `content`: a PackError that leaves nothing, or exactly the bytes wanted."""
    path.write_bytes(content)
    out = path.with_name("out")
    with contextlib.suppress(PackError):
        secateur.unpack(path, out)
        assert out.read_bytes() == wanted
        out.unlink()
    assert everything_in(path.parent) == [path.name]


def test_any_changed_byte_is_told(packed, weights):
    content = packed.read_bytes()
    rng = np.random.default_rng(0)
    for at in {*range(100), *rng.integers(0, len(content), 150).tolist(), len(content) - 1}:
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256))
        packed.write_bytes(changed)
        with pytest.raises(PackError):
            secateur.unpack(packed, packed.with_name("out"))
    assert everything_in(packed.parent) == ["packed"]


def test_any_missing_end_and_anything_after_the_end_are_told(packed):
    content = packed.read_bytes()
    rng = np.random.default_rng(0)
    lengths = {*range(80), *rng.integers(0, len(content), 80).tolist(), len(content) - 1}
    for changed in [*(content[:length] for length in lengths), content + b"\0", content * 2]:
        packed.write_bytes(changed)
        with pytest.raises(PackError, match="pack"):
            secateur.unpack(packed, packed.with_name("out"))
    assert everything_in(packed.parent) == ["packed"]


def test_changes_that_the_checksums_do_not_show_are_told(packed, weights):
    """Each record's checksum is made to fit again, so the decoder gets to see the damage."""
    found = list(records(packed.read_bytes()))
    rng = np.random.default_rng(0)
    for which, (kind, payload) in enumerate(found):
        for at in {*range(min(40, len(payload))), *rng.integers(0, len(payload), 15).tolist()}:
            changed = bytearray(payload)
            changed[at] ^= int(rng.integers(1, 256))
            changes = [*found[:which], (kind, bytes(changed)), *found[which + 1 :]]
            refused_or_same(packed, from_records(changes), weights)
        for shorter in (payload[:-1], payload[: len(payload) // 2], b"", payload + b"\0"):
            changes = [*found[:which], (kind, shorter), *found[which + 1 :]]
            refused_or_same(packed, from_records(changes), weights)


def test_records_that_are_missing_twice_or_elsewhere_are_told(packed, weights):
    found = list(records(packed.read_bytes()))
    for which in range(len(found)):
        for changes in (
            found[:which] + found[which + 1 :],
            [*found[:which], found[which], *found[which:]],
            found[which:] + found[:which] if which else found[::-1],
            [*found[:which], (9, b""), *found[which:]],
        ):
            packed.write_bytes(from_records(changes))
            with pytest.raises(PackError):
                secateur.unpack(packed, packed.with_name("out"))
    assert everything_in(packed.parent) == ["packed"]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_a_model_that_is_not_whole_is_refused(tmp_path, weights, length):
    (tmp_path / "m.safetensors").write_bytes(weights[:length])
    with pytest.raises(PackError, match=r"m\.safetensors (cannot be used|is an empty file)"):
        secateur.pack(tmp_path / "m.safetensors", tmp_path / "packed")
    assert everything_in(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"[]", "not a table"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": 1}', "'a' has no type"),
        (b'{"a": {"dtype": "F32", "data_offsets": [0]}}', "'a' has no type"),
        (b'{"a": {"dtype": "F32", "data_offsets": [0, 1.0]}}', "'a' has no type"),
        (b'{"a": {"dtype": "F32", "data_offsets": [4, 0]}}', "'a' goes beyond"),
        (b'{"a": {"dtype": "F32", "data_offsets": [0, 9]}}', "'a' goes beyond"),
        (b'{"a": {"dtype": "F32", "data_offsets": [-8, 0]}}', "'a' goes beyond"),
        (b"\xff\xfe", "decode"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, header, says):
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(PackError, match=says) as caught:
        secateur.pack(tmp_path / "m.safetensors", tmp_path / "packed")
    assert len(str(caught.value)) < 500


def test_a_result_that_does_not_come_back_is_not_kept(tmp_path, monkeypatch, weights):
    def wrong(raw, width):
        return encoded(raw[:-1] + b"?", width)

    encoded = packing._encoded
    monkeypatch.setattr(packing, "_encoded", wrong)
    (tmp_path / "m.safetensors").write_bytes(weights)
    with pytest.raises(PackError, match=r"m\.safetensors was packed but does not come back"):
        secateur.pack(tmp_path / "m.safetensors", tmp_path / "packed")
    assert everything_in(tmp_path) == ["m.safetensors"]


def test_a_file_that_grows_meanwhile_is_told(tmp_path, monkeypatch, weights):
    path = tmp_path / "m.safetensors"
    path.write_bytes(weights)
    monkeypatch.setattr(packing, "size_of", lambda _: len(weights) - 1)
    with pytest.raises(PackError, match="it grew"):
        secateur.pack(path, tmp_path / "packed")


# memory and disk


def head(*files):
    listed = (struct.pack("<QH", size, len(name)) + name for name, size in files)
    return 1, b"\x01" + b"".join(listed)


def part(size, held):
    return struct.pack("<II", size, len(held)) + held


def block(coding, width, count, *parts):
    return 2, struct.pack("<BBI", coding, width, count) + b"".join(parts)


def streamed(content, window_log):
    """Compressed by zstd without a word of how much it is."""
    options = {
        zstd.CompressionParameter.window_log: window_log,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(content) + compressor.flush()


MIB = 1 << 20
ZEROS = part(MIB, zstd.compress(bytes(MIB)))
FALSE = part(MIB, streamed(bytes(64 * MIB), 17))  # in 6 kB
HUGE = part(64 * MIB, streamed(bytes(64 * MIB), 17))
EMPTY = part(0, b"")
BOMBS = {  # blocks that ask for more than they may have, and why they do not get it
    "part longer than it says": ([block(0, 1, MIB, FALSE)], "part .* wrong size"),
    "part longer than its block": ([block(0, 1, MIB, HUGE)], "part .* wrong size"),
    "part with a large window": (
        [block(0, 1, MIB, part(MIB, streamed(bytes(MIB), 27)))],
        "too much memory",
    ),
    "long block": ([block(0, 1, 64 * MIB, HUGE)], "block .* wrong size"),
    "many elements": ([block(1, 8, 2**32 - 1, *[HUGE] * 10)], "block .* wrong size"),
    "wide elements": ([block(1, 128, MIB >> 7, *[HUGE] * 130)], "elements of a wrong size"),
    "many parts": ([block(0, 1, MIB, *[ZEROS] * 9000)], "not whole"),
    "many empty parts": ([block(0, 1, MIB, *[EMPTY] * 200_000)], "not whole"),
    "long mask of bits": ([block(1, 1, MIB, HUGE, EMPTY, EMPTY)], "part .* wrong size"),
    "long mask of gaps": ([block(2, 1, MIB, HUGE, EMPTY, EMPTY)], "mask .* too long"),
    "mask of long gaps": (
        [block(2, 1, MIB, part(MIB, b"\xff" * MIB), EMPTY, EMPTY)],
        "mask .* too long",
    ),
    "long signs": ([block(2, 1, MIB, EMPTY, HUGE, EMPTY)], "part .* wrong size"),
    "long plane": ([block(2, 1, MIB, EMPTY, EMPTY, HUGE)], "part .* wrong size"),
    "many blocks": ([block(0, 1, MIB, ZEROS)] * 9, "more than it says"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_little_memory(tmp_path, bomb):
    blocks, says = BOMBS[bomb]
    path = tmp_path / "packed"
    path.write_bytes(from_records([head((b"", 8 * MIB)), *blocks]))
    tracemalloc.start()
    try:
        with pytest.raises(PackError, match=says):
            secateur.unpack(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()
    assert everything_in(tmp_path) == ["packed"]


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (1001, [part(1000, bytes(1000))]),  # the file is shorter than it says
        (1000, [part(999, zstd.compress(bytes(1000)))]),
        (1000, [part(1000, zstd.compress(bytes(1000)) + b"more")]),
        (1000, [part(1000, zstd.compress(bytes(1000)) * 2)]),
        (1000, [part(1000, zstd.compress(bytes(1000))[:-1])]),
    ],
)
def test_sizes_that_do_not_agree_are_told(tmp_path, size, parts):
    path = tmp_path / "packed"
    end = 3, hashlib.sha256(bytes(1000)).digest()
    path.write_bytes(from_records([head((b"", size)), block(0, 1, 1000, *parts), end]))
    with pytest.raises(PackError):
        secateur.unpack(path, tmp_path / "out")
    path.write_bytes(
        from_records([head((b"", 1000)), block(0, 1, 1000, part(1000, bytes(1000))), end])
    )
    assert secateur.unpack(path, tmp_path / "out").dense == 1000


def test_a_record_as_long_as_it_likes_is_refused(tmp_path):
    path = tmp_path / "packed"
    path.write_bytes(b"\x89SPK\r\n\x1a\n" + HEADER.pack(2**32 - 1, 1))
    with pytest.raises(PackError, match="too long"):
        secateur.unpack(path, tmp_path / "out")


@pytest.mark.parametrize("size", [2**30 + 1, 2**63])
def test_a_file_that_would_fill_the_disk_is_refused_unless_asked_for(tmp_path, monkeypatch, size):
    path = tmp_path / "packed"
    path.write_bytes(from_records([head((b"", size))]))
    with pytest.raises(PackError, match=f"would become {size:,} bytes.*--max-bytes"):
        secateur.unpack(path, tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=f"has {size - 1:,} bytes left"):
        secateur.unpack(path, tmp_path / "out", max_bytes=size)
    assert everything_in(tmp_path) == ["packed"]


def test_the_limit_is_for_all_files_together(tmp_path):
    path = tmp_path / "packed"
    path.write_bytes(from_records([head((b"", 600), (b"data", 401))]))
    with pytest.raises(PackError, match="would become 1,001 bytes"):
        secateur.unpack(path, tmp_path / "out", max_bytes=1000)


def test_memory_does_not_grow_with_the_file(tmp_path):
    rng = np.random.default_rng(0)
    content = sparse_bytes(rng, MIB, 8, 0.65) * 3  # 24 MiB
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes({"w": ("F64", [3 * MIB], content)}))
    del content
    tracemalloc.start()
    try:
        secateur.pack(tmp_path / "m.safetensors", tmp_path / "packed")
        secateur.unpack(tmp_path / "packed", tmp_path / "back")
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "files",
    [
        [],
        [(b"name", 0)],
        [(b"", 0), (b"", 0)],
        [(b"", 0), (b"a", 0), (b"a", 0)],
        [(b"", 0), (b"../a", 0)],
        [(b"", 0), (b"/tmp/a", 0)],
        [(b"", 0), (b"a/b", 0)],
        [(b"", 0), (b"a\\b", 0)],
        [(b"", 0), (b"c:a", 0)],
        [(b"", 0), (b"..", 0)],
        [(b"", 0), (b"a\0", 0)],
        [(b"", 0), (b"a\n", 0)],
        [(b"", 0), (b"\xff", 0)],
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, files):
    path = tmp_path / "packed"
    path.write_bytes(from_records([head(*files), *[(3, hashlib.sha256().digest())] * len(files)]))
    with pytest.raises(PackError):
        secateur.unpack(path, tmp_path / "out")
    assert everything_in(tmp_path) == ["packed"]


def test_a_later_version_of_the_format_is_told(tmp_path):
    (tmp_path / "packed").write_bytes(from_records([(1, b"\x02")]))
    with pytest.raises(PackError, match=r"version 2 .* install a newer secateur"):
        secateur.unpack(tmp_path / "packed", tmp_path / "out")


# outputs


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_an_existing_file_is_kept_without_force(tmp_path, weights, command):
    there_and_back(tmp_path, weights)
    source, out = ("model.safetensors", "packed") if command == "pack" else ("packed", "back")
    (tmp_path / out).write_text("mine")
    run = getattr(secateur, command)
    with pytest.raises(OutputError, match="exists"):
        run(tmp_path / source, tmp_path / out)
    assert (tmp_path / out).read_text() == "mine"
    run(tmp_path / source, tmp_path / out, overwrite=True)
    assert (tmp_path / out).read_bytes()[:3] != b"min"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt, KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
    ],
)
@pytest.mark.parametrize(
    ("command", "source", "step"),
    [
        ("pack", "model.safetensors", "_encoded"),
        ("pack", "model.safetensors", "_read_back"),
        ("unpack", "packed", "_contents"),
        ("unpack", "packed", "_read_end"),
    ],
)
def test_an_interruption_and_a_full_disk_leave_nothing(
    tmp_path, monkeypatch, weights, command, source, step, error, raised
):
    there_and_back(tmp_path, weights)
    before = everything_in(tmp_path)
    staged = []

    def fail(*_):
        staged.extend(tmp_path.rglob("*.partial/new"))
        raise error

    monkeypatch.setattr(packing, step, fail)
    with pytest.raises(raised):
        getattr(secateur, command)(tmp_path / source, tmp_path / "new")
    assert staged
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "source"), [("pack", "model.safetensors"), ("unpack", "packed")]
)
def test_a_disk_that_cannot_be_read_is_one_sentence(
    tmp_path, monkeypatch, weights, command, source
):
    """Not taken for one that cannot be written, although the new file is open."""
    there_and_back(tmp_path, weights)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(packing, "exactly", fail)
    says = rf"{source} cannot be read \(Input/output error\)"
    with pytest.raises(PackError, match=says):
        getattr(secateur, command)(tmp_path / source, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.safetensors", "no such file"),
        ("model.pt", "expected .safetensors or .onnx"),
        ("folder.onnx", "no such file"),
    ],
)
def test_what_cannot_be_packed_is_one_sentence(tmp_path, name, says):
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(PackError, match=says):
        secateur.pack(tmp_path / name, tmp_path / "packed")


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, packed):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PackError, match=r"packed cannot be read \(Permission denied\)"):
        secateur.unpack(packed, tmp_path / "out")


# on the command line


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_print_the_sizes(tmp_path, weights):
    (tmp_path / "m.safetensors").write_bytes(weights)
    result = invoke("pack", tmp_path / "m.safetensors", "-o", tmp_path / "packed")
    assert result.exit_code == 0, result.output
    size = (tmp_path / "packed").stat().st_size
    wanted = f"{tmp_path / 'packed'}: {size:,} bytes, {size / len(weights):.1%} of "
    assert result.stdout == f"{wanted}{tmp_path / 'm.safetensors'}\n"
    again = invoke("unpack", tmp_path / "packed", "-o", tmp_path / "back.safetensors")
    assert again.stdout == f"{tmp_path / 'back.safetensors'}: {len(weights):,} bytes\n"
    assert (tmp_path / "back.safetensors").read_bytes() == weights


def test_mistakes_end_with_status_2_and_one_sentence(tmp_path, packed):
    out = tmp_path / "out"
    damaged = tmp_path / "damaged"
    damaged.write_bytes(packed.read_bytes()[:-1])
    for arguments, says in [
        (("unpack", damaged), "it ends too early"),
        (("unpack", packed, "--max-bytes", 10), "expected at most 10"),
        (("pack", packed), "expected .safetensors or .onnx"),
        (("pack", tmp_path / "absent.onnx"), "no such file"),
    ]:
        result = invoke(*arguments, "-o", out)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("secateur: error: ")
        assert says in line
    assert everything_in(tmp_path) == ["damaged", "packed"]
    assert invoke("unpack", packed, "-o", out).exit_code == 0
    assert invoke("unpack", packed, "-o", out).exit_code == 2
    assert invoke("unpack", packed, "-o", out, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("packed", "right", "wrong"),
    [
        ("a.safetensors", ("b.safetensors", "B.SafeTensors", "b"), ("b.onnx", "b.pt", "b.txt")),
        ("a.onnx", ("b.onnx", "B.ONNX", "b"), ("b.safetensors", "b.xml", "b.packed")),
    ],
)
def test_a_file_is_unpacked_as_what_it_is(packed, right, wrong, tmp_path) -> None:
    if packed == "a.onnx":
        onnx.save(as_onnx(network(), size=12), tmp_path / packed)
    else:
        save_file({"weight": torch.zeros(10)}, tmp_path / packed)
    secateur.pack(tmp_path / packed, tmp_path / "packed")
    for name in wrong:
        ending = Path(packed).suffix
        with pytest.raises(OutputError, match=rf"expected {ending}, .* call it b{ending}"):
            secateur.unpack(tmp_path / "packed", tmp_path / name)
        assert not (tmp_path / name).exists()
    for name in right:
        secateur.unpack(tmp_path / "packed", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / packed).read_bytes()
