"""Whatever a file holds gives a result or one sentence; each case was found by scripts/abuse."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import AttributeProto, TensorProto, helper
from onnx_models import as_onnx, network
from PIL import Image
from reports import report
from safetensors.torch import save_file

from secateur.data.sources import load_images
from secateur.errors import DataError, MissingExtraError, ModelError, OptionError, SecateurError
from secateur.export.packing import pack
from secateur.frontends.onnx import check
from secateur.frontends.torch.checkpoints import read_state
from secateur.pruning.recipe import Recipe
from secateur.report.model import Report
from secateur.support import model_files
from secateur.support.file_kinds import EMPTY

# sentences


@pytest.mark.parametrize("kind", [SecateurError, ModelError, DataError, OptionError])
def test_every_message_is_one_sentence_whatever_name_is_in_it(kind):
    name = "layer\n\x1b[2J\u202e\ud800" + "x" * 100_000
    text = str(kind(f"got {name}, expected another: rename it"))
    assert text.isprintable()
    assert len(text) < 2000
    assert text.startswith("got layer ")
    assert text.endswith(", expected another: rename it")
    text.encode()  # the lone surrogate too is gone


def test_a_message_without_such_things_is_kept_as_it_is():
    text = "C:\\models\\ü  x.onnx has weights of 3 °C, expected 'none'"
    assert str(ModelError(text)) == text
    assert "pip install" in str(MissingExtraError("onnx", "onnx", "reading an ONNX file"))


# recipes


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_a_recipe_nested_without_end_is_one_sentence(tmp_path, depth):
    (tmp_path / "a.toml").write_text("schedule = " + "[" * depth + "]" * depth)
    with pytest.raises(OptionError):
        Recipe.load(tmp_path / "a.toml")


# reports


@pytest.mark.parametrize(
    "requested",
    [{}, {"target": 3}, {"target": {}}, {"target": {"value": "2"}}, {"target": {"value": True}}],
)
def test_a_report_of_a_search_without_its_target_is_damaged(tmp_path, requested):
    path = tmp_path / "report.json"
    held = report()
    held.requested = requested
    held.save(path)
    with pytest.raises(DataError, match=r"damaged \(requested"):
        Report.load(path)


# ONNX


def _model(**more):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("Relu", ["x"], ["y"], name="only-one")
    weight = helper.make_tensor("unused", TensorProto.FLOAT, [1], [0.0])
    graph = helper.make_graph([node], "g", [value], [out], [weight], **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("text", [b"only-one", b"Relu", b"unused"])
def test_an_onnx_file_with_a_text_that_is_none_is_one_sentence(tmp_path, text):
    """Python gets such a text as bytes, which no code expects."""
    from secateur.frontends.onnx import read

    content = _model().SerializeToString()
    (tmp_path / "a.onnx").write_bytes(content.replace(text, b"\xff" * len(text)))
    with pytest.raises(ModelError, match="UTF-8"):
        read(tmp_path / "a.onnx")


def test_an_onnx_file_with_a_place_of_weights_that_is_no_text_is_one_sentence(tmp_path):
    from secateur.frontends.onnx import read

    model = _model()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    content = model.SerializeToString().replace(b"weights", b"\xff" * 7)
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="UTF-8"):
        read(tmp_path / "a.onnx")


def test_an_onnx_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    from secateur.frontends.onnx import file

    path = tmp_path / "a.onnx"
    path.write_bytes(_model().SerializeToString())
    monkeypatch.setattr(file, "_MOST_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr(type(path), "read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(ModelError, match="expected at most 2 GB"):
        file.read(path)


# files that change while they are read


def _onnx_with_data(folder):
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="a.bin")
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    (folder / "a.bin").write_bytes(bytes(4))


def _files(folder):
    _onnx_with_data(folder)
    save_file({"w": torch.ones(3)}, folder / "a.safetensors")
    torch.save({"w": torch.ones(3)}, folder / "a.pt")
    np.savez(folder / "a.npz", images=np.ones((2, 3), "f"))
    (folder / "images").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "images" / "a.png")


def _read_onnx(path):
    from secateur.frontends.onnx import read

    return read(path)


_READERS = [
    ("a.onnx", "a.onnx", _read_onnx),
    ("a.onnx", "a.bin", _read_onnx),
    ("a.safetensors", "a.safetensors", read_state),
    ("a.pt", "a.pt", read_state),
    ("a.npz", "a.npz", load_images),
    ("images", "images/a.png", load_images),
    ("a.onnx", "a.onnx", lambda path: pack(path, path.with_name("packed"))),
    ("a.onnx", "a.bin", lambda path: pack(path, path.with_name("packed"))),
]


@pytest.mark.parametrize(("name", "changed", "read"), _READERS)
@pytest.mark.parametrize("how", ["rewritten", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_one_sentence(
    tmp_path, monkeypatch, name, changed, read, how
):
    _files(tmp_path)
    read(tmp_path / name)
    (tmp_path / "packed").unlink(missing_ok=True)
    path = tmp_path / changed
    content = path.read_bytes()
    real, seen = model_files.version, []

    def then_changed(which, error):
        held = real(which, error)
        if path == Path(which) and not seen:
            seen.append(path)
            path.unlink() if how != "rewritten" else None
            if how != "removed":
                path.write_bytes(content)
        return held

    monkeypatch.setattr(model_files, "version", then_changed)
    monkeypatch.setattr("secateur.export.packing.version", then_changed)
    with pytest.raises(
        SecateurError, match=r"changed while it was read|cannot be read|no such file"
    ):
        read(tmp_path / name)
    assert seen
    assert not (tmp_path / "packed").exists()


def test_an_attribute_of_no_function_is_one_sentence():
    model = as_onnx(network())
    node = next(of for of in model.graph.node if of.op_type == "Conv")
    del node.attribute[:]
    node.attribute.add(name="pads", ref_attr_name="other", type=AttributeProto.INTS)
    with pytest.raises(ModelError, match="pads stands for one of a function"):
        check(model)


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400])
def test_a_number_beyond_floats_is_one_sentence(tmp_path, number):
    (tmp_path / "a.toml").write_text(f"[method]\nname = 'admm'\ndamping = {number}\n")
    with pytest.raises(OptionError, match="damping"):
        Recipe.load(tmp_path / "a.toml")


def test_contents_that_change_at_the_same_time_and_size_are_told(tmp_path):
    """One write of many bytes sets the time when it begins, and may end long after."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    state = path.stat()
    held = {path: model_files.version(path, ModelError)}
    path.write_bytes(b"new")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ModelError, match="changed while it was read"):
        model_files.check_versions(held, ModelError)


def test_a_file_that_was_empty_when_its_kind_was_told_is_not_mapped(tmp_path, monkeypatch):
    """PyTorch maps what is named .safetensors into memory, where a cut file ends the process."""
    save_file({"w": torch.ones(100_000)}, tmp_path / "a.safetensors")
    monkeypatch.setattr("secateur.frontends.torch.checkpoints.kind_of", lambda _: EMPTY)
    with pytest.raises(ModelError, match="cannot be read as weights"):
        read_state(tmp_path / "a.safetensors")


def test_weights_that_are_cut_later_stay_what_they_were(tmp_path):
    """Mapped into memory they would end the process (SIGBUS)."""
    save_file({"w": torch.ones(100_000)}, tmp_path / "a.safetensors")
    held = read_state(tmp_path / "a.safetensors")["w"]
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert held.sum() == 100_000


# images


@pytest.mark.parametrize("shape", [(2**40, 0), (3, 0, 4, 4)])
def test_arrays_of_images_without_a_value_are_one_sentence(tmp_path, shape):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, "f"))
    for data in (tmp_path / "a.npz", torch.zeros(shape)):
        with pytest.raises(DataError, match="has shape"):
            load_images(data)


def test_a_report_without_its_seconds_is_none():
    with pytest.raises(ValueError, match="seconds has no total"):
        replace(report(), seconds={})
