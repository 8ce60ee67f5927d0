"""INT8 of networks that NNCF's scheme does not fit: what comes out runs, and says what differs."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import Builder
from torch import Tensor

import secateur
from secateur.evaluation.inference import predict
from secateur.export.files import save_openvino
from secateur.export.int8 import in_int8, quantized, require_nncf
from secateur.export.onnx_surgery import folded, one_scale, unshared
from secateur.export.onnx_weights import layer_weights
from secateur.frontends.openvino.runtime import read_ir
from secateur.network.samples import as_samples

if importlib.util.find_spec("nncf") is None:
    pytest.skip("nncf is not installed", allow_module_level=True)

QUICK = {"method": "magnitude", "allocation": "uniform", "progress": False}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Mobile(Builder):
    """Networks for phones, in a few layers: no biases, as where BatchNorms shift nothing."""

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.generator = torch.Generator().manual_seed(0)

    def conv(self, x: str, name: str, *sizes: int, activation: str = "Relu", **more) -> str:
        weight = torch.randn(*sizes, generator=self.generator) / (sizes[1] * sizes[2]) ** 0.5
        pads = [size // 2 for size in sizes[2:]] * 2
        y = self.node("Conv", x, self.hold(weight, f"{name}.weight"), pads=pads, **more)
        return self.node(activation, y) if activation else y

    def depthwise(self, x: str, name: str, channels: int, axes: int = 2, **more) -> str:
        return self.conv(x, name, channels, 1, *[3] * axes, group=channels, **more)

    def squeeze(self, x: str, name: str, channels: int) -> str:
        y = self.conv(self.node("GlobalAveragePool", x), f"{name}.reduce", 4, channels, 1, 1)
        y = self.conv(y, f"{name}.expand", channels, 4, 1, 1, activation="HardSigmoid")
        return self.node("Mul", x, y)

    def head(self, x: str, channels: int) -> ModelProto:
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        weight = self.hold(torch.randn(5, channels, generator=self.generator), "head.weight")
        return self.model(self.node("Gemm", x, weight, transB=1))


def mobilenet_v3() -> ModelProto:
    build = Mobile(3, 12, 12)
    x = build.conv("input", "stem", 8, 3, 3, 3)
    x = build.squeeze(build.depthwise(x, "dw1", 8), "se", 8)
    x = build.conv(x, "project", 16, 8, 1, 1)
    x = build.depthwise(x, "dw2", 16, activation="HardSwish")
    return build.head(build.conv(x, "last", 24, 16, 1, 1), 24)


def shufflenet() -> ModelProto:
    build = Mobile(3, 12, 12)
    x = build.conv("input", "stem", 16, 3, 3, 3)
    halves = build.node("Split", x, build.hold(np.array([8, 8])), outputs=2, axis=1)
    y = build.conv(halves[:-1] + "b", "in", 8, 8, 1, 1)
    y = build.conv(build.depthwise(y, "dw1", 8), "out", 8, 8, 1, 1)
    return build.head(build.node("Concat", halves, y, axis=1), 16)


def sequence() -> ModelProto:
    """One axis, as networks for sound have."""
    build = Mobile(3, 12, 12)
    x = build.node("Reshape", "input", build.hold(np.array([0, 3, 144])))
    x = build.conv(x, "stem", 8, 3, 3)
    x = build.depthwise(x, "dw1", 8, axes=1)
    return build.head(build.conv(x, "last", 16, 8, 1), 16)


def test_sums_of_two_products_fit_into_16_bits(images) -> None:
    """As processors without VNNI add them, but for depthwise ones: inputs have up to 255."""
    with pytest.warns(secateur.SecateurWarning, match="one scale for the whole input"):
        found = secateur.quantize(mobilenet_v3(), images)
    held = [numpy_helper.to_array(of) for of in found.graph.initializer]
    weights = [of.astype(int) for of in held if of.dtype == np.int8 and of.ndim > 1]
    weights = [of for of in weights if of.shape[1] > 1]
    assert len(weights) >= 4
    for of in weights:
        assert 2 * 255 * abs(of).max() < 2**15 < 2 * 255 * 2 * abs(of).max()


@pytest.mark.parametrize("make", [mobilenet_v3, shufflenet, sequence])
def test_networks_for_phones_run_in_both_runtimes(make, images, tmp_path) -> None:
    pruned = secateur.prune(make(), images, sparsity=0.5, **QUICK).model
    with pytest.warns(secateur.SecateurWarning, match="one scale for the whole input of dw1,"):
        found = secateur.quantize(pruned, images)
    session = onnxruntime.InferenceSession(found.SerializeToString())
    got = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
    want = predict(pruned, images)
    assert (got - want).abs().max() < 0.25 * want.abs().max()  # NNCF's own scheme is as far
    for name, weight in layer_weights(pruned).items():
        assert not layer_weights(found)[name][weight == 0].any()
    check = save_openvino(pruned, tmp_path / "m.xml", images, int8=images)
    assert check["relative_difference"] < 0.25
    got = predict(tmp_path / "m.xml", images)
    assert (got - want).abs().max() < 0.25 * want.abs().max()
    assert read_ir(tmp_path / "m.xml").batch == 0


def test_the_report_names_the_layers(images) -> None:
    result = secateur.prune(mobilenet_v3(), images, sparsity=0.5, quantize="int8", **QUICK)
    (note,) = [note for note in result.report.notes if "INT8" in note]
    assert "one scale for the whole input of dw1, where" in note  # dw2 can keep its own
    predict(result.quantized, images)


def test_a_network_that_runs_as_it_is_keeps_a_scale_per_channel(images) -> None:
    build = Mobile(3, 12, 12)
    x = build.conv("input", "stem", 8, 3, 3, 3)
    x = build.depthwise(x, "dw", 8, activation="HardSwish")
    found = in_int8(build.head(x, 8), as_samples(images))
    assert found.notes == ()
    assert [8] in [list(of.dims) for of in found.model.graph.initializer if "scale_relu" in of.name]


def _quantiser(scales: np.ndarray, points: np.ndarray, *after: str) -> ModelProto:
    """An input with a scale per channel, a depthwise convolution, and what comes after it."""
    build = Mobile(len(scales), 4, 4)
    held = build.hold(scales), build.hold(points)
    x = build.node("QuantizeLinear", "input", *held, axis=1)
    x = back = build.node("DequantizeLinear", x, *held, axis=1)
    x = build.depthwise(x, "dw", len(scales), activation="")
    for kind in after:
        x = build.node(kind, x)
    last = build.hold(np.float32(0.1)), build.hold(np.uint8(0))
    x = build.node("DequantizeLinear", build.node("QuantizeLinear", x, *last), *last)
    return build.model(x, back)


SCALES = np.array([0.01, 0.2, 0.05], np.float32)
POINTS = {
    "uint8": np.array([0, 128, 255], np.uint8),
    "int8": np.array([-128, 0, 127], np.int8),
    "positive": np.array([0, 0, 0], np.uint8),
}


@pytest.mark.parametrize("kind", POINTS)
def test_a_single_scale_covers_the_range_of_each_channel(kind) -> None:
    model = _quantiser(SCALES, POINTS[kind], "Relu")
    found, layers = one_scale(model)
    assert len(layers) == 1
    held = {of.name: onnx.numpy_helper.to_array(of) for of in found.graph.initializer}
    scale, point = (held[name] for name in found.graph.node[0].input[1:3])
    assert scale.shape == point.shape == ()
    assert point.dtype == POINTS[kind].dtype
    limits, points = np.iinfo(point.dtype), POINTS[kind].astype(np.float64)
    ends = np.stack([(of - points) * SCALES for of in (limits.min, limits.max)])
    x = torch.from_numpy(ends.repeat(16, 1).reshape(2, 3, 4, 4)).float() * 0.999
    session = onnxruntime.InferenceSession(found.SerializeToString())
    _, back = session.run(None, {"input": x.numpy()})
    assert np.abs(back - x.numpy()).max() < 1.01 * scale
    zeros = session.run(None, {"input": np.zeros_like(x.numpy())})[1]
    assert not zeros.any()


@pytest.mark.parametrize(("after", "count"), [(("Relu", "Clip"), 1), ((), 1), (("Tanh",), 0)])
def test_only_inputs_of_integer_convolutions_get_a_single_scale(after, count) -> None:
    model = _quantiser(SCALES, POINTS["uint8"], *after)
    before = model.SerializeToString()
    assert len(one_scale(model)[1]) == count
    assert len(one_scale(model, everywhere=True)[1]) == 1
    assert model.SerializeToString() == before


# weights that bodies read too


def _with_body(kind: str) -> ModelProto:
    """A convolution whose weight and bias a body reads too."""
    build = Mobile(3, 12, 12)
    names = [build.hold(torch.randn(3, 3, 3, 3, generator=build.generator), "conv.weight")]
    names.append(build.hold(torch.randn(3, generator=build.generator), "conv.bias"))
    x = build.node("Relu", build.node("Conv", "input", *names, pads=[1] * 4))
    value = helper.make_tensor_value_info
    conv = [helper.make_node("Conv", [x, *names], ["y"], pads=[1] * 4)]
    if kind == "If":
        small = helper.make_node("Identity", [x], ["z"])
        bodies = {
            "then_branch": helper.make_graph(
                conv, "yes", [], [value("y", TensorProto.FLOAT, None)]
            ),
            "else_branch": helper.make_graph(
                [small], "no", [], [value("z", TensorProto.FLOAT, None)]
            ),
        }
        mean = build.node("ReduceMean", x, keepdims=0)
        x = build.node("If", build.node("Greater", mean, build.hold(np.float32(0))), **bodies)
    else:
        conv[0].input[0] = "h"
        again = helper.make_node("Identity", ["a"], ["b"])
        inputs = [value("i", TensorProto.INT64, []), value("a", TensorProto.BOOL, [])]
        inputs.append(value("h", TensorProto.FLOAT, None))
        outputs = [value("b", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)]
        body = helper.make_graph([*conv, again], "body", inputs, outputs)
        limits = build.hold(np.array(2)), build.hold(np.array(True))
        x = build.node("Loop", *limits, x, body=body)
    return build.head(x, 3)


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_weights_that_a_body_reads_too_are_quantised_outside_of_it(kind, images) -> None:
    model = _with_body(kind)
    torch.testing.assert_close(predict(unshared(model), images), predict(model, images))
    found = in_int8(model, as_samples(images)).model
    held = {of.name: onnx.numpy_helper.to_array(of) for of in found.graph.initializer}
    before = {of.name: onnx.numpy_helper.to_array(of) for of in model.graph.initializer}
    for name in ("conv.weight", "conv.bias"):  # the body's, as they were
        assert np.array_equal(held[name], before[name])
    assert any(array.dtype == np.int8 and array.shape == (3, 3, 3, 3) for array in held.values())
    got, want = predict(found, images), predict(model, images)
    assert (got - want).abs().max() < 0.3 * want.abs().max()


def test_a_model_without_bodies_is_left_as_it_is() -> None:
    assert unshared(mobilenet_v3()) == mobilenet_v3()


# what cannot be run


def test_what_no_scale_makes_run_is_one_sentence(images, monkeypatch) -> None:
    def refuses(model, example):
        raise secateur.ModelError("no such kernel")

    monkeypatch.setattr("secateur.frontends.onnx.frontend.OnnxFrontend.running", refuses)
    with pytest.raises(
        secateur.ModelError, match=r"INT8 does not run \(no such kernel\), expected"
    ):
        secateur.quantize(mobilenet_v3(), images)


def test_a_model_with_maps_is_one_sentence() -> None:
    model = mobilenet_v3()
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    model.graph.output[0].type.CopyFrom(helper.make_map_type_proto(TensorProto.INT64, tensor))
    for rewrite in (folded, unshared, one_scale):
        with pytest.raises(secateur.ModelError, match=r"for INT8 \(Map types .*, expected tensors"):
            rewrite(model)


# what NNCF says


def test_nncf_says_nothing(monkeypatch, capfd, images) -> None:
    nncf = require_nncf()
    handler = logging.Handler()
    heard: list[str] = []
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("nncf")
    monkeypatch.setattr(logger, "handlers", [handler])  # its own may hold a stream of another test

    def loud(model, *_, **__):
        logging.getLogger("nncf").critical("logged")
        print("printed")
        print("complained", file=sys.stderr)
        warnings.warn("warned", stacklevel=1)
        onnxruntime.InferenceSession(_with_body("If").SerializeToString())
        raise RuntimeError("the reason")

    monkeypatch.setattr(nncf, "quantize", loud)
    with pytest.raises(secateur.ModelError, match="cannot quantise the network"):
        quantized(mobilenet_v3(), [])
    logger.warning("after")
    assert heard == ["after"]
    assert "".join(capfd.readouterr()) == ""
