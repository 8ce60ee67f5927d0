"""ONNX Runtime: whole models, a first run at arm's length, and the parts between layers."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.evaluate import fast_layout
from secateur.frontends.onnx.file import first_line, has_body

_PATIENCE = 300.0  # seconds for the first run, on a few images
_LARGEST_BATCH = 1024  # that a file may be fixed to
_LARGEST_IMAGE = 2**28  # values, where nobody said what shape
_CRASHES = {-number.value: number.name for number in signal.Signals}
_NAMES = """
    Abs Add Ceil Clip Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max
    Min Mish Mul Neg Pow Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Sub Sum
    Swish Tanh ThresholdedRelu
"""
_ELEMENTWISE = frozenset(_NAMES.split())


def start(model: ModelProto) -> onnxruntime.InferenceSession:
    """A session as many threads wide as PyTorch; threads that wait do not spin.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_cpu_mem_arena = False  # many sessions, each of which would keep its peak
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own kinds
        raise ModelError(
            f"ONNX Runtime cannot load the model ({first_line(error)}), expected one that it runs: "
            "check it with onnxruntime, or update that"
        ) from error


def call(session: Any, feed: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
    """Runs a session on tensors or arrays.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these.
        MemoryError: there is not enough memory.
    """
    arrays = {name: _array(value) for name, value in feed.items()}
    try:
        return session.run(outputs, arrays)
    except Exception as error:  # onnxruntime's own kinds
        if "allocat" in str(error):
            raise MemoryError(first_line(error)) from error
        raise ModelError(
            f"ONNX Runtime cannot run the model on these images ({first_line(error)}), expected "
            "images like those it was made for: check size and preprocess"
        ) from error


@dataclass(frozen=True)
class Trial:
    """What a first run of a model found.

    Attributes:
        outputs: for all images; None for what is not a tensor of numbers.
        batch: how many images it takes at a time; 0 = any number.
        shapes: of the values of one image by name, as far as they can be known.
    """

    outputs: list[Tensor | None]
    batch: int
    shapes: dict[str, list[int]]


def trial(model: ModelProto, images: Tensor) -> Trial:
    """Runs a model for the first time, in a process of its own (see `trial.py`).

    Args:
        model: with a single input.
        images: a few inputs.

    Raises:
        ModelError: it cannot be run, crashes, does not end, or needs half of the memory.
    """
    declared = declared_batch(model)
    images = images.cpu()
    if declared:
        images = _filled(images, declared * math.ceil(len(images) / declared))
    content, file = model.SerializeToString(), io.BytesIO()
    np.save(file, images.contiguous().numpy())
    program = str(Path(__file__).with_name("trial.py"))
    numbers = [str(torch.get_num_threads()), str(len(content)), str(declared)]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", program, *numbers],
            input=content + file.getvalue(),
            capture_output=True,
            timeout=_PATIENCE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"the ONNX model did not finish on {len(images)} images within {_PATIENCE:g} s, "
            "expected one that ends: check its loops"
        ) from error
    if done.returncode != 0:
        raise ModelError(_why_not(done, images.shape))
    with np.load(io.BytesIO(done.stdout)) as held:
        arrays = {name: held[name] for name in held.files}
    count = len(model.graph.output)
    found = [arrays.get(f"output{index}") for index in range(count)]
    batch = int(arrays["batch"])
    return Trial(
        outputs=[None if array is None else torch.from_numpy(array) for array in found],
        batch=declared or (batch if batch != len(images) else 0),
        shapes=json.loads(str(arrays["shapes"])),
    )


def _why_not(done: subprocess.CompletedProcess[bytes], shape: torch.Size) -> str:
    """The sentence for a first run that failed."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 3 and lines:
        if "allocat" in lines[-1] or lines[-1] == "MemoryError":
            return (
                "the ONNX model asks for more memory than half of this machine's "
                f"({lines[-1][:200]}), expected less: check its sizes, or use smaller images"
            )
        return (
            f"ONNX Runtime cannot run the model on images of shape {tuple(shape[1:])} "
            f"({lines[-1][:300]}), expected a file and images that fit: check size and preprocess"
        )
    how = _CRASHES.get(done.returncode, f"status {done.returncode}")
    return (
        f"ONNX Runtime crashed on the model ({how}), expected a file that it runs: export it "
        "again, or update onnxruntime"
    )


def several(model: ModelProto, images: Tensor) -> Tensor:
    """Three images by repeating a few, or four where the file is made for three.

    A number that it was not made for shows whether any number will do.
    """
    return torch.cat([images] * 4)[: 4 if declared_batch(model) == 3 else 3]


def declared_batch(model: ModelProto) -> int:
    """The batch size that the file's input is fixed to; 0 = any."""
    axes = images_input(model).type.tensor_type.shape.dim
    batch = axes[0].dim_value if axes else 0
    if batch > _LARGEST_BATCH:
        raise ModelError(
            f"the ONNX model takes {batch} images at a time, expected any number, or at most "
            f"{_LARGEST_BATCH}: export it with a dynamic batch"
        )
    return max(0, batch)


def input_shape(model: ModelProto) -> tuple[int, ...]:
    """Of one image; 3 channels and 224 pixels where the file leaves a size open.

    Raises:
        ModelError: it would be too large to try.
    """
    axes = images_input(model).type.tensor_type.shape.dim
    usual = [0, 3, *[224] * len(axes)] if len(axes) > 2 else [0, 224]
    shape = tuple(axis.dim_value or usual[index] for index, axis in enumerate(axes))[1:]
    if min(shape, default=1) < 1 or math.prod(shape) > _LARGEST_IMAGE:
        raise ModelError(
            f"the ONNX model takes images of shape {shape}, expected at most {_LARGEST_IMAGE} "
            "values: pass the shape to look at (shape=, --shape)"
        )
    return shape


def images_input(model: ModelProto) -> onnx.ValueInfoProto:
    """The input that takes the images.

    Raises:
        ModelError: there are several inputs or none, or it does not take float32.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(
            f"the ONNX model takes {len(inputs)} inputs ({names}), expected one (a batch of "
            "images): export it with the others fixed"
        )
    kind = inputs[0].type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind).lower() if kind in _KINDS else f"type {kind}"
        raise ModelError(
            f"the ONNX model's input {inputs[0].name} takes {found}, expected float32 images: "
            "export it with a float32 input"
        )
    return inputs[0]


_KINDS = frozenset(TensorProto.DataType.values())


class Whole:
    """An ONNX model as a function from images to its first output.

    A fixed batch is kept to: images go through so many at a time, the last ones with copies.
    """

    def __init__(self, model: ModelProto, example: Tensor) -> None:
        self.input = images_input(model).name
        self.batch = trial(model, several(model, example)).batch
        self.session = start(model)

    def __call__(self, images: Tensor) -> Tensor:
        """The first output, batch first."""
        if not self.batch:
            return self._run(images)
        parts = images.split(self.batch)
        return torch.cat([self._run(_filled(part, self.batch))[: len(part)] for part in parts])

    def _run(self, images: Tensor) -> Tensor:
        name = self.session.get_outputs()[0].name
        return as_tensor(call(self.session, {self.input: images}, [name])[0])


def _filled(images: Tensor, count: int) -> Tensor:
    """As many images as are wanted, by repeating the last one."""
    return torch.cat([images, images[-1:].expand(count - len(images), *images.shape[1:])])


@dataclass
class Segment:
    """Some nodes between layers as one operation, run by ONNX Runtime.

    The model is built at the first run, when the types of its inputs are known. Elementwise
    segments take channels-last images as they lie in memory; others get a copy in ONNX's order.

    Attributes:
        name: of the value written: a tensor, or a tuple where there are several outputs.
        reads: values it needs.
        writes: names of its outputs.
        nodes: in execution order.
        constants: those that the nodes read, by name.
        source: the whole model, for its versions.
        sessions: those made so far, by content: equal segments share one.
        fast: outputs that convolutions read, put into channels-last memory.
        each: for a model that takes one image at a time, the number of entries along the first
            axis of one image's value by name (0 for a number); None = all images at once.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: list[NodeProto]
    constants: Mapping[str, TensorProto]
    source: ModelProto
    sessions: dict[bytes, Any]
    fast: frozenset[str] = frozenset()
    each: Mapping[str, int] | None = None
    session: Any = field(default=None, compare=False)

    def run(self, values: Mapping[str, Any]) -> Any:
        """One output, or a tuple of several."""
        inputs = [values[name] for name in self.reads]
        found = self._call(inputs) if self.each is None else self._one_by_one(inputs, self.each)
        laid = [
            fast_layout(of) if name in self.fast else of
            for name, of in zip(self.writes, found, strict=True)
        ]
        return laid[0] if len(laid) == 1 else tuple(laid)

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
        self.elementwise = single and {node.op_type for node in self.nodes} <= _ELEMENTWISE

    def _start(self, inputs: list[Any]) -> Any:
        model = self._model(inputs)
        key = hashlib.sha256(model.SerializeToString(deterministic=True)).digest()
        if key not in self.sessions:
            self.sessions[key] = start(model)
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
            twin = graph.node.add()
            twin.CopyFrom(node)
            twin.name = twin.doc_string = ""
            twin.input[:] = [names(name) for name in node.input]
            twin.output[:] = [names(name) for name in node.output]
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


def as_tensor(value: Any) -> Any:
    """A result as a tensor on the same memory; what is no tensor of numbers stays as it is."""
    array = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    return torch.from_numpy(value) if array else value


def _array(value: Any) -> Any:
    return value.cpu().contiguous().numpy() if isinstance(value, Tensor) else value


def _kind(value: Any, name: str) -> int:
    """ONNX's number for the type of a value."""
    array = _array(value)
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
