"""ONNX files of several inputs, of any type, and weights stored in other ways than as float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from inputs import samples_of, trace
from onnx import ModelProto, TensorProto, helper
from onnx_models import Builder
from torch import Tensor, nn

import secateur
from secateur.frontends import open as open_model
from secateur.frontends.onnx.branches import Names
from secateur.network.couplings import find_couplings
from secateur.network.samples import Samples
from secateur.network.stream import Stream

QUICK = {"method": "magnitude", "allocation": "uniform", "progress": False, "include": "*"}


def taking(model: ModelProto, **inputs: tuple[int, list[int | str]]) -> ModelProto:
    """A model with further inputs, by name: their types and axes."""
    for name, (kind, axes) in inputs.items():
        model.graph.input.append(helper.make_tensor_value_info(name, kind, axes))
    return model


def outputs(model: ModelProto, data: dict[str, Tensor], **constants: Tensor) -> Tensor:
    """What ONNX Runtime gives for the whole file."""
    samples = Samples(data, constants=constants)
    with open_model(model).running(samples[:2]) as run:
        return run(samples)


class Encoder(nn.Module):
    """A small sentence encoder: token ids and their mask, as BERT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 8), nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out, self.wide, self.narrow = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.after = nn.LayerNorm(8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.words(input_ids) + self.places.weight[: input_ids.shape[1]])
        queries, keys, values = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = queries @ keys.transpose(-1, -2) / 2
        scores = scores.masked_fill(attention_mask[:, None, None] == 0, -1e9)
        met = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        x = self.norm(x + self.out(met))
        x = self.after(x + self.narrow(torch.nn.functional.gelu(self.wide(x))))
        mask = attention_mask.unsqueeze(-1).to(x.dtype)
        return (x * mask).sum(1) / mask.sum(1)


def sentences(count: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 8, (count, 1), generator=generator)
    mask = (torch.arange(7) < lengths).long()
    ids = torch.randint(1, 30, (count, 7), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(encoder) -> ModelProto:
    pytest.importorskip("onnxscript")
    return open_model(encoder).to_onnx(Samples(sentences(4)))


def test_an_encoder_of_tokens_is_the_same_as_module_and_as_file(encoder, exported) -> None:
    data = sentences()
    options = {"sparsity": 0.5, "include": "*", "allocation": "uniform", "progress": False}
    options["method"] = secateur.LeastSquares()
    want = secateur.prune(encoder, data, **options)
    got = secateur.prune(exported, data, **options)
    ours, theirs = ({tuple(of.shape): [] for of in result.report.layers} for result in (got, want))
    for found, result in ((ours, got), (theirs, want)):
        for layer in result.report.layers:
            found[tuple(layer.shape)].append((layer.kind, layer.zeros, layer.macs, layer.samples))
    assert ours == theirs
    torch.testing.assert_close(outputs(got.model, data), want.model(**data), rtol=1e-3, atol=1e-4)


def two_inputs() -> ModelProto:
    """An image and a vector of numbers meet behind a layer each."""
    torch.manual_seed(3)
    build = Builder(3, 6, 6)
    x = build.node("Conv", "input", build.hold(torch.randn(5, 3, 3, 3), "conv.weight"))
    x = build.node("Flatten", build.node("GlobalAveragePool", build.node("Relu", x)))
    y = build.node("MatMul", "numbers", build.hold(torch.randn(4, 5), "numbers.weight"))
    x = build.node("Relu", build.node("Add", x, y))
    model = build.model(build.node("MatMul", x, build.hold(torch.randn(5, 3), "head.weight")))
    return taking(model, numbers=(TensorProto.FLOAT, ["n", 4]))


def test_two_inputs_by_name_and_by_place() -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(40, 3, 6, 6, generator=generator)
    numbers = torch.randn(40, 4, generator=generator)
    model = two_inputs()
    by_name = secateur.prune(model, {"numbers": numbers, "input": image}, sparsity=0.5, **QUICK)
    by_place = secateur.prune(model, (image, numbers), sparsity=0.5, **QUICK)
    assert by_name.model == by_place.model
    assert [layer.name for layer in by_name.report.layers] == ["conv", "numbers", "head"]
    graph = trace(model, image[:2], numbers[:2])
    stream = Stream(graph, graph.parameters, dict(samples_of(graph, image, numbers).tensors))
    stream.advance(len(graph.ops))
    want = outputs(model, {"input": image, "numbers": numbers})
    torch.testing.assert_close(stream.value(graph.outputs[0]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"input": torch.ones(8, 3, 6, 6), "other": torch.ones(8, 4)}, "the network takes 2 input"),
        (torch.ones(8, 3, 6, 6), r"give 1 input, the network takes 2 inputs \(input, numbers\)"),
        (
            {"input": torch.ones(8, 3, 6, 6), "numbers": torch.ones(8, 5)},
            r"takes .* \(4\), got \(5",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(data, says) -> None:
    with pytest.raises(secateur.SecateurError, match=rf"^(?!.*\n).*{says}"):
        secateur.prune(two_inputs(), data, sparsity=0.5)


def test_whole_numbers_are_taken_in_the_type_of_the_file_and_no_floats_for_them() -> None:
    build = Builder(4)
    table = build.hold(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    x = build.node("Gather", table, "ids")
    x = build.node("ReduceMean", build.node("MatMul", x, build.hold(torch.ones(4, 4))), axes=[1])
    model = taking(build.model(x), ids=(TensorProto.INT32, ["n", "t"]))
    del model.graph.input[0]
    ids = torch.randint(9, (40, 3), generator=torch.Generator().manual_seed(1))
    assert secateur.prune(model, {"ids": ids}, sparsity=0.5, **QUICK).report.sparsity == 0.5
    with pytest.raises(secateur.DataError, match="input ids takes int32, got float32"):
        trace(model, ids.float())


def test_several_inputs_are_inspected_with_the_sizes_in_the_file() -> None:
    found = secateur.inspect(two_inputs())
    assert [layer.name for layer in found.layers] == ["conv", "numbers", "head"]
    assert secateur.inspect(two_inputs(), (3, 6, 6)).layers == found.layers
    assert [layer.name for layer in secateur.inspect(detector([2, "n", 5])).layers][1] == "head"


# given once


def detector(state: list[int | str], *, adds: bool = True) -> ModelProto:
    """A voice detector in small: one network for each rate, and a state that is added."""
    generator = torch.Generator().manual_seed(4)

    def branch(name: str) -> onnx.GraphProto:
        """Both hold a weight of the same name."""
        weight = torch.randn(6, 5, generator=generator).numpy()
        held = onnx.numpy_helper.from_array(weight, "inner.weight")
        node = helper.make_node("MatMul", ["input", "inner.weight"], [name])
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5])
        return helper.make_graph([node], name, [], [value], [held])

    build = Builder(6)
    fast = build.node("Equal", "rate", build.hold(np.array(16000)))
    x = build.node("If", fast, then_branch=branch("fast"), else_branch=branch("slow"))
    x, total = build.node("Relu", x), build.node("ReduceSum", "state", _axis(build), keepdims=0)
    x = build.node("Add", x, total) if adds else x
    x = build.node("MatMul", x, build.hold(torch.randn(5, 2, generator=generator), "head.weight"))
    rate: tuple[int, list[int | str]] = (TensorProto.INT64, [])
    return taking(build.model(x), state=(TensorProto.FLOAT, state), rate=rate)


def _axis(build: Builder) -> str:
    return build.hold(np.array([0]))


def weights(model: ModelProto) -> dict[str, Tensor]:
    """All constants of floats, those of branches too."""
    held = Names(model).constants()
    arrays = {name: onnx.numpy_helper.to_array(of) for name, of in held.items()}
    return {name: torch.from_numpy(of.copy()) for name, of in arrays.items() if of.ndim == 2}


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("state", [[2, "n", 5], [2, "", 5], [2, 1, 5]])
def test_a_state_and_a_rate_are_given_once_and_the_branch_that_runs_is_pruned(rate, state) -> None:
    model = detector([0 if size == "" else size for size in state])
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(5))
    constants = {"state": torch.full((2, 1, 5), 0.25), "rate": torch.tensor(rate)}
    result = secateur.prune(model, {"input": x, **constants}, sparsity=0.5, **QUICK)
    taken, other = ("then", "else") if rate == 16000 else ("else", "then")
    names = [f"if1a/{branch}_branch/inner.weight" for branch in (taken, other)]
    assert [layer.name for layer in result.report.layers] == [
        names[0].removesuffix(".weight"),
        "head",
    ]
    before, after = weights(model), weights(result.model)
    assert int((after[names[0]] == 0).sum()) == 15
    assert torch.equal(after[names[1]], before[names[1]])
    assert any("1 branch of the file not run" in note for note in result.report.notes)
    want = ((x @ after[names[0]]).relu() + 0.5) @ after["head.weight"]
    torch.testing.assert_close(outputs(result.model, {"input": x}, **constants), want)


def test_channels_of_a_branch_stay() -> None:
    """The file keeps both of its networks."""
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(5))
    once = {"state": torch.zeros(2, 1, 5), "rate": torch.tensor(16000)}
    graph = open_model(detector([2, "n", 5], adds=False)).trace(
        Samples({"input": x}, constants=once)
    )
    reasons = [of.fixed for of in find_couplings(graph)]
    assert any("is in a branch of the file" in str(why) for why in reasons), reasons


def test_a_constant_is_checked() -> None:
    model, x = detector([2, "n", 5]), torch.randn(40, 6)
    for state, rate, says in (
        (torch.zeros(2, 1, 4), 16000, r"input state takes \(2, any, 5\), got .*\(2, 1, 4\)"),
        (torch.zeros(2, 1, 5), 16000.0, "input rate takes int64, got float32"),
        (None, 16000, "the network takes 3 inputs"),
    ):
        data = {"input": x, "rate": rate} | ({} if state is None else {"state": state})
        with pytest.raises(secateur.SecateurError, match=f"^(?!.*\n).*{says}"):
            secateur.prune(model, data, sparsity=0.5)


def test_a_branch_that_the_values_choose_stays_as_it_is() -> None:
    model = detector([2, "n", 5])
    build = [of for of in model.graph.node if of.op_type != "Equal"]
    positive = helper.make_node("ReduceSum", ["input"], ["total"], keepdims=0)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "nothing"))
    chosen = helper.make_node("Greater", ["total", "nothing"], ["equal0a"])
    nodes = [onnx.NodeProto.FromString(of.SerializeToString()) for of in build]
    del model.graph.node[:], model.graph.input[2:]
    model.graph.node.extend([positive, chosen, *nodes])
    nodes[0].input[0] = chosen.output[0]
    model.graph.node[2].input[0] = chosen.output[0]
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(5))
    data = {"input": x, "state": torch.zeros(2, 1, 5)}
    result = secateur.prune(model, data, sparsity=0.5, **QUICK)
    assert [layer.name for layer in result.report.layers] == ["head"]
    assert "layers inside control flow (If, Loop, Scan) stay dense" in result.report.notes


# weights stored otherwise


def _hold(build: Builder, weight: Tensor, kind: int, name: str = "w") -> str:
    array = weight.numpy().astype(helper.tensor_dtype_to_np_dtype(kind))
    build.initializers.append(onnx.numpy_helper.from_array(array, name))
    return name


def _behind(build: Builder, weight: Tensor, how: str) -> str:
    """A weight (in, out) that nodes make of a constant of another form."""
    if how == "cast of float16":
        return build.node("Cast", _hold(build, weight, TensorProto.FLOAT16), to=TensorProto.FLOAT)
    if how == "cast of bfloat16":
        return build.node("Cast", _hold(build, weight, TensorProto.BFLOAT16), to=TensorProto.FLOAT)
    if how == "identity and transpose":
        return build.node("Identity", build.node("Transpose", build.hold(weight.mT, "w")))
    if how == "reshape and transpose":
        held = build.node("Reshape", build.hold(weight.mT.reshape(-1), "w"), _sizes(build, weight))
        return build.node("Transpose", held, perm=[1, 0])
    if how == "squeeze":
        return build.node("Squeeze", build.hold(weight[None], "w"), _axis(build))
    scales = weight.abs().amax(0) / 127
    if how == "integers, cast and scaled":
        held = _hold(build, (weight / scales).round(), TensorProto.INT8)
        return build.node("Mul", build.node("Cast", held, to=1), build.hold(scales[None], "scale"))
    if how == "integers, one scale and a zero point":
        scale = weight.abs().max() / 100
        held = _hold(build, (weight / scale).round() + 128, TensorProto.UINT8)
        zero = build.hold(np.uint8(128))
        return build.node("DequantizeLinear", held, build.hold(scale), zero)
    held = _hold(build, (weight / scales).round().mT, TensorProto.INT8)
    held = build.node("DequantizeLinear", held, build.hold(scales), axis=0)
    return build.node("Transpose", held, perm=[1, 0])


def _sizes(build: Builder, weight: Tensor) -> str:
    return build.hold(np.array([weight.shape[1], -1]))


WAYS = (
    *("cast of float16", "cast of bfloat16", "identity and transpose", "reshape and transpose"),
    *("squeeze", "integers, cast and scaled", "integers, one scale and a zero point"),
    "integers, a scale for each output",
)


def behind_nodes(how: str, method: str = "magnitude") -> tuple[ModelProto, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    build = Builder(8)
    weight = torch.randn(8, 6, generator=generator)
    x = build.node("Relu", build.node("MatMul", "input", _behind(build, weight, how)))
    head = build.hold(torch.randn(6, 3, generator=generator), "head.weight")
    model = build.model(build.node("MatMul", x, head), opset=21, ir_version=10)
    return model, weight, torch.randn(80, 8, generator=generator)


@pytest.mark.parametrize("how", WAYS)
def test_weights_behind_other_nodes_are_pruned_where_they_are_stored(how) -> None:
    """Fitted on the numbers that the file can hold, as whoever runs it gets them."""
    from secateur.export.onnx_weights import layer_weights

    model, weight, x = behind_nodes(how)
    options = {**QUICK, "method": "least-squares", "include": "w"}
    result = secateur.prune(model, x, sparsity=0.5, **options)
    before, after = (
        layer_weights(of)[model.graph.node[-3].output[0]] for of in (model, result.model)
    )
    torch.testing.assert_close(torch.from_numpy(before), weight, rtol=0.01, atol=0.03)
    assert int((after == 0).sum()) == 24
    kinds = [{of.name: of.data_type for of in m.graph.initializer} for m in (model, result.model)]
    assert kinds[0] == kinds[1]
    dense, pruned = outputs(model, {"input": x}), outputs(result.model, {"input": x})
    changes = {"w": trace(result.model, x[:2]).parameters["w"]}
    graph = trace(model, x[:2])
    assert torch.equal(graph.rounded("w", changes["w"]), changes["w"])
    stream = Stream(graph, {**graph.parameters, **changes}, {"input": x})
    stream.advance(len(graph.ops))
    torch.testing.assert_close(stream.value(graph.outputs[0]), pruned, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(dense, pruned, atol=0.1)
    reported = result.report.layers[0].zeros
    assert reported == 24


def test_a_bias_makes_up_for_the_rounding_of_weights() -> None:
    """Inputs with a mean far from 0 would shift the outputs by what the weights are rounded by."""
    generator = torch.Generator().manual_seed(8)
    build = Builder(8)
    weight = torch.randn(8, 6, generator=generator)
    scale = weight.abs().max() / 4  # coarse
    held = _hold(build, (weight / scale).round(), TensorProto.INT8)
    y = build.node("MatMul", "input", build.node("DequantizeLinear", held, build.hold(scale)))
    model = build.model(build.node("Add", y, build.hold(torch.zeros(6), "bias")))
    x = 20 + torch.randn(80, 8, generator=generator)
    options = {**QUICK, "method": "least-squares"}
    pruned = secateur.prune(model, x, sparsity=0.5, **options).model
    means = [outputs(of, {"input": x}).mean(0) for of in (model, pruned)]
    torch.testing.assert_close(*means, rtol=1e-3, atol=0.05)


def test_layers_between_quantised_values_are_pruned_on_their_grid() -> None:
    """As static quantisation writes them: integers between layers, and for weights and biases."""
    generator = torch.Generator().manual_seed(9)
    build = Builder(3, 6, 6)
    step = build.hold(np.float32(0.05))
    zero = build.hold(np.uint8(128))

    def rounded(x: str) -> str:
        quantised = build.node("QuantizeLinear", x, step, zero)
        return build.node("DequantizeLinear", quantised, step, zero)

    weight = torch.randint(-127, 128, (5, 3, 3, 3), generator=generator)
    weight_scale = build.hold(torch.full((5,), 0.002))
    held = _hold(build, weight, TensorProto.INT8)
    kernel = build.node("DequantizeLinear", held, weight_scale, axis=0)
    bias = _hold(
        build, torch.randint(-2000, 2000, (5,), generator=generator), TensorProto.INT32, "b"
    )
    bias = build.node("DequantizeLinear", bias, build.hold(torch.full((5,), 1e-4)), axis=0)
    x = rounded(build.node("Relu", build.node("Conv", rounded("input"), kernel, bias)))
    x = build.node("Flatten", build.node("GlobalAveragePool", x))
    model = build.model(build.node("MatMul", x, build.hold(torch.randn(5, 3), "head.weight")))
    images = torch.randn(40, 3, 6, 6, generator=generator)
    result = secateur.prune(model, images, sparsity=0.5, **{**QUICK, "method": "least-squares"})
    w = next(layer for layer in result.report.layers if layer.name == "w")
    after = {of.name: onnx.numpy_helper.to_array(of) for of in result.model.graph.initializer}
    assert after["w"].dtype == np.int8
    assert int((after["w"] == 0).sum()) == w.zeros >= 0.5 * 135 - 4
    assert after["b"].dtype == np.int32
    assert w.bytes == 135


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_files_of_half_precision_are_fitted_in_float32_and_stay_as_they_are(kind) -> None:
    """Inputs, weights and outputs; ONNX Runtime has hardly any operations in bfloat16."""
    generator = torch.Generator().manual_seed(7)
    first, last = (torch.randn(*of, generator=generator) for of in ((8, 6), (6, 3)))
    build = Builder(8)
    x = build.node("Relu", build.node("MatMul", "input", _hold(build, first, kind, "first.weight")))
    build.node("MatMul", x, _hold(build, last, kind, "last.weight"))
    model = build.model(build.nodes[-1].output[0])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    x = torch.randn(60, 8, generator=generator)
    result = secateur.prune(model, x, sparsity=0.5, **{**QUICK, "method": "least-squares"})
    plain = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    half = torch.float16 if kind == TensorProto.FLOAT16 else torch.bfloat16
    plain[0].weight.data, plain[2].weight.data = first.mT.to(half).float(), last.mT.to(half).float()
    want = secateur.prune(
        plain.requires_grad_(False), x, sparsity=0.5, **{**QUICK, "method": "least-squares"}
    )
    assert [of.data_type for of in result.model.graph.initializer] == [kind] * 2
    graph = trace(result.model, x[:2])
    for name, layer in (("first.weight", want.model[0]), ("last.weight", want.model[2])):
        assert torch.equal(graph.parameters[name] == 0, layer.weight == 0)
        torch.testing.assert_close(graph.parameters[name], layer.weight, rtol=0.03, atol=0.03)
    torch.testing.assert_close(
        outputs(result.model, {"input": x}).float(), want.model(x), rtol=0.05, atol=0.05
    )
    assert open_model(model).precision == half


@pytest.mark.parametrize("kind", ["standard", "of ONNX Runtime", "fused"])
def test_attention_in_one_operation_is_left_whole_and_layers_around_it_are_pruned(kind) -> None:
    generator = torch.Generator().manual_seed(10)
    build = Builder(5, 8)

    def hold(*shape: int, name: str) -> str:
        return build.hold(torch.randn(shape, generator=generator) / 3, f"{name}.weight")

    theirs = {"domain": "com.microsoft", "num_heads": 2}
    if kind == "fused":
        x = build.node("Attention", "input", hold(8, 24, name="qkv"), hold(24, name="b"), **theirs)
    else:
        parts = [build.node("MatMul", "input", hold(8, 8, name=name)) for name in "qkv"]
        own = {"q_num_heads": 2, "kv_num_heads": 2}
        x = (
            build.node("Attention", *parts, **own)
            if kind == "standard"
            else build.node("MultiHeadAttention", *parts, **theirs)
        )
    x = build.node("MatMul", x, hold(8, 4, name="out"))
    x = build.node("ReduceMean", x, build.hold(np.array([1])), keepdims=0)
    domains = [] if kind == "standard" else [helper.make_opsetid("com.microsoft", 1)]
    model = build.model(x, opset=23, ir_version=10, domains=domains)
    try:
        secateur.inspect(model)
    except secateur.ModelError as error:
        pytest.skip(f"the installed ONNX Runtime does not run it: {error}"[:200])
    data = torch.randn(40, 5, 8, generator=generator)
    report = secateur.prune(model, data, sparsity=0.5, **QUICK).report
    names = [layer.name for layer in report.layers]
    assert names == (["out"] if kind == "fused" else ["q", "k", "v", "out"])
    reasons = {layer.name: layer.reason for layer in report.dense_layers}
    assert (reasons.get("qkv") == "fused by ONNX Runtime") == (kind == "fused")
