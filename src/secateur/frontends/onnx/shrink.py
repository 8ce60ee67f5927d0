"""An ONNX model with fewer channels: its constants cut, and the sizes that its nodes hold mended.

What is left out is what nobody reads, as in modules: the rows that make a channel, its entries, and
the columns that read it. Sizes are held by the nodes themselves (the groups of a depthwise
convolution), and by constants that they read: shapes of Reshape, lengths of Split, bounds of Slice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from secateur.errors import ModelError
from secateur.frontends.onnx.file import constants, inlined, reads
from secateur.frontends.onnx.large import changed
from secateur.frontends.onnx.nodes import is_node, option
from secateur.frontends.onnx.stored import WeightLayout
from secateur.network.couplings import Removed, gone
from secateur.network.graph import Graph
from secateur.network.narrowing import Narrowing, mended
from secateur.network.ops import Padding, Sizes, Slice, Split, expanded


def shrink(
    model: ModelProto, graph: Graph, layouts: Mapping[str, WeightLayout], removed: Removed
) -> ModelProto:
    """A copy of a model without some units of its couplings; its functions are expanded.

    Args:
        model: not changed.
        graph: of this model.
        layouts: how the graph's parameters lie in it.
        removed: units to leave out, by coupling. Of a coupling in blocks as many of each.

    Raises:
        ModelError: a coupling is fixed, its blocks would be of different sizes, or a size cannot be
            mended.
    """
    narrowing = Narrowing(graph, removed)
    twin = ModelProto()
    twin.CopyFrom(inlined(model))
    _Mending(twin, narrowing).mend()
    _cut(twin, _in_file(gone(removed), layouts))
    _drop_unread(twin)
    if twin.graph.value_info:
        del twin.graph.value_info[:]
        twin = changed(twin, onnx.shape_inference.infer_shapes)
    return twin


# constants


def _in_file(
    gone: Mapping[str, Mapping[int, Sequence[int]]], layouts: Mapping[str, WeightLayout]
) -> dict[str, dict[int | None, Sequence[int]]]:
    """Indices by constant and its own axes; None = the one axis of a vector of any shape.

    Scales and zero points of quantised channels leave with these.
    """
    found: dict[str, dict[int | None, Sequence[int]]] = defaultdict(dict)
    for name, axes in gone.items():
        layout = layouts.get(name, WeightLayout())
        for axis, indices in axes.items():
            if layout.vector:
                found[name][None] = indices
                continue
            own = layout.axis(axis)
            if own is None:
                raise ModelError(
                    f"{name} is stored in another shape than the one in which it is used, and "
                    "channels cannot be cut out of it: leave its channels in"
                )
            found[name][own] = indices
            for scales in layout.scales_of(axis):
                found[scales][None] = indices
    return found


def _cut(model: ModelProto, axes: Mapping[str, Mapping[int | None, Sequence[int]]]) -> None:
    """Leaves indices of constants out, and tells their sizes where they are inputs too."""
    stored = constants(model.graph)
    inputs = {value.name: value for value in model.graph.input}
    for name, cuts in axes.items():
        array = onnx.numpy_helper.to_array(stored[name])
        for axis, indices in cuts.items():
            own = int(np.argmax(array.shape)) if axis is None else axis
            array = np.delete(array, indices, own)
        stored[name].CopyFrom(onnx.numpy_helper.from_array(array, stored[name].name))
        if name in inputs:  # as old versions of the format have them
            shape = inputs[name].type.tensor_type.shape
            for dimension, size in zip(shape.dim, array.shape, strict=False):
                dimension.dim_value = size


def _drop_unread(model: ModelProto) -> None:
    """Takes constants away that mended ones have replaced."""
    graph = model.graph
    needed = {name for node in graph.node for name in reads(node)}
    needed |= {value.name for value in (*graph.output, *graph.input)}
    nodes = [of for of in graph.node if of.op_type != "Constant" or needed & {*of.output}]
    held = [tensor for tensor in graph.initializer if tensor.name in needed]
    fields: list[tuple[Any, list[Any]]] = [(graph.node, nodes), (graph.initializer, held)]
    for field, kept in fields:
        if len(kept) < len(field):
            copies = [type(of).FromString(of.SerializeToString()) for of in kept]
            del field[:]
            field.extend(copies)


# nodes


class _Mending:
    """Gives a model's nodes the sizes of its values without some channels."""

    def __init__(self, model: ModelProto, narrowing: Narrowing) -> None:
        self.graph, self.narrowing = model.graph, narrowing
        self.constants = constants(model.graph)
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self.ops = {op.name: op for _, op in expanded(narrowing.graph.ops)}
        self.taken = {*self.constants, *self.makers}
        self.taken |= {value.name for value in model.graph.input}
        self.before: dict[int, list[NodeProto]] = {}  # new nodes, by the number of their reader

    def mend(self) -> None:
        for number, node in enumerate(self.graph.node):
            if node.domain in ("", "ai.onnx") and self._known(node):
                self._mend(number, node)
        if self.before:
            nodes = [
                NodeProto.FromString(new.SerializeToString())
                for number, node in enumerate(self.graph.node)
                for new in (*self.before.get(number, ()), node)
            ]
            del self.graph.node[:]
            self.graph.node.extend(nodes)

    def _known(self, node: NodeProto) -> bool:
        return any(name in self.narrowing.graph.shapes for name in node.output)

    def _mend(self, number: int, node: NodeProto) -> None:
        if node.op_type in ("Reshape", "Expand", "Resize"):
            self._mend_shape(number, node, 3 if node.op_type == "Resize" else 1)
        elif node.op_type == "Conv":
            self._mend_groups(node, "group")
        elif node.op_type == "GroupNormalization":
            self._mend_groups(node, "num_groups")
        elif node.op_type in ("Slice", "Gather"):
            self._mend_slice(node)
        elif node.op_type == "Split":
            self._mend_split(node)
        elif node.op_type == "Pad":
            self._mend_pad(node)

    def _sizes(self, name: str) -> tuple[Sizes, Sizes]:
        """Of a value for one image, before and after."""
        return self.narrowing.graph.shapes[name].sizes, self.narrowing.sizes(name)

    def _mend_groups(self, node: NodeProto, attribute: str) -> None:
        """As many groups as the input has channels, where that was so before.

        A normalisation loses whole groups.
        """
        if node.input[0] not in self.narrowing.graph.shapes:
            return
        old, new = self._sizes(node.input[0])
        groups = option(node, attribute, 1)
        if old[1] != new[1] and (attribute == "num_groups" or groups == old[1]):
            _set(node, attribute, groups * new[1] // old[1])

    def _mend_shape(self, number: int, node: NodeProto, at: int) -> None:
        """The constants in a shape: those along axes that get shorter."""
        if len(node.input) <= at or not node.input[at]:
            return
        old, new = self._sizes(node.output[0])
        if node.input[0] in self.constants:  # an entry for each channel, in another shape
            old, new = self._sizes_of_constant(node, old)
        changes = {axis: (old[axis], new[axis]) for axis in range(len(old)) if old != new}
        if any(before != after for before, after in changes.values()):
            node.input[at] = self._shape(number, node.input[at], changes, node)

    def _sizes_of_constant(self, node: NodeProto, old: Sizes) -> tuple[Sizes, Sizes]:
        """The sizes of a reshaped constant: one axis is that of its channels."""
        cuts = [
            int(numbers.size - sum(map(self.narrowing.leaves, numbers)))
            for (name, _, _), numbers in self.narrowing.known.slices.items()
            if name == node.input[0]
        ]
        size = int(np.prod(old))
        return old, tuple(cuts[0] if cuts and length == size else length for length in old)

    def _shape(
        self,
        number: int,
        name: str,
        changes: Mapping[int, tuple[int, int]],
        node: NodeProto,
    ) -> str:
        """The name of a shape with some entries changed: of one that is computed its constants."""
        values = self._integers(name)
        if values is not None:
            called = node.name or node.output[0]
            entries = [mended(of, changes.get(at), called) for at, of in enumerate(values)]
            return self._hold(name, entries)
        maker = self.makers.get(name)
        if maker is None or not is_node(maker, "Concat"):
            return name  # made of the sizes that values have
        parts, start = list[str](), 0
        for part, length in zip(maker.input, self._lengths(maker, changes), strict=True):
            own = {at - start: of for at, of in changes.items() if start <= at < start + length}
            known = self._integers(part) is not None
            parts.append(self._shape(number, part, own, node) if known else part)
            start += length
        joined = onnx.helper.make_node("Concat", parts, [self._fresh(name)], axis=0)
        self.before.setdefault(number, []).append(joined)
        return joined.output[0]

    def _lengths(self, node: NodeProto, changes: Mapping[int, object]) -> list[int]:
        """How many sizes each part of a shape has: one that is computed has those left over."""
        values = [self._integers(name) for name in node.input]
        lengths = [None if of is None else len(of) for of in values]
        open_parts = lengths.count(None)
        rest = len(changes) - sum(of for of in lengths if of is not None)
        return [rest // open_parts if of is None else of for of in lengths]

    def _mend_slice(self, node: NodeProto) -> None:
        op = self.ops.get(node.output[0])
        if not isinstance(op, Slice):
            return
        start, stop = (self.narrowing.bound(op, op.axis, of) for of in (op.start, op.stop))
        if (start, stop) == (op.start, op.stop):
            return
        if node.op_type == "Gather":
            node.input[1] = self._hold(node.input[1], start)
        elif len(node.input) > 1:
            node.input[1] = self._hold(node.input[1], [start])
            node.input[2] = self._hold(node.input[2], [stop])
        else:
            _set(node, "starts", [start])
            _set(node, "ends", [stop])

    def _mend_split(self, node: NodeProto) -> None:
        first = self.ops.get(next(filter(None, node.output)))
        op = self.ops.get(first.input) if first is not None else None
        if not isinstance(op, Split):
            return
        lengths = self.narrowing.lengths(op)
        if lengths == op.lengths:
            return
        if len(node.input) > 1 and node.input[1]:
            node.input[1] = self._hold(node.input[1], lengths)
        elif option(node, "split", []):
            _set(node, "split", lengths)
        elif len({*lengths}) > 1:  # it splits evenly
            _unset(node, "num_outputs")
            node.input.extend([self._hold(f"{node.output[0]} lengths", lengths)])

    def _mend_pad(self, node: NodeProto) -> None:
        op = self.ops.get(node.output[0])
        if not isinstance(op, Padding) or self.narrowing.padded(op) == (op.before, op.after):
            return
        rank = len(self.narrowing.graph.shapes[op.name].sizes)
        pads = [0] * 2 * rank
        for start, amounts in zip((0, rank), self.narrowing.padded(op), strict=True):
            for axis, amount in zip(op.axes, amounts, strict=True):
                pads[start + axis] = amount
        if len(node.input) > 1:
            node.input[1] = self._hold(node.input[1], pads)
        else:
            _set(node, "pads", pads)

    def _integers(self, name: str) -> list[int] | None:
        """The integers that a constant holds; None where they are computed from values."""
        if name in self.constants:
            return onnx.numpy_helper.to_array(self.constants[name]).ravel().tolist()
        node = self.makers.get(name)
        if node is None:
            return None
        if is_node(node, "Constant"):
            held = option(node, "value_ints", None) or [option(node, "value_int", None)]
            return None if None in held else list(held)
        if any(is_node(node, kind) for kind in ("Unsqueeze", "Squeeze", "Cast", "Identity")):
            return self._integers(node.input[0])
        if is_node(node, "Concat"):
            parts = [self._integers(part) for part in node.input]
            return None if None in parts else [of for part in parts for of in part or ()]
        return None

    def _hold(self, like: str, values: int | Iterable[int]) -> str:
        """A further constant: its name."""
        name = self._fresh(like)
        array = np.array(values if isinstance(values, int) else [*values], np.int64)
        self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _fresh(self, like: str) -> str:
        new = f"{like} narrower"
        while new in self.taken:
            new += "'"
        self.taken.add(new)
        return new


def _set(node: NodeProto, name: str, value: int | Iterable[int]) -> None:
    _unset(node, name)
    value = value if isinstance(value, int) else [*value]
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _unset(node: NodeProto, name: str) -> None:
    for attribute in [of for of in node.attribute if of.name == name]:
        node.attribute.remove(attribute)
