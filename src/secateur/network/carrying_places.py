"""How operations that put numbers in other places along an axis carry the numbers of channels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from secateur.network.numbering import NONE, Numbering, Numbers
from secateur.network.ops import (
    Concatenate,
    Expand,
    GetItem,
    Insert,
    Op,
    Padding,
    Repeat,
    Reshape,
    Scan,
    Slice,
    Split,
    Take,
    Transpose,
)


def padding(known: Numbering, op: Padding) -> Numbers | None:
    """Hands on what it does not pad; a number that is put beside channels makes more of them."""
    numbers, pads = known.of(op.input), (*op.before, *op.after)
    padded = [axis for axis in op.axes if numbers.shape[axis] > 1]
    if (
        len(padded) != 1
        or not op.constant
        or min(pads) < 0
        or numbers.shape[padded[0]] < numbers.size
    ):
        return unless(known, op, op.axes, "padding along it")
    at = op.axes.index(padded[0])
    ends = (known.sets.fresh(count) for count in (op.before[at], op.after[at]))
    before, after = (
        end.reshape([-1 if axis == padded[0] else 1 for axis in range(numbers.ndim)])
        for end in ends
    )
    return np.concatenate([before, numbers, after], padded[0])


def scan(known: Numbering, op: Scan) -> Numbers | None:
    """Hands on what it does not move."""
    return unless(known, op, op.axes, f"{known.called(op.name)} moves or sums them up")


def insert(known: Numbering, op: Insert) -> Numbers | None:
    """Those of the part in place of the others; along another axis both are the same."""
    whole, part = (known.of(name) for name in op.inputs)
    sizes = known.sizes(op.input) or ()
    if whole.shape[op.axis] == part.shape[op.axis] == 1:
        return known.join(whole, part, "put into what stays")
    shape = [1] * len(sizes)
    shape[op.axis] = sizes[op.axis]
    if any(size > 1 for of in (whole, part) for at, size in enumerate(of.shape) if at != op.axis):
        return stop(known, op, "put into another value")
    result = np.broadcast_to(whole, shape).copy()
    np.moveaxis(result, op.axis, 0)[op.start : op.stop] = np.moveaxis(part, op.axis, 0)
    return result


def take(known: Numbering, op: Take) -> Numbers | None:
    """Hands on all but those along the axis."""
    numbers = unless(known, op, (op.axis,), "they are taken by their numbers")
    if numbers is None:
        return None
    return np.expand_dims(numbers.squeeze(op.axis), tuple(range(op.axis, op.axis + op.rank)))


def stop(known: Numbering, op: Op, why: str) -> None:
    """All that an operation reads stays."""
    known.fix_inputs(op, why)


def unless(known: Numbering, op: Op, axes: Iterable[int], why: str) -> Numbers | None:
    """The input's numbers, unless they differ along some axes alone.

    Where they differ along others too, those along these axes leave together.
    """
    numbers = known.of(op.input)
    varied = {axis % numbers.ndim for axis in axes if -numbers.ndim <= axis < numbers.ndim}
    varied = [axis for axis in sorted(varied) if numbers.shape[axis] > 1]
    if not varied:
        return numbers
    lines = np.moveaxis(numbers, varied, range(len(varied)))
    lines = lines.reshape(math.prod(lines.shape[: len(varied)]), -1)
    if lines.shape[1] == 1:
        return stop(known, op, why)
    known.join(lines[:1], lines, why)
    for axis in varied:
        numbers = numbers.take([0], axis)
    return numbers


def expand(known: Numbering, op: Expand) -> Numbers | None:
    """Hands channels on; more axes come before them."""
    return widened(known.of(op.input), len(known.sizes(op.name) or ()))


def repeat(known: Numbering, op: Repeat) -> Numbers | None:
    """Each place along an axis several times, one behind the other."""
    numbers = known.of(op.input)
    return np.repeat(numbers, op.times, op.axis) if numbers.shape[op.axis] > 1 else numbers


def concatenate(known: Numbering, op: Concatenate) -> Numbers | None:
    """Puts channels behind each other, or beside each other along a new axis."""
    sizes = known.sizes(op.name) or ()
    axis = op.axis % len(sizes)
    parts: list[Numbers] = []
    for name in op.inputs:
        own, numbers = known.sizes(name), known.of(name)
        if own is None:
            return stop(known, op, f"put together with {known.called(name)}")
        if op.stacks:
            numbers = np.expand_dims(numbers, axis)
        shape = list(numbers.shape)
        shape[axis] = 1 if op.stacks else own[axis]
        parts.append(np.broadcast_to(numbers, shape))
    if all((part == NONE).all() for part in parts):
        return None
    shapes = [part.shape[:axis] + part.shape[axis + 1 :] for part in parts]
    common = np.broadcast_shapes(*shapes)
    wide = [
        np.broadcast_to(part, (*common[:axis], part.shape[axis], *common[axis:])) for part in parts
    ]
    joined = np.concatenate(wide, axis)
    elsewhere = any(size > 1 for at, size in enumerate(joined.shape) if at != axis)
    if not elsewhere or any(varies(part, axis) for part in parts):
        return joined
    first = wide[0].take([0], axis)  # along another axis than the channels'
    for part in wide[1:]:
        first = known.join(first, part.take([0], axis), "put together with what stays")
    return first


def reshape(known: Numbering, op: Reshape) -> Numbers | None:
    """The same numbers in another shape; what splits them makes blocks."""
    sizes, before = known.sizes(op.name), known.sizes(op.input)
    numbers = known.of(op.input)
    if sizes is None or before is None or math.prod(sizes) != math.prod(before):
        return stop(known, op, "a change of shape that depends on the values")
    if (numbers == NONE).all():
        return None
    shaped = np.broadcast_to(numbers, before).reshape(sizes)
    for axis in range(len(sizes)):
        if not varies(shaped, axis):
            shaped = shaped.take([0], axis)
    varied = [size for size in shaped.shape if size > 1]
    if len(varied) > 1:
        known.blocks.append(shaped.reshape(-1, varied[-1]))
    elif varied:
        _merged(known, shaped.reshape(-1))
    return shaped


def _merged(known: Numbering, numbers: Numbers) -> None:
    """Blocks side by side in another order lose the same of their channels, as in a shuffle."""
    for blocks in known.blocks:
        flat = blocks.reshape(-1)
        if not np.array_equal(flat, numbers) and np.array_equal(np.sort(flat), np.sort(numbers)):
            for other in blocks[1:]:
                known.join(blocks[0], other, "shuffled with what stays")


def cut_out(known: Numbering, op: Slice) -> Numbers | None:
    """A part of the numbers along an axis; others are handed on."""
    return _part(known, op, op.axis, range(op.start, op.stop, op.step), keepdims=op.keepdims)


def split(known: Numbering, op: Split) -> None:
    """Its parts are made where they are taken out."""
    return None


def get_item(known: Numbering, op: GetItem) -> Numbers | None:
    """One of the parts of a split."""
    maker = known.makers.get(op.input)
    if not isinstance(maker, Split):
        return stop(known, op, f"read by {maker.label if maker else op.label}")
    index = range(len(maker.lengths))[op.index]
    start = sum(maker.lengths[:index])
    places = range(start, start + maker.lengths[index])
    of = replace(op, inputs=maker.inputs)
    return _part(known, of, maker.axis, places, keepdims=maker.keepdims)


def _part(known: Numbering, op: Op, axis: int, places: range, *, keepdims: bool) -> Numbers | None:
    """The numbers at some places along an axis."""
    numbers, sizes = known.of(op.input), known.sizes(op.input)
    if sizes is None:
        return stop(known, op, "a part of a value of unknown size")
    if numbers.shape[axis] > 1:
        if places.step != 1 and keepdims:
            return stop(known, op, f"every {places.step} of them are taken")
        if numbers.size > numbers.shape[axis]:
            known.alike.append(np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1))
        numbers = numbers.take([*places], axis)
    return numbers if keepdims else numbers.squeeze(axis)


def transpose(known: Numbering, op: Transpose) -> Numbers | None:
    """Axes in another order."""
    return known.of(op.input).transpose(op.permutation)


def widened(array: np.ndarray, rank: int) -> np.ndarray:
    """An array with as many axes as a result has."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def varies(numbers: Numbers, axis: int) -> bool:
    """Whether the numbers along an axis are not all the same."""
    return numbers.shape[axis] > 1 and bool((numbers != numbers.take([0], axis)).any())
