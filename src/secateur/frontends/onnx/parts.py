"""What the nodes are that ONNX Runtime runs: the same typed operations as in other front-ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import NodeProto

from secateur.frontends.onnx.file import reads
from secateur.frontends.onnx.nodes import Nodes, option
from secateur.frontends.onnx.translation import Left, Translation, convolution_geometry
from secateur.network.ops import (
    Activation,
    Add,
    Attention,
    Concatenate,
    Convolution,
    FusedAttention,
    GetItem,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    Multiply,
    Op,
    Opaque,
    Padding,
    Pointwise,
    Pooling,
    Product,
    Recurrent,
    Reduction,
    Reshape,
    Shapes,
    Softmax,
    Transpose,
)

_QUANTISED, _FUSED = "quantised", "fused by ONNX Runtime"


@dataclass(frozen=True)
class _Typed:
    """What a node is: the type of operation, the values that it computes with, other fields."""

    kind: type[Op]
    inputs: Sequence[str]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """Describes nodes.

    Attributes:
        translation: of the model that they are in.
        shapes: of values and constants, as far as they are known.
    """

    translation: Translation
    shapes: Shapes

    def ops(self, numbers: Sequence[int]) -> Iterator[Op]:
        """Nodes as operations; one of several outputs is followed by what takes it apart."""
        for index in numbers:
            node = self.nodes.nodes[index]
            outputs = [name for name in node.output if name]
            single = list(node.output[:1]) == outputs
            name = outputs[0] if single else self.nodes.fresh(outputs[0])
            yield self._op(name, node, index, single)
            if not single:
                numbered = [(at, of) for at, of in enumerate(node.output) if of]
                yield from (GetItem(name=of, inputs=(name,), index=at) for at, of in numbered)

    @property
    def nodes(self) -> Nodes:
        """Look-ups."""
        return self.translation.nodes

    def _op(self, name: str, node: NodeProto, index: int, single: bool) -> Op:
        standard = node.domain in ("", "ai.onnx", "com.microsoft")
        described = standard and (single or node.op_type in _RECURRENT)
        make = _MAKERS.get(node.op_type) if described else None
        typed = make(self, node, self.translation.left.get(index)) if make else None
        typed = typed or _Typed(Opaque, list(node.input), {})
        op = typed.kind(
            name=name,
            inputs=tuple(name for name in typed.inputs if name),
            operation=node.op_type,
            label=node.name or name,
            **typed.settings,
        )
        return replace(op, others=tuple(of for of in reads(node) if of not in op.reads))

    def rank(self, name: str) -> int | None:
        """How many axes a value has; None where that is not known."""
        return len(self.shapes[name].sizes) if name in self.shapes else None

    def axis(self, node: NodeProto, default: int) -> int | None:
        """The axis that a node names, counted from the first one."""
        rank = self.rank(node.input[0])
        return None if rank is None else option(node, "axis", default) % max(1, rank)

    def integers(self, node: NodeProto, at: int, name: str) -> list[int] | None:
        """Integers that are an attribute or, since a later opset, an input; None = not known."""
        if len(node.input) > at and node.input[at]:
            held = node.input[at]
            return self.nodes.integers(held) if held in self.nodes.constants else None
        return option(node, name, [])


Maker = Callable[[Parts, NodeProto, Left | None], _Typed | None]


def _one_input(kind: type[Op]) -> Maker:
    return lambda parts, node, left: _Typed(kind, node.input[:1], {})


def _all_inputs(kind: type[Op]) -> Maker:
    return lambda parts, node, left: _Typed(kind, node.input, {})


def _convolution(reason: str, *, x: int = 0, weight: int = 1) -> Maker:
    """A convolution that stays as it is."""

    def make(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
        name = (left and left.weight) or parts.nodes.source(node.input[weight])[0]
        name = name if name in parts.nodes.constants else node.input[weight]
        shape = parts.shapes.get(name)
        settings = {
            "weight": name,
            "geometry": convolution_geometry(node, shape.sizes[2:] if shape else ()),
            "transposed": node.op_type == "ConvTranspose",
            "obstacle": left.reason if left else reason,
        }
        return _Typed(Convolution, [node.input[x]], settings)

    return make


def _product(reason: str = "", *, other: int = 1) -> Maker:
    """A product of matrices that stays as it is."""

    def make(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
        a, b = node.input[0], node.input[other]
        first = "ji" if option(node, "transA", 0) else "ij"
        second = "kj" if option(node, "transB", 0) else "jk"
        if left and b in parts.nodes.fixed and first == "ij":
            held = left.weight if left.weight in parts.nodes.constants else b
            return _Typed(Linear, [a], {"weight": held, "obstacle": left.reason})
        first, second = (
            "j" if parts.rank(name) == 1 else f"...{axes}"
            for name, axes in ((a, first), (b, second))
        )
        kept = [axes.strip(".j") for axes in (first, second)]
        obstacle = left.reason if left else reason
        settings = {"obstacle": obstacle} if obstacle else {}
        return _Typed(
            Product, [a, b], {"equation": f"{first},{second}->...{''.join(kept)}", **settings}
        )

    return make


def _packed_product(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
    return _Typed(Linear, node.input[:1], {"weight": node.input[1], "obstacle": _QUANTISED})


def _einsum(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
    return _Typed(Product, node.input, {"equation": option(node, "equation", b"").decode()})


def _attention(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
    """Of three inputs; ONNX Runtime's makes all three of one."""
    if node.domain in ("", "ai.onnx") or node.op_type == "MultiHeadAttention":
        return _Typed(Attention, node.input[:3], {})
    widths = option(node, "qkv_hidden_sizes", None)
    reason = _QUANTISED if node.op_type == "QAttention" else _FUSED
    settings = {"weight": node.input[1], "widths": widths and tuple(widths), "obstacle": reason}
    return _Typed(FusedAttention, node.input[:1], settings)


def _recurrent(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
    matrices = tuple(parts.nodes.source(name)[0] for name in node.input[1:3])
    return _Typed(Recurrent, node.input[:1], {"matrices": matrices})


def _layer_norm(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    axis, rank = parts.axis(node, -1), parts.rank(node.input[0])
    if axis is None or rank is None:
        return None
    gamma, beta = (*node.input[1:3], "", "")[:2]
    settings = {"gamma": gamma or None, "beta": beta or None, "axes": rank - axis}
    return _Typed(LayerNorm, node.input[:1], settings)


def _group_norm(parts: Parts, node: NodeProto, left: Left | None) -> _Typed:
    gamma, beta = node.input[1:3]
    settings = {"gamma": gamma, "beta": beta, "groups": option(node, "num_groups", 1)}
    return _Typed(GroupNorm, node.input[:1], settings)


def _concatenate(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    axis = parts.axis(node, 0)
    return None if axis is None else _Typed(Concatenate, node.input, {"axis": axis})


def _softmax(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    """Along one axis; before opset 13 along all from one on, where it has no type."""
    axis, rank = parts.axis(node, -1 if parts.nodes.opset >= 13 else 1), parts.rank(node.input[0])
    if axis is None or (parts.nodes.opset < 13 and axis + 1 != rank):
        return None
    return _Typed(Softmax, node.input[:1], {"axis": axis})


def _transpose(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    permutation = option(node, "perm", None)
    if permutation is None and (rank := parts.rank(node.input[0])) is not None:
        permutation = range(rank - 1, -1, -1)
    if permutation is None:
        return None
    return _Typed(Transpose, node.input[:1], {"permutation": tuple(permutation)})


def _reduction(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    axes, rank = parts.integers(node, 1, "axes"), parts.rank(node.input[0])
    if axes is None or rank is None or option(node, "noop_with_empty_axes", 0):
        return None
    chosen = tuple(sorted(axis % rank for axis in axes or range(rank)))
    settings = {"axes": chosen, "keepdims": bool(option(node, "keepdims", 1))}
    return _Typed(Reduction, node.input[:1], settings)


def _resizing(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    """Of the axes behind the channels."""
    before, after = (parts.shapes.get(name) for name in (node.input[0], node.output[0]))
    if before is None or after is None or before.sizes[:2] != after.sizes[:2]:
        return None
    return _Typed(Pooling, node.input[:1], {})


def _padding(parts: Parts, node: NodeProto, left: Left | None) -> _Typed | None:
    pads, rank = parts.integers(node, 1, "pads"), parts.rank(node.input[0])
    some = len(node.input) > 3 and node.input[3]  # only some axes are named
    if pads is None or rank is None or some or len(pads) != 2 * rank:
        return None
    axes = tuple(axis for axis in range(rank) if pads[axis] or pads[axis + rank])
    return _Typed(Padding, node.input[:1], {"axes": axes})


def _each(make: Maker, names: str) -> dict[str, Maker]:
    return dict.fromkeys(names.split(), make)


_RECURRENT = ("LSTM", "GRU", "RNN")
_MAKERS: dict[str, Maker] = {
    "Conv": _convolution(""),
    "ConvTranspose": _convolution("transposed convolution"),
    "DeformConv": _convolution("deformable convolution"),
    "ConvInteger": _convolution(_QUANTISED),
    "QLinearConv": _convolution(_QUANTISED, weight=3),
    "FusedConv": _convolution(_FUSED),
    "Gemm": _product(),
    "MatMul": _product(),
    "FusedGemm": _product(_FUSED),
    "FusedMatMul": _product(_FUSED),
    "MatMulInteger": _product(_QUANTISED),
    "QLinearMatMul": _product(_QUANTISED, other=3),
    "MatMulNBits": _packed_product,
    "Einsum": _einsum,
    **_each(_attention, "Attention QAttention MultiHeadAttention"),
    **_each(_recurrent, "LSTM GRU RNN"),
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "Concat": _concatenate,
    **_each(_softmax, "Softmax LogSoftmax"),
    "Transpose": _transpose,
    "Pad": _padding,
    **_each(_resizing, "Resize Upsample"),
    **_each(_reduction, "ReduceMean ReduceSum ReduceMax ReduceMin"),
    **_each(_one_input(Reshape), "Reshape Flatten Squeeze Unsqueeze"),
    **_each(_one_input(Identity), "Identity Dropout"),
    **_each(_one_input(Pooling), "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool"),
    **_each(_all_inputs(Add), "Add Sum"),
    **_each(_all_inputs(Multiply), "Mul"),
    **_each(_all_inputs(Pointwise), "Sub Div Pow Max Min Mean Where PRelu Mod And Or Xor Equal"),
    **_each(_all_inputs(Pointwise), "Greater Less GreaterOrEqual LessOrEqual"),
    **_each(_one_input(Activation), "Relu LeakyRelu Elu Selu Celu Gelu Mish Clip ThresholdedRelu"),
    **_each(_one_input(Activation), "Sigmoid HardSigmoid HardSwish Swish Tanh Softplus Softsign"),
    **_each(_one_input(Activation), "Abs Neg Exp Log Sqrt Reciprocal Erf Floor Ceil Round Sign"),
    **_each(_one_input(Activation), "Sin Cos Not IsNaN IsInf Cast"),
}
