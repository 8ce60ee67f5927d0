"""The nodes of an ONNX graph that lead to its outputs, and who makes and reads each value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from secateur.errors import ModelError
from secateur.frontends.onnx.file import constants, reads


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

    def source(self, name: str) -> tuple[str, bool]:
        """The constant behind a value, through Identity and Transpose; whether transposed."""
        turned = False
        while (node := self.maker(name)) is not None and _is_alias(node):
            turned ^= node.op_type == "Transpose"
            name = node.input[0]
        return name, turned

    def vector(self, name: str) -> tuple[str, tuple[int, ...] | None]:
        """The constant behind a value, through Identity and new shapes, and the last shape.

        The shape is None where it is no float32 constant.
        """
        nodes: list[NodeProto] = []
        while (node := self.maker(name)) is not None and self._is_new_shape(node):
            nodes.append(node)
            name = node.input[0]
        shape = self.float_shape(name)
        for node in reversed(nodes):
            shape = shape if shape is None else self._new_shape(node, shape)
        return name, shape

    def only_reader(self, name: str) -> int | None:
        """The node that alone reads a value, once."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs:
            return None
        return readers[0] if list(self.nodes[readers[0]].input).count(name) == 1 else None

    def float_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a float32 constant; None for anything else."""
        stored = self.constants.get(name)
        is_float = stored is not None and stored.data_type == TensorProto.FLOAT
        return tuple(stored.dims) if stored is not None and is_float else None

    def integers(self, name: str) -> list[int] | None:
        """The values of a constant of integers; None where it is computed."""
        stored = self.constants.get(name)
        return None if stored is None else onnx.numpy_helper.to_array(stored).ravel().tolist()

    def _is_new_shape(self, node: NodeProto) -> bool:
        """Whether a node gives a constant the same shape or another, which is a constant too."""
        kinds = ("Identity", "Reshape", "Unsqueeze")
        known = all(name in self.constants for name in node.input[1:])
        return known and self.is_fixed(node) and any(is_node(node, kind) for kind in kinds)

    def _new_shape(self, node: NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
        value = np.broadcast_to(0, shape)  # a shape without numbers
        sizes = (self.integers(node.input[1]) if node.input[1:] else None) or []
        if is_node(node, "Reshape"):
            pairs = zip(sizes, (*shape, *sizes), strict=False)
            return value.reshape([old if new == 0 else new for new, old in pairs]).shape
        return np.expand_dims(value, tuple(sizes or option(node, "axes", []))).shape

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
    turns = is_node(node, "Transpose") and option(node, "perm", [1, 0]) == [1, 0]
    return turns or is_node(node, "Identity")
