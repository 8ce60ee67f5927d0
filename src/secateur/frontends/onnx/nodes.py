"""The nodes of an ONNX graph that lead to its outputs, and who makes and reads each value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

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
        every = [
            new
            for node in graph.node
            if node.output[0] not in self.constants
            for new in self._plain(node)
        ]
        self.nodes = _alive(every, self.outputs)
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        self.fixed = set(self.constants)
        for index, node in enumerate(self.nodes):
            names = reads(node)
            for name in names:
                self.readers.setdefault(name, []).append(index)
            if all(name in self.fixed for name in names):
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

    def is_fixed(self, node: NodeProto) -> bool:
        """Whether a node depends on constants only."""
        return all(name in self.fixed for name in node.output if name)

    def source(self, name: str) -> tuple[str, bool]:
        """The constant behind a value, through Identity and Transpose; whether transposed."""
        turned = False
        while name in self.makers and _is_alias(self.nodes[self.makers[name]]):
            node = self.nodes[self.makers[name]]
            turned ^= node.op_type == "Transpose"
            name = node.input[0]
        return name, turned

    def vector(self, name: str) -> tuple[str, tuple[int, ...] | None]:
        """The constant behind a value, through Identity and new shapes, and the last shape.

        The shape is None where it is no float32 constant.
        """
        nodes: list[NodeProto] = []
        while name in self.makers:
            node = self.nodes[self.makers[name]]
            if not (is_node(node, "Identity") or self._is_new_shape(node)):
                break
            nodes.append(node)
            name = node.input[0]
        shape = self.float_shape(name)
        for node in reversed(nodes):
            shape = shape if shape is None else self._new_shape(node, shape)
        return name, shape

    def users(self, name: str) -> list[int]:
        """The nodes that read a constant, directly or through Identity, Transpose, a new shape.

        An output of the graph counts as -1.
        """
        found, names = [], [name]
        for known in names:
            found += [-1] * (known in self.outputs)
            for index in self.readers.get(known, ()):
                node = self.nodes[index]
                if _is_alias(node) or (self._is_new_shape(node) and node.input[0] == known):
                    names.append(node.output[0])
                else:
                    found.append(index)
        return found

    def only_reader(self, name: str) -> int | None:
        """The node that alone reads a value, once."""
        found = self.readers.get(name, [])
        if len(found) != 1 or name in self.outputs:
            return None
        return found[0] if list(self.nodes[found[0]].input).count(name) == 1 else None

    def float_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a float32 constant; None for anything else."""
        held = self.constants.get(name)
        return None if held is None or held.data_type != TensorProto.FLOAT else tuple(held.dims)

    def integers(self, name: str) -> list[int]:
        """The values of a constant of integers."""
        return onnx.numpy_helper.to_array(self.constants[name]).tolist()

    def _is_new_shape(self, node: NodeProto) -> bool:
        """Whether a node gives a constant another shape, which is a constant too."""
        held = is_node(node, "Reshape") or is_node(node, "Unsqueeze")
        return held and self.is_fixed(node) and all(of in self.constants for of in node.input[1:])

    def _new_shape(self, node: NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
        if is_node(node, "Identity"):
            return shape
        if is_node(node, "Reshape"):
            sizes = self.integers(node.input[1])
            pairs = zip(sizes, (*shape, *sizes), strict=False)
            sizes = [old if new == 0 else new for new, old in pairs]
            rest = math.prod(size for size in sizes if size != -1)
            left = math.prod(shape) // max(rest, 1)
            return tuple(left if size == -1 else size for size in sizes)
        axes = self.integers(node.input[1]) if node.input[1:] else option(node, "axes", [])
        rank = len(shape) + len(axes)
        ones, sizes = {axis % rank for axis in axes}, iter(shape)
        return tuple(1 if axis in ones else next(sizes) for axis in range(rank))

    def _for_any_batch(self, node: NodeProto, batch: int) -> NodeProto:
        sizes = self.integers(node.input[1]) if node.input[1] in self.constants else []
        if sizes[:1] != [batch] or option(node, "allowzero", 0):
            return node
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.input[1] = name = self.fresh(node.input[1])
        sizes[0] = 0 if -1 in sizes else -1  # as many as the input's first axis, or as are left
        self.constants[name] = onnx.helper.make_tensor(name, TensorProto.INT64, [len(sizes)], sizes)
        self.fixed.add(name)
        return twin

    def _plain(self, node: NodeProto) -> Iterator[NodeProto]:
        """A Gemm whose C is no bias per output, as product and sum; others as they are."""
        if not is_node(node, "Gemm") or len(node.input) < 3 or not node.input[2]:
            yield node
            return
        beta, held = option(node, "beta", 1.0), self.constants.get(node.input[2])
        if beta and held is not None and held.dims and 1 < held.dims[-1] == math.prod(held.dims):
            yield node
            return
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.input[:] = node.input[:2]
        if not beta:
            yield twin
            return
        product, added = self.fresh(node.output[0]), node.input[2]
        twin.output[:] = [product]
        yield twin
        if beta != 1:
            added, factor = self.fresh(added), self.fresh("beta")
            self.constants[factor] = onnx.helper.make_tensor(factor, TensorProto.FLOAT, [], [beta])
            yield onnx.helper.make_node("Mul", [node.input[2], factor], [added])
        yield onnx.helper.make_node("Add", [product, added], list(node.output))


def opset(model: ModelProto) -> int:
    """The version of the ONNX standard that a model keeps to; 0 where it does not say."""
    versions = [held.version for held in model.opset_import if held.domain in ("", "ai.onnx")]
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


def _is_alias(node: NodeProto) -> bool:
    """Whether a node hands on a matrix as it is, or transposed."""
    turns = is_node(node, "Transpose") and option(node, "perm", [1, 0]) == [1, 0]
    return turns or is_node(node, "Identity")


def _alive(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes that the outputs depend on."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]
