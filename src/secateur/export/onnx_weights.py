"""What the layers of an ONNX file multiply with, however it is stored, quantised or not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from secateur.frontends.onnx.file import constants, inlined, reads
from secateur.frontends.onnx.nodes import Nodes, is_node, leading_to
from secateur.frontends.onnx.runtime import call, start

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def layer_weights(model: ModelProto) -> dict[str, np.ndarray]:
    """The constant matrix or kernel of each layer, as the layer multiplies with it.

    Integers that are scaled back (DequantizeLinear), transposed ones and whatever else depends on
    constants only are computed by ONNX Runtime.

    Args:
        model: as `read` gives it.

    Returns:
        Float arrays by the name of the value that the layer makes.
    """
    model = inlined(model)
    nodes = Nodes(model)
    operands = {
        node.output[0]: name
        for node in nodes.nodes
        if any(is_node(node, kind) for kind in _LAYERS)
        for name in node.input[:2]
        if name in nodes.fixed and not nodes.is_fixed(node)
    }
    values = constant_values(model, set(operands.values()))
    found = {layer: values[name] for layer, name in operands.items()}
    return {layer: array for layer, array in found.items() if array.ndim > 1}


def constant_values(model: ModelProto, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Values that depend on constants only, by name."""
    held = constants(model.graph)
    stored = {name: held[name] for name in names if name in held}
    found = {name: onnx.numpy_helper.to_array(of) for name, of in stored.items()}
    computed = sorted(set(names) - set(stored))
    if computed:
        results = call(start(_part(model, computed)), {}, computed)
        found.update(zip(computed, results, strict=True))
    return found


def _part(model: ModelProto, names: list[str]) -> ModelProto:
    """The part of a model that makes some values, which are its outputs; it has no inputs."""
    nodes = leading_to(names, model.graph.node)
    read = {*names, *(name for node in nodes for name in reads(node))}
    graph = helper.make_graph(
        nodes,
        "constants",
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [held for held in model.graph.initializer if held.name in read],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
