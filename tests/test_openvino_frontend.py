"""OpenVINO files: the same layers, zeros and outputs as the ONNX file and the module."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from inputs import trace
from onnx_models import as_onnx, network
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.evaluation.inference import predict
from secateur.frontends.openvino.runtime import as_ir, ir_weights, read_model, write_copy
from secateur.hardware.compare_latency import file_for
from secateur.network.couplings import find_couplings
from secateur.network.ops import Fused, Opaque, expanded

openvino = pytest.importorskip("openvino")
op = pytest.importorskip("openvino.opset13")
SIMPLE = {"sparsity": 0.5, "include": "*", "allocation": "normalized-magnitude"}
SIMPLE["method"] = secateur.LeastSquares()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 11, 11, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def want(images) -> secateur.PruneResult:
    """The network, pruned as an ONNX file."""
    return secateur.prune(as_onnx(network()), images, **SIMPLE)


def refused(says: str):
    """One sentence that says so."""
    return pytest.raises(secateur.ModelError, match=rf"^(?!.*\n).*{says}")


def masks(model) -> list[np.ndarray]:
    return [weights.ravel() != 0 for weights in ir_weights(model).values()]


def shown(result: secateur.PruneResult) -> list[tuple]:
    """What a report says of layers, but for names and figures that rounding changes."""
    fields = ("kind", "zeros", "macs", "samples", "notes")
    return [tuple(getattr(of, field) for field in fields) for of in result.report.layers]


# the same as of the other kinds


def _not_simplified(model):
    return openvino.Core().read_model(model.SerializeToString())


def test_an_ir_gets_the_zeros_of_the_onnx_file_and_the_module(images) -> None:
    networks = (network(), as_onnx(network()), as_ir(as_onnx(network())))
    module, want, got = (secateur.prune(of, images, sparsity=0.6, include="*") for of in networks)
    assert shown(got) == shown(want) == shown(module)
    expected = masks(as_ir(want.model))
    for ours, theirs, layer in zip(masks(got.model), expected, module.report.layers, strict=True):
        same = module.model.get_submodule(layer.name).weight.ravel() != 0
        assert np.array_equal(ours, theirs)
        assert np.array_equal(ours, same.numpy())
    ours, theirs = predict(got.model, images), predict(want.model, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5])
def test_an_ir_for_some_images_gets_the_zeros_of_one_for_any_number(batch, images, want) -> None:
    got = secateur.prune(as_ir(as_onnx(network(), batch=batch)), images, **SIMPLE)
    assert shown(got) == shown(want)
    for ours, theirs in zip(masks(got.model), masks(as_ir(want.model)), strict=True):
        assert np.array_equal(ours, theirs)
    assert got.model.inputs[0].get_partial_shape()[0].get_length() == batch
    ours, theirs = predict(got.model, images), predict(want.model, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_ir_that_was_not_simplified_has_the_layers_of_the_onnx_file(images, want) -> None:
    """Its BatchNorms are nodes, the shapes of biases are computed, and factors of 1 are left in."""
    model = _not_simplified(as_onnx(network()))
    ours, theirs = (trace(of, images[:2]).layers for of in (model, as_onnx(network())))
    for one, other in zip(ours, theirs, strict=True):
        for field in ("name", "parameter", "shape", "output", "macs", "bias", "affine"):
            assert getattr(one, field) == getattr(other, field), field
        assert one.protected == other.protected
        assert (one.bn_scale is None) == (other.bn_scale is None)
    assert shown(secateur.prune(model, images, **SIMPLE)) == shown(want)


def test_weights_in_half_precision_stay_so_and_get_the_zeros_of_the_rounded_ones(
    images, tmp_path
) -> None:
    openvino.save_model(as_ir(as_onnx(network())), tmp_path / "half.xml", compress_to_fp16=True)
    twin = as_ir(as_onnx(network()))
    for node in twin.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32:
            rounded = op.constant(node.data.astype(np.float16).astype(np.float32))
            node.output(0).replace(rounded.output(0))
    want = secateur.prune(twin, images, **SIMPLE)
    got = secateur.prune(tmp_path / "half.xml", images, **SIMPLE)
    assert shown(got) == shown(want)
    for ours, theirs in zip(masks(got.model), masks(want.model), strict=True):
        assert np.array_equal(ours, theirs)
    nodes = got.model.get_ordered_ops()
    kinds = {of.get_element_type() for of in nodes if of.get_type_name() == "Constant"}
    assert kinds == {openvino.Type.f16, openvino.Type.i64}


def test_an_ir_couples_the_channels_of_the_onnx_file(images) -> None:
    ours, theirs = (
        [(of.units, of.fixed, of.blocks) for of in find_couplings(trace(model, images[:2]))]
        for model in (as_ir(as_onnx(network())), as_onnx(network()))
    )
    assert ours == theirs
    assert any(fixed is None for _, fixed, _ in ours)


# files


def test_the_command_writes_the_file_with_other_constants(images, tmp_path) -> None:
    write_copy(as_ir(as_onnx(network())), tmp_path / "net.xml")
    np.savez(tmp_path / "images.npz", images=images.numpy())
    common = ["--data", str(tmp_path / "images.npz"), "--sparsity", "0.5", "-o"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["prune", str(tmp_path / "net.xml"), *common, str(out)])
    assert done.exit_code == 0, done.output
    names = ["model.bin", "model.xml", "report.html", "report.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    report = secateur.Report.load(out / "report.json")
    zeros = sum(layer.zeros for layer in report.layers)
    assert report.exports["model.xml"]["zeros"] == zeros > 0
    assert report.exports["model.xml"]["relative_difference"] < 1e-5
    before, after = (
        read_model(path).get_ordered_ops() for path in (tmp_path / "net.xml", out / "model.xml")
    )
    changed = set[str]()
    for one, other in zip(before, after, strict=True):
        for ask in ("get_friendly_name", "get_type_name", "get_attributes"):
            if not (ask == "get_attributes" and one.get_type_name() == "Constant"):
                assert getattr(one, ask)() == getattr(other, ask)()
        if one.get_type_name() == "Constant" and not np.array_equal(one.data, other.data):
            changed.add(one.get_friendly_name())
    assert 0 < len(changed) <= 2 * len(report.layers)
    assert (
        sum(int((of.data == 0).sum()) for of in after if of.get_friendly_name() in changed) >= zeros
    )


def test_other_formats_of_an_ir_are_refused_before_any_work(tmp_path) -> None:
    write_copy(as_ir(as_onnx(network())), tmp_path / "net.xml")
    arguments = ["prune", str(tmp_path / "net.xml"), "--data", "absent", "--sparsity", "0.5"]
    for more in ("--onnx", "--openvino"):
        done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out"), more])
        assert done.exit_code == 2
        assert "the network is an OpenVINO file, expected no other format" in done.stderr


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_an_ir_becomes_one_in_int8_which_stays_dense_itself(images, tmp_path) -> None:
    pytest.importorskip("nncf")
    path, out = tmp_path / "net.xml", tmp_path / "out"
    write_copy(as_ir(as_onnx(network())), path)
    how = {"sparsity": 0.5, "recipe": secateur.Recipe(**_uniform())}
    result = secateur.prune(path, images, quantize="int8", evaluation=images, **how)
    kinds = {node.get_type_name() for node in result.quantized.get_ops()}
    assert "FakeQuantize" in kinds
    assert result.report.evaluation["int8"].agreement is not None
    written = {str(name) for name in result.save(out)}
    assert written >= {"model.xml", "model.bin", "model-int8.xml", "model-int8.bin"}
    checks = result.report.exports
    assert checks["model-int8.xml"]["zeros"] >= checks["model.xml"]["zeros"] > 0
    assert checks["model-int8.xml"]["relative_difference"] < 0.02
    with refused("no layer to prune.*quantised"):
        secateur.prune(out / "model-int8.xml", images, **how)


def test_inspect_evaluate_and_sweep_take_an_ir(images, tmp_path) -> None:
    path = tmp_path / "net.xml"
    write_copy(as_ir(as_onnx(network())), path)
    inspection = secateur.inspect(path)
    names = [layer.parameter for layer in inspection.layers]
    assert names[3:4] + names[5:] == ["gate.weight", "head.weight"]
    assert all(layer.obstacle is None for layer in inspection.layers)
    found = secateur.evaluate(path, images, reference=as_onnx(network()))
    assert found.kl == pytest.approx(0, abs=1e-9)
    swept = secateur.sweep(path, images, sparsities=[0.5], recipe=secateur.Recipe(**_uniform()))
    assert swept.points[0].sparsity == pytest.approx(0.5, abs=0.01)


def _uniform() -> dict:
    return {"allocation": secateur.Uniform(), "method": secateur.LeastSquares()}


def test_other_runtimes_than_its_own_are_refused(images, tmp_path) -> None:
    model = as_ir(as_onnx(network()))
    assert file_for(model, images, "openvino", tmp_path / "0").suffix == ".xml"
    with refused("cannot be written as ONNX"):
        file_for(model, images, "onnxruntime", tmp_path / "1")
    with refused("expected a PyTorch module for PyTorch"):
        file_for(model, images, "torch", tmp_path / "2")


# layers


LAYERS = {
    "weight": ((4, 6), {"transpose_b": True}),
    "transposed": ((6, 4), {}),
    "a stack of one": ((1, 6, 4), {}),
}


def _ir(*shape: int, build) -> object:
    """A model of one input of a shape, with any number of samples."""
    x = op.parameter([-1, *shape], np.float32, name="x")
    return openvino.Model([build(x)], [x], "model")


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", LAYERS)
def test_a_product_with_a_weight_is_a_linear_layer(case) -> None:
    shape, how = LAYERS[case]
    how = {"transpose_a": False, "transpose_b": False, **how}

    def build(x):
        return op.add(op.matmul(x, op.constant(_numbers(*shape)), **how), _numbers(4))

    model = _ir(5, 6, build=build)
    (layer,) = trace(model, torch.randn(2, 5, 6)).layers
    assert (layer.kind, tuple(layer.shape), layer.macs) == ("linear", (4, 6), 120)
    assert layer.bias is not None
    result = secateur.prune(model, torch.randn(60, 5, 6), **SIMPLE)
    assert int((_constants(result.model)[0] == 0).sum()) == 12


def _constants(model) -> list[np.ndarray]:
    return [of.data for of in model.get_ordered_ops() if of.get_type_name() == "Constant"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_on_the_left_is_a_linear_layer_between_two_turns(turned) -> None:
    weight = _numbers(6, 4) if turned else _numbers(4, 6)
    how = {"transpose_a": turned, "transpose_b": True}
    model = _ir(5, 6, build=lambda x: op.matmul(op.constant(weight), x, **how))
    (layer,) = trace(model, torch.randn(2, 5, 6)).layers
    assert tuple(layer.shape) == (4, 6)
    result = secateur.prune(model, torch.randn(60, 5, 6), **SIMPLE)
    assert int((_constants(result.model)[0] == 0).sum()) == 12


def test_a_weight_behind_changes_of_type_and_shape_is_changed_where_it_is_stored() -> None:
    held = _numbers(3, 2, 4).astype(np.float16)  # (6, 4) in two pieces, the other way round

    def build(x):
        floats = op.convert(op.constant(held), "f32")
        matrix = op.reshape(floats, np.array([6, 4]), special_zero=False)
        return op.matmul(x, op.transpose(matrix, np.array([1, 0])), False, True)

    model = _ir(6, build=build)
    (layer,) = trace(model, torch.randn(2, 6)).layers
    assert tuple(layer.shape) == (4, 6)
    result = secateur.prune(model, torch.randn(60, 6), **SIMPLE)
    (found,) = [of for of in _constants(result.model) if of.shape == held.shape]
    assert found.dtype == np.float16
    assert int((found == 0).sum()) == 12


CONVOLUTIONS = {
    "1d": ((9,), (6, 4, 3), {"strides": [2], "pads_begin": [1], "pads_end": [1]}),
    "uneven pads": ((7, 8), (6, 4, 3, 2), {"pads_begin": [0, 1], "pads_end": [2, 0]}),
    "same upper": ((7, 8), (6, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((7, 8), (6, 4, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    "valid": ((7, 8), (6, 4, 3, 3), {"auto_pad": "VALID", "pads_begin": [1, 1]}),
    "groups": ((9, 9), (2, 3, 2, 3, 3), {"dilations": [2, 1]}),
    "depthwise, twice the channels": ((6, 6), (4, 2, 1, 3, 3), {}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_what_openvino_says(case) -> None:
    """The graph agrees with OpenVINO, or `trace` raises."""
    sizes, shape, options = CONVOLUTIONS[case]
    axes = len(sizes)
    plain = {"strides": [1] * axes, "dilations": [1] * axes, "auto_pad": "EXPLICIT"}
    how = {**plain, "pads_begin": [0] * axes, "pads_end": [0] * axes, **options}
    make = op.convolution if len(shape) == axes + 2 else op.group_convolution
    model = _ir(4, *sizes, build=lambda x: make(x, op.constant(_numbers(*shape)), **how))
    graph = trace(model, torch.randn(2, 4, *sizes))
    (layer,) = graph.layers
    assert layer.obstacle is None
    assert layer.weights == np.prod(shape)
    assert layer.macs == layer.weights * np.prod(layer.output[2:])


def test_what_cannot_be_pruned_says_why() -> None:
    def build(x):
        one, pads = [1, 1], ([0, 0], [0, 0])
        x = op.convolution_backprop_data(
            x, op.constant(_numbers(4, 4, 2, 2)), one, None, *pads, one
        )
        levels = op.convert(op.constant(np.ones((4, 4, 1, 1), np.int8)), "f32")
        x = op.convolution(x, op.multiply(levels, np.float32(0.5)), one, *pads, one)
        limits = [np.float32(-1), np.float32(1)] * 2
        rounded = op.fake_quantize(op.constant(_numbers(4, 4, 1, 1)), *limits, 255)
        x = op.convolution(x, rounded, one, *pads, one)
        scaled = op.multiply(op.constant(_numbers(4, 4, 1, 1)), _numbers(4, 1, 1, 1))
        x = op.convolution(x, scaled, one, *pads, one)
        groups = op.constant(_numbers(2, 2, 3, 2, 2))
        return op.group_convolution_backprop_data(
            x, groups, one, pads_begin=[0, 0], pads_end=[0, 0], dilations=one
        )

    layers = trace(_ir(4, 6, 6, build=build), torch.randn(2, 4, 6, 6)).layers
    assert [layer.obstacle.split(":")[0] for layer in layers] == [
        "transposed convolution",
        "quantised weight",
        "quantised weight",
        "weight computed on the fly",
        "transposed convolution",
    ]
    assert layers[0].macs == 36 * 4 * 4 * 4
    assert layers[-1].macs == 49 * 4 * 3 * 4


def test_an_ir_in_int8_is_refused_with_the_reason(images) -> None:
    def build(x):
        levels = op.convert(op.constant(np.ones((6, 4), np.int8)), "f32")
        return op.matmul(x, op.multiply(levels, np.float32(0.5)), False, False)

    with pytest.raises(secateur.SecateurError, match=r"^(?!.*\n).*quantised weight"):
        secateur.prune(_ir(6, build=build), torch.randn(60, 6), sparsity=0.5)


def test_a_weight_that_other_nodes_read_is_none() -> None:
    def build(x):
        weight = op.constant(_numbers(6, 6), name="shared")
        return op.multiply(op.matmul(x, weight, False, False), op.reduce_sum(weight, np.array([0])))

    (layer,) = trace(_ir(6, build=build), torch.randn(2, 6)).layers
    assert (layer.name, layer.obstacle) == ("shared", "weight also used by ReduceSum")


def test_nodes_between_layers_are_typed() -> None:
    def build(x):
        x = op.convolution(x, op.constant(_numbers(8, 4, 1, 1)), [1, 1], [0, 0], [0, 0], [1, 1])
        a, b = op.split(x, np.array(1), 2).outputs()
        c, d = op.variadic_split(x, np.array(1), np.array([5, -1])).outputs()
        x = op.concat([op.concat([op.swish(a), b], 1), op.concat([c, d], 1)], 1)
        x = op.slice(x, np.array([2]), np.array([14]), np.array([1]), np.array([1]))
        x = op.pad(x, np.array([0, 1, 0, 0]), np.array([0, 0, 0, 0]), "constant")
        x = op.reduce_mean(x, np.array([2, 3]), keep_dims=True)
        x = op.strided_slice(
            x, np.array([0, 1]), np.array([0, 13]), np.array([1, 1]), [1, 0], [1, 0], [], [], []
        )
        x = op.mvn(op.multiply(x, np.float32(2)), np.array([2, 3]), True, 1e-5, "inside_sqrt")
        x = op.transpose(op.softmax(x, 1), np.array([0, 2, 3, 1]))
        x = op.gather(x, np.array(0), np.array(1))
        return op.reshape(x, np.array([0, -1]), special_zero=True)

    graph = trace(_ir(4, 3, 3, build=build), torch.randn(2, 4, 3, 3))
    assert not [
        each.operation for _, each in expanded(graph.ops) if isinstance(each, Opaque | Fused)
    ]


def test_an_ir_of_several_inputs_gets_the_zeros_of_the_module(tmp_path) -> None:
    """Token numbers and floats, by their names."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first = nn.Embedding(20, 8), nn.Linear(8, 12)
            self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 5)

        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.first(self.table(ids)).mean(1) + self.second(x)).relu())

    torch.manual_seed(0)
    net = Two().eval().requires_grad_(False)
    ids = op.parameter([-1, 7], np.int64, name="ids")
    x = op.parameter([-1, 6], np.float32, name="x")
    for given in (ids, x):
        given.output(0).set_names({given.get_friendly_name()})
    held = {name: op.constant(of.numpy(), name=name) for name, of in net.state_dict().items()}

    def linear(value, name):
        product = op.matmul(value, held[f"{name}.weight"], False, True)
        return op.add(product, held[f"{name}.bias"])

    y = linear(op.gather(held["table.weight"], ids, np.array(0)), "first")
    y = op.add(op.reduce_mean(y, np.array([1]), False), linear(x, "second"))
    model = openvino.Model([linear(op.relu(y), "head")], [ids, x], "two")
    data = {"ids": torch.randint(0, 20, (60, 7)), "x": torch.randn(60, 6)}
    want, got = (secateur.prune(of, data, **SIMPLE) for of in (net, model))
    assert [of.name for of in got.report.layers] == [of.name for of in want.report.layers]
    assert [of.zeros for of in got.report.layers] == [of.zeros for of in want.report.layers]
    weights = {of.get_friendly_name(): of for of in got.model.get_ordered_ops()}
    for name, tensor in want.model.state_dict().items():
        assert np.array_equal(weights[name].data == 0, tensor.numpy() == 0), name
    write_copy(got.model, tmp_path / "two.xml")
    found = secateur.evaluate(tmp_path / "two.xml", data, reference=want.model)
    assert found.kl == pytest.approx(0, abs=1e-6)


# what is refused


def test_a_state_and_several_inputs_and_weights_that_are_no_numbers_are_refused() -> None:
    x = op.parameter([-1, 6], np.float32)
    total = op.add(x, op.read_value(op.constant(_numbers(1, 6)), "state"))
    results = [openvino.op.Result(total.output(0))]
    state = openvino.Model(results, [op.assign(total, "state")], [x], "model")
    with refused("keeps a state from one run to the next"):
        secateur.inspect(state, (6,))
    lost = _ir(
        6,
        build=lambda x: op.matmul(
            x, op.constant(np.full((6, 4), np.nan, np.float32), name="w"), False, False
        ),
    )
    with refused("NaN or Inf in w"):
        secateur.inspect(lost, (6,))


def test_an_ir_whose_number_of_images_is_built_in_is_run_one_by_one() -> None:
    """A token is put before each image's, by a shape for one image."""

    def model(batch: int) -> object:
        x = op.parameter([batch, 4, 6], np.float32)
        first = (
            op.constant(_numbers(1, 1, 8))
            if batch == 1
            else op.broadcast(
                op.constant(_numbers(1, 1, 8)),
                op.concat(
                    [op.gather(op.shape_of(x), np.array([0]), np.array(0)), np.array([1, 8])], 0
                ),
            )
        )
        y = op.matmul(x, op.constant(_numbers(6, 8)), False, False)
        y = op.reduce_mean(op.concat([first, y], 1), np.array([1]), keep_dims=False)
        return openvino.Model(
            [op.matmul(y, op.constant(_numbers(8, 4)), False, False)], [x], "model"
        )

    x = torch.randn(60, 4, 6)
    one, free = (secateur.prune(model(batch), x, **SIMPLE) for batch in (1, -1))
    assert any("one image at a time" in note for note in one.report.notes)
    for ours, theirs in zip(masks(one.model), masks(free.model), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("command", ["prune", "inspect"])
def test_without_the_extra_the_install_line_is_printed(command, tmp_path, monkeypatch) -> None:
    (tmp_path / "net.xml").write_text('<?xml version="1.0"?><net name="a" version="11"></net>')
    monkeypatch.setitem(sys.modules, "openvino", None)
    more = ["--data", "noise:4", "--sparsity", "0.5", "-o", str(tmp_path / "out")]
    arguments = [command, str(tmp_path / "net.xml"), *(more if command == "prune" else [])]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "needs the package openvino, which is not installed: run pip install" in done.stderr
    assert "[openvino]" in done.stderr


def test_a_model_is_not_changed(images) -> None:
    model = as_ir(as_onnx(network()))
    names = [of.get_friendly_name() for of in model.get_ordered_ops()]
    before = [of.copy() for of in _constants(model)]
    secateur.prune(model, images, **SIMPLE)
    assert [of.get_friendly_name() for of in model.get_ordered_ops()] == names
    for one, other in zip(before, _constants(model), strict=True):
        assert np.array_equal(one, other)
