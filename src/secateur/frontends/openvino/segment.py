"""The nodes between layers as operations that OpenVINO runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino
import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.openvino.nodes import Node, Nodes
from secateur.frontends.openvino.operators import ELEMENTWISE
from secateur.frontends.openvino.runtime import compiled, reason
from secateur.frontends.schedule import Part
from secateur.network.layout import to_channels_last


@dataclass
class Segment:
    """Some nodes between layers as one function of the values that they read, run by OpenVINO.

    Elementwise segments take channels-last images as they lie in memory; others get a copy in
    OpenVINO's order.

    Attributes:
        model: the nodes as an `openvino.Model`.
        part: what it is made of.
        key: what it does; segments of the same key share what is compiled.
        sessions: those made so far, by key.
        elementwise: whether each number of a result is made of those at its place.
        each: for a model that takes one image at a time, the number of entries along the first
            axis of one image's value by name (0 for a number); None = all images at once.
    """

    model: Any
    part: Part
    key: str
    sessions: dict[str, Any]
    elementwise: bool
    each: Mapping[str, int] | None = None
    session: Any = field(default=None, compare=False)

    def __call__(self, *values: Any) -> Any:
        """One output, or a tuple of several."""
        inputs = list(values)
        found = self._call(inputs) if self.each is None else self._one_by_one(inputs, self.each)
        laid = [
            to_channels_last(of) if name in self.part.fast else of
            for name, of in zip(self.part.writes, found, strict=True)
        ]
        return laid[0] if len(laid) == 1 else tuple(laid)

    def _call(self, inputs: list[Tensor]) -> list[Tensor]:
        if self.session is None:
            self.session = self._start()
        permuted = self.elementwise and _are_channels_last(inputs)
        if permuted:
            inputs = [value.permute(0, 2, 3, 1) for value in inputs]
        devices = {value.device for value in inputs} - {torch.device("cpu")}
        arrays = [value.cpu().contiguous().numpy() for value in inputs]
        try:
            results = self.session(arrays, share_inputs=True)
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO cannot run a part of the model on {[of.shape for of in arrays]} "
                f"({reason(error)}), expected values like those of the whole model: please report "
                "its operations"
            ) from error
        found = [torch.from_numpy(np.array(results[at])) for at in range(len(self.part.writes))]
        for device in devices:
            found = [value.to(device) for value in found]
        return [value.permute(0, 3, 1, 2) for value in found] if permuted else found

    def _one_by_one(self, inputs: list[Tensor], each: Mapping[str, int]) -> list[Tensor]:
        pairs = zip(self.part.reads, inputs, strict=True)
        parts = zip(*(_split(of, each[name]) for name, of in pairs), strict=True)
        runs = [self._call(list(part)) for part in parts]
        return [
            torch.cat([value.reshape(max(each[name], 1), *value.shape[1:]) for value in of])
            for name, of in zip(self.part.writes, zip(*runs, strict=True), strict=True)
        ]

    def _start(self) -> Any:
        if self.key not in self.sessions:
            self.sessions[self.key] = compiled(self.model)
        return self.sessions[self.key]


class Cutter:
    """Cuts a model into segments, which changes it: each reads its values from inputs of its own.

    Args:
        nodes: of the model.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.sessions: dict[str, Any] = {}
        given = dict(zip(nodes.inputs, nodes.model.inputs, strict=True))
        self.values = {**given, **{name: nodes.value(name) for name in nodes.makers}}

    def segment(self, part: Part) -> Segment:
        """A part as a function."""
        nodes = [self.nodes.nodes[number] for number in part.numbers]
        elementwise = self._is_elementwise(nodes)
        inputs = {name: self._input(name, elementwise=elementwise) for name in part.reads}
        key = self._key(part, nodes, inputs)
        for node in nodes:
            for at, name in enumerate(node.reads):
                if name in inputs:
                    node.held.input(at).replace_source_output(inputs[name].output(0))
        outputs = [self.values[name] for name in part.writes]
        make: Any = openvino.Model
        model = make(outputs, list(inputs.values()))
        return Segment(model, part, key, self.sessions, elementwise)

    def _is_elementwise(self, nodes: Sequence[Node]) -> bool:
        """Whether all nodes are, and constants are single numbers."""
        held = [name for node in nodes for name in node.reads if name in self.nodes.constants]
        shapes = [self.nodes.shape(name) or () for name in held]
        single = all(math.prod(shape) == 1 and len(shape) <= 4 for shape in shapes)
        return single and {node.kind for node in nodes} <= ELEMENTWISE

    def _input(self, name: str, *, elementwise: bool) -> Any:
        value = self.values[name]
        shape = value.get_partial_shape()
        if elementwise and shape.rank.is_static:  # its axes may come in another order
            shape = openvino.PartialShape([-1] * shape.rank.get_length())
        return openvino.op.Parameter(value.get_element_type(), shape)

    def _key(self, part: Part, nodes: Sequence[Node], inputs: Mapping[str, Any]) -> str:
        """What the nodes do, whatever they are called; bodies are only known by their name."""
        known = {name: f"i{at}" for at, name in enumerate(inputs)}
        lines = [f"{of.get_element_type()}{of.get_partial_shape()}" for of in inputs.values()]
        for number, node in enumerate(nodes):
            for name in node.reads:
                if name in self.nodes.constants and name not in known:
                    known[name] = _content(self.nodes.constants[name])
            reads = [known[name] for name in node.reads]
            version = node.held.get_type_info().version_id
            options = {"name": node.name} if node.has_body else dict(node.options)
            lines.append(f"{node.kind} {version} {options} {reads}")
            known |= {name: f"{number}:{at}" for at, name in enumerate(node.writes) if name}
        lines.append(str([known[name] for name in part.writes]))
        return "\n".join(lines)


def _content(constant: Any) -> str:
    """A constant's type, shape and numbers."""
    data = np.ascontiguousarray(constant.data)
    digest = hashlib.sha256(data.tobytes()).hexdigest()
    return f"{constant.get_element_type()}{constant.get_output_shape(0)}{digest}"


def _are_channels_last(values: Sequence[Tensor]) -> bool:
    """Whether all are images, and some of them lie in channels-last memory only."""
    return all(value.dim() == 4 for value in values) and any(
        not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        for value in values
    )


def _split(value: Tensor, each: int) -> Sequence[Tensor]:
    """One image's part after the other."""
    return value.split(each) if each else value.unbind()
