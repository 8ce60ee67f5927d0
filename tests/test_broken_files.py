"""Whatever a file holds gives a result or one sentence; each case was found by scripts/abuse."""

import pytest
from onnx import TensorProto, helper
from reports import report

from secateur.errors import DataError, MissingExtraError, ModelError, OptionError, SecateurError
from secateur.recipe import Recipe
from secateur.report import Report

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
    (tmp_path / "a.toml").write_text("levels = " + "[" * depth + "]" * depth)
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
