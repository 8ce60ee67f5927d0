"""Small ONNX models built by hand, and networks in both forms, shared by the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Builder:
    """Collects nodes; each call gives the name of the value that it makes."""

    def __init__(self, *shape: int, batch: int | str = "n") -> None:
        self.nodes: list[Any] = []
        self.initializers: list[TensorProto] = []
        self.functions: list[Any] = []
        sizes = [batch, *shape]
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, sizes)

    def hold(self, value: Any, name: str = "") -> str:
        """An initializer."""
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = name or f"constant{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def constant(self, value: Tensor) -> str:
        """A Constant node."""
        return self.node("Constant", value=onnx.numpy_helper.from_array(value.numpy()))

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{kind.lower()}{len(self.nodes)}{'abc'[index]}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def convolution(self, x: str, module: nn.Module, name: str, **attributes: Any) -> str:
        weights = [self.hold(module.weight, f"{name}.weight")]
        if module.bias is not None:
            weights.append(self.hold(module.bias, f"{name}.bias"))
        pads = list(module.padding) * 2
        return self.node(
            "Conv",
            x,
            *weights,
            **{
                "strides": list(module.stride),
                "pads": pads,
                "dilations": list(module.dilation),
                "group": module.groups,
                **attributes,
            },
        )

    def normalisation(self, x: str, module: nn.Module, name: str) -> str:
        kept = ("weight", "bias", "running_mean", "running_var")
        held = [self.hold(getattr(module, key), f"{name}.{key}") for key in kept]
        return self.node("BatchNormalization", x, *held, epsilon=module.eps)

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        held = [self.hold(module.weight, f"{name}.weight"), self.hold(module.bias, f"{name}.bias")]
        return self.node("Gemm", x, *held, transB=1)

    def model(self, *outputs: str, opset: int = 17, **more: Any) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [self.input],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", opset), *more.pop("domains", [])]
        inferred = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, functions=self.functions, opset_imports=opsets)
        )
        kinds = {
            value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)
        }
        for output in graph.output:
            output.CopyFrom(kinds[output.name])
            output.type.tensor_type.elem_type = output.type.tensor_type.elem_type or 1
            output.type.tensor_type.shape.SetInParent()
        return helper.make_model(
            graph,
            functions=self.functions,
            opset_imports=opsets,
            ir_version=more.pop("ir_version", 8),
            **more,
        )


class Net(nn.Module):
    """Convolutions of all kinds: with a BatchNorm, depthwise, grouped, a shortcut, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.last, self.scale = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.stem(x)).relu())
        x = (self.grouped(x) + x).relu()
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(self.scale(self.last(x)).relu().mean((2, 3)))


def network(seed: int = 0) -> Net:
    """With statistics like those of a trained network."""
    torch.manual_seed(seed)
    net = Net().eval().requires_grad_(False)
    for norm in (net.norm, net.scale):
        for tensor, low, high in (
            (norm.weight, -1.5, 1.5),
            (norm.bias, -1, 1),
            (norm.running_mean, -1, 1),
            (norm.running_var, 0.5, 2),
        ):
            tensor.uniform_(low, high)
    return net


def folded(net: Net) -> Net:
    """The same function, the normalisations in the convolutions."""
    twin = network()
    twin.load_state_dict(net.state_dict())
    twin.stem, twin.norm = fuse_conv_bn_eval(net.stem, net.norm), nn.Identity()
    twin.last, twin.scale = fuse_conv_bn_eval(net.last, net.scale), nn.Identity()
    return twin.requires_grad_(False)


def as_onnx(net: Net, *, size: int = 11, batch: int | str = "n", **more: Any) -> ModelProto:
    """The network as ONNX; a normalisation that is none (folded) is left out."""
    build = Builder(3, size, size, batch=batch)
    x = build.convolution("input", net.stem, "stem")
    x = build.normalisation(x, net.norm, "norm") if isinstance(net.norm, nn.BatchNorm2d) else x
    x = build.convolution(build.node("Relu", x), net.depthwise, "depthwise")
    x = build.node("Relu", build.node("Add", build.convolution(x, net.grouped, "grouped"), x))
    gate = build.convolution(build.node("GlobalAveragePool", x), net.gate, "gate")
    x = build.node("Mul", x, build.node("Sigmoid", gate))
    x = build.convolution(x, net.last, "last")
    x = build.normalisation(x, net.scale, "scale") if isinstance(net.scale, nn.BatchNorm2d) else x
    x = build.node("GlobalAveragePool", build.node("Relu", x))
    return build.model(build.linear(build.node("Flatten", x), net.head, "head"), **more)


def stored(model: ModelProto) -> dict[str, Tensor]:
    """A model's initializers."""
    held = model.graph.initializer
    return {of.name: torch.from_numpy(onnx.numpy_helper.to_array(of).copy()) for of in held}
