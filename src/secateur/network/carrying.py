"""How each operation carries the numbers of channels from the values that it reads to its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateur.network.carrying_attention import attention, product
from secateur.network.carrying_places import (
    concatenate,
    cut_out,
    expand,
    get_item,
    insert,
    padding,
    repeat,
    reshape,
    scan,
    split,
    stop,
    take,
    transpose,
    unless,
    widened,
)
from secateur.network.moved import Moved, cut_moved
from secateur.network.numbering import NONE, Numbering, Numbers
from secateur.network.ops import (
    Attention,
    BatchNorm,
    Concatenate,
    Convolution,
    Expand,
    GetItem,
    GroupNorm,
    Insert,
    LayerNorm,
    Linear,
    Op,
    Padding,
    ParametricReLU,
    Pointwise,
    Pooling,
    Product,
    Reduction,
    Repeat,
    Reshape,
    Scan,
    SizesOf,
    Slice,
    Softmax,
    Split,
    Take,
    Transpose,
    expanded,
)

if TYPE_CHECKING:
    from secateur.network.graph import Graph


def carry(graph: Graph, *, whole: bool = False) -> Numbering:
    """Carries the numbers of all channels through a network.

    Args:
        graph: the network.
        whole: whether the heads of attentions are one channel each.
    """
    known = Numbering(graph, whole=whole)
    for _, op in expanded(graph.ops):
        numbers = _passed(known, op)
        if numbers is not None:
            known.numbers[op.name] = numbers
    for name in graph.outputs:
        known.fix(known.of(name), "the network's output")
    for parts in known.alike:
        _keep_alike(known, parts)
    return known


def _keep_alike(known: Numbering, parts: Numbers) -> None:
    """Parts of one value keep one shape: each of their blocks loses as many."""
    roots = np.array([[known.sets.find(int(number)) for number in part] for part in parts])
    if (parts == NONE).any():
        return known.fix(parts, "parts of one value would get different sizes")
    if len({frozenset(part) for part in roots.tolist()}) == 1:
        return None
    blocks = [_blocks_within(known, part) for part in parts]
    several = {len({known.sets.find(int(of)) for of in row}) for rows in blocks for row in rows}
    if len({of.shape for of in blocks}) > 1 or len(several) > 1:
        return known.fix(parts, "parts of one value would get different sizes")
    known.blocks.append(np.concatenate(blocks))
    known.tied.append(known.blocks[-1])
    return None


def _blocks_within(known: Numbering, part: Numbers) -> Numbers:
    """The smallest blocks that a part of a value falls into: heads; a row for each."""
    members, found = {*part.tolist()}, part.reshape(1, -1)
    for blocks in known.blocks:
        rows = np.array([row for row in blocks if {*row.tolist()} <= members])
        if (
            rows.size == len(members)
            and {*rows.ravel().tolist()} == members
            and len(rows) > len(found)
        ):
            found = rows
    return found


def _passed(known: Numbering, op: Op) -> Numbers | None:
    """The numbers of an operation's value; None = its channels belong to no unit."""
    if isinstance(op, Split | SizesOf):
        return split(known, op) if isinstance(op, Split) else _sizes_of(known, op)
    handler = next((_HANDLERS[kind] for kind in type(op).__mro__ if kind in _HANDLERS), None)
    if handler is None or known.sizes(op.name) is None:
        what = op.label or op.operation or op.name
        return known.fix_inputs(op, f"read by {what}")
    return handler(known, op)


def _convolution(known: Numbering, op: Convolution) -> Numbers | None:
    """New channels; a depthwise convolution hands on those that it reads."""
    weight, sizes = known.graph.shapes[op.weight].sizes, known.sizes(op.name) or ()
    axis = len(sizes) - (len(weight) - 2) - 1
    groups = op.geometry.groups
    out, into = weight[0], weight[1]
    if op.transposed:
        out, into = weight[1] * groups, weight[0] // groups
    read = _read(known, op, axis, "a convolution of channels that are not side by side")
    if read is None:
        return None
    depthwise = groups > 1 and into == 1
    if depthwise and op.transposed and out > groups:
        return stop(known, op, "a transposed convolution that makes several channels of each")
    if depthwise:
        made = np.repeat(read, out // groups)
        known.cut(op.weight, 0, "entries", made)
    else:
        _grouped(known, read, groups)
        made = _made(known, op, out)
        _grouped(known, made, groups)
        if op.transposed:
            known.cut(op.weight, 1, "rows", made[: out // groups])
            known.cut(op.weight, 0, "columns", read)
        else:
            known.cut(op.weight, 0, "rows", made)
            known.cut(op.weight, 1, "columns", read[:into])
    return _layer(known, op, read, made, axis)


def _linear(known: Numbering, op: Linear) -> Numbers | None:
    """New channels on the last axis."""
    sizes = known.sizes(op.name)
    read = _read(known, op, -1, "a linear layer of channels that are not side by side")
    if read is None or not sizes:
        return None
    made = _made(known, op, sizes[-1])
    rows, columns = (1, 0) if op.turned else (0, 1)
    known.cut(op.weight, rows, "rows", made)
    known.cut(op.weight, columns, "columns", read)
    return _layer(known, op, read, made, -1)


def _read(known: Numbering, op: Convolution | Linear, axis: int, why: str) -> Numbers | None:
    """What a layer reads: none of the channels that lie along other axes, which stay.

    None where the input's size is not known.
    """
    if op.obstacle:
        known.fix(known.of(op.input), f"read by {op.label}: {op.obstacle}")
    read, sizes = known.along(op.input, axis), known.sizes(op.input)
    if read is None:
        known.fix_inputs(op, why)
    return np.full(sizes[axis], NONE) if read is None and sizes else read


def _layer(
    known: Numbering, op: Convolution | Linear, read: Numbers, made: Numbers, axis: int
) -> Numbers:
    """What a layer gives: its channels along an axis."""
    if op.bias is None or known.is_constant(op.bias):
        known.cut(op.bias, 0, "entries", made)
    else:
        cut_moved(known, op.bias, made)
    shape = [1] * len(known.sizes(op.name) or ())
    shape[axis] = len(made)
    return made.reshape(shape)


def _batch_norm(known: Numbering, op: BatchNorm) -> Numbers | None:
    """Hands channels on; its parameters have an entry for each."""
    read = known.along(op.input, 1)
    if read is None:
        return stop(known, op, "a BatchNorm of channels that are not side by side")
    for name in (op.gamma, op.beta, op.mean, op.variance):
        known.cut(name, 0, "entries", read)
    return known.of(op.input)


def _layer_norm(known: Numbering, op: LayerNorm) -> Numbers | None:
    """Hands on what it does not normalise over."""
    axes = range(-op.axes, 0)
    return unless(known, op, axes, "a LayerNorm normalises over it")


def _group_norm(known: Numbering, op: GroupNorm) -> Numbers | None:
    """Hands channels on where each is normalised by itself; else whole groups leave."""
    why = "a GroupNorm normalises over groups of it"
    sizes, numbers = known.sizes(op.input) or (), known.of(op.input)
    numbers = unless(known, op, [axis for axis in range(len(sizes)) if axis != 1], why)
    if numbers is None or numbers.shape[1] == 1:
        return numbers
    groups = numbers.reshape(op.groups, -1)
    if op.groups < numbers.size:
        if op.groups == 1:
            return stop(known, op, why)
        known.join(groups[:, :1], groups, why)
    for name in (op.gamma, op.beta):
        known.cut(name, 0, "entries", numbers.reshape(-1))
    return numbers


def _pointwise(known: Numbering, op: Pointwise) -> Numbers | None:
    """Inputs are joined place by place; constants have an entry for each channel."""
    sizes = known.sizes(op.name) or ()
    sources = {name: _source(known, name) for name in op.inputs}
    values = [name for name, source in sources.items() if source is None]
    owns = [(name, widened(known.of(name), len(sizes))) for name in values]
    channels = [axis for axis in range(len(sizes)) if any(of.shape[axis] > 1 for _, of in owns)]
    found: Numbers | None = None
    partly: list[tuple[str, Numbers, list[int]]] = []
    for name, own in owns:
        shape = widened(np.empty(known.sizes(name) or ()), len(sizes)).shape
        same = [axis for axis in channels if shape[axis] == 1 < sizes[axis]]
        if same:  # one number for them all
            partly.append((name, own, same))
        elif found is None:
            found = own
        else:
            found = known.join(found, own, f"computed with {known.called(name)}, which stays")
    for name, own, same in partly:
        known.fix(own, f"{known.called(name)} is the same for all channels of another value")
        if found is not None and len(same) < len(channels):
            found = _apart(known, found, same, f"computed with {known.called(name)}, which stays")
    for name, source in sources.items():
        if found is not None and source is not None:
            found = _constant(known, name, source, found)
    return found


def _source(known: Numbering, name: str) -> str | None:
    """A constant that a value is made of, if it is made of constants."""
    source = known.source(name)
    if source is None and (moved := Moved(known, name)).places is not None:
        source = next(iter(moved.first))
    return source


def _apart(known: Numbering, numbers: Numbers, axes: Sequence[int], why: str) -> Numbers:
    """Numbers that something fixed goes on beside along all but some axes."""
    if known.whole:
        numbers = known.by_row(numbers, axes)
    if any(size > 1 and axis not in axes for axis, size in enumerate(numbers.shape)):
        known.fix(numbers, why)
    return numbers


def _constant(known: Numbering, name: str, source: str, numbers: Numbers) -> Numbers:
    """A constant that is computed with, as it is held or as a vector in another shape."""
    sizes, why = known.sizes(name), f"computed with {name}"
    if sizes is None or known.sizes(source) is None:
        known.fix(numbers, why)
        return numbers
    sizes = (1,) * (numbers.ndim - len(sizes)) + sizes
    varying = [at for at, size in enumerate(numbers.shape) if size > 1]
    axes = [at for at in varying if sizes[at] > 1]
    if axes and len(axes) < len(varying):
        return _apart(known, numbers, [at for at in varying if at not in axes], why)
    if not axes:
        return numbers
    axis = axes[0] - numbers.ndim
    if name != source:
        cut_moved(known, name, numbers)
    elif len(axes) > 1:
        known.fix(numbers, why)
    else:
        known.cut(source, axis, "entries", numbers.reshape(-1))
    return numbers


def _parametric_relu(known: Numbering, op: ParametricReLU) -> Numbers | None:
    """Hands channels on; the slope has an entry for each, or is the same for all."""
    read, slope = known.along(op.input, 1), known.graph.shapes.get(op.slope)
    if read is None or slope is None:
        return stop(known, op, "a PReLU of channels that are not side by side")
    if slope.sizes != (1,):
        known.cut(op.slope, 0, "entries", read)
    return known.of(op.input)


def _pooling(known: Numbering, op: Pooling) -> Numbers | None:
    """Hands channels (axis 1) on."""
    rank = len(known.sizes(op.input) or ())
    return unless(known, op, range(2, rank), "pooling mixes it")


def _reduction(known: Numbering, op: Reduction) -> Numbers | None:
    """Hands on what it does not reduce."""
    numbers = unless(known, op, op.axes, "a mean or a sum over it")
    if numbers is None or op.keepdims:
        return numbers
    rank = numbers.ndim
    return numbers.squeeze(tuple(axis % rank for axis in op.axes))


def _softmax(known: Numbering, op: Softmax) -> Numbers | None:
    """Hands on what it does not sum over."""
    return unless(known, op, (op.axis,), "a softmax over it")


def _sizes_of(known: Numbering, op: SizesOf) -> None:
    """Sizes of channels that are computed with are what they are."""
    numbers = known.of(op.input)
    if any(numbers.shape[axis] > 1 for axis in op.axes):
        known.fix(numbers, f"{op.label or op.operation} computes with their number")


# helpers of operations


def _made(known: Numbering, op: Convolution | Linear, count: int) -> Numbers:
    """New channels; a layer with an obstacle keeps its own, but for transposed ones."""
    made = known.sets.fresh(count)
    known.made.append(made)
    if op.obstacle and not (isinstance(op, Convolution) and op.transposed):
        known.fix(made, op.obstacle)
    return made


def _grouped(known: Numbering, numbers: Numbers, groups: int) -> None:
    """Groups of a convolution lose the same of their channels."""
    first, *others = np.split(numbers, groups)
    for other in others:
        known.join(first, other, "groups of a convolution")


_HANDLERS: Mapping[type[Op], Callable[..., Numbers | None]] = {
    Convolution: _convolution,
    Linear: _linear,
    BatchNorm: _batch_norm,
    LayerNorm: _layer_norm,
    GroupNorm: _group_norm,
    Pointwise: _pointwise,
    ParametricReLU: _parametric_relu,
    Pooling: _pooling,
    Reduction: _reduction,
    Padding: padding,
    Insert: insert,
    Take: take,
    Scan: scan,
    Softmax: _softmax,
    Expand: expand,
    Repeat: repeat,
    Concatenate: concatenate,
    Reshape: reshape,
    Slice: cut_out,
    GetItem: get_item,
    Transpose: transpose,
    Product: product,
    Attention: attention,
}
