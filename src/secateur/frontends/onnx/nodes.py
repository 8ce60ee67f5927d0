"""The nodes of an ONNX graph that lead to its outputs, and who makes and reads each value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from secateur.errors import ModelError
from secateur.frontends.onnx.file import constants, reads
from secateur.frontends.onnx.stored import (
    Dequantised,
    Origin,
    Permuted,
    Reshaped,
    ranges,
    same_sizes,
)

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_NEW_SHAPES = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")
_HAND_ON = ("Identity", "Cast", "Transpose", "DequantizeLinear", "Sub", "Mul", *_NEW_SHAPES)


class Nodes:
    """A graph's nodes that lead to its outputs, with look-ups by value.

    Attributes:
        nodes: in execution order; Constant nodes are no nodes here.
        outputs: names of the graph's outputs.
        constants: tensors by name.
        makers: number of the node that makes a value.
        readers: numbers of the nodes that read a value.
        fixed: values that depend on constants only.
        opset: version of the ONNX standard.

    With `any_batch`, a reshape to that many images is read as one to as many as there are.

    Raises:
        ModelError: weights are stored as sparse tensors.
    """

    def __init__(self, model: ModelProto, *, any_batch: int = 0) -> None:
        graph = model.graph
        if graph.sparse_initializer:
            raise ModelError(
                "the ONNX model has sparse initializers, expected dense ones: "
                "write it again with dense tensors"
            )
        self.constants = constants(graph)
        self.opset = opset(model)
        self.outputs = [value.name for value in graph.output]
        self.taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self.taken |= {value.name for value in graph.input} | set(self.constants)
        moving = [node for node in graph.node if node.output[0] not in self.constants]
        every = [new for node in moving for new in self._plain(node)]
        self.nodes = leading_to(self.outputs, every)
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        self.fixed = set(self.constants)
        for index, node in enumerate(self.nodes):
            names = reads(node)
            for name in names:
                self.readers.setdefault(name, []).append(index)
            if self.fixed.issuperset(names):
                self.fixed.update(node.output)
            elif any_batch and is_node(node, "Reshape"):
                self.nodes[index] = self._for_any_batch(node, any_batch)

    def fresh(self, name: str) -> str:
        """A new name like this one."""
        new = f"{name}'"
        while new in self.taken:
            new += "'"
        self.taken.add(new)
        return new

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes a value."""
        return self.nodes[self.makers[name]] if name in self.makers else None

    def is_fixed(self, node: NodeProto) -> bool:
        """Whether a node depends on constants only."""
        return self.fixed.issuperset(filter(None, node.output))

    def origin(self, name: str) -> Origin | None:
        """The constant of numbers behind a value, and what nodes make of it on the way.

        Through Identity, Cast, Transpose, new shapes and DequantizeLinear, or what does the same:
        integers cast, less a constant, times a constant. None where there is something else.
        """
        nodes: list[NodeProto] = []
        while (node := self.maker(name)) is not None and node.op_type in _HAND_ON:
            nodes.append(node)
            name = node.input[0]
        stored = self.constants.get(name)
        if stored is None:
            return None
        origin: Origin | None = Origin(
            name=name, shape=tuple(stored.dims), integers=stored.data_type not in _FLOATS
        )
        for node in reversed(nodes):
            origin = self._through(node, origin)
            if origin is None:
                return None
        return None if origin.integers else origin

    def source(self, name: str) -> str:
        """The constant behind a value, where there is one; else the value that it comes from."""
        origin = self.origin(name)
        if origin is not None:
            return origin.name
        while (node := self.maker(name)) is not None and _is_alias(node):
            name = node.input[0]
        return name

    def _through(self, node: NodeProto, origin: Origin) -> Origin | None:
        """Where a value lies that a node makes of another; None where it is computed."""
        if is_node(node, "Identity"):
            return origin
        if is_node(node, "Transpose"):
            order = option(node, "perm", None) or range(len(origin.shape))[::-1]
            return origin.then(Permuted(tuple(order)))
        if is_node(node, "DequantizeLinear"):
            return self._dequantised(node, origin)
        if is_node(node, "Cast"):
            whole = option(node, "to", 0) == TensorProto.FLOAT
            return self._cast(origin) if whole else None
        if is_node(node, "Sub") or is_node(node, "Mul"):
            return self._scaled(node, origin)
        if not self._is_new_shape(node):
            return None
        try:
            return origin.then(Reshaped(origin.shape, self._new_shape(node, origin.shape)))
        except ValueError:
            return None

    def _range(self, origin: Origin) -> tuple[int, int] | None:
        """The integers that a constant can hold; None of other types."""
        kind = TensorProto.DataType.Name(self.constants[origin.name].data_type)
        digits = "".join(filter(str.isdecimal, kind))
        return ranges(kind, int(digits)) if "INT" in kind and digits else None

    def _cast(self, origin: Origin) -> Origin | None:
        """Floats as they are, integers as numbers that a scale may be behind."""
        if not origin.integers:
            return origin
        bounds = self._range(origin)
        return bounds and origin.then(Dequantised(bounds=bounds))

    def _dequantised(self, node: NodeProto, origin: Origin) -> Origin | None:
        """What DequantizeLinear makes; None where its scale is computed."""
        zero, bounds = "".join(node.input[2:3]), self._range(origin)
        if not origin.integers or bounds is None or node.input[1] not in self.constants:
            return None
        if zero and zero not in self.constants:
            return None
        along = option(node, "axis", 1) % max(1, len(origin.shape))
        each = math.prod(self.constants[node.input[1]].dims) > 1
        step = Dequantised(
            bounds=bounds,
            scale=node.input[1],
            zero=zero or None,
            along=along if each else None,
            block=option(node, "block_size", 0) if each else 0,
        )
        return origin.then(step)

    def _scaled(self, node: NodeProto, origin: Origin) -> Origin | None:
        """Integers, cast, less a constant or times one."""
        *before, last = origin.steps or (None,)
        other = node.input[1]
        held, field = self.constants.get(other), "zero" if node.op_type == "Sub" else "scale"
        if not isinstance(last, Dequantised) or held is None or last.scale or held.data_type != 1:
            return None
        if getattr(last, field) or len(held.dims) > len(origin.shape):
            return None
        sizes = (*[1] * (len(origin.shape) - len(held.dims)), *held.dims)
        axes = [axis for axis, size in enumerate(sizes) if size > 1]
        if len(axes) > 1 or any(sizes[axis] != origin.shape[axis] for axis in axes):
            return None
        along = axes[0] if axes else last.along
        if last.along not in (None, along):
            return None
        steps = (*filter(None, before), replace(last, along=along, **{field: other}))
        return replace(origin, steps=steps)

    def only_reader(self, name: str) -> int | None:
        """The node that alone reads a value, once."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs:
            return None
        return readers[0] if list(self.nodes[readers[0]].input).count(name) == 1 else None

    def integers(self, name: str) -> list[int] | None:
        """The values of a constant of integers; None where it is computed."""
        stored = self.constants.get(name)
        return None if stored is None else onnx.numpy_helper.to_array(stored).ravel().tolist()

    def _is_new_shape(self, node: NodeProto) -> bool:
        """Whether a node gives a constant another shape, which is a constant too."""
        known = all(name in self.constants for name in node.input[1:])
        return known and any(is_node(node, kind) for kind in _NEW_SHAPES)

    def _new_shape(self, node: NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a node gives, or ValueError."""
        if is_node(node, "Flatten"):
            at = option(node, "axis", 1)
            return math.prod(shape[:at]), math.prod(shape[at:])
        sizes = (self.integers(node.input[1]) if node.input[1:] else None) or []
        if is_node(node, "Reshape"):
            return same_sizes(shape, sizes, allowzero=bool(option(node, "allowzero", 0)))
        axes = tuple(sizes or option(node, "axes", []))
        value = np.broadcast_to(0, shape)  # a shape without numbers
        if is_node(node, "Squeeze"):
            return np.squeeze(value, axes or None).shape
        return np.expand_dims(value, axes).shape

    def _for_any_batch(self, node: NodeProto, batch: int) -> NodeProto:
        sizes = self.integers(node.input[1]) or []
        if sizes[:1] != [batch] or option(node, "allowzero", 0):
            return node
        sizes[0] = 0 if -1 in sizes else -1  # as many as the input's first axis, or as are left
        name = self._constant(node.input[1], TensorProto.INT64, [len(sizes)], sizes)
        self.fixed.add(name)
        return renamed(node, [node.input[0], name], node.output)

    def _plain(self, node: NodeProto) -> Iterator[NodeProto]:
        """A Gemm whose C is no bias per output, as product and sum; others as they are."""
        addend = node.input[2] if is_node(node, "Gemm") and len(node.input) > 2 else ""
        beta, stored = option(node, "beta", 1.0), self.constants.get(addend)
        dims = stored.dims if stored is not None else []
        if not addend or (beta and dims and 1 < dims[-1] == math.prod(dims)):
            yield node
            return
        product = self.fresh(node.output[0]) if beta else node.output[0]
        yield renamed(node, node.input[:2], [product])
        if beta not in (0, 1):
            factor = self._constant("beta", TensorProto.FLOAT, [], [beta])
            scaled = self.fresh(addend)
            yield onnx.helper.make_node("Mul", [addend, factor], [scaled])
            addend = scaled
        if beta:
            yield onnx.helper.make_node("Add", [product, addend], node.output)

    def _constant(self, like: str, kind: int, shape: list[int], values: list[Any]) -> str:
        """A further constant: its name."""
        name = self.fresh(like)
        self.constants[name] = onnx.helper.make_tensor(name, kind, shape, values)
        return name


def opset(model: ModelProto) -> int:
    """The version of the ONNX standard that a model keeps to; 0 where it does not say."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return next(iter(versions), 0)


def is_node(node: NodeProto, kind: str) -> bool:
    """Whether a node is this operation of the ONNX standard."""
    return node.op_type == kind and node.domain in ("", "ai.onnx")


def option(node: NodeProto, name: str, default: Any) -> Any:
    """A node's attribute, or the default."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return list(value) if attribute.type == AttributeProto.INTS else value
    return default


def renamed(node: NodeProto, inputs: Iterable[str], outputs: Iterable[str]) -> NodeProto:
    """A copy of a node that reads and makes values of other names."""
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.input[:], twin.output[:] = inputs, outputs
    return twin


def leading_to(names: Iterable[str], nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Those of some nodes that values depend on, in the same order."""
    wanted, found = set(names), list[NodeProto]()
    for node in reversed([*nodes]):
        if wanted.intersection(node.output):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def _is_alias(node: NodeProto) -> bool:
    """Whether a node hands on a matrix as it is, or transposed."""
    return is_node(node, "Transpose") or is_node(node, "Identity")
