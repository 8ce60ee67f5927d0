"""ONNX models over 2 GB, whose weights are beside them: here every model counts as one."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from onnx_models import Builder, stored

import secateur
from secateur.frontends.onnx import file, large, read


@pytest.fixture(autouse=True)
def large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MOST_BYTES", 100)
    monkeypatch.setattr(large, "APART", 64)


def model() -> ModelProto:
    """Three matrices."""
    random = torch.Generator().manual_seed(0)
    build = Builder(12)
    first, second, third = (
        build.hold(torch.randn(sizes, generator=random), name)
        for name, sizes in {"a": (12, 16), "b": (16, 16), "c": (16, 5)}.items()
    )
    x = build.node("Relu", build.node("MatMul", "input", first))
    x = build.node("Relu", build.node("MatMul", x, second))
    return build.model(build.node("MatMul", x, third), opset=17)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(1))


def test_a_large_file_is_pruned_and_written_with_its_weights_beside_it(
    path, x, tmp_path, monkeypatch, own_process
) -> None:
    result = secateur.prune(path, x, sparsity=0.5)
    with monkeypatch.context() as context:
        context.setattr(large, "MOST_BYTES", 2**31)
        within = secateur.prune(path, x, sparsity=0.5)
    for name, value in stored(within.model).items():
        assert torch.equal(stored(result.model)[name], value)
    out = tmp_path / "out"
    written = result.save(out)
    assert written[Path("model.onnx.data")] == 4 * (12 * 16 + 16 * 16 + 16 * 5)
    assert result.report.exports["model.onnx"]["bytes"] == sum(
        written[Path(name)] for name in ("model.onnx", "model.onnx.data")
    )
    again = onnx.load(out / "model.onnx")
    onnx.checker.check_model(str(out / "model.onnx"))
    assert again == result.model
    (found,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"input": x.numpy()})
    (expected,) = onnxruntime.InferenceSession(result.model.SerializeToString()).run(
        None, {"input": x.numpy()}
    )
    assert (found == expected).all()


def test_channels_leave_large_files(path, x) -> None:
    result = secateur.prune(path, x, pattern="channels", max_macs=0.7)
    assert stored(result.model)["b"].numel() < 16 * 16


def test_what_onnx_makes_of_a_model_has_its_numbers(path) -> None:
    whole = read(path)
    assert large.changed(whole, lambda twin: twin) == whole

    def told(twin: ModelProto) -> ModelProto:
        assert not any(held.raw_data for held in twin.graph.initializer)
        return onnx.shape_inference.infer_shapes(twin)

    made = large.changed(whole, told)
    assert made.graph.value_info
    del made.graph.value_info[:]
    assert made == whole


def test_the_digest_of_a_large_model_tells_its_weights_apart() -> None:
    one, other, third = model(), model(), model()
    third.graph.initializer[1].raw_data = bytes(4 * 16 * 16)
    assert large.digest(one) == large.digest(other) != large.digest(third)


def test_openvino_files_are_made_of_large_ones(path, x, tmp_path) -> None:
    pytest.importorskip("openvino")
    result = secateur.prune(path, x, sparsity=0.5)
    written = result.save(tmp_path / "out", openvino=True)
    assert Path("openvino/model.bin") in written


def test_int8_of_a_large_model_is_refused_in_a_sentence(path, x) -> None:
    pytest.importorskip("nncf")
    with pytest.raises(secateur.ModelError, match="over 2 GB, expected less for INT8"):
        secateur.quantize(path, x)


def test_what_is_more_than_half_of_the_memory_is_refused(path, monkeypatch) -> None:
    monkeypatch.setattr(file, "_memory", lambda: 4000.0)
    with pytest.raises(secateur.ModelError, match="expected at most half of this machine's memory"):
        secateur.inspect(path)


def test_numbers_that_cannot_be_beside_a_model_are_a_sentence() -> None:
    def too_large(**_: object) -> bytes:
        raise large.EncodeError("Failed to serialize proto")

    class Large:
        SerializeToString = staticmethod(too_large)

    with pytest.raises(secateur.ModelError, match="over 2 GB that cannot be stored beside it"):
        large.content(Large())  # type: ignore[arg-type]
