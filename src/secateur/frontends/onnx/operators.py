"""What the nodes are that ONNX Runtime runs: the same typed operations as in other front-ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import NodeProto

from secateur.frontends.onnx.file import reads
from secateur.frontends.onnx.nodes import Nodes, option
from secateur.frontends.onnx.translation import Left, Translation, convolution_geometry
from secateur.network import ops
from secateur.network.ops import Op, Shapes, Sizes

_QUANTISED, _FUSED = "quantised", "fused by ONNX Runtime"
_DOMAINS = ("", "ai.onnx", "com.microsoft")


_SHAPE_INPUTS = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Resize": 3}
_HAND_SIZES_ON = (
    *("Gather", "Slice", "Concat", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
    *("Shape", "Add", "Sub", "Mul", "Div", "Split"),
)


def described(translation: Translation, shapes: Shapes, numbers: Sequence[int]) -> Iterator[Op]:
    """Nodes as operations; one of several outputs is followed by what takes it apart.

    Args:
        translation: of the model that they are in.
        shapes: of values and constants, as far as they are known.
        numbers: of the nodes.
    """
    nodes = translation.nodes
    for index in numbers:
        node = nodes.nodes[index]
        outputs = [name for name in node.output if name]
        single = list(node.output[:1]) == outputs
        name = outputs[0] if single else nodes.fresh(outputs[0])
        part = _Part(name, node, nodes, shapes, translation.left.get(index))
        yield _typed(part) if single or node.op_type in _SEVERAL else _opaque(part)
        if not single:
            for at, output in enumerate(node.output):
                if output:
                    yield ops.GetItem(name=output, inputs=(name,), index=at)


def _typed(part: _Part) -> Op:
    make = _MAKERS.get(part.node.op_type) if part.node.domain in _DOMAINS else None
    try:
        return make(part) if make else _opaque(part)
    except ops.UnknownShapeError:
        return _opaque(part)


@dataclass(frozen=True)
class _Part:
    """A node to describe, by the name that its operation gets.

    `left` says why it is no operation of PyTorch, where it could be one.
    """

    name: str
    node: NodeProto
    nodes: Nodes
    shapes: Shapes
    left: Left | None

    def op(self, kind: type[Op], inputs: Iterable[str], **settings: Any) -> Op:
        """The node as an operation of this type that computes with these values."""
        op = kind(
            name=self.name,
            inputs=tuple(filter(None, inputs)),
            operation=self.node.op_type,
            label=self.node.name or self.name,
            **settings,
        )
        return replace(op, others=tuple(of for of in reads(self.node) if of not in op.reads))

    @property
    def x(self) -> list[str]:
        """The first input alone."""
        return list(self.node.input[:1])

    def sizes(self, name: str) -> Sizes:
        """The shape of a value for one image, or UnknownShapeError, which makes it `Opaque`."""
        if name not in self.shapes:
            raise ops.UnknownShapeError(name)
        return self.shapes[name].sizes

    @property
    def rank(self) -> int:
        """How many axes the first input has."""
        return len(self.sizes(self.node.input[0]))

    def axis(self, default: int) -> int:
        """The axis that an attribute names, counted from the first one."""
        return option(self.node, "axis", default) % max(1, self.rank)

    def integers(self, at: int, name: str) -> list[int]:
        """Integers that are an attribute or, since a later opset, an input."""
        if len(self.node.input) <= at or not self.node.input[at]:
            return option(self.node, name, [])
        if (values := self.nodes.integers(self.node.input[at])) is None:
            raise ops.UnknownShapeError(self.node.input[at])
        return values


Maker = Callable[[_Part], Op]


def _opaque(part: _Part) -> Op:
    return part.op(ops.Opaque, part.node.input)


def _convolution(reason: str, *, weight: int = 1) -> Maker:
    """A convolution that stays as it is."""

    def make(part: _Part) -> Op:
        operand, left = part.node.input[weight], part.left
        plain = part.node.op_type in ("Conv", "ConvTranspose")
        name = (left and left.weight) or part.nodes.source(operand)
        name = name if name in part.nodes.constants else operand
        shape = part.shapes.get(name)
        return part.op(
            ops.Convolution,
            part.x,
            weight=name,
            bias=next(filter(None, part.node.input[2:3]), None) if plain else None,
            geometry=convolution_geometry(part.node, shape.sizes[2:] if shape else ()),
            transposed=part.node.op_type == "ConvTranspose",
            obstacle=left.reason if left else reason,
        )

    return make


def _product(reason: str = "", *, other: int = 1) -> Maker:
    """A product of matrices that stays as it is."""

    def make(part: _Part) -> Op:
        a, b, left = part.node.input[0], part.node.input[other], part.left
        first = "ji" if option(part.node, "transA", 0) else "ij"
        second = "kj" if option(part.node, "transB", 0) else "jk"
        if left and b in part.nodes.fixed and first == "ij":
            weight = left.weight if left.weight in part.nodes.constants else b
            return part.op(ops.Linear, [a], weight=weight, obstacle=left.reason)
        vectors = [name in part.shapes and len(part.sizes(name)) == 1 for name in (a, b)]
        pairs = zip(vectors, (first, second), strict=True)
        first, second = ("j" if vector else f"...{axes}" for vector, axes in pairs)
        kept = "".join(axes.strip(".j") for axes in (first, second))
        obstacle = left.reason if left else reason
        more = {"obstacle": obstacle} if obstacle else {}
        return part.op(ops.Product, [a, b], equation=f"{first},{second}->...{kept}", **more)

    return make


def _packed_product(part: _Part) -> Op:
    return part.op(ops.Linear, part.x, weight=part.node.input[1], obstacle=_QUANTISED)


def _einsum(part: _Part) -> Op:
    equation = option(part.node, "equation", b"").decode()
    return part.op(ops.Product, part.node.input, equation=equation)


def _attention(part: _Part) -> Op:
    """Of three inputs; ONNX Runtime's makes all three of one."""
    node = part.node
    if node.domain in ("", "ai.onnx") or node.op_type == "MultiHeadAttention":
        heads = option(node, "q_num_heads", option(node, "num_heads", 1))
        return part.op(ops.Attention, node.input[:3], heads=heads)
    widths = option(part.node, "qkv_hidden_sizes", None)
    reason = _QUANTISED if node.op_type == "QAttention" else _FUSED
    widths = widths and tuple(widths)
    return part.op(ops.FusedAttention, part.x, weight=node.input[1], widths=widths, obstacle=reason)


def _recurrent(part: _Part) -> Op:
    matrices = tuple(part.nodes.source(name) for name in part.node.input[1:3])
    return part.op(ops.Recurrent, part.x, matrices=matrices)


def _layer_norm(part: _Part) -> Op:
    gamma, beta = (name or None for name in (*part.node.input[1:3], "", "")[:2])
    return part.op(ops.LayerNorm, part.x, gamma=gamma, beta=beta, axes=part.rank - part.axis(-1))


def _group_norm(part: _Part) -> Op:
    """Of as many groups as there are channels where nothing is said: InstanceNormalization."""
    x, gamma, beta = part.node.input[:3]
    groups = option(part.node, "num_groups", 0) or part.sizes(x)[1]
    return part.op(ops.GroupNorm, part.x, gamma=gamma, beta=beta, groups=groups)


def _concatenate(part: _Part) -> Op:
    return part.op(ops.Concatenate, part.node.input, axis=part.axis(0))


def _slice(part: _Part) -> Op:
    """Of one axis."""
    starts, stops = part.integers(1, "starts"), part.integers(2, "ends")
    axes = part.integers(3, "axes") or [*range(len(starts))]
    steps = part.integers(4, "steps") or [1] * len(starts)
    if len(starts) != 1 or steps[0] < 1:
        return _opaque(part)
    axis = axes[0] % part.rank
    size = part.sizes(part.node.input[0])[axis]
    start, stop, step = slice(starts[0], stops[0], steps[0]).indices(size)
    if part.shapes[part.node.input[0]].shown[axis] == 0:  # as many images as there are
        whole = (starts[0], steps[0]) == (0, 1) and stops[0] >= 2**31 - 1
        return part.op(ops.Identity, part.x) if whole else _opaque(part)
    return part.op(ops.Slice, part.x, axis=axis, start=start, stop=stop, step=step)


def _gather(part: _Part) -> Op:
    """One place along an axis, or several that are held by the file."""
    index, axis = part.nodes.constants.get(part.node.input[1]), part.axis(0)
    if index is None:
        return _opaque(part)
    if index.dims:
        return part.op(ops.Take, part.x, axis=axis, rank=len(index.dims))
    (at,) = part.integers(1, "")
    start = at % part.sizes(part.node.input[0])[axis]
    return part.op(ops.Slice, part.x, axis=axis, start=start, stop=start + 1, keepdims=False)


def _split(part: _Part) -> Op:
    axis, count = part.axis(0), len(part.node.output)
    size = part.sizes(part.node.input[0])[axis]
    each = -(-size // count)
    lengths = part.integers(1, "split") or [min(each, size - at * each) for at in range(count)]
    if count == 1:
        return part.op(ops.Identity, part.x)
    return part.op(ops.Split, part.x, axis=axis, lengths=tuple(lengths))


def _sizes_of(part: _Part) -> Op:
    """All sizes, where one of them is used for more than the shapes of values."""
    only_shapes = all(_gives_shapes(part.nodes, name, set()) for name in part.node.output)
    axes = () if only_shapes else tuple(range(part.rank))
    return part.op(ops.SizesOf, part.x, axes=axes)


def _gives_shapes(nodes: Nodes, name: str, seen: set[str]) -> bool:
    """Whether a value of integers leads to nothing but the shapes of other values."""
    if name in nodes.outputs:
        return False
    seen.add(name)
    for index in nodes.readers.get(name, ()):
        node = nodes.nodes[index]
        at = _SHAPE_INPUTS.get(node.op_type)
        if (
            at is not None
            and list(node.input).count(name) == 1
            and node.input[at : at + 1] == [name]
        ):
            continue
        handed = node.op_type in _HAND_SIZES_ON and node.domain in _DOMAINS
        if not handed:
            return False
        if not all(_gives_shapes(nodes, of, seen) for of in node.output if of not in seen):
            return False
    return True


def _softmax(part: _Part) -> Op:
    """Along one axis; before opset 13 along all from one on, where it has no type."""
    newer = part.nodes.opset >= 13
    axis = part.axis(-1 if newer else 1)
    along_one = newer or axis + 1 == part.rank
    return part.op(ops.Softmax, part.x, axis=axis) if along_one else _opaque(part)


def _transpose(part: _Part) -> Op:
    permutation = option(part.node, "perm", None) or range(part.rank - 1, -1, -1)
    return part.op(ops.Transpose, part.x, permutation=tuple(permutation))


def _reduction(part: _Part) -> Op:
    axes = part.integers(1, "axes")
    if option(part.node, "noop_with_empty_axes", 0):
        return _opaque(part)
    chosen = tuple(sorted(axis % part.rank for axis in axes or range(part.rank)))
    keepdims = bool(option(part.node, "keepdims", 1))
    return part.op(ops.Reduction, part.x, axes=chosen, keepdims=keepdims)


def _resizing(part: _Part) -> Op:
    """Of the axes behind the channels."""
    before, after = (part.sizes(name) for name in (part.node.input[0], part.node.output[0]))
    return part.op(ops.Pooling, part.x) if before[:2] == after[:2] else _opaque(part)


def _padding(part: _Part) -> Op:
    pads, rank = part.integers(1, "pads"), part.rank
    some = len(part.node.input) > 3 and part.node.input[3]  # only some axes are named
    if some or len(pads) != 2 * rank:
        return _opaque(part)
    axes = tuple(axis for axis in range(rank) if pads[axis] or pads[axis + rank])
    before, after = (tuple(pads[axis + at] for axis in axes) for at in (0, rank))
    constant = option(part.node, "mode", b"constant") == b"constant"
    return part.op(ops.Padding, part.x, axes=axes, before=before, after=after, constant=constant)


def _factor(kind: type[Op]) -> Maker:
    """With a number that is a constant, else of two values."""

    def make(part: _Part) -> Op:
        x, other = part.node.input
        held = part.nodes.constants.get(other)
        scales = held is not None and all(size == 1 for size in held.dims)
        return part.op(ops.Scale, [x]) if scales else part.op(kind, [x, other])

    return make


def _each(names: str, make: Maker) -> dict[str, Maker]:
    return dict.fromkeys(names.split(), make)


def _one_input(kind: type[Op], names: str) -> dict[str, Maker]:
    return _each(names, lambda part: part.op(kind, part.x))


def _all_inputs(kind: type[Op], names: str) -> dict[str, Maker]:
    return _each(names, lambda part: part.op(kind, part.node.input))


_POINTWISE = """
    Sub Div Pow Max Min Mean Where PRelu Mod And Or Xor Equal Greater Less GreaterOrEqual
    LessOrEqual
"""
_ACTIVATIONS = """
    Relu LeakyRelu Elu Selu Celu Gelu Mish Clip ThresholdedRelu Sigmoid HardSigmoid HardSwish Swish
    Tanh Softplus Softsign Abs Neg Exp Log Sqrt Reciprocal Erf Floor Ceil Round Sign Sin Cos Not
    IsNaN IsInf Cast
"""
ELEMENTWISE = frozenset(f"Add Sum Mul Identity {_POINTWISE} {_ACTIVATIONS}".split())
_SEVERAL = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", "Split")  # typed with several outputs too
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
    **_each("Attention QAttention MultiHeadAttention", _attention),
    **_each("LSTM GRU RNN DynamicQuantizeLSTM", _recurrent),
    "LayerNormalization": _layer_norm,
    **_each("GroupNormalization InstanceNormalization", _group_norm),
    "Concat": _concatenate,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Shape": _sizes_of,
    **_each("Softmax LogSoftmax", _softmax),
    "Transpose": _transpose,
    "Pad": _padding,
    **_each("Resize Upsample", _resizing),
    **_each("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2", _reduction),
    **_one_input(ops.Reshape, "Reshape Flatten Squeeze Unsqueeze"),
    **_one_input(ops.Identity, "Identity Dropout"),
    **_one_input(ops.Pooling, "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool"),
    **_all_inputs(ops.Add, "Add Sum"),
    **_all_inputs(ops.Pointwise, _POINTWISE),
    **_one_input(ops.Activation, _ACTIVATIONS),
    "Mul": _factor(ops.Multiply),
    "Div": _factor(ops.Pointwise),
    "Expand": lambda part: part.op(ops.Expand, part.x),
}
