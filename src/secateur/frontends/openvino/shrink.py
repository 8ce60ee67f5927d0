"""An OpenVINO model with fewer channels: its constants cut, and the sizes that nodes hold mended.

What is left out is what nobody reads, as in modules: the rows that make a channel, its entries, and
the columns that read it. Sizes are held by constants: shapes of Reshape, lengths of VariadicSplit,
bounds of slices, amounts of Pad; and by the number of groups of a GroupNormalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13

from secateur.errors import ModelError
from secateur.frontends.openvino.nodes import Node, distinct_names
from secateur.frontends.openvino.translation import Translation, WeightLayout
from secateur.network.couplings import Removed, gone
from secateur.network.graph import Graph
from secateur.network.narrowing import Narrowing, mended
from secateur.network.ops import Padding, Slice, Split, expanded

Changes = Mapping[int, tuple[int, int]]  # sizes before and after, by axis


def shrink(model: Any, graph: Graph, removed: Removed) -> Any:
    """A copy of a model without some units of its couplings.

    Args:
        model: the `openvino.Model`; not changed.
        graph: of this model.
        removed: units to leave out, by coupling. Of a coupling in blocks as many of each.

    Raises:
        ModelError: a coupling is fixed, its blocks would be of different sizes, or a size cannot be
            mended.
    """
    narrowing, translation = Narrowing(graph, removed), Translation(model.clone())
    twin = model.clone()
    nodes = {name: node for node, name in distinct_names(twin).items()}
    kept = _kept(translation, graph, removed)
    _Mending(translation, narrowing, nodes, kept).mend()
    for name, mask in kept.items():
        held = nodes[translation.nodes.constants[name].get_friendly_name()]
        held.output(0).replace(_cut(held, mask).output(0))
    try:
        twin.validate_nodes_and_infer_types()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the network without its removed channels has sizes that do not fit ({reason}), "
            "expected sizes that follow from the weights: please report its operations"
        ) from error
    return twin


# constants


def _kept(translation: Translation, graph: Graph, removed: Removed) -> dict[str, np.ndarray]:
    """Which numbers of the constants that get smaller stay, by name, as they are stored."""
    found: dict[str, np.ndarray] = {}
    for name, axes in gone(removed).items():
        stored = tuple(translation.nodes.constants[name].get_output_shape(0))
        sizes = graph.shapes[name].sizes
        layout = translation.layouts.get(name) or WeightLayout().reshaped(stored, sizes)
        mask = torch.ones(sizes, dtype=torch.bool)
        for axis, indices in axes.items():
            mask.index_fill_(axis, torch.tensor(indices), False)
        found[name] = layout.write(mask).reshape(stored).numpy()
    return found


def _left(mask: np.ndarray) -> tuple[int, ...]:
    """The shape of what stays of an array: of each row as much.

    Raises:
        ModelError: it has none.
    """
    counts = [{*np.unique(mask.sum(axis)).tolist()} - {0} for axis in range(mask.ndim)]
    sizes = tuple(max(of, default=0) for of in counts)
    if any(len(of) != 1 for of in counts) or np.prod(sizes) != mask.sum():
        raise ModelError(
            f"what is left of a constant of shape {mask.shape} has no shape, expected as many "
            "channels in each block: remove as many of each"
        )
    return sizes


def _cut(constant: Any, mask: np.ndarray) -> Any:
    """A constant of what stays, of the same type and name."""
    array = np.array(constant.get_data(dtype=np.float32))[mask]
    make: Any = openvino.op.Constant
    made = make(constant.get_element_type(), openvino.Shape(_left(mask)), array)
    made.set_friendly_name(constant.get_friendly_name())
    return made


# nodes


class _Mending:
    """Gives a model's nodes the sizes of its values without some channels.

    Args:
        translation: of the model.
        narrowing: its values without these channels.
        nodes: of the copy that is changed, by name.
        kept: which numbers of the constants that get smaller stay.
    """

    def __init__(
        self,
        translation: Translation,
        narrowing: Narrowing,
        nodes: Mapping[str, Any],
        kept: Mapping[str, np.ndarray],
    ) -> None:
        self.translation, self.narrowing = translation, narrowing
        self.nodes, self.kept = nodes, kept
        self.ops = {op.name: op for _, op in expanded(narrowing.graph.ops)}

    def mend(self) -> None:
        for node in self.translation.nodes.nodes:
            if node.name not in self.nodes:
                continue
            held = self.nodes[node.name]
            if node.kind in ("Reshape", "Broadcast", "Interpolate"):
                self._mend_shape(node, held)
            elif node.kind in ("Slice", "StridedSlice", "Gather"):
                self._mend_slice(node, held)
            elif node.kind in ("Split", "VariadicSplit"):
                self._mend_split(node, held)
            elif node.kind == "Pad":
                self._mend_pad(node, held)
            elif node.kind == "GroupNormalization":
                old, new = (shape[1] for shape in self._sizes(node.reads[0]))
                held.set_attribute("num_groups", int(node.options["num_groups"]) * new // old)

    def _sizes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of a value for one sample, before and after; of none that is not known."""
        if name not in self.narrowing.graph.shapes:
            return (), ()
        return self.narrowing.graph.shapes[name].sizes, self.narrowing.sizes(name)

    def _mend_shape(self, node: Node, held: Any) -> None:
        """The constants in a shape: those along axes that get shorter."""
        if node.kind == "Interpolate" and node.options.get("shape_calculation_mode") == "scales":
            return
        stored = self.translation.stored(node.writes[0])
        if stored is not None and stored.name in self.kept:  # a constant in another shape
            mask = torch.from_numpy(self.kept[stored.name])
            old, new = stored.shape, _left(stored.layout.read(mask).numpy())
        else:
            old, new = self._sizes(node.writes[0])
        changes = {axis: pair for axis, pair in enumerate(zip(old, new, strict=True))}
        if any(before != after for before, after in changes.values()):
            self._replace(held, 1, self._shape(held.input_value(1), changes, node))

    def _shape(self, value: Any, changes: Changes, node: Node) -> Any:
        """A shape with some entries changed: of one that is computed its constants."""
        values = _integers(value)
        if values is not None:
            entries = [mended(of, changes.get(at), node.name) for at, of in enumerate(values)]
            return _constant(entries, like=value)
        maker = value.get_node()
        if maker.get_type_name() != "Concat":
            return value  # made of the sizes that values have
        parts, start = list[Any](), 0
        for part in maker.input_values():
            length = part.get_shape()[0]
            own = {at - start: of for at, of in changes.items() if start <= at < start + length}
            parts.append(part if _integers(part) is None else self._shape(part, own, node))
            start += length
        return opset13.concat(parts, 0).output(0)

    def _replace(self, held: Any, at: int, value: Any) -> None:
        held.input(at).replace_source_output(value)

    def _mend_slice(self, node: Node, held: Any) -> None:
        """The bounds along each axis that is cut; a Gather has one place."""
        name = node.writes[0]
        while isinstance(op := self.ops.get(name), Slice) and op.label == node.name:
            name = op.input
            start, stop = (self.narrowing.bound(op, op.axis, of) for of in (op.start, op.stop))
            if (start, stop) == (op.start, op.stop):
                continue
            place = self._place(node, held, op.axis)
            for at, bound in ((1, start), (2, stop))[: 1 if node.kind == "Gather" else 2]:
                values = _integers(held.input_value(at)) or []
                entries = [bound if other == place else of for other, of in enumerate(values)]
                self._replace(held, at, _constant(entries, like=held.input_value(at)))

    def _place(self, node: Node, held: Any, axis: int) -> int:
        """Where among the bounds of a slice those of an axis are."""
        if node.kind == "Gather":
            return 0
        rank = len(self.narrowing.graph.shapes[node.reads[0]].sizes)
        axes = _integers(held.input_value(4)) if len(node.reads) > 4 else None
        return axis if axes is None else [of % rank for of in axes].index(axis)

    def _mend_split(self, node: Node, held: Any) -> None:
        first = self.ops.get(next(filter(None, node.writes)))
        op = self.ops.get(first.input) if first is not None else None
        if not isinstance(op, Split):
            return
        lengths = self.narrowing.lengths(op)
        if lengths == op.lengths:
            return
        if node.kind == "VariadicSplit":
            self._replace(held, 2, _constant(lengths, like=held.input_value(2)))
        elif len({*lengths}) > 1:  # it splits evenly
            x, axis = held.input_values()
            uneven = opset13.variadic_split(x, axis, np.array(lengths))
            uneven.set_friendly_name(held.get_friendly_name())
            for before, after in zip(held.outputs(), uneven.outputs(), strict=True):
                before.replace(after)

    def _mend_pad(self, node: Node, held: Any) -> None:
        op = self.ops.get(node.writes[0])
        if not isinstance(op, Padding) or self.narrowing.padded(op) == (op.before, op.after):
            return
        rank = len(self.narrowing.graph.shapes[op.name].sizes)
        for at, amounts in zip((1, 2), self.narrowing.padded(op), strict=True):
            by_axis = dict(zip(op.axes, amounts, strict=True))
            entries = [by_axis.get(axis, 0) for axis in range(rank)]
            self._replace(held, at, _constant(entries, like=held.input_value(at)))


def _integers(value: Any) -> list[int] | None:
    """The integers that a constant holds; None where they are computed from values."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return [int(of) for of in np.ravel(node.get_data(dtype=np.int64))]
    if kind in ("Unsqueeze", "Squeeze", "Convert", "Reshape"):
        return _integers(node.input_value(0))
    if kind == "Concat":
        parts = [_integers(part) for part in node.input_values()]
        return None if None in parts else [of for part in parts for of in part or ()]
    return None


def _constant(values: Iterable[int], *, like: Any) -> Any:
    """Integers of the type and shape of others, as many as those."""
    entries: Sequence[int] = [*values]
    make: Any = openvino.op.Constant
    shape = openvino.Shape(list(like.get_shape()))
    return make(like.get_element_type(), shape, entries).output(0)
