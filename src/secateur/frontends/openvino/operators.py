"""What the nodes are that OpenVINO runs: the same typed operations as in other front-ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from secateur.frontends.openvino.nodes import Node, Nodes
from secateur.frontends.openvino.translation import Left, Translation, convolution_geometry
from secateur.network import ops
from secateur.network.ops import Op, Shape, Sizes

_END = 2**31 - 1  # of a slice that goes on to the end
_SHAPE_INPUTS = {"Reshape": 1, "Broadcast": 1, "Tile": 1, "Interpolate": 1}
_HAND_SIZES_ON = (
    *("Gather", "Slice", "StridedSlice", "Concat", "Convert", "Reshape", "Squeeze", "Unsqueeze"),
    *("ShapeOf", "Add", "Subtract", "Multiply", "Divide", "Split", "VariadicSplit"),
)


def described(
    translation: Translation, shapes: dict[str, Shape], numbers: Sequence[int]
) -> Iterator[Op]:
    """Nodes as operations; one of several outputs is followed by what takes it apart.

    Args:
        translation: of the model that they are in.
        shapes: of values and constants, as far as they are known; those of values between several
            operations of one node are added.
        numbers: of the nodes.
    """
    nodes = translation.nodes
    for index in numbers:
        node = nodes.nodes[index]
        single = not any(node.writes[1:])
        name = node.writes[0] if single else nodes.fresh(node.writes[0])
        part = _Part(name, node, nodes, shapes, translation.left.get(index))
        made = _typed(part) if single or node.kind in _SEVERAL else _opaque(part)
        yield from [made] if isinstance(made, Op) else made
        if not single:
            for at, output in enumerate(node.writes):
                if output:
                    yield ops.GetItem(name=output, inputs=(name,), index=at)


def _typed(part: _Part) -> Op | list[Op]:
    make = _MAKERS.get(part.node.kind)
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
    node: Node
    nodes: Nodes
    shapes: dict[str, Shape]
    left: Left | None

    def op(self, kind: type[Op], inputs: Iterable[str], **settings: object) -> Op:
        """The node as an operation of this type that computes with these values."""
        op = kind(
            name=self.name,
            inputs=tuple(inputs),
            operation=self.node.kind,
            label=self.node.name,
            **settings,  # type: ignore[arg-type]
        )
        others = dict.fromkeys(of for of in self.node.reads if of not in op.reads)
        return replace(op, others=tuple(others))

    @property
    def x(self) -> list[str]:
        """The first input alone."""
        return list(self.node.reads[:1])

    def sizes(self, name: str) -> Sizes:
        """The shape of a value for one image, or UnknownShapeError, which makes it `Opaque`."""
        if name not in self.shapes:
            raise ops.UnknownShapeError(name)
        return self.shapes[name].sizes

    @property
    def rank(self) -> int:
        """How many axes the first input has."""
        return len(self.sizes(self.node.reads[0]))

    def axis(self, at: int) -> int:
        """The axis that an input names, counted from the first one."""
        return self.integers(at)[0] % max(1, self.rank)

    def integers(self, at: int) -> list[int]:
        """The integers that an input holds."""
        values = self.nodes.integers(self.node.reads[at]) if at < len(self.node.reads) else None
        if values is None:
            raise ops.UnknownShapeError(self.name)
        return values


Maker = Callable[[_Part], Op | list[Op]]


def _opaque(part: _Part) -> Op:
    return part.op(ops.Opaque, part.node.reads)


def _convolution(reason: str = "") -> Maker:
    """A convolution that stays as it is."""

    def make(part: _Part) -> Op:
        operand, left = part.node.reads[1], part.left
        grouped = part.node.kind.startswith("Group")
        shape = part.nodes.shape(operand) or ()
        groups, kernel = (shape[:1], shape[3:]) if grouped else ((1,), shape[2:])
        return part.op(
            ops.Convolution,
            part.x,
            weight=(left and left.weight) or operand,
            geometry=convolution_geometry(part.node, kernel, *groups),
            transposed="Backprop" in part.node.kind,
            obstacle=left.reason if left else reason,
        )

    return make


def _product(part: _Part) -> Op:
    """A product of matrices that stays as it is."""
    (a, b), left, options = part.node.reads, part.left, part.node.options
    if left and b in part.nodes.fixed and not options["transpose_a"]:
        return part.op(ops.Linear, [a], weight=left.weight or b, obstacle=left.reason)
    first = "ji" if options["transpose_a"] else "ij"
    second = "kj" if options["transpose_b"] else "jk"
    vectors = [len(part.sizes(name)) == 1 for name in (a, b)]
    pairs = zip(vectors, (first, second), strict=True)
    first, second = ("j" if vector else f"...{axes}" for vector, axes in pairs)
    kept = "".join(axes.strip(".j") for axes in (first, second))
    more = {"obstacle": left.reason} if left else {}
    return part.op(ops.Product, [a, b], equation=f"{first},{second}->...{kept}", **more)


def _einsum(part: _Part) -> Op:
    return part.op(ops.Product, part.node.reads, equation=str(part.node.options["equation"]))


def _attention(part: _Part) -> Op:
    """Of queries, keys and values; with a mask, and a scale that is not told."""
    return part.op(ops.Attention, part.node.reads[:3], scale=_scale(part))


def _scale(part: _Part) -> float | None:
    if len(part.node.reads) < 5:
        return None
    held = part.nodes.constants.get(part.node.reads[4])
    if held is None:
        raise ops.UnknownShapeError(part.name)
    return float(held.get_data().ravel()[0])


def _recurrent(part: _Part) -> Op:
    """The weights come before the biases, which are last."""
    matrices = tuple(_behind(part, name) for name in part.node.reads[-3:-1])
    return part.op(ops.Recurrent, part.x, matrices=matrices)


def _behind(part: _Part, name: str) -> str:
    """The constant behind a value, through conversions."""
    while (node := part.nodes.maker(name)) is not None and node.kind == "Convert":
        name = node.reads[0]
    return name


def _normalisation(part: _Part) -> Op:
    """Over the last axes, without factors: all behind the channels of an instance norm, too."""
    axes = sorted(axis % part.rank for axis in part.integers(1))
    if axes != [*range(part.rank - len(axes), part.rank)]:
        return _opaque(part)
    return part.op(ops.LayerNorm, part.x, axes=len(axes))


def _group_norm(part: _Part) -> Op:
    _, gamma, beta = part.node.reads
    groups = int(part.node.options["num_groups"])
    return part.op(ops.GroupNorm, part.x, gamma=gamma, beta=beta, groups=groups)


def _concatenate(part: _Part) -> Op:
    axis = int(part.node.options["axis"]) % part.rank
    return part.op(ops.Concatenate, part.node.reads, axis=axis)


def _slice(part: _Part) -> Op | list[Op]:
    starts, stops, steps = (part.integers(at) for at in (1, 2, 3))
    axes = part.integers(4) if len(part.node.reads) > 4 else [*range(len(starts))]
    return _of_axes(part, [*zip(axes, starts, stops, steps, strict=True)])


def _strided_slice(part: _Part) -> Op | list[Op]:
    """Of some axes, or one place of one; others are whole."""
    options = part.node.options
    cuts: list[tuple[int, int, int, int]] = []
    if any([*options["new_axis_mask"], *options["ellipsis_mask"]]):
        return _opaque(part)
    starts, stops = part.integers(1), part.integers(2)
    steps = part.integers(3) if len(part.node.reads) > 3 else [1] * len(starts)
    shrunk = [axis for axis, is_one in enumerate(options["shrink_axis_mask"]) if is_one]
    for axis, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
        from_first, to_last = (_is_set(options[of], axis) for of in ("begin_mask", "end_mask"))
        cut = (0 if from_first else start, _END if to_last else min(stop, _END), step)
        if cut != (0, _END, 1) or axis in shrunk:
            cuts.append((axis, *cut))
    if len(shrunk) == len(cuts) == 1:
        axis, start = cuts[0][:2]
        at = start % part.sizes(*part.x)[axis]
        return part.op(ops.Slice, part.x, axis=axis, start=at, stop=at + 1, keepdims=False)
    return _opaque(part) if shrunk else _of_axes(part, cuts)


def _is_set(mask: Sequence[int], axis: int) -> bool:
    return axis < len(mask) and bool(mask[axis])


def _of_axes(part: _Part, cuts: Sequence[tuple[int, int, int, int]]) -> Op | list[Op]:
    """One operation for each axis that is cut: its start, stop and step."""
    shape, found = part.shapes[part.x[0]], list[Op]()
    sizes = list(shape.sizes)
    for axis, start, stop, step in cuts:
        axis %= part.rank
        whole = (start, step) == (0, 1) and stop >= min(sizes[axis], _END)
        if step < 1 or (shape.shown[axis] == 0 and not ((start, step) == (0, 1) and stop >= _END)):
            return _opaque(part)  # as many images as there are
        if whole:
            continue
        start, stop, step = slice(start, stop, step).indices(sizes[axis])
        sizes[axis] = len(range(start, stop, step))
        found.append(
            ops.Slice(
                name=part.nodes.fresh(part.name),
                inputs=(found[-1].name,) if found else tuple(part.x),
                others=part.node.reads[1:],
                operation=part.node.kind,
                label=part.node.name,
                axis=axis,
                start=start,
                stop=stop,
                step=step,
            )
        )
        part.shapes[found[-1].name] = Shape(tuple(sizes), shape.growing)
    if not found:
        return part.op(ops.Identity, part.x)
    return [*found[:-1], replace(found[-1], name=part.name)]


def _gather(part: _Part) -> Op:
    """One place along an axis, or several that are held by the file."""
    index, axis = part.nodes.constants.get(part.node.reads[1]), part.axis(2)
    if index is None or part.node.options.get("batch_dims", 0):
        return _opaque(part)
    rank = len(index.get_output_shape(0))
    if rank:
        return part.op(ops.Take, part.x, axis=axis, rank=rank)
    start = part.integers(1)[0] % part.sizes(part.node.reads[0])[axis]
    return part.op(ops.Slice, part.x, axis=axis, start=start, stop=start + 1, keepdims=False)


def _split(part: _Part) -> Op:
    axis, count = part.axis(1), len(part.node.writes)
    size = part.sizes(part.node.reads[0])[axis]
    lengths = [size // count] * count if part.node.kind == "Split" else part.integers(2)
    if -1 in lengths:
        lengths = [size - sum(lengths) - 1 if of == -1 else of for of in lengths]
    if count == 1:
        return part.op(ops.Identity, part.x)
    return part.op(ops.Split, part.x, axis=axis, lengths=tuple(lengths))


def _sizes_of(part: _Part) -> Op:
    """All sizes, where one of them is used for more than the shapes of values."""
    only_shapes = _gives_shapes(part.nodes, part.node.writes[0], set())
    return part.op(ops.SizesOf, part.x, axes=() if only_shapes else tuple(range(part.rank)))


def _gives_shapes(nodes: Nodes, name: str, seen: set[str]) -> bool:
    """Whether a value of integers leads to nothing but the shapes of other values."""
    if name in nodes.outputs:
        return False
    seen.add(name)
    for index in nodes.readers.get(name, ()):
        node = nodes.nodes[index]
        at = _SHAPE_INPUTS.get(node.kind)
        if at is not None and node.reads.count(name) == 1 and node.reads[at : at + 1] == (name,):
            continue
        if node.kind not in _HAND_SIZES_ON:
            return False
        if not all(_gives_shapes(nodes, of, seen) for of in node.writes if of and of not in seen):
            return False
    return True


def _softmax(part: _Part) -> Op:
    axis = int(part.node.options["axis"]) % part.rank
    return part.op(ops.Softmax, part.x, axis=axis)


def _transpose(part: _Part) -> Op:
    order = part.integers(1) or range(part.rank - 1, -1, -1)
    return part.op(ops.Transpose, part.x, permutation=tuple(order))


def _reduction(part: _Part) -> Op:
    axes = tuple(sorted({axis % part.rank for axis in part.integers(1)}))
    return part.op(ops.Reduction, part.x, axes=axes, keepdims=bool(part.node.options["keep_dims"]))


def _resizing(part: _Part) -> Op:
    """Of the axes behind the channels."""
    before, after = (part.sizes(name) for name in (part.node.reads[0], part.node.writes[0]))
    return part.op(ops.Pooling, part.x) if before[:2] == after[:2] else _opaque(part)


def _padding(part: _Part) -> Op:
    first, last = part.integers(1), part.integers(2)
    axes = tuple(axis for axis in range(part.rank) if first[axis] or last[axis])
    before, after = (tuple(of[axis] for axis in axes) for of in (first, last))
    constant = str(part.node.options["pad_mode"]).lower() == "constant"
    return part.op(ops.Padding, part.x, axes=axes, before=before, after=after, constant=constant)


def _factor(kind: type[Op]) -> Maker:
    """With a number that is a constant, else of two values."""

    def make(part: _Part) -> Op:
        x, other = part.node.reads
        if x in part.nodes.fixed and kind is ops.Multiply:
            x, other = other, x
        scales = other in part.nodes.fixed and math.prod(part.sizes(other)) == 1
        return part.op(ops.Scale, [x]) if scales else part.op(kind, [x, other])

    return make


def _quantisation(part: _Part) -> Op:
    """To a few levels, between limits for all numbers or for each channel."""
    single = all(math.prod(part.sizes(name)) == 1 for name in part.node.reads[1:])
    return part.op(ops.Activation, part.x) if single else part.op(ops.Pointwise, part.node.reads)


def _each(names: str, make: Maker) -> dict[str, Maker]:
    return dict.fromkeys(names.split(), make)


def _one_input(kind: type[Op], names: str) -> dict[str, Maker]:
    return _each(names, lambda part: part.op(kind, part.x))


def _all_inputs(kind: type[Op], names: str) -> dict[str, Maker]:
    return _each(names, lambda part: part.op(kind, part.node.reads))


_POINTWISE = """
    Subtract Power Maximum Minimum SquaredDifference Select PRelu Mod FloorMod LogicalAnd LogicalOr
    LogicalXor Equal NotEqual Greater GreaterEqual Less LessEqual
"""
_ACTIVATIONS = """
    Relu Elu Selu Gelu Mish Clamp Sigmoid HardSigmoid HSigmoid HSwish Swish Tanh SoftPlus SoftSign
    Abs Negative Exp Log Sqrt Erf Floor Ceiling Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh
    LogicalNot IsNaN IsInf IsFinite Convert ConvertLike
"""
ELEMENTWISE = frozenset(f"Add Multiply Divide {_POINTWISE} {_ACTIVATIONS}".split())
_SEVERAL = ("Split", "VariadicSplit", "LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell")
_MAKERS: dict[str, Maker] = {
    "Convolution": _convolution(),
    "GroupConvolution": _convolution(),
    **_each(
        "ConvolutionBackpropData GroupConvolutionBackpropData",
        _convolution("transposed convolution"),
    ),
    "MatMul": _product,
    "Einsum": _einsum,
    "ScaledDotProductAttention": _attention,
    **_each("LSTMSequence GRUSequence RNNSequence LSTMCell GRUCell RNNCell", _recurrent),
    "MVN": _normalisation,
    "GroupNormalization": _group_norm,
    "Concat": _concatenate,
    "Slice": _slice,
    "StridedSlice": _strided_slice,
    "Gather": _gather,
    **_each("Split VariadicSplit", _split),
    "ShapeOf": _sizes_of,
    **_each("Softmax LogSoftmax", _softmax),
    "Transpose": _transpose,
    "Pad": _padding,
    "Interpolate": _resizing,
    **_each("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2", _reduction),
    **_one_input(ops.Reshape, "Reshape Squeeze Unsqueeze"),
    **_one_input(ops.Pooling, "MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool"),
    **_all_inputs(ops.Add, "Add"),
    **_all_inputs(ops.Pointwise, _POINTWISE),
    **_one_input(ops.Activation, _ACTIVATIONS),
    "Multiply": _factor(ops.Multiply),
    "Divide": _factor(ops.Pointwise),
    "FakeQuantize": _quantisation,
    **_one_input(ops.Expand, "Broadcast"),
}
