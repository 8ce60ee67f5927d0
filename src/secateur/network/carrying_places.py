"""How operations that put numbers in other places along an axis carry the numbers of channels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from secateur.network.numbering import Numbering, Numbers
from secateur.network.ops import Insert, Op, Padding, Scan, Take


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
