"""What an INT8 model needs beyond what NNCF makes, so that ONNX Runtime runs it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from secateur.frontends.onnx.file import reads
from secateur.frontends.onnx.nodes import Nodes, is_node

_FUSED = ("Relu", "Clip")  # what ONNX Runtime takes into an integer convolution


def unshared(model: ModelProto) -> ModelProto:
    """A copy in which a constant that a body (If, Loop, Scan) reads is read by bodies only.

    The other readers get a copy of it. NNCF quantises what these multiply with, and takes away the
    float constant; it does not look into bodies.

    Args:
        model: without functions of its own; not changed.
    """
    twin = ModelProto()
    twin.CopyFrom(model)
    nodes = Nodes(twin)
    inner = {name for node in twin.graph.node for name in _read_inside(node)}
    for held in list(twin.graph.initializer):
        if held.name not in inner or held.data_type != TensorProto.FLOAT:
            continue
        readers = [node for node in twin.graph.node if held.name in node.input]
        if not readers:
            continue
        again = twin.graph.initializer.add()
        again.CopyFrom(held)
        again.name = nodes.fresh(held.name)
        for node in readers:
            node.input[:] = [again.name if name == held.name else name for name in node.input]
    return twin


def one_scale(model: ModelProto, *, everywhere: bool = False) -> tuple[ModelProto, list[str]]:
    """A copy with one scale for the whole input of layers that are integer convolutions.

    NNCF gives the input of a depthwise convolution a scale and a zero point per channel.
    QLinearConv, which ONNX Runtime makes of a convolution between DequantizeLinear and
    QuantizeLinear, takes a single one by the ONNX standard, and fails at the first run. A
    convolution with a float bias, or with anything but Relu or Clip before the next QuantizeLinear,
    stays a float one, with a scale per channel. The single scale covers the range of all channels.

    Args:
        model: from NNCF; not changed.
        everywhere: whether all inputs get one scale, whatever reads them.

    Returns:
        The copy, and names of the values that the layers concerned make.
    """
    twin = ModelProto()
    twin.CopyFrom(model)
    nodes, layers = Nodes(twin), []
    for node in nodes.nodes:
        if not is_node(node, "QuantizeLinear") or _size(nodes, node.input[1]) == 1:
            continue
        back = _readers(nodes, node)
        convolutions = [of for each in back for of in _readers(nodes, each) if is_node(of, "Conv")]
        if everywhere or any(_is_integer(nodes, of) for of in convolutions):
            _unite(nodes, [node, *back])
            layers += [of.output[0] for of in convolutions]
    return twin, layers


def _read_inside(node: NodeProto) -> set[str]:
    """The values that a node's bodies read."""
    return set(reads(node)) - set(node.input)


def _readers(nodes: Nodes, node: NodeProto) -> list[NodeProto]:
    return [nodes.nodes[index] for index in nodes.readers.get(node.output[0], ())]


def _size(nodes: Nodes, name: str) -> int:
    """How many numbers a constant holds; 1 where it is computed."""
    return int(np.prod(nodes.constants[name].dims)) if name in nodes.constants else 1


def _is_integer(nodes: Nodes, conv: NodeProto) -> bool:
    """Whether ONNX Runtime makes an integer convolution of one with a quantised input."""
    bias = conv.input[2] if len(conv.input) > 2 else ""
    if bias and not _is_made_by(nodes, bias, "DequantizeLinear"):
        return False
    index = nodes.only_reader(conv.output[0])
    while index is not None and nodes.nodes[index].op_type in _FUSED:
        index = nodes.only_reader(nodes.nodes[index].output[0])
    return index is not None and is_node(nodes.nodes[index], "QuantizeLinear")


def _is_made_by(nodes: Nodes, name: str, kind: str) -> bool:
    return name in nodes.makers and is_node(nodes.nodes[nodes.makers[name]], kind)


def _unite(nodes: Nodes, pair: list[NodeProto]) -> None:
    """Writes one scale and zero point, which cover all channels, into a quantiser's constants."""
    scale, zero = (onnx.numpy_helper.to_array(nodes.constants[of]) for of in pair[0].input[1:3])
    kind = np.iinfo(zero.dtype)
    low = ((kind.min - zero.astype(np.float64)) * scale).min()
    high = ((kind.max - zero.astype(np.float64)) * scale).max()
    step = np.float32((high - low) / (kind.max - kind.min))
    point = np.clip(np.round(kind.min - low / step), kind.min, kind.max).astype(zero.dtype)
    for node in pair:
        for name, value in zip(node.input[1:3], (step, point), strict=True):
            nodes.constants[name].CopyFrom(onnx.numpy_helper.from_array(np.array(value), name))
        axis = [of for of in node.attribute if of.name == "axis"]
        for attribute in axis:
            node.attribute.remove(attribute)
