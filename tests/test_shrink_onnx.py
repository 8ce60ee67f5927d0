"""ONNX models without some channels: what ONNX Runtime gives for them is what masked ones give."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from inputs import samples_of, trace
from onnx import ModelProto
from onnx_models import Builder, as_onnx, network
from test_carrying import NETWORKS as MOVING
from test_couplings import NETWORKS, chosen, free, traced
from torch import Tensor, nn

from secateur import ModelError, frontends
from secateur.network.couplings import find_couplings, gone
from secateur.network.samples import Samples


def check_shrunk(model: ModelProto, x: Tensor, seed: int = 0) -> ModelProto:
    """A model without some of its units; the front-end compares it with the masked one."""
    graph, before = trace(model, x), model.SerializeToString()
    removed = [(coupling, chosen(coupling, random.Random(seed), 1)) for coupling in free(graph)]
    smaller = frontends.open(model).shrunk(removed, samples_of(graph, x)).model
    assert model.SerializeToString() == before
    found, whole = floats(smaller), floats(model)
    for name, axes in gone(removed).items():
        assert found[name] < whole[name] or not axes
    return smaller


def floats(model: ModelProto) -> dict[str, int]:
    """How many numbers each constant holds."""
    held = frontends.open(model).tensors()
    return {name: tensor.numel() for name, tensor in held.items()}


@pytest.mark.parametrize("name", ["squeeze and excite", "shuffled", "attention", "u-net"])
def test_exported_networks_shrink(name) -> None:
    module, _ = NETWORKS[name]
    _, x = traced(module)
    check_shrunk(frontends.open(module).to_onnx(x), x)


def test_channels_that_a_transposed_convolution_makes_can_leave() -> None:
    module, _ = NETWORKS["u-net"]
    _, x = traced(module)
    couplings = find_couplings(trace(frontends.open(module).to_onnx(x), x))
    assert sorted(of.units for of in couplings if of.fixed is None) == [4, 5]
    assert any("transposed convolution" in (of.fixed or "") for of in couplings)


@pytest.mark.parametrize("name", ["padded shortcut", "added in place", "looked up", "windows"])
def test_exported_networks_that_move_channels_about_shrink(name) -> None:
    module, *_ = MOVING[name]
    _, x = traced(module)
    check_shrunk(frontends.open(module).to_onnx(x), x, 1)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_networks_made_by_hand_shrink(opset) -> None:
    x = torch.randn(3, 3, 11, 11)
    check_shrunk(as_onnx(network(), opset=opset), x)


class Small(Builder):
    """A graph of (n, 3, 5, 5): a convolution, what is given, a convolution, and its means."""

    def __init__(self) -> None:
        super().__init__(3, 5, 5)
        torch.manual_seed(0)

    def conv(self, x: str, into: int, out: int, name: str, **more: Any) -> str:
        return self.convolution(x, nn.Conv2d(into, out, 1, **more), name)

    def finished(self, x: str, into: int, **more: Any) -> ModelProto:
        x = self.node("GlobalAveragePool", self.conv(x, into, 2, "last"))
        return self.model(self.node("Flatten", x), **more)


def integers(build: Small, *values: int) -> str:
    return build.hold(torch.tensor(values))


def split(build: Small, x: str) -> tuple[str, int]:
    a = build.node("Split", x, integers(build, 3, 5), outputs=2, axis=1)
    return build.node("Concat", f"{a[:-1]}b", a, axis=1), 8


def even(build: Small, x: str) -> tuple[str, int]:
    a = build.node("Split", x, outputs=2, axis=1)
    return build.node("Mul", a, build.node("Sigmoid", f"{a[:-1]}b")), 4


def sliced(build: Small, x: str) -> tuple[str, int]:
    bounds = [integers(build, of) for of in (2, 7, 1)]
    return build.node("Slice", x, *bounds), 5


def depthwise(build: Small, x: str) -> tuple[str, int]:
    return build.conv(x, 8, 16, "depthwise", groups=8), 16


def sized(build: Small, x: str) -> tuple[str, int]:
    sizes = integers(build, 1, 8, 10, 10)
    return build.node("Resize", x, "", "", sizes, mode="nearest"), 8


def per_channel(build: Small, x: str) -> tuple[str, int]:
    slope = build.constant(torch.rand(8, 1, 1))
    x = build.node("PRelu", build.node("Mul", x, build.hold(torch.rand(1, 8, 1, 1))), slope)
    half = build.node("Mul", x, build.hold(torch.tensor(0.5)))
    scale = build.node("Reshape", build.hold(torch.rand(8), "scale"), integers(build, 1, 8, 1, 1))
    return build.node("Add", half, scale), 8


def shared_shape(build: Small, x: str) -> tuple[str, int]:
    """A shape that serves two values, of which one gets smaller."""
    shape = integers(build, -1, 8, 25)
    other = build.node("Reshape", build.node("Concat", *["input"] * 3, axis=1), "nine")
    build.hold(torch.tensor([-1, 9, 25]), "nine")
    mean = build.node("ReduceMean", other, axes=[1, 2], keepdims=1)
    x = build.node("Add", build.node("Reshape", x, shape), mean)
    return build.node("Reshape", x, integers(build, 0, 0, 5, 5)), 8


def joined_shape(build: Small, x: str) -> tuple[str, int]:
    """A shape made of the number of images and constants."""
    batch = build.node("Gather", build.node("Shape", x), build.hold(torch.tensor([0])))
    eight, rest = build.hold(torch.tensor(8)), integers(build, -1)
    eight = build.node("Unsqueeze", eight, integers(build, 0))
    shape = build.node("Concat", batch, eight, rest, axis=0)
    x = build.node("Relu", build.node("Reshape", x, shape))
    back = build.node("Concat", batch, integers(build, 8, 5, 5), axis=0)
    return build.node("Reshape", x, back), 8


def group_norm(build: Small, x: str) -> tuple[str, int]:
    held = [build.hold(torch.rand(8)) for _ in range(2)]
    x = build.node("InstanceNormalization", x, *held)
    return build.node("GroupNormalization", x, *held, num_groups=8), 8


PARTS = {
    of.__name__: of
    for of in (split, even, sliced, depthwise, sized, per_channel, shared_shape, joined_shape)
}


def built(part: Callable[[Small, str], tuple[str, int]], **more: Any) -> ModelProto:
    build = Small()
    x, width = part(build, build.node("Relu", build.conv("input", 3, 8, "first")))
    return build.finished(x, width, **more)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", PARTS)
def test_sizes_that_nodes_hold_are_mended(name, opset) -> None:
    x, model = torch.randn(3, 3, 5, 5), built(PARTS[name], opset=opset)
    for seed in range(3):
        smaller = check_shrunk(model, x, seed)
    assert floats(smaller)["first.weight"] < floats(model)["first.weight"]


def test_normalisations_of_a_group_a_channel_are_mended() -> None:
    check_shrunk(built(group_norm, opset=21), torch.randn(3, 3, 5, 5))


def test_what_is_known_of_values_is_inferred_anew() -> None:
    model = onnx.shape_inference.infer_shapes(built(depthwise))
    smaller = check_shrunk(model, torch.randn(3, 3, 5, 5), 1)
    onnx.checker.check_model(smaller, full_check=True)
    assert smaller.graph.value_info


def test_a_number_of_channels_that_is_computed_with_keeps_them() -> None:
    def computing(build: Small, x: str) -> tuple[str, int]:
        count = build.node("Gather", build.node("Shape", x), integers(build, 1))
        return build.node("Div", x, build.node("Cast", count, to=1)), 8

    graph = trace(built(computing), torch.randn(3, 3, 5, 5))
    assert free(graph) == []
    assert any("computes with their number" in (of.fixed or "") for of in find_couplings(graph))


def test_couplings_of_another_network_are_refused() -> None:
    x = torch.randn(3, 3, 5, 5)
    (coupling, *_) = free(trace(built(depthwise), x))
    other = frontends.open(as_onnx(network()))
    with pytest.raises(ModelError, match="which this network does not have"):
        other.shrunk([(coupling, [0])], Samples({"input": torch.randn(2, 3, 11, 11)}))
