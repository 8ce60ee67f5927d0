"""ONNX models made ready for NNCF, and what it makes of them made ready for ONNX Runtime."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, version_converter
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from secateur.errors import ModelError
from secateur.frontends.onnx.file import first_line, inlined
from secateur.frontends.onnx.nodes import opset
from secateur.network.batch_norm import bn_scale

_OPSET = 13
_FUSED = ("Relu", "Clip")  # what ONNX Runtime takes into an integer convolution


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
        return version_converter.convert_version(model, _OPSET)
    except Exception as error:  # whatever its converters raise
        raise ModelError(
            f"the ONNX model is of opset {given} and cannot be converted to {_OPSET} "
            f"({first_line(error)}), which INT8 needs: export it with a newer opset"
        ) from error


def _as_ir(model: ModelProto) -> ir.Model:
    try:
        return ir.from_proto(model)
    except Exception as error:  # of types that it does not know, such as maps
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise ModelError(
            f"the ONNX model cannot be rewritten for INT8 ({first_line(reason)}), expected tensors "
            "between its operations: leave out INT8; the other outputs do not need it"
        ) from error


def folded(model: ModelProto) -> ModelProto:
    """A copy that has each BatchNormalization in the convolution that alone feeds it.

    INT8 convolutions give integers only where nothing comes between them and the next
    quantisation. Zeros stay zeros: each output's weights are multiplied by one number.

    Args:
        model: without functions of its own; not changed.
    """
    twin = _as_ir(model)
    LiftConstantsToInitializersPass(size_limit=0)(twin)
    for node in twin.graph:
        conv = _convolution_before(node) if _is(node, "BatchNormalization") else None
        if conv is not None:
            _fold(twin.graph, conv, node)
    RemoveUnusedNodesPass()(twin)
    return ir.to_proto(twin)


def _convolution_before(norm: ir.Node) -> ir.Node | None:
    """The convolution that a BatchNormalization can be folded into."""
    (x, *statistics), y = _inputs(norm), norm.outputs[0]
    conv = x.producer()
    if conv is None or not _is(conv, "Conv"):
        return None
    own = _inputs(conv)[1:]
    fits = (
        list(x.consumers()) == [norm]
        and not x.is_graph_output()
        and not y.is_graph_output()
        and len(norm.outputs) == 1  # one that trains has more
        and not norm.attributes.get_int("training_mode", 0)
        and all(of.is_initializer() for of in [*own, *statistics])
        and all(of.dtype == ir.DataType.FLOAT for of in [*own, *statistics])
        and all(list(of.consumers()) == [conv] for of in own)
    )
    return conv if fits else None


def _fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> None:
    """Writes a BatchNormalization into the convolution before it, which takes its readers."""
    gamma, beta, mean, variance = (_array(of).astype(np.float64) for of in _inputs(norm)[1:])
    weight, *biases = _inputs(conv)[1:]
    scale = bn_scale(gamma, variance, norm.attributes.get_float("epsilon", 1e-5))
    old = _array(weight)
    _put(weight, old * scale.reshape(-1, *[1] * (old.ndim - 1)))
    bias = biases[0] if biases else _new(graph, f"{weight.name}.bias", np.zeros_like(mean))
    _put(bias, (_array(bias) - mean) * scale + beta)
    conv.resize_inputs(3)
    conv.replace_input_with(2, bias)
    norm.outputs[0].replace_all_uses_with(conv.outputs[0])
    graph.remove(norm, safe=True)


def unshared(model: ModelProto) -> ModelProto:
    """A copy in which a constant that a body (If, Loop, Scan) reads is read by bodies only.

    The other readers get a copy of it. NNCF quantises what these multiply with, and takes away the
    float constant; it does not look into bodies.

    Args:
        model: without functions of its own; given back where there is no such constant.
    """
    twin, changed = _as_ir(model), False
    for value in list(twin.graph.initializers.values()):
        outside = [use for use in value.uses() if use.node.graph is twin.graph]
        if value.dtype == ir.DataType.FLOAT and 0 < len(outside) < len(value.uses()):
            own, changed = _new(twin.graph, f"{value.name}'", _array(value)), True
            for use in outside:
                use.node.replace_input_with(use.idx, own)
    return ir.to_proto(twin) if changed else model


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
    twin, layers = _as_ir(model), list[str]()
    for node in twin.graph:
        if not _is(node, "QuantizeLinear") or _size(_inputs(node)[1]) == 1:
            continue
        back = node.outputs[0].consumers()
        readers = [reader for each in back for reader in each.outputs[0].consumers()]
        convolutions = [reader for reader in readers if _is(reader, "Conv")]
        if everywhere or any(map(_is_integer, convolutions)):
            _unite([node, *back])
            layers += [str(conv.outputs[0].name) for conv in convolutions]
    return ir.to_proto(twin), layers


def _is_integer(conv: ir.Node) -> bool:
    """Whether ONNX Runtime makes an integer convolution of one with a quantised input."""
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is not None and not _is(bias.producer(), "DequantizeLinear"):
        return False
    reader = _only_reader(conv)
    while reader is not None and reader.op_type in _FUSED:
        reader = _only_reader(reader)
    return _is(reader, "QuantizeLinear")


def _only_reader(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    return value.consumers()[0] if len(value.uses()) == 1 and not value.is_graph_output() else None


def _unite(pair: list[ir.Node]) -> None:
    """Writes one scale and zero point, which cover all channels, into a quantiser's constants."""
    scale, zero = map(_array, _inputs(pair[0])[1:])
    kind = np.iinfo(zero.dtype)
    low = ((kind.min - zero.astype(np.float64)) * scale).min()
    high = ((kind.max - zero.astype(np.float64)) * scale).max()
    step = np.float32((high - low) / (kind.max - kind.min))
    point = np.clip(np.round(kind.min - low / step), kind.min, kind.max)
    for node in pair:
        node.attributes.pop("axis", None)
        for value, number in zip(_inputs(node)[1:], (step, point), strict=True):
            _put(value, np.asarray(number))


def _is(node: ir.Node | None, kind: str) -> bool:
    """Whether a node is this operation of the ONNX standard."""
    return node is not None and node.op_type == kind and node.domain == ""


def _inputs(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, without optional ones that it leaves out."""
    return [value for value in node.inputs if value is not None]


def _size(value: ir.Value) -> int:
    """How many numbers a constant holds; 1 where it is computed."""
    return 1 if value.const_value is None else value.const_value.size


def _array(value: ir.Value) -> np.ndarray:
    """A constant's numbers."""
    return cast(ir.TensorProtocol, value.const_value).numpy()


def _put(value: ir.Value, array: np.ndarray) -> None:
    """Gives a constant other numbers, of the type that it has; no zero keeps a sign."""
    array = array.astype(_array(value).dtype)
    value.const_value = ir.Tensor(np.asarray(array + array.dtype.type(0)), name=value.name)
    value.shape = ir.Shape(array.shape)


def _new(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A further float32 constant, of a new name like this one."""
    taken = ir.convenience.create_value_mapping(graph)
    while name in taken:
        name += "'"
    tensor = ir.Tensor(array.astype(np.float32), name=name)
    type_ = ir.TensorType(ir.DataType.FLOAT)
    value = ir.Value(name=name, type=type_, shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
