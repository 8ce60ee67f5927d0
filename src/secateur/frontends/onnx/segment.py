"""The nodes between layers as operations that ONNX Runtime runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.onnx.file import has_body
from secateur.frontends.onnx.large import digest
from secateur.frontends.onnx.nodes import renamed
from secateur.frontends.onnx.operators import ELEMENTWISE
from secateur.frontends.onnx.runtime import as_array, as_tensor, call, start
from secateur.network.layout import to_channels_last
from secateur.network.ops import Sizes


@dataclass
class Segment:
    """Some nodes between layers as one function of the values that they read, run by ONNX Runtime.

    The model is built at the first run, when the types of its inputs are known. Elementwise
    segments take channels-last images as they lie in memory; others get a copy in ONNX's order.

    Attributes:
        reads: names of the values that it takes.
        writes: names of the values that it gives: one, or a tuple of several.
        numbers: of the nodes in the graph.
        nodes: in execution order.
        constants: those that the nodes read, by name.
        source: the whole model, for its versions.
        sessions: those made so far, by content: equal segments share one.
        fast: outputs that convolutions read, put into channels-last memory.
        each: for a model that takes one image at a time, the number of entries along the first
            axis of one image's value by name (0 for a number); None = all images at once.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    numbers: Sequence[int]
    nodes: list[NodeProto]
    constants: Mapping[str, TensorProto]
    source: ModelProto
    sessions: dict[bytes, Any]
    fast: frozenset[str] = frozenset()
    each: Mapping[str, int] | None = None
    session: Any = field(default=None, compare=False)

    def __call__(self, *values: Any) -> Any:
        """One output, or a tuple of several."""
        inputs = list(values)
        found = self._call(inputs) if self.each is None else self._one_by_one(inputs, self.each)
        laid = [
            to_channels_last(of) if name in self.fast else of
            for name, of in zip(self.writes, found, strict=True)
        ]
        return laid[0] if len(laid) == 1 else tuple(laid)

    def inner_shapes(self, runs: Sequence[Sequence[Any]]) -> list[dict[str, Sizes]]:
        """The shapes of all values that the nodes make, for each of several inputs.

        Values that are no tensors are left out; nothing is told where ONNX Runtime does not say.
        """
        model, names = self._model(list(runs[0])), self._names()
        values = [name for node in self.nodes if _gives_tensors(node) for name in node.output]
        values = list(filter(None, values))
        del model.graph.output[:]
        for name in values:
            shape = f"shape of {names(name)}"
            model.graph.node.append(onnx.helper.make_node("Shape", [names(name)], [shape]))
            model.graph.output.append(onnx.ValueInfoProto(name=shape))
        try:
            session = start(model)
            inputs = [of.name for of in session.get_inputs()]
            found = [call(session, dict(zip(inputs, run, strict=True))) for run in runs]
        except ModelError:
            return [{} for _ in runs]
        sizes = [[tuple(shape.tolist()) for shape in shapes] for shapes in found]
        return [dict(zip(values, of, strict=True)) for of in sizes]

    def _call(self, inputs: list[Any]) -> list[Any]:
        if self.session is None:
            self.session = self._start(inputs)
        permuted = self.elementwise and _are_channels_last(inputs)
        if permuted:
            inputs = [value.permute(0, 2, 3, 1) for value in inputs]
        names = [value.name for value in self.session.get_inputs()]
        found = call(self.session, dict(zip(names, inputs, strict=True)))
        tensors = [as_tensor(value) for value in found]
        devices = {value.device for value in inputs if isinstance(value, Tensor)}
        for device in devices - {torch.device("cpu")}:
            tensors = [tensor.to(device) for tensor in tensors]
        return [tensor.permute(0, 3, 1, 2) for tensor in tensors] if permuted else tensors

    def _one_by_one(self, inputs: list[Any], each: Mapping[str, int]) -> list[Any]:
        parts = zip(
            *(_split(of, each[name]) for name, of in zip(self.reads, inputs, strict=True)),
            strict=True,
        )
        runs = [self._call(list(part)) for part in parts]
        return [
            torch.cat([value.reshape(max(each[name], 1), *value.shape[1:]) for value in of])
            for name, of in zip(self.writes, zip(*runs, strict=True), strict=True)
        ]

    def __post_init__(self) -> None:
        dims = [held.dims for held in self.constants.values()]
        single = all(math.prod(sizes) == 1 and len(sizes) <= 4 for sizes in dims)
        self.elementwise = single and {node.op_type for node in self.nodes} <= ELEMENTWISE

    def _start(self, inputs: list[Any]) -> Any:
        model = self._model(inputs)
        key = digest(model)
        if key not in self.sessions:
            self.sessions[key] = start(model, literal=True)
        return self.sessions[key]

    def _model(self, inputs: list[Any]) -> ModelProto:
        """The nodes as a model of its own."""
        names = self._names()
        graph = onnx.GraphProto(name="segment")
        for name, value in zip(self.reads, inputs, strict=True):
            kind = _kind(value, name)
            graph.input.append(onnx.helper.make_tensor_value_info(names(name), kind, None))
        for name, held in self.constants.items():
            graph.initializer.add().CopyFrom(held)
            graph.initializer[-1].name = names(name)
        for node in self.nodes:
            graph.node.append(renamed(node, map(names, node.input), map(names, node.output)))
            graph.node[-1].name = graph.node[-1].doc_string = ""
        graph.output.extend(onnx.ValueInfoProto(name=names(name)) for name in self.writes)
        return ModelProto(
            ir_version=self.source.ir_version, opset_import=self.source.opset_import, graph=graph
        )

    def _names(self) -> Callable[[str], str]:
        """Names by number, so that segments that do the same are the same model.

        Bodies of control flow know values by their names, so these stay where there are any.
        """
        if any(has_body(node) for node in self.nodes):
            return lambda name: name
        known = {"": ""} | {name: f"i{index}" for index, name in enumerate(self.reads)}
        known |= {name: f"c{index}" for index, name in enumerate(self.constants)}
        made = [name for node in self.nodes for name in node.output if name]
        return (known | {name: f"v{index}" for index, name in enumerate(made)}).__getitem__


def _gives_tensors(node: NodeProto) -> bool:
    """Whether a node's outputs are tensors, which alone have shapes."""
    return "Sequence" not in node.op_type and "Optional" not in node.op_type


def _kind(value: Any, name: str) -> int:
    """ONNX's number for the type of a value."""
    array = as_array(value)
    if not isinstance(array, np.ndarray):
        raise ModelError(
            f"the ONNX model's value {name} is a {type(value).__name__} between layers, expected "
            "tensors: export the model without sequences"
        )
    return onnx.helper.np_dtype_to_tensor_dtype(array.dtype)


def _are_channels_last(values: list[Any]) -> bool:
    """Whether all are images, and some of them lie in channels-last memory only."""
    images = all(isinstance(value, Tensor) and value.dim() == 4 for value in values)
    return images and any(
        not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        for value in values
    )


def _split(value: Any, each: int) -> Sequence[Any]:
    """One image's part after the other."""
    return value.split(each) if each else value.unbind()
