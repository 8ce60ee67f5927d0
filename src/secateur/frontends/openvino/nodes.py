"""The nodes of an OpenVINO model that lead to its outputs, and who makes and reads each value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from openvino.passes import ConstantFolding, Manager

from secateur.network.ops import Sizes

_MADE_UP = re.compile(r"[A-Z][A-Za-z]*_\d+")  # such as Constant_1234, by OpenVINO itself
_WITHOUT_BIAS = "/WithoutBiases"  # what OpenVINO adds to the name of a layer with a bias
_COMPRESSED = "_compressed"  # and to that of a constant in float16
_ALIASES = ("Convert", "Reshape", "Transpose", "Unsqueeze", "Squeeze")
_BODIES = ("If", "Loop", "TensorIterator")
LAYERS = (
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
    "MatMul",
)


@dataclass(frozen=True, eq=False)
class Node:
    """A node, and the values that it reads and gives by name.

    Attributes:
        held: the `openvino.Node`.
        kind: its type, such as "Convolution".
        reads: its inputs, in their order.
        writes: its outputs, in their order; "" for one that nothing reads.
        options: its attributes.
    """

    held: Any
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its own name, which is that of its first output."""
        return str(self.held.get_friendly_name())

    @property
    def has_body(self) -> bool:
        """Whether it runs nodes of its own."""
        return self.kind in _BODIES


class Nodes:
    """A model's nodes, with look-ups by value.

    A value has the name of its node, with the number of the output where that is not the first.
    A constant without a name of its own has that of the layer that it is a weight of.

    Attributes:
        model: the `openvino.Model`, which is changed: nodes get names that differ from each other,
            and what is always the same of the sizes that it computes becomes constants.
        nodes: in execution order, without inputs, constants and results.
        inputs: names of the values that the model takes.
        outputs: names of the values that it gives.
        constants: nodes of constants by name.
        makers: number of the node that makes a value.
        readers: numbers of the nodes that read a value.
        fixed: values that depend on constants only.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        for node, name in distinct_names(model).items():
            node.set_friendly_name(name)
        _drop_factors(model)
        _settle_shapes(model)
        ordered = model.get_ordered_ops()
        self._names = _Names(ordered)
        kinds = {"Parameter", "Constant", "Result"}
        self.nodes = [self._node(of) for of in ordered if of.get_type_name() not in kinds]
        self.inputs = [self._names.of(value) for value in model.inputs]
        self.outputs = [self._names.of(value.get_node().input_value(0)) for value in model.outputs]
        held = [of for of in ordered if of.get_type_name() == "Constant"]
        self.constants = {self._names.of(of.output(0)): of for of in held}
        self.makers = {name: i for i, of in enumerate(self.nodes) for name in of.writes if name}
        self.readers: dict[str, list[int]] = {}
        self.fixed = set(self.constants)
        for index, node in enumerate(self.nodes):
            for name in node.reads:
                self.readers.setdefault(name, []).append(index)
            if self.fixed.issuperset(node.reads) and node.reads:
                self.fixed.update(filter(None, node.writes))

    def _node(self, held: Any) -> Node:
        reads = tuple(self._names.of(value) for value in held.input_values())
        writes = tuple(
            self._names.of(value) if index == 0 or value.get_target_inputs() else ""
            for index, value in enumerate(held.outputs())
        )
        return Node(held, held.get_type_name(), reads, writes, held.get_attributes())

    def fresh(self, name: str) -> str:
        """A new name like this one."""
        return self._names.fresh(name)

    def maker(self, name: str) -> Node | None:
        """The node that makes a value."""
        return self.nodes[self.makers[name]] if name in self.makers else None

    def is_fixed(self, node: Node) -> bool:
        """Whether a node depends on constants only."""
        return self.fixed.issuperset(filter(None, node.writes))

    def value(self, name: str) -> Any:
        """The `openvino.Output` of a value that a node or a constant gives."""
        if name in self.constants:
            return self.constants[name].output(0)
        node = self.nodes[self.makers[name]]
        return node.held.output(node.writes.index(name))

    def shape(self, name: str) -> Sizes | None:
        """The shape of a value, where it is always the same."""
        shape = self.value(name).get_partial_shape()
        return tuple(shape.to_shape()) if shape.is_static else None

    def rank(self, name: str) -> int | None:
        """How many axes a value has, where that is known."""
        inputs = dict(zip(self.inputs, self.model.inputs, strict=True))
        value = inputs[name] if name in inputs else self.value(name)
        rank = value.get_partial_shape().rank
        return None if rank.is_dynamic else rank.get_length()

    def only_reader(self, name: str) -> int | None:
        """The node that alone reads a value, once."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def integers(self, name: str) -> list[int] | None:
        """The values of a constant of integers; None where they are computed."""
        held = self.constants.get(name)
        if held is None or not held.get_element_type().is_integral():
            return None
        return [int(value) for value in np.ravel(held.get_data(dtype=np.int64))]


class _Names:
    """Names of values; those of constants say which layer's weight they are."""

    def __init__(self, ordered: Sequence[Any]) -> None:
        self.taken = {of.get_friendly_name() for of in ordered}
        self.better: dict[tuple[str, int], str] = {}
        for node in ordered:
            if node.get_type_name() == "Parameter":
                self._name_input(node)
        for node in ordered:
            if node.get_type_name() in LAYERS:
                self._name_weights(node)
        for node in ordered:
            name = node.get_friendly_name()
            for at in range(1, node.get_output_size()):
                self.better[name, at] = self._free(f"{name}:{at}")

    def of(self, value: Any) -> str:
        """Of a value."""
        name, at = value.get_node().get_friendly_name(), value.get_index()
        return self.better.get((name, at), str(name))

    def fresh(self, name: str) -> str:
        """A new name like this one."""
        return self._free(f"{name}'")

    def _free(self, name: str) -> str:
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def _name_input(self, node: Any) -> None:
        """By what it is called when the model is run."""
        own, name = node.get_friendly_name(), min(node.output(0).get_names(), default="")
        if name not in ("", own):
            self.better[own, 0] = self._free(name)

    def _name_weights(self, layer: Any) -> None:
        readers = list(layer.output(0).get_target_inputs())
        add = readers[0].get_node() if len(readers) == 1 else None
        add = add if add is not None and add.get_type_name() == "Add" else None
        own = layer.get_friendly_name().removesuffix(_WITHOUT_BIAS)
        if _MADE_UP.fullmatch(own) and add is not None:
            named = add.get_friendly_name()
            own = own if _MADE_UP.fullmatch(named) else named
        for value in layer.input_values()[:2]:
            self._name(value, f"{own}.weight")
        for value in add.input_values() if add is not None else ():
            self._name(value, f"{own}.bias")

    def _name(self, value: Any, name: str) -> None:
        """Names the constant behind a value: as one on the way is called, else by its layer."""
        way = list[str]()
        node = value.get_node()
        while node.get_type_name() in _ALIASES:
            way.append(node.get_friendly_name())
            node = node.input_value(0).get_node()
        held = node.get_friendly_name()
        if node.get_type_name() != "Constant" or (held, 0) in self.better:
            return
        names = [held.removesuffix(_COMPRESSED), *reversed(way)]
        given = next((of for of in names if not _MADE_UP.fullmatch(of)), name)
        if given in way:  # which gets the constant's name instead
            self.better[given, 0] = held
        elif given != held:
            given = self._free(given)
        self.better[held, 0] = given


def distinct_names(model: Any) -> dict[Any, str]:
    """The names of a model's nodes, in execution order; those that several have are numbered."""
    names, taken = dict[Any, str](), set[str]()
    for node in model.get_ordered_ops():
        name, number = node.get_friendly_name(), 1
        new = name
        while new in taken:
            new, number = f"{name} ({number})", number + 1
        taken.add(new)
        names[node] = new
    return names


def _drop_factors(model: Any) -> None:
    """Takes products with 1 out, which Gemm nodes have become that were not simplified."""
    for node in model.get_ordered_ops():
        values = node.input_values() if node.get_type_name() == "Multiply" else []
        for value, other in zip(values, reversed(values), strict=True):
            held = value.get_node()
            is_one = held.get_type_name() == "Constant" and (held.get_data() == 1).all()
            if is_one and not held.get_output_shape(0):
                node.output(0).replace(other)
                break


def _settle_shapes(model: Any) -> None:
    """Puts constants in place of integers that are the same for all inputs: a number of axes."""
    ordered = model.get_ordered_ops()
    if not any(node.get_type_name() == "ShapeOf" for node in ordered):
        return
    values = [
        value
        for node in ordered
        for value in node.outputs()
        if node.get_type_name() not in ("Constant", "Result", "Parameter")
        and value.get_element_type().is_integral()
    ]
    twin = model.clone()
    by_name = {node.get_friendly_name(): node for node in twin.get_ordered_ops()}
    places = [(value.get_node().get_friendly_name(), value.get_index()) for value in values]
    results = [openvino.op.Result(by_name[name].output(at)) for name, at in places]
    twin.add_results(results)
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(twin)
    for value, result in zip(values, results, strict=True):
        found = result.input_value(0).get_node()
        if found.get_type_name() == "Constant":
            made = openvino.op.Constant(
                found.get_element_type(),
                openvino.Shape(found.get_output_shape(0)),
                found.get_data().ravel(),
            )
            made.set_friendly_name(f"{value.get_node().get_friendly_name()} (always the same)")
            value.replace(made.output(0))


def leading_to(names: Iterable[str], nodes: Sequence[Node]) -> Iterator[Node]:
    """Those of some nodes that values depend on, the last one first."""
    wanted = set(names)
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.writes)):
            wanted.update(node.reads)
            yield node
