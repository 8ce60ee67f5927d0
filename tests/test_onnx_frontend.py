"""ONNX files: the same layers and weights as through PyTorch, and nothing believed unchecked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import trace
from onnx import ModelProto, TensorProto, helper
from onnx_models import Builder, as_onnx, folded, network, stored
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.evaluation.inference import predict
from secateur.frontends.first_runs import one_first_run
from secateur.frontends.onnx import first_run, read
from secateur.frontends.onnx.translation import FOLD
from secateur.network.layers import ON_THE_FLY, BiasParameter
from secateur.network.stream import Stream

NEWEST = min(onnx.defs.onnx_opset_version(), 26)  # the last that ONNX Runtime 1.31 runs


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 11, 11, generator=torch.Generator().manual_seed(1))


def small(opset: int = 17, **more) -> ModelProto:
    """Two layers: a convolution and a Gemm."""
    generator = torch.Generator().manual_seed(0)
    build = Builder(3, 6, 6)
    weight = build.hold(torch.randn(4, 3, 3, 3, generator=generator), "conv.weight")
    x = build.node("Relu", build.node("Conv", "input", weight))
    x = build.node("Flatten", build.node("GlobalAveragePool", x))
    weight = build.hold(torch.randn(5, 4, generator=generator), "head.weight")
    bias = [build.hold(torch.zeros(5))] if opset < 11 else []  # which had to have one
    return build.model(build.node("Gemm", x, weight, *bias, transB=1), opset=opset, **more)


def refused(says: str):
    """One sentence that says so."""
    return pytest.raises(secateur.ModelError, match=rf"^(?!.*\n).*{says}")


# the same as through PyTorch


@pytest.mark.parametrize("form", [lambda net: net, folded], ids=["normalised", "folded"])
def test_both_front_ends_give_the_same_weights_and_report(form, images) -> None:
    net = form(network())
    want = secateur.prune(net, images, sparsity=0.6, include="*")
    got = secateur.prune(as_onnx(net), images, sparsity=0.6, include="*")
    for ours, theirs in zip(got.report.layers, want.report.layers, strict=True):
        assert ours.relative_error == pytest.approx(theirs.relative_error, rel=1e-3, abs=1e-7)
        for field in ("name", "kind", "shape", "zeros", "macs", "samples", "notes"):
            assert getattr(ours, field) == getattr(theirs, field), field
    weights = stored(got.model)
    for name, value in want.model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
            assert torch.equal(weights[name] == 0, value == 0), name
    torch.testing.assert_close(predict(got.model, images), want.model(images), rtol=1e-3, atol=1e-4)


def test_both_front_ends_find_the_same_places(images) -> None:
    net = network()
    ours, theirs = (trace(model, images[:2]) for model in (as_onnx(net), net))
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        for field in ("name", "parameter", "shape", "output", "macs", "bias", "affine"):
            assert getattr(one, field) == getattr(other, field), field
        assert one.protected == other.protected
        assert (one.bn_scale is None) == (other.bn_scale is None)
        if one.bn_scale is not None:
            torch.testing.assert_close(one.bn_scale, other.bn_scale)
        assert one.calls[0].geometry == other.calls[0].geometry


def test_attention_written_by_the_exporter_of_pytorch(tmp_path) -> None:
    """Weights transposed into products, tokens, a layer used twice."""
    pytest.importorskip("onnxscript")
    from secateur.export.files import save_onnx

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm, self.twice, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = self.norm(x + self.attention(x, x, x)[0])
            return self.head(self.twice(self.twice(x).relu()).mean(1))

    torch.manual_seed(2)
    net = Attention().eval().requires_grad_(False)
    net.attention.in_proj_bias.normal_()
    net.attention.out_proj.bias.normal_()
    x = torch.randn(60, 7, 6)
    save_onnx(net, tmp_path / "net.onnx", x, [])
    options = {"sparsity": 0.5, "include": "*", "allocation": "uniform"}
    options["method"] = secateur.LeastSquares()  # a few tokens are a near tie for others
    want = secateur.prune(net, x, **options)
    got = secateur.prune(tmp_path / "net.onnx", x, **options)
    for ours, theirs in zip(got.report.layers, want.report.layers, strict=True):
        for field in ("kind", "shape", "zeros", "macs", "samples", "notes"):
            assert getattr(ours, field) == getattr(theirs, field), field
    torch.testing.assert_close(predict(got.model, x), want.model(x), rtol=1e-3, atol=1e-4)


def test_a_recipe_of_several_steps(images) -> None:
    """Channels are aligned and layers corrected as in PyTorch; each step is a model."""
    method = secateur.BiasCorrection(base=secateur.WeightCorrection())
    options = {"recipe": "paper", "method": method}
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1))
    net.requires_grad_(False)
    build = Builder(3, 11, 11)
    x = "input"
    for index, module in enumerate(net):
        x = build.convolution(x, module, str(index))
    pooled = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = build.model(build.node("Flatten", build.node("GlobalAveragePool", x)))
    want = secateur.prune(pooled, images, sparsity=0.5, **options)
    got = secateur.prune(model, images, sparsity=0.5, **options)
    assert list(got.steps) == list(want.steps)
    assert len(got.steps) == 4
    assert [step.name for step in got.report.steps] == [step.name for step in want.report.steps]
    for name in got.steps:
        ours, theirs = predict(got.after(name), images), predict(want.after(name), images)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


# layers


CONVOLUTIONS = {
    "1d": ((9,), (6, 4, 3), {"strides": [2], "pads": [1, 1]}),
    "3d": ((5, 6, 5), (6, 4, 2, 3, 2), {"pads": [0, 1, 0, 1, 1, 1]}),
    "uneven pads": ((7, 8), (6, 4, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    "dilated groups": ((9, 9), (6, 2, 3, 3), {"dilations": [2, 1], "group": 2}),
    "depthwise, twice the channels": ((6, 6), (8, 1, 3, 3), {"group": 4}),
    "same upper": ((7, 8), (6, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((7, 8), (6, 4, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    "valid": ((7, 8), (6, 4, 3, 3), {"auto_pad": "VALID"}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_what_onnx_says_and_what_the_walk_is_told(case) -> None:
    """The graph agrees with ONNX Runtime (or `trace` raises), its geometry with the graph."""
    sizes, shape, attributes = CONVOLUTIONS[case]
    torch.manual_seed(4)
    build = Builder(4, *sizes)
    weight, bias = build.hold(torch.randn(shape), "w"), build.hold(torch.randn(shape[0]), "b")
    build.node("Conv", "input", weight, bias, **attributes)
    x = torch.randn(3, 4, *sizes)
    graph = trace(build.model(build.nodes[-1].output[0]), x)
    (layer,), stream = graph.layers, Stream(graph, graph.parameters, {graph.inputs[0]: x})
    stream.advance(len(graph.ops))
    (use,), y = layer.calls, stream.values[graph.outputs[0]]
    every = torch.arange(use.geometry.count(y))
    product = use.geometry.inputs(x, every, y.shape) @ use.geometry.matrix(
        graph.parameters[layer.parameter]
    ).mT + use.geometry.rows(graph.parameters["b"]).unsqueeze(1)
    torch.testing.assert_close(product, use.geometry.outputs(y, every), rtol=1e-4, atol=1e-4)
    assert layer.bias == BiasParameter("b", 1)
    assert layer.output == (0, *y.shape[1:])
    assert layer.macs == layer.weights * y[0, 0].numel()


def _gemm(build: Builder, x: str, net: nn.Linear, **how) -> str:
    weight = net.weight / how.get("alpha", 1)
    weight = weight if how.get("transB") else weight.mT.contiguous()
    bias = (net.bias / how.get("beta", 1)).reshape(how.pop("shape", (-1,)))
    x = build.node("Transpose", x, perm=[1, 0]) if how.get("transA") else x
    return build.node("Gemm", x, build.hold(weight), build.hold(bias), **how)


def _product(build: Builder, x: str, net: nn.Linear, how: str) -> str:
    weight, bias = net.weight, net.bias
    if how == "constant nodes":
        product = build.node("MatMul", x, build.constant(weight.mT.contiguous()))
        return build.node("Add", build.constant(bias), product)
    if how == "transpose":
        turned = build.node("Transpose", build.hold(weight))
        return build.node("Add", build.node("MatMul", x, turned), build.hold(bias))
    if how == "identities":
        same = build.node("Identity", build.node("Identity", build.hold(weight.mT.contiguous())))
        return build.node("Add", build.node("MatMul", x, same), build.hold(bias.reshape(1, -1)))
    if how == "left":
        product = build.node("MatMul", build.hold(weight), build.node("Transpose", x, perm=[1, 0]))
        return build.node("Add", build.node("Transpose", product, perm=[1, 0]), build.hold(bias))
    x = build.node("Reshape", x, build.hold(np.array([0, 0, 1, 1])))
    x = build.node("Conv", x, build.hold(weight.reshape(*weight.shape, 1, 1)))
    if how == "convolution and Add":
        addend = build.hold(bias.reshape(1, -1, 1, 1))
    elif how == "bias in a new shape":
        row = build.node("Reshape", build.hold(bias), build.hold(np.array([-1, 1])))
        addend = build.node("Unsqueeze", row, build.hold(np.array([0, -1])))
    return build.node("Flatten", build.node("Add", x, addend))


PRODUCTS = {
    "plain": lambda *of: _gemm(*of),
    "transB": lambda *of: _gemm(*of, transB=1),
    "transA": lambda *of: _gemm(*of, transA=1, transB=1),
    "alpha and beta": lambda *of: _gemm(*of, alpha=-0.5, beta=2.0),
    "bias as a row": lambda *of: _gemm(*of, shape=(1, -1)),
    **{
        name: lambda *of, name=name: _product(*of, name)
        for name in (
            *("constant nodes", "transpose", "identities", "left"),
            *("convolution and Add", "bias in a new shape"),
        )
    },
}


HALF = {"sparsity": 0.5, "include": "*", "allocation": "normalized-magnitude"}


@pytest.fixture(scope="module")
def two_layers():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).requires_grad_(False)
    x = torch.randn(200, 6) + 1
    return net, x, secateur.prune(net, x, **HALF)


@pytest.mark.parametrize("how", PRODUCTS)
def test_a_product_in_any_form_is_the_linear_layer(how, two_layers) -> None:
    net, x, want = two_layers
    build = Builder(6)
    hidden = build.node("Relu", PRODUCTS[how](build, "input", net[0]))
    model = build.model(PRODUCTS[how](build, hidden, net[2]))
    torch.testing.assert_close(predict(model, x), net(x))
    got = secateur.prune(model, x, **HALF)
    assert [layer.zeros for layer in got.report.layers] == [
        layer.zeros for layer in want.report.layers
    ]
    if how != "left":  # which has no place for a bias
        torch.testing.assert_close(predict(got.model, x), want.model(x), rtol=1e-3, atol=1e-4)
        assert got.report.layers[0].shape[:2] == want.report.layers[0].shape
        assert got.report.layers[0].notes == ()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), "images"])
def test_a_gemm_with_another_addend_is_a_product_and_a_sum(shape, two_layers) -> None:
    net, x, _ = two_layers
    build = Builder(6)
    addend = "input" if shape == "images" else build.hold(torch.full(shape, 0.5))
    square = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    y = build.node("Gemm", "input", build.hold(square), addend, beta=3.0)
    model = build.model(build.node("Gemm", y, build.hold(net[0].weight.mT.contiguous())))
    want = (x @ square + 3 * (x if shape == "images" else 0.5)) @ net[0].weight.mT
    torch.testing.assert_close(predict(model, x), want, rtol=1e-4, atol=1e-4)
    result = secateur.prune(model, x, sparsity=0.5, include="*")
    assert result.report.sparsity == 0.5
    assert result.report.layers[0].notes == ("no place for a bias: none fitted",)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 18, 21, NEWEST])
def test_opsets(opset) -> None:
    model = small(opset)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        assert opset == NEWEST
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} does not run it: {error}"[:200])
    result = secateur.prune(model, torch.randn(40, 3, 6, 6), sparsity=0.5)
    assert result.model.opset_import[0].version == opset
    assert int((stored(result.model)["head.weight"] == 0).sum()) == 10


def test_nodes_as_opset_7_has_them() -> None:
    """With attributes that later became inputs, around a weight and between layers."""
    torch.manual_seed(13)
    build = Builder(6, 8)
    held = build.node("Squeeze", build.hold(torch.randn(1, 8, 4), "a.weight"), axes=[0])
    x = build.node("Clip", build.node("MatMul", "input", held), min=0.0, max=6.0)
    x = build.node(
        "Slice", build.node("Pad", x, pads=[0, 1, 0, 0, 1, 0]), axes=[1], starts=[1], ends=[7]
    )
    x = build.node("ReduceMean", build.node("Softmax", x, axis=2), axes=[1], keepdims=0)
    x = build.node("MatMul", x, build.hold(torch.randn(4, 3), "b.weight"))
    result = secateur.prune(
        build.model(x, opset=7), torch.randn(40, 6, 8), sparsity=0.5, include="*"
    )
    assert [layer.name for layer in result.report.layers] == ["a", "b"]
    assert int((stored(result.model)["a.weight"] == 0).sum()) in range(8, 33)


def test_initializers_among_the_inputs_as_old_files_have_them() -> None:
    model = small(11, ir_version=3)
    for held in model.graph.initializer:
        value = helper.make_tensor_value_info(held.name, TensorProto.FLOAT, held.dims)
        model.graph.input.append(value)
    assert secateur.prune(model, torch.randn(40, 3, 6, 6), sparsity=0.5).report.sparsity == 0.5


def test_a_weight_used_twice_is_one_layer_and_one_with_another_reader_is_none() -> None:
    torch.manual_seed(6)
    build = Builder(6)
    first, shared, other = (build.hold(torch.randn(6, 6), name) for name in ("a", "b", "c"))
    x = build.node("MatMul", "input", first)
    x = build.node("MatMul", build.node("Relu", build.node("MatMul", x, shared)), shared)
    x = build.node("Mul", build.node("MatMul", x, other), build.node("ReduceSum", other))
    x = build.node("Add", x, build.node("MatMul", x, build.node("Transpose", first)))
    layers = {layer.name: layer for layer in secateur.inspect(build.model(x), (6,)).layers}
    assert len(layers["b"].calls) == 2
    assert layers["c"].obstacle == "weight also used by ReduceSum"
    assert layers["a"].obstacle == "weight also used by MatMul"
    result = secateur.prune(build.model(x), torch.randn(60, 6), sparsity=0.5, include="b")
    (layer,) = result.report.layers
    assert "weight used 2 times: one fit for all" in layer.notes
    assert int((stored(result.model)["b"] == 0).sum()) == 18


def test_a_bias_that_another_node_reads_stays_as_it_is() -> None:
    torch.manual_seed(7)
    build = Builder(6)
    bias = build.hold(torch.randn(6), "bias")
    x = build.node("Gemm", "input", build.hold(torch.randn(6, 6), "a"), bias)
    x = build.node("Gemm", build.node("Relu", x), build.hold(torch.randn(6, 6), "b"), bias)
    model = build.model(build.node("Mul", x, bias))
    result = secateur.prune(model, torch.randn(60, 6), sparsity=0.5, include="*")
    assert {layer.notes for layer in result.report.layers} == {
        ("no place for a bias: none fitted",)
    }
    assert torch.equal(stored(result.model)["bias"], stored(model)["bias"])


def test_statistics_that_two_normalisations_share_stay_as_they_are(images) -> None:
    torch.manual_seed(13)
    build = Builder(3, 11, 11)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    weights = [build.hold(torch.randn(4, size, 1, 1), f"{size}.weight") for size in (3, 4)]
    x = build.normalisation(build.node("Conv", "input", weights[0]), norm, "norm")
    shared = list(build.nodes[-1].input[1:])
    x = build.node("BatchNormalization", build.node("Conv", x, weights[1]), *shared)
    model = build.model(build.node("Flatten", build.node("GlobalAveragePool", x)))
    for layer in trace(model, images[:2]).layers:
        assert layer.bn_scale is not None
        assert layer.bias is None
        assert layer.affine is None
    result = secateur.prune(model, images, sparsity=0.5, include="*")
    assert torch.equal(stored(result.model)["norm.running_mean"], norm.running_mean)


def test_a_normalisation_of_another_axis_is_none_of_the_layer() -> None:
    torch.manual_seed(14)
    build = Builder(5, 6)
    x = build.node("MatMul", "input", build.hold(torch.randn(6, 4), "weight"))
    x = build.normalisation(x, nn.BatchNorm1d(5), "norm")  # of the tokens, which are five
    (layer,) = trace(build.model(x), torch.randn(2, 5, 6)).layers
    assert layer.bn_scale is None
    assert layer.bias is None


def test_a_weight_that_is_an_output_stays_dense() -> None:
    build = Builder(6)
    weight = build.hold(torch.randn(6, 4), "weight")
    model = build.model(build.node("MatMul", "input", weight), build.node("Identity", weight))
    assert secateur.inspect(model, (6,)).layers[0].obstacle == "weight also used by an output"


def test_values_in_channels_last_memory_meet_constants_per_channel(images) -> None:
    torch.manual_seed(15)
    build = Builder(3, 11, 11)
    x = build.node("Conv", "input", build.hold(torch.randn(9, 3, 3, 3), "a"))
    x = build.node("Mul", x, build.hold(torch.randn(9, 1, 1)))  # 9 channels of 9 by 9
    x = build.node("Conv", x, build.hold(torch.randn(4, 9, 3, 3), "b"))
    model = build.model(build.node("Flatten", build.node("GlobalAveragePool", x)))
    assert secateur.prune(model, images, sparsity=0.5).report.sparsity == 0.5


def test_what_cannot_be_pruned_says_why() -> None:
    torch.manual_seed(8)
    build = Builder(4, 6, 6)
    x = build.node("ConvTranspose", "input", build.hold(torch.randn(4, 4, 2, 2), "up.weight"))
    scaled = build.node("Mul", build.hold(torch.randn(4, 4, 1, 1)), build.hold(torch.tensor(2.0)))
    x = build.node("Conv", x, scaled)
    levels = build.hold(np.zeros((4, 4, 1, 1), np.int8) + 3)
    scale = build.node("Mul", build.hold(np.float32(0.5)), build.hold(np.float32(1)))
    zero = build.hold(np.int8(1))
    x = build.node("Conv", x, build.node("DequantizeLinear", levels, scale, zero))
    x = build.node("Flatten", build.node("GlobalAveragePool", x))
    x = build.node("Gemm", x, build.hold(torch.randn(4, 4), "head.weight"))
    found = {layer.obstacle: layer for layer in secateur.inspect(build.model(x)).layers}
    assert list(found) == [
        "transposed convolution",
        f"{ON_THE_FLY}: {FOLD}",
        "quantised weight",
        None,
    ]
    assert found["transposed convolution"].macs == 36 * 4 * 4 * 4
    assert found["transposed convolution"].output == (0, 4, 7, 7)


def test_layers_inside_control_flow_stay_dense_and_are_run(images) -> None:
    torch.manual_seed(9)
    build = Builder(3, 11, 11)
    x = build.node("Relu", build.node("Conv", "input", build.hold(torch.randn(4, 3, 3, 3), "a")))
    y = build.node("Conv", build.node("Sigmoid", x), build.hold(torch.randn(4, 4, 1, 1), "c"))

    def body(name: str) -> onnx.GraphProto:
        """Reads a value from outside."""
        kernel = onnx.numpy_helper.from_array(torch.randn(4, 4, 1, 1).numpy(), f"{name}.weight")
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4, 9, 9])
        conv = helper.make_node("Conv", [x, f"{name}.weight"], [name])
        return helper.make_graph([conv], name, [], [value], [kernel])

    largest = build.node("ReduceMax", y, keepdims=0)
    condition = build.node("Less", largest, build.hold(np.float32(1e9)))
    x = build.node("If", condition, then_branch=body("yes"), else_branch=body("no"))
    x = build.node("Conv", x, build.hold(torch.randn(4, 4, 3, 3), "b"))
    model = build.model(build.node("Flatten", build.node("GlobalAveragePool", x)))
    result = secateur.prune(model, images, sparsity=0.5)
    assert "layers inside control flow (If, Loop, Scan) stay dense" in result.report.notes
    assert [layer.name for layer in result.report.layers] == ["c", "b"]


def test_functions_of_a_file_are_expanded_to_be_read_and_kept_when_written(images) -> None:
    torch.manual_seed(10)
    build = Builder(3, 11, 11)
    weight = build.hold(torch.randn(4, 3, 3, 3), "a.weight")
    constant = onnx.numpy_helper.from_array(torch.randn(4, 4, 1, 1).numpy())
    build.functions.append(
        helper.make_function(
            "mine",
            "Block",
            ["x", "w"],
            ["y"],
            [
                helper.make_node("Conv", ["x", "w"], ["z"]),
                helper.make_node("Constant", [], ["inside"], value=constant),
                helper.make_node("Conv", ["z", "inside"], ["y"]),
            ],
            [helper.make_opsetid("", 17)],
        )
    )
    x = build.node("Block", "input", weight, domain="mine")
    x = build.node("Flatten", build.node("GlobalAveragePool", build.node("Relu", x)))
    model = build.model(x, domains=[helper.make_opsetid("mine", 1)])
    result = secateur.prune(model, images, sparsity=0.5, include="a")
    assert [layer.reason for layer in result.report.dense_layers] == [
        "weight inside a function of the file"
    ]
    assert len(result.model.functions) == 1
    assert int((stored(result.model)["a.weight"] == 0).sum()) == 54


# the number of images


def test_a_file_for_one_image_gives_what_one_for_any_number_gives(images) -> None:
    net = network()
    free = secateur.prune(as_onnx(net), images, sparsity=0.5)
    fixed = secateur.prune(as_onnx(net, batch=1), images, sparsity=0.5)
    ours, theirs = stored(fixed.model), stored(free.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert fixed.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert fixed.report.notes == []
    one = secateur.evaluate(fixed.model, images, reference=free.model)
    assert one.kl == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [[1, 4], [1, -1], [1, 2, 2]])
def test_reshapes_to_one_image_are_read_as_any_number(shape) -> None:
    model = _reshaping(shape, batch=1)
    result = secateur.prune(model, torch.randn(40, 3, 6, 6), sparsity=0.5)
    assert result.report.notes == []
    assert list(stored(result.model)["shape"]) == shape


def _reshaping(shape: list[int], batch: int | str) -> ModelProto:
    torch.manual_seed(11)
    build = Builder(3, 6, 6, batch=batch)
    x = build.node("Conv", "input", build.hold(torch.randn(4, 3, 3, 3), "a.weight"))
    x = build.node("GlobalAveragePool", build.node("Relu", x))
    x = build.node("Reshape", x, build.hold(np.array(shape), "shape"))
    weight = build.hold(torch.randn(2 if len(shape) == 3 else 4, 5), "b.weight")
    x = build.node("MatMul", x, weight)
    return build.model(build.node("Flatten", x))


def test_what_only_works_on_one_image_is_run_image_by_image() -> None:
    """A token is put before each image's: with a batch of one it has the same number of axes."""
    torch.manual_seed(12)
    models = {}
    weights = [torch.randn(6, 8), torch.randn(8, 4), torch.randn(1, 1, 8)]
    for batch in (1, "n"):
        build = Builder(5, 6, batch=batch)
        x = build.node("MatMul", "input", build.hold(weights[0], "a.weight"))
        token = build.hold(weights[2], "token")
        if batch != 1:
            size = build.node("Shape", x, start=0, end=1)
            size = build.node("Concat", size, build.hold(np.array([1, 8])), axis=0)
            token = build.node("Expand", token, size)
        x = build.node("Relu", build.node("Concat", token, x, axis=1))
        count = build.node("Cast", build.node("Size", x), to=TensorProto.FLOAT)  # of no axis
        x = build.node("MatMul", x, build.hold(weights[1], "b.weight"))
        x = build.node("Div", build.node("Mul", x, count), count) if batch == 1 else x
        models[batch] = build.model(build.node("ReduceMean", x, axes=[1], keepdims=0))
    x = torch.randn(60, 5, 6)
    one, free = (secateur.prune(models[n], x, sparsity=0.5, include="*") for n in (1, "n"))
    assert "image by image" in one.report.notes[0] or "one image" in one.report.notes[0]
    for name in ("a.weight", "b.weight"):
        ours, theirs = stored(one.model)[name], stored(free.model)[name]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_file_for_some_images_only_is_refused_where_it_cannot_be_read_otherwise(batch) -> None:
    build = Builder(3, 6, 6, batch=batch)
    x = build.node("Conv", "input", build.hold(torch.ones(4, 3, 3, 3), "a.weight"))
    x = build.node("Reshape", x, build.hold(np.array([2 * batch, 2, 16])))
    x = build.node("Reshape", x, build.hold(np.array([batch, 64])))
    with refused(f"works on {batch} images at a time only.*dynamic batch"):
        secateur.inspect(build.model(x))
    assert secateur.inspect(_reshaping([batch, 4], batch=batch)).prunable_weights == 20


# what is written


def test_nothing_changes_but_the_weights(images) -> None:
    model = as_onnx(network(), producer_name="me", doc_string="mine")
    helper.set_model_props(model, {"key": "value"})
    before = model.SerializeToString()
    result = secateur.prune(model, images, sparsity=0.6)
    assert model.SerializeToString() == before
    twin, changed = ModelProto.FromString(before), set()
    for ours, theirs in zip(result.model.graph.initializer, twin.graph.initializer, strict=True):
        if ours.raw_data != theirs.raw_data:
            changed.add(ours.name)
            theirs.raw_data = ours.raw_data
    assert result.model == twin
    assert changed == {
        *(f"{layer.name}.weight" for layer in result.report.layers),
        *("grouped.bias", "gate.bias", "head.bias"),
        "scale.bias",  # of the normalisation behind `last`: what changes in it is not divided
    }


def test_the_command_line_writes_the_file_with_other_weights(images, tmp_path, monkeypatch) -> None:
    onnx.save(as_onnx(network()), tmp_path / "net.onnx")
    np.savez(tmp_path / "images.npz", images=images.numpy(), labels=np.arange(40) % 5)
    arguments = ["prune", "net.onnx", "--data", "images.npz", "--eval", "images.npz"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*arguments, "--sparsity", "0.6", "-o", "out"])
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir("out")) == ["model.onnx", "report.html", "report.json"]
    onnx.checker.check_model("out/model.onnx", full_check=True)
    report = secateur.Report.load("out/report.json")
    weights = stored(onnx.load("out/model.onnx"))
    for layer in report.layers:
        assert int((weights[f"{layer.name}.weight"] == 0).sum()) == layer.zeros
    assert report.exports["model.onnx"]["zeros"] == sum(layer.zeros for layer in report.layers)
    assert report.exports["model.onnx"]["relative_difference"] < 1e-5
    found = secateur.evaluate("out/model.onnx", images, reference="net.onnx")
    assert found.agreement == pytest.approx(report.evaluation["pruned"].agreement)


def test_the_command_line_inspects_with_the_shape_in_the_file(tmp_path, own_process) -> None:
    onnx.save(small(), tmp_path / "net.onnx")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.onnx")])
    assert done.exit_code == 0, done.output
    assert "Nx4x4x4" in done.output


# files from anywhere


def external(tmp_path: Path, **entries: str) -> Path:
    """A file whose weights are beside it, with some entries of theirs replaced."""
    path = tmp_path / "model" / "net.onnx"
    path.parent.mkdir(exist_ok=True)
    onnx.save(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for held in model.graph.initializer:
        known = {entry.key: entry.value for entry in held.external_data} | entries
        del held.external_data[:]
        for key, value in known.items():
            held.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_are_read_and_the_result_holds_them(tmp_path) -> None:
    x = torch.randn(40, 3, 6, 6)
    path = external(tmp_path)
    beside = secateur.prune(path, x, sparsity=0.5)
    within = secateur.prune(small(), x, sparsity=0.5)
    assert stored(beside.model).keys() == stored(within.model).keys()
    for name, value in stored(within.model).items():
        assert torch.equal(stored(beside.model)[name], value)
    with refused("weights in other files"):
        secateur.prune(onnx.load(path, load_external_data=False), x, sparsity=0.5)


EXTERNAL = {
    "above": ({"location": "../weights.bin"}, "outside the model's folder"),
    "absolute": ({"location": "/etc/passwd"}, "outside the model's folder"),
    "by a link": ({"location": "link"}, "outside the model's folder"),
    "by a linked folder": ({"location": "there/weights.bin"}, "outside the model's folder"),
    "nowhere": ({"location": "absent"}, "missing"),
    "the folder": ({"location": "."}, "missing"),
    "a null byte": ({"location": "a\0b"}, "missing"),
    "too long a name": ({"location": "x" * 5000}, "missing"),
    "beyond the end": ({"offset": "99999999"}, "expected [0-9]+ within the file"),
    "before the start": ({"offset": "-1"}, "expected [0-9]+ within the file"),
    "no number": ({"offset": "many"}, "expected [0-9]+ within the file"),
    "another length": ({"length": "7"}, "expected [0-9]+ within the file"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data_from_elsewhere_are_refused(case, tmp_path) -> None:
    entries, says = EXTERNAL[case]
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    path = external(tmp_path, **entries)
    (path.parent / "link").symlink_to(tmp_path / "weights.bin")
    (path.parent / "there").symlink_to(tmp_path)
    with refused(says):
        secateur.inspect(path)


BYTES = {"DOUBLE": 24, "FLOAT": 12, "FLOAT16": 6, "BOOL": 3, "UINT4": 2, "INT2": 1}  # of three
BYTES = {kind: size for kind, size in BYTES.items() if hasattr(TensorProto, kind)}


@pytest.mark.parametrize("kind", BYTES)
def test_external_data_are_as_many_bytes_as_their_type_needs(kind, tmp_path) -> None:
    model = small()
    held = model.graph.initializer.add(name="more", dims=[3], data_location=TensorProto.EXTERNAL)
    held.data_type = getattr(TensorProto, kind)
    held.external_data.add(key="location", value="weights.bin")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(bytes(BYTES[kind]))
    assert len(read(tmp_path / "net.onnx").graph.initializer[-1].raw_data) == BYTES[kind]
    (tmp_path / "weights.bin").write_bytes(bytes(BYTES[kind] - 1))
    with refused(f"expected {BYTES[kind]} within the file"):
        read(tmp_path / "net.onnx")


def _broken(kind: str) -> bytes:
    model = small()
    held = model.graph.initializer[0]
    if kind == "a huge tensor":
        held.dims[:] = [2**40, 2**40]
    elif kind == "a negative size":
        held.dims[0] = -4
    elif kind == "an unknown type":
        held.data_type = 99
    elif kind == "an unknown operation":
        model.graph.node[0].op_type = "Frobnicate"
    elif kind == "a newer opset":
        model.opset_import[0].version = 9999
    elif kind == "a cycle":
        model.graph.node[0].input[0] = model.graph.node[-1].output[0]
    elif kind == "no graph":
        model.ClearField("graph")
    elif kind == "no nodes":
        del model.graph.node[:]
    return model.SerializeToString()


@pytest.mark.parametrize(
    "kind",
    [
        *("a huge tensor", "a negative size", "an unknown type", "an unknown operation"),
        *("a newer opset", "a cycle", "no graph", "no nodes"),
    ],
)
def test_a_broken_file_is_one_sentence(kind, tmp_path, own_process) -> None:
    (tmp_path / "net.onnx").write_bytes(_broken(kind))
    with refused("expected"):
        secateur.inspect(tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_what_is_no_file_is_one_sentence(tmp_path, own_process) -> None:
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("absent.onnx", "pipe.onnx"):
        with refused("no such file"):
            secateur.inspect(tmp_path / name)
    with refused("is a folder, expected an .onnx, .xml .OpenVINO. or .pt2 file"):
        secateur.inspect(tmp_path / "folder.onnx")
    for name, content in {
        "empty.onnx": b"",
        "text.onnx": b"no model",
        "nul.onnx": bytes(99),
    }.items():
        (tmp_path / name).write_bytes(content)
        with refused(name):
            secateur.inspect(tmp_path / name)
    with refused(r"no such file: net\.pt, expected an \.onnx, \.xml .OpenVINO. or \.pt2 file"):
        secateur.inspect("net.pt")
    with refused("is a dict, expected"):
        secateur.prune({}, torch.randn(40, 3, 6, 6), sparsity=0.5)


def _convolved(build: Builder) -> str:
    return build.node("Conv", "input", build.hold(torch.ones(3, 3, 1, 1), "weight"))


def _random(build: Builder) -> str:
    return build.node("Add", _convolved(build), build.node("RandomNormal", shape=[1], dtype=1))


def _with_nan(build: Builder) -> str:
    return build.node("Conv", "input", build.hold(torch.full((3, 3, 1, 1), torch.nan), "weight"))


def _constant(build: Builder) -> str:
    return build.node("Relu", build.hold(torch.ones(3), "weight"))


def _of_huge_batch(build: Builder) -> str:
    build.input.type.tensor_type.shape.dim[0].dim_value = 2**40
    return _convolved(build)


def _of_huge_images(build: Builder) -> str:
    build.input.type.tensor_type.shape.dim[2].dim_value = 2**40
    return _convolved(build)


def _of_texts(build: Builder) -> str:
    build.input.type.tensor_type.elem_type = TensorProto.STRING
    return build.node("Relu", build.node("Cast", "input", to=TensorProto.FLOAT))


HOSTILE = {
    _random: "a random model cannot be pruned",
    _with_nan: "^the weights hold NaN or Inf in weight",
    _constant: "no output that depends on its inputs",
    _of_huge_batch: "images at a time, expected any number, or at most 1024",
    _of_huge_images: "expected at most .* values",
    _of_texts: "input input takes string, expected a tensor of numbers",
}


@pytest.mark.parametrize("attribute", ["strides", "pads", "dilations"])
def test_attributes_that_do_not_fit_are_one_sentence_within_a_call(attribute, own_process) -> None:
    """What tells one model from another there is looked at before the first run."""
    model = small()
    model.graph.node[0].attribute.append(helper.make_attribute(attribute, [1]))
    with refused("expected"), one_first_run():
        secateur.inspect(model)


@pytest.mark.parametrize("make", HOSTILE)
def test_a_model_that_cannot_be_run_is_one_sentence(make, own_process) -> None:
    build = Builder(3, 6, 6)
    model = build.model(make(build))
    with refused(HOSTILE[make]):
        secateur.inspect(model)


# What a first run may do to its process, by programs in place of `trial.py`: no model does the
# same with every ONNX Runtime. They find `trial` in its own folder.
ACCIDENTS = {
    "signal": ("import os; os.kill(os.getpid(), 11)", r"crashed on the model \(SIGSEGV\)"),
    "abort": ("import os; os.abort()", r"crashed on the model \(SIGABRT\)"),
    "status": ("raise SystemExit(7)", r"crashed on the model \(status 7\)"),
    "memory": (
        "import numpy, resource, trial\n"
        "limit = lambda: resource.getrlimit(resource.RLIMIT_AS)[0]\n"
        "trial.run = lambda *_: {'output0': numpy.empty(limit(), numpy.uint8)}\n"
        "trial.main()",
        "more memory than half of this machine's",
    ),
    "no end": ("import time; time.sleep(600)", "did not finish .* within 0.5 s.* check its loops"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_in_the_first_run_is_one_sentence(
    accident, monkeypatch, tmp_path, own_process
) -> None:
    code, says = ACCIDENTS[accident]
    folder = Path(first_run.__file__).parent
    (tmp_path / "program.py").write_text(f"import sys\nsys.path.append({str(folder)!r})\n{code}\n")
    monkeypatch.setattr(first_run, "_PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(first_run, "_TIMEOUT_SECONDS", 0.5 if accident == "no end" else 60.0)
    with refused(says):
        secateur.inspect(small(), (3, 6, 6))


# how often a graph is run for the first time


@pytest.fixture
def first_runs(monkeypatch) -> list[bytes]:
    """The models that are run at arm's length."""
    found, held = [], first_run.at_arms_length

    def counted(model, images, batch):
        found.append(model)
        return held(model, images, batch)

    monkeypatch.setattr(first_run, "at_arms_length", counted)
    return found


def test_a_graph_has_one_first_run_in_a_call(images, first_runs) -> None:
    """Pruned versions, in max_drop's search and in the end, differ in their weights alone."""
    model, others = as_onnx(network()), images.flip(-1)
    quick = {"method": "magnitude", "allocation": "uniform", "progress": False}
    labelled = others, network()(others).argmax(1)
    found = secateur.prune(model, images, max_drop=30, evaluation=labelled, **quick)
    assert len(found.report.search.tries) > 1
    assert first_runs == [model.SerializeToString()]
    with pytest.warns(secateur.SecateurWarning, match="evaluation images are calibration images"):
        secateur.prune(model, others, max_drop=30, evaluation=labelled, **quick)
    assert len(first_runs) == 2


def test_another_graph_has_its_own_first_run(images, first_runs) -> None:
    model = small()
    other = small()
    other.graph.node[1].op_type = "Sigmoid"
    scaled = small()
    (held,) = (of for of in scaled.graph.initializer if of.name == "head.weight")
    held.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(held), held.name))
    x = images[..., :6, :6]
    with one_first_run():
        for of in (model, scaled, other, model, other):
            predict(of, x)
        assert len(first_runs) == 2
        predict(model, x[:1])
        assert len(first_runs) == 2
    predict(model, x)
    assert len(first_runs) == 3
    assert not torch.equal(predict(scaled, x), predict(model, x))


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_what_a_first_run_found_holds_for_other_weights(batch, images, first_runs) -> None:
    model = as_onnx(network(), batch=batch)
    with one_first_run():
        trace(model, images[:2])
        for _ in range(2):
            torch.testing.assert_close(predict(model, images), network()(images).detach())
            trace(model, images[:2])
    assert len(first_runs) == 1


def test_a_graph_that_fails_with_other_weights_is_one_sentence(images, monkeypatch) -> None:
    with one_first_run():
        trace(small(), images[:2, :, :6, :6])

        def fails(*_):
            raise RuntimeError("no such thing\nmore of it")

        monkeypatch.setattr(first_run, "run", fails)
        with refused("cannot run the model with these weights \\(no such thing\\)"):
            trace(small(), images[:2, :, :6, :6])


def test_sequences_within_a_segment_are_no_obstacle() -> None:
    build = Builder(3, 6, 6)
    x = build.node("SequenceConstruct", _convolved(build), "input")
    x = build.node("SequenceAt", x, build.hold(np.array(0)))
    build.node("Conv", x, "weight")
    assert len(secateur.inspect(build.model(build.nodes[-1].output[0])).layers[0].calls) == 2


def test_a_model_takes_an_input() -> None:
    model = small()
    model.graph.node[0].input[0] = "conv.weight"
    del model.graph.input[:]
    with refused("takes 0 inputs .*, expected at least one"):
        secateur.inspect(model)


def test_the_first_run_has_half_of_the_memory_at_most() -> None:
    code = """
import os, resource
from trial import limit_memory
limit_memory()
print(resource.getrlimit(resource.RLIMIT_AS)[0] / os.sysconf("SC_PAGE_SIZE"))
"""
    folder = Path(first_run.__file__).parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(os.sysconf("SC_PHYS_PAGES") / 2, abs=1)


def test_functions_without_end_are_refused(monkeypatch) -> None:
    def calls(name: str, *called: str) -> onnx.FunctionProto:
        nodes = [
            helper.make_node(of, ["x"], [f"y{index}"], domain="mine")
            for index, of in enumerate(called)
        ]
        last = helper.make_node("Sum", [f"y{index}" for index in range(len(called))], ["y"])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        return helper.make_function("mine", name, ["x"], ["y"], [*nodes, last], opsets)

    def calling(functions: list[onnx.FunctionProto], first: str) -> ModelProto:
        model = small(domains=[helper.make_opsetid("mine", 1)])
        model.functions.extend(functions)
        model.graph.node.append(
            helper.make_node(first, [model.graph.output[0].name], ["more"], domain="mine")
        )
        model.graph.output[0].name = "more"
        return model

    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)  # new ones see cycles
    with refused("function F0 that calls itself"):
        secateur.inspect(calling([calls("F0", "F1"), calls("F1", "F0")], "F0"))
    doubling = [calls(f"F{index}", *[f"F{index + 1}"] * 2) for index in range(60)]
    leaf = helper.make_function(
        "mine",
        "F60",
        ["x"],
        ["y"],
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    with refused("expands to .* nodes, expected at most"):
        secateur.inspect(calling([*doubling, leaf], "F0"))
    leaf.name = "F101"
    chain = [calls(f"F{index}", f"F{index + 1}") for index in range(101)]
    with refused("functions at most 100 deep .they are 102"):
        secateur.inspect(calling([*chain, leaf], "F0"))


def test_long_chains_of_aliases_are_followed() -> None:
    build = Builder(6)
    name = build.hold(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), "weight")
    for _ in range(3000):
        name = build.node("Identity", name)
    (layer,) = secateur.inspect(build.model(build.node("MatMul", "input", name)), (6,)).layers
    assert (layer.name, layer.obstacle) == ("weight", None)


CONTENT = small().SerializeToString()
EDITS = st.lists(
    st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 3), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


@given(edits=EDITS, cut=st.none() | st.integers(0, len(CONTENT)))
@settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_file_is_one_sentence_or_a_model(edits, cut, tmp_path, own_process) -> None:
    """Bytes replaced, removed and put in; what is still a model may be run, a few times."""
    content = bytearray(CONTENT)
    for at, removed, put in edits:
        content[at : at + removed] = put
    path = tmp_path / "net.onnx"
    path.write_bytes(content[:cut])
    reading = complaint(lambda: secateur.frontends.open(path))
    assert "\n" not in reading
    if not reading and not _BUDGET.spent():
        assert "\n" not in complaint(lambda: secateur.inspect(path, (3, 6, 6)))
    assert os.listdir(tmp_path) == ["net.onnx"]


def complaint(do) -> str:
    """What a call says that refuses; nothing where it does not."""
    try:
        do()
    except secateur.ModelError as error:
        return str(error)
    return ""


class _Budget:
    """A dozen damaged models are run, which takes a third of a second each."""

    def __init__(self) -> None:
        self.left = 12

    def spent(self) -> bool:
        self.left -= 1
        return self.left < 0


_BUDGET = _Budget()


@pytest.mark.parametrize("more", [["--weights", "absent.pt"], ["--data", "absent"], []])
def test_a_mistake_on_the_command_line_is_one_sentence(more, images, tmp_path, own_process) -> None:
    (tmp_path / "net.onnx").write_bytes(CONTENT[:-7] if not more else CONTENT)
    np.savez(tmp_path / "images.npz", images=images.numpy()[..., :6, :6])
    arguments = ["prune", str(tmp_path / "net.onnx"), "--data", str(tmp_path / "images.npz")]
    out = tmp_path / "new" / "out"
    done = CliRunner().invoke(app, [*arguments, *more, "--sparsity", "0.5", "-o", str(out)])
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("secateur: error: ")
    assert not out.parent.exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_there_is_the_install_line(package, monkeypatch, tmp_path) -> None:
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(secateur.MissingExtraError, match=r"pip install '\.\[onnx\]'"):
        secateur.inspect(tmp_path / "net.onnx")
