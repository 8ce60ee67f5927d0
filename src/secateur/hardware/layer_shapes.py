"""The layers of a graph by shape: those of the same shape take the same time."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from secateur.hardware.layer_shape import LayerShape
from secateur.network.graph import Graph
from secateur.network.ops import Activation, BatchNorm, Convolution, Linear, Op, expanded

_ACTIVATIONS: dict[str, Literal["relu", "relu6"]] = {
    "relu": "relu",
    "relu_": "relu",
    "relu6": "relu6",
    "hardtanh": "relu6",
    "clamp": "relu6",
    "clip": "relu6",
}


def layer_shapes(graph: Graph) -> tuple[dict[str, LayerShape], dict[str, str]]:
    """The shape of each convolution and linear layer by the name of its operation.

    Returns:
        The shapes; and why others have none, by name.
    """
    ops = [op for _, op in expanded(graph.ops)]
    readers: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        for name in op.reads:
            readers[name].append(op)
    shapes, obstacles = {}, {}
    for op in ops:
        if isinstance(op, Convolution | Linear):
            try:
                shapes[op.name] = _shape(graph, op, readers)
            except _NoShapeError as error:
                obstacles[op.name] = str(error)
    return shapes, obstacles


class _NoShapeError(Exception):
    pass


def _shape(graph: Graph, op: Convolution | Linear, readers: dict[str, list[Op]]) -> LayerShape:
    taken, given = _sizes(graph, op.input), _sizes(graph, op.name)
    norm, activation = _behind(graph, op, readers)
    bias = op.bias is not None or norm
    if isinstance(op, Linear):
        return LayerShape(
            kind="linear",
            inputs=taken[-1],
            outputs=given[-1],
            size=taken[:-1],
            bias=bias,
            norm=norm,
            activation=activation,
        )
    geometry = op.geometry
    axes = len(geometry.kernel)
    if len(taken) != axes + 2 or taken[0] != 1:
        raise _NoShapeError("its input is not one image with channels")
    size = taken[2:]
    pads = geometry.pads(size)
    return LayerShape(
        kind="transposed" if op.transposed else "conv",
        inputs=taken[1],
        outputs=given[1],
        size=size,
        groups=geometry.groups,
        kernel=geometry.kernel,
        stride=geometry.stride,
        dilation=geometry.dilation,
        pads=pads,
        extra=_extra(op, size, given[2:], pads) if op.transposed else (),
        bias=bias,
        norm=norm,
        activation=activation,
    )


def _sizes(graph: Graph, name: str) -> tuple[int, ...]:
    shape = graph.shapes.get(name)
    if shape is None or len(shape.sizes) < 2 or 0 in shape.sizes:
        raise _NoShapeError("its shapes are not known")
    return tuple(shape.sizes)


def _extra(
    op: Convolution,
    size: tuple[int, ...],
    given: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
) -> tuple[int, ...]:
    """By how much a transposed convolution's output is larger than its other settings say."""
    geometry = op.geometry
    return tuple(
        out - ((into - 1) * stride - sum(pad) + dilation * (kernel - 1) + 1)
        for out, into, stride, pad, dilation, kernel in zip(
            given, size, geometry.stride, pads, geometry.dilation, geometry.kernel, strict=True
        )
    )


def _behind(
    graph: Graph, op: Op, readers: dict[str, list[Op]]
) -> tuple[bool, Literal["", "relu", "relu6"]]:
    """Whether a BatchNorm follows, and which ReLU-like activation follows after it."""
    follower = _only_reader(graph, op, readers)
    norm = isinstance(follower, BatchNorm)
    if norm:
        follower = _only_reader(graph, follower, readers)
    if not isinstance(follower, Activation):
        return norm, ""
    name = follower.operation.partition(".")[0].lower()
    return norm, _ACTIVATIONS.get(name, "")


def _only_reader(graph: Graph, op: Op, readers: dict[str, list[Op]]) -> Op | None:
    found = readers[op.name]
    return found[0] if len(found) == 1 and op.name not in graph.outputs else None
