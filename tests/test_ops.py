"""Both front-ends say of an operation what it is, and what they say is what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import samples_of, trace
from onnx_models import Builder, stored
from torch import Tensor, nn

from secateur.network import ops
from secateur.network.graph import Graph
from secateur.network.ops import Op, expanded
from secateur.network.stream import Stream

CHANNELS, SIZE = 6, 4


class Net(nn.Module):
    """A convolution, and then what is given, of (batch, 6, 4, 4)."""

    def __init__(self, forward: Callable[[Net, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, CHANNELS, 1)
        self.given = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.given(self, self.first(x))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def written_into(net: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:4] += 1
    return x


# by what it is: the module's forward, and the nodes that follow a Conv
IN_TORCH: dict[str, tuple[type[Op], Callable[[Any, Tensor], Any]]] = {
    "relu": (ops.Activation, lambda net, x: x.relu()),
    "hardswish": (ops.Activation, lambda net, x: F.hardswish(x)),
    "factor": (ops.Scale, lambda net, x: 2 * x),
    "copy": (ops.Identity, lambda net, x: x.clone() + 1),
    "sum": (ops.Add, lambda net, x: x + x.relu()),
    "weighted sum": (ops.Pointwise, lambda net, x: torch.add(x, x.relu(), alpha=2)),
    "gate": (ops.Multiply, lambda net, x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "difference": (ops.Pointwise, lambda net, x: x - x.relu()),
    "max pooling": (ops.Pooling, lambda net, x: F.max_pool2d(x, 2)),
    "average": (ops.Pooling, lambda net, x: F.adaptive_avg_pool2d(x, 1)),
    "upsampling": (ops.Pooling, lambda net, x: F.interpolate(x, scale_factor=2.0)),
    "mean": (ops.Reduction, lambda net, x: x.mean((2, 3))),
    "largest channel": (ops.Reduction, lambda net, x: x.amax(1, keepdim=True)),
    "padding": (ops.Padding, lambda net, x: F.pad(x, (1, 2, 0, 0, 0, 3))),
    "concatenation": (ops.Concatenate, lambda net, x: torch.cat([x, x.relu()], -3)),
    "flattening": (ops.Reshape, lambda net, x: x.flatten(1)),
    "one more axis": (ops.Reshape, lambda net, x: x.unsqueeze(2)),
    "view": (ops.Reshape, lambda net, x: x.view(x.shape[0], 2, -1)),
    "transposition": (ops.Transpose, lambda net, x: x.transpose(1, -1)),
    "permutation": (ops.Transpose, lambda net, x: x.permute(0, 2, 3, 1)),
    "softmax": (ops.Softmax, lambda net, x: x.softmax(-3)),
    "logarithm of it": (ops.Softmax, lambda net, x: x.log_softmax(1)),
    "layer norm": (ops.LayerNorm, lambda net, x: net.layer_norm(x)),
    "group norm": (ops.GroupNorm, lambda net, x: net.group_norm(x)),
    "batch norm": (ops.BatchNorm, lambda net, x: net.batch_norm(x.relu())),
    "product": (ops.Product, lambda net, x: x @ x.mT),
    "einsum": (ops.Product, lambda net, x: torch.einsum("bchw,bdhw->bcd", x, x)),
    "attention": (
        ops.Attention,
        lambda net, x: F.scaled_dot_product_attention(*[tokens(x)] * 3),
    ),
    "recurrence": (ops.Recurrent, lambda net, x: net.recurrent(tokens(x))[0]),
    "part": (ops.GetItem, lambda net, x: x.split(3, 1)[1]),
    "opposite": (ops.Scale, lambda net, x: -x),
    "fraction": (ops.Scale, lambda net, x: x / 3),
    "rounded fraction": (ops.Activation, lambda net, x: x.div(3, rounding_mode="floor")),
    "expansion": (ops.Expand, lambda net, x: x[:, :, None].expand(-1, -1, 2, -1, -1)),
    "repetition": (ops.Repeat, lambda net, x: x.repeat_interleave(2, 1)),
    "convolution": (ops.Convolution, lambda net, x: net.conv(x)),
    "transposed": (ops.Convolution, lambda net, x: net.up(x)),
    "linear": (ops.Linear, lambda net, x: net.linear(x)),
    "lengths": (ops.Reduction, lambda net, x: x.norm(dim=1)),
    "shape of another": (ops.Reshape, lambda net, x: x.flatten(0, 1).reshape_as(x)),
    "stack": (ops.Concatenate, lambda net, x: torch.stack([x, x.relu()], 2)),
    "rolled": (ops.Scan, lambda net, x: x.roll((1, 2), (1, 3))),
    "places": (ops.Take, lambda net, x: x[:, torch.tensor([[3, 0], [3, 2]])]),
    "replaced": (ops.Insert, written_into),
    "other": (ops.Opaque, lambda net, x: x.sort(1)[0]),
}


def in_torch(name: str) -> tuple[Graph, Tensor]:
    torch.manual_seed(1)
    parts = {
        "layer_norm": nn.LayerNorm([CHANNELS, SIZE, SIZE]),
        "group_norm": nn.GroupNorm(3, CHANNELS),
        "batch_norm": nn.BatchNorm2d(CHANNELS),
        "recurrent": nn.GRU(CHANNELS, 5, batch_first=True),
        "conv": nn.Conv2d(CHANNELS, 4, 3, groups=2),
        "up": nn.ConvTranspose2d(CHANNELS, 4, 2, 2),
        "linear": nn.Linear(SIZE, 5),
    }
    net = Net(IN_TORCH[name][1], **parts).eval().requires_grad_(False)
    for norm in (net.layer_norm, net.group_norm, net.batch_norm):
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = torch.randn(2, 3, SIZE, SIZE)
    return trace(net, x), x


def hold(build: Builder, *shape: int) -> str:
    return build.hold(torch.rand(shape) + 0.5)


def numbers(build: Builder, *values: int) -> str:
    return build.hold(np.array(values))


IN_ONNX: dict[str, tuple[type[Op], Callable[[Builder, str], str]]] = {
    "relu": (ops.Activation, lambda build, x: build.node("Relu", x)),
    "clip": (ops.Activation, lambda build, x: build.node("Clip", x, hold(build), hold(build))),
    "copy": (ops.Identity, lambda build, x: build.node("Relu", build.node("Identity", x))),
    "sum": (ops.Add, lambda build, x: build.node("Add", x, build.node("Relu", x))),
    "gate": (ops.Multiply, lambda build, x: build.node("Mul", x, hold(build, CHANNELS, 1, 1))),
    "difference": (ops.Pointwise, lambda build, x: build.node("Sub", x, build.node("Relu", x))),
    "factor": (ops.Scale, lambda build, x: build.node("Mul", x, hold(build, 1))),
    "fraction": (ops.Scale, lambda build, x: build.node("Div", x, hold(build))),
    "ratio": (ops.Pointwise, lambda build, x: build.node("Div", x, hold(build, CHANNELS, 1, 1))),
    "expansion": (
        ops.Expand,
        lambda build, x: build.node(
            "Expand", build.node("Unsqueeze", x, numbers(build, 1)), numbers(build, 1, 3, 1, 1, 1)
        ),
    ),
    "max pooling": (ops.Pooling, lambda build, x: build.node("MaxPool", x, kernel_shape=[2, 2])),
    "average": (ops.Pooling, lambda build, x: build.node("GlobalAveragePool", x)),
    "upsampling": (
        ops.Pooling,
        lambda build, x: build.node(
            "Resize", x, "", build.hold(np.array([1, 1, 2, 2], np.float32)), mode="nearest"
        ),
    ),
    "mean": (ops.Reduction, lambda build, x: build.node("ReduceMean", x, axes=[-1, 2], keepdims=0)),
    "padding": (
        ops.Padding,
        lambda build, x: build.node("Pad", x, numbers(build, 0, 1, 0, 2, 0, 0, 0, 0)),
    ),
    "concatenation": (ops.Concatenate, lambda build, x: build.node("Concat", x, x, axis=-3)),
    "flattening": (ops.Reshape, lambda build, x: build.node("Flatten", x)),
    "one more axis": (ops.Reshape, lambda build, x: build.node("Unsqueeze", x, numbers(build, 1))),
    "transposition": (
        ops.Transpose,
        lambda build, x: build.node("Transpose", x, perm=[0, 3, 2, 1]),
    ),
    "permutation": (
        ops.Transpose,
        lambda build, x: build.node("Transpose", build.node("Transpose", x)),
    ),
    "softmax": (ops.Softmax, lambda build, x: build.node("Softmax", x, axis=-3)),
    "layer norm": (
        ops.LayerNorm,
        lambda build, x: build.node("LayerNormalization", x, hold(build, SIZE), hold(build, SIZE)),
    ),
    "product": (
        ops.Product,
        lambda build, x: build.node("MatMul", x, build.node("Transpose", x, perm=[0, 1, 3, 2])),
    ),
    "einsum": (
        ops.Product,
        lambda build, x: build.node("Einsum", x, x, equation="bchw,bdhw->bcd"),
    ),
    "part": (
        ops.GetItem,
        lambda build, x: build.node("Split", x, numbers(build, 2, 4), outputs=2, axis=1),
    ),
    "transposed": (
        ops.Convolution,
        lambda build, x: build.node("ConvTranspose", x, hold(build, CHANNELS, 4, 2, 2)),
    ),
    "linear": (ops.Linear, lambda build, x: build.node("MatMul", x, hold(build, SIZE, 5))),
    "left": (ops.Linear, lambda build, x: build.node("MatMul", hold(build, 5, SIZE), x)),
    "other": (ops.Opaque, lambda build, x: build.node("CumSum", x, numbers(build, 1))),
}


def in_onnx(name: str) -> tuple[Graph, Tensor]:
    """With every value an output, so that it can be looked at."""
    torch.manual_seed(1)
    build = Builder(3, SIZE, SIZE)
    first = build.node("Conv", "input", hold(build, CHANNELS, 3, 1, 1))
    IN_ONNX[name][1](build, first)
    made = [output for node in build.nodes for output in node.output]
    x = torch.randn(3, 3, SIZE, SIZE)
    graph = trace(build.model(*made), x)
    return replace(graph, parameters={**stored(build.model(*made)), **graph.parameters}), x


def values_of(graph: Graph, x: Tensor) -> dict[str, Any]:
    every = {op.name for _, op in expanded(graph.ops)} | set(graph.inputs)
    kept = Stream(graph, graph.parameters, dict(samples_of(graph, x).tensors))
    with torch.no_grad():
        kept.advance(len(graph.ops), keep=every)
    return {name: value for name, value in kept.values.items() if name in every}


def affine(value: Tensor, op: Any, held: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    gamma, beta = (1.0 if of is None else held[of].view(shape) for of in (op.gamma, op.beta))
    return value * gamma + (0.0 if op.beta is None else beta)


def reduced(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    ways = x.mean(op.axes, op.keepdims), x.amax(op.axes, op.keepdims), x.norm(2, op.axes)
    return next((way for way in ways if torch.allclose(way, y, atol=1e-5)), ways[0])


def concatenated(op: Any, values: dict[str, Any], y: Tensor, *inputs: Tensor) -> Tensor:
    return (torch.stack if op.stacks else torch.cat)(inputs, op.axis)


def scanned(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    """Rolled as in the case above."""
    assert op.axes == (1, 3)
    return x.roll((1, 2), op.axes)


def taken(op: Any, y: Tensor, x: Tensor) -> Tensor:
    """The places of the case above."""
    places = torch.tensor([3, 0, 3, 2])
    return x.index_select(op.axis, places).unflatten(op.axis, (2,) * op.rank)


def inserted(op: Any, values: dict[str, Any], y: Tensor, x: Tensor, part: Tensor) -> Tensor:
    return x.slice_scatter(part, op.axis, op.start, op.stop)


def softmax(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    return x.softmax(op.axis) if (y >= 0).all() else x.log_softmax(op.axis)


def layer_norm(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    shape = tuple(x.shape[-op.axes :])
    return affine(F.layer_norm(x, shape), op, values, shape)


def group_norm(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    return affine(F.group_norm(x, op.groups), op, values, (-1, 1, 1))


def batch_norm(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    mean, variance = (values[name].view(-1, 1, 1) for name in (op.mean, op.variance))
    return affine((x - mean) / (variance + op.epsilon).sqrt(), op, values, (-1, 1, 1))


def linear(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, *(values[name] for name in op.weights))


def convolution(op: Any, values: dict[str, Any], y: Tensor, x: Tensor) -> Tensor:
    """By the geometry; of a transposed one, which has no such, from the result."""
    if op.transposed:
        return y
    every = torch.arange(op.geometry.count(y))
    found = op.geometry.inputs(x, every, y.shape) @ op.geometry.matrix(values[op.weight]).mT
    found = found if op.bias is None else found + op.geometry.rows(values[op.bias]).unsqueeze(1)
    torch.testing.assert_close(found, op.geometry.outputs(y, every), rtol=1e-4, atol=1e-4)
    return y


# what an operation of a type gives; what a type leaves open is taken from the result
REFERENCES: dict[type[Op], Callable[..., Any]] = {
    ops.Identity: lambda op, values, y, x: x,
    ops.Add: lambda op, values, y, x, other: x + other,
    ops.Multiply: lambda op, values, y, x, other: x * other,
    ops.Reshape: lambda op, values, y, x: x.reshape(y.shape),
    ops.Transpose: lambda op, values, y, x: x.permute(op.permutation),
    ops.Concatenate: concatenated,
    ops.Scan: scanned,
    ops.Take: lambda op, values, y, x: taken(op, y, x),
    ops.Insert: inserted,
    ops.Softmax: softmax,
    ops.Reduction: reduced,
    ops.GetItem: lambda op, values, y, x: x[op.index],
    ops.Product: lambda op, values, y, *factors: torch.einsum(op.equation, *factors),
    ops.Attention: lambda op, values, y, *of: F.scaled_dot_product_attention(*of),
    ops.LayerNorm: layer_norm,
    ops.GroupNorm: group_norm,
    ops.BatchNorm: batch_norm,
    ops.Linear: linear,
    ops.Convolution: convolution,
}


CASES = [(in_torch, name) for name in IN_TORCH] + [(in_onnx, name) for name in IN_ONNX]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_an_operation_is_what_it_is_said_to_be(form, name) -> None:
    kind = (IN_TORCH if form is in_torch else IN_ONNX)[name][0]
    graph, x = form(name)
    values = {**graph.parameters, **values_of(graph, x)}
    found = [op for _, op in expanded(graph.ops)]
    assert kind in {type(op) for op in found}, found
    for op in found:
        reference, result = REFERENCES.get(type(op)), values.get(op.name)
        told = reference is not None and {*op.inputs} <= values.keys()
        if told and result is not None and not isinstance(result, tuple):
            want = reference(op, values, result, *(values[name] for name in op.inputs))
            torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("form", "name"), CASES)
def test_shapes_are_those_of_one_image_and_tell_what_grows(form, name) -> None:
    graph, x = form(name)
    one, three = values_of(graph, x[:1]), values_of(graph, torch.cat([x, x])[:3])
    for key, value in three.items():
        if isinstance(value, Tensor):
            shape = graph.shapes[key]
            assert shape.sizes == tuple(one[key].shape), key
            pairs = zip(one[key].shape, value.shape, strict=True)
            assert shape.growing == tuple(a != b for a, b in pairs), key


@pytest.mark.parametrize("name", ["max pooling", "average", "upsampling"])
@pytest.mark.parametrize("form", [in_torch, in_onnx])
def test_pooling_leaves_each_channel_to_itself(form, name) -> None:
    graph, x = form(name)
    (pooling,) = [op for _, op in expanded(graph.ops) if isinstance(op, ops.Pooling)]
    values = values_of(graph, x)
    index = next(i for i, op in enumerate(graph.ops) if op.name == pooling.name)
    changed = values[pooling.input].clone()
    changed[:, 2] += 1
    after = graph.run(index, {**graph.parameters, **values, pooling.input: changed})
    differs = (after != values[pooling.name]).transpose(0, 1).flatten(1).any(1)
    assert differs.tolist() == [channel == 2 for channel in range(CHANNELS)]


def test_parts_of_a_fused_operation_do_not_run_alone() -> None:
    graph, _ = in_onnx("relu")
    (part,) = [op for _, op in expanded(graph.ops) if isinstance(op, ops.Activation)]
    with pytest.raises(RuntimeError, match="does not run alone"):
        part.run({name: 0 for name in part.reads})


def test_what_is_not_known_is_not_counted_and_said() -> None:
    unknown = ops.Linear(name="y", inputs=("x",), weight="w")
    with pytest.raises(ops.UnknownShapeError):
        unknown.macs({"x": ops.Shape((1, 4))})
    with pytest.raises(ops.UnknownShapeError):
        unknown.macs({"x": ops.Shape((1, 4)), "y": ops.Shape((0, 4))})
    assert unknown.macs({"x": ops.Shape((1, 4)), "y": ops.Shape((1, 5))}) == 20
