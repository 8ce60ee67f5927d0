"""Inputs that are the same for all samples, such as a sampling rate or an initial state.

They are given once, and the model is read as one that holds them. A state with an axis for the
samples, such as (2, samples, 128), is repeated along this axis for as many samples as there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message
from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array
from torch import Tensor

from secateur.errors import DataError
from secateur.frontends.onnx.file import put
from secateur.frontends.onnx.signature import Input, inputs

_PARTS = ("sizes", "samples", "one", "first", "repeats")  # of the nodes that repeat a constant


def holding(model: ModelProto, constants: Mapping[str, Tensor]) -> ModelProto:
    """A copy of a model that holds some of its inputs; the model itself where there are none.

    Args:
        model: with these inputs, and at least one more.
        constants: their values, by name, as `bound` gives them.

    Raises:
        DataError: the model takes none of such a name, shape or type.
    """
    if not constants:
        return model
    twin = ModelProto()
    twin.CopyFrom(model)
    graph, taken = twin.graph, {of.name: of for of in inputs(model)}
    samples = next((name for name in taken if name not in constants), None)
    nodes = list[NodeProto]()
    for name, given in constants.items():
        if name not in taken or samples is None:
            raise DataError(
                f"the data give the constant {name}, the ONNX model takes {', '.join(taken)}, "
                "expected one of these, and another one with samples: check the names"
            )
        axis = _samples_axis(taken[name], taken[samples], given)
        held = _stored(given, taken[name], name if axis is None else f"{name} of one sample")
        graph.initializer.append(held)
        if axis is not None:
            nodes += _repeated(held.name, name, samples, axis, given.dim())
    _replace(graph.input, [of for of in graph.input if of.name not in constants])
    _replace(graph.node, [*nodes, *graph.node])
    return twin


def _samples_axis(taken: Input, samples: Input, given: Tensor) -> int | None:
    """The axis that counts the samples: one of size 1 that the file leaves open.

    Raises:
        DataError: the value has not the shape that the file says.
    """
    axes = taken.axes
    if axes is None:
        return None
    fits = [want in (0, got) for want, got in zip(axes, given.shape, strict=False)]
    if len(axes) != given.dim() or not all(fits):
        raise DataError(
            f"the ONNX model's input {taken.name} takes {_shown(axes)}, got the constant of shape "
            f"{tuple(given.shape)}, expected the same: check it"
        )
    names = taken.sizes
    batch = next(iter(samples.sizes), "")
    open_ones = [at for at, size in enumerate(axes) if size == 0 and given.shape[at] == 1]
    same = [at for at in open_ones if batch and names[at] == batch]
    return next(iter(same or [at for at in open_ones if not (batch and names[at])]), None)


def _shown(axes: tuple[int, ...]) -> str:
    return f"({', '.join(str(size) if size else 'any' for size in axes)})"


def _stored(given: Tensor, taken: Input, name: str) -> TensorProto:
    held = TensorProto(name=name, dims=given.shape, data_type=taken.number)
    put(held, given)
    return held


def _repeated(held: str, name: str, samples: str, axis: int, rank: int) -> list[NodeProto]:
    """The nodes that repeat a constant for as many samples as another input has."""
    sizes, count, one, first, repeats = (f"{name}: {of}" for of in _PARTS)
    parts = [count if at == axis else one for at in range(rank)]
    return [
        make_node("Shape", [samples], [sizes]),
        make_node("Constant", [], [first], value=from_array(np.array([0]))),
        make_node("Constant", [], [one], value=from_array(np.array([1]))),
        make_node("Gather", [sizes, first], [count]),
        make_node("Concat", parts, [repeats], axis=0),
        make_node("Tile", [held, repeats], [name]),
    ]


def _replace(field: Any, messages: Iterable[Message]) -> None:
    """Puts copies of messages in the place of those in a field, some of which they may be."""
    copies = [type(of).FromString(of.SerializeToString()) for of in messages]
    del field[:]
    field.extend(copies)
