"""An ONNX model made ready for INT8: newer operations, normalisations folded into convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto, TensorProto

from secateur.errors import ModelError
from secateur.frontends.onnx.file import constants, first_line, inlined, reads
from secateur.frontends.onnx.nodes import Nodes, is_node, opset, option

_OPSET = 13


def folded(model: ModelProto) -> ModelProto:
    """A copy that has each BatchNormalization in the convolution that alone feeds it.

    INT8 convolutions give integers only where nothing comes between them and the next
    quantisation. Zeros stay zeros: each output's weights are multiplied by one number. The
    convolution's output keeps its name, and stands where the normalisation's stood.

    Args:
        model: without functions of its own; not changed.
    """
    twin = ModelProto()
    twin.CopyFrom(model)
    nodes = Nodes(twin)
    renamed: dict[str, str] = {}
    for index, node in enumerate(nodes.nodes):
        if is_node(node, "BatchNormalization") and _fold(twin, nodes, index, node):
            renamed[node.output[0]] = node.input[0]
    left = [node for node in twin.graph.node if node.output[0] not in renamed]
    for node in left:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    nodes_left = [NodeProto.FromString(node.SerializeToString()) for node in left]
    del twin.graph.node[:]
    twin.graph.node.extend(nodes_left)
    read = {name for node in nodes_left for name in reads(node)} | set(nodes.outputs)
    unread = [held for held in twin.graph.initializer if held.name not in read]
    for held in unread:
        twin.graph.initializer.remove(held)
    return twin


def _fold(model: ModelProto, nodes: Nodes, index: int, norm: NodeProto) -> bool:
    """Writes a normalisation into its convolution; False where that cannot be done."""
    maker = nodes.makers.get(norm.input[0])
    if maker is None or nodes.only_reader(norm.input[0]) != index:
        return False
    conv, held = nodes.nodes[maker], constants(model.graph)
    names = [*norm.input[1:5], *conv.input[1:3]]
    own = conv.input[1:3]
    fits = (
        is_node(conv, "Conv")
        and norm.output[0] not in nodes.outputs
        and not option(norm, "training_mode", 0)
        and all(name in held and held[name].data_type == TensorProto.FLOAT for name in names)
        and all(nodes.users(name) == [maker] for name in own)
    )
    if not fits:
        return False
    gamma, beta, mean, variance, weight, *bias = (
        onnx.numpy_helper.to_array(held[name]).astype(np.float64) for name in names
    )
    slope = gamma / np.sqrt(variance + option(norm, "epsilon", 1e-5))
    shift = beta + ((bias[0] if bias else 0.0) - mean) * slope
    _put(held[own[0]], weight * slope.reshape(-1, *[1] * (weight.ndim - 1)))
    if bias:
        _put(held[own[1]], shift)
    else:
        name = nodes.fresh(f"{own[0]}.bias")
        model.graph.initializer.append(onnx.numpy_helper.from_array(shift.astype(np.float32), name))
        conv.input[:] = [*conv.input[:2], name]
    return True


def _put(stored: TensorProto, values: np.ndarray) -> None:
    stored.ClearField("float_data")
    stored.raw_data = (values + 0.0).astype("<f4").tobytes()  # no negative zeros


def upgraded(model: ModelProto) -> ModelProto:
    """A model without functions of its own, and of opset 13 at least; itself where it is so.

    That is the first opset with a scale per output.

    Raises:
        ModelError: onnx cannot convert it.
    """
    model = inlined(model)
    given = opset(model)
    if given >= _OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _OPSET)
    except Exception as error:  # whatever its converters raise
        raise ModelError(
            f"the ONNX model is of opset {given} and cannot be converted to {_OPSET} "
            f"({first_line(error)}), which INT8 needs: export it with a newer opset"
        ) from error
