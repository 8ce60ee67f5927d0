"""OpenVINO IR, a network as an .xml and a .bin file: read, run and written.

OpenVINO is imported where it is needed; nothing else in the package knows it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import DataError, ModelError
from secateur.frontends.protocol import Forward, Runnable
from secateur.network.returned import asked_output
from secateur.network.rows import RowsFirst, in_parts
from secateur.network.samples import Samples, Signature
from secateur.support.extras import require
from secateur.support.signal_stack import kept_signal_stack

_MADE_UP = re.compile(r"[A-Za-z]\w*_\d+")  # such as Constant_1234
_KINDS = {
    **{"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64},
    **{"i64": torch.int64, "i32": torch.int32, "i8": torch.int8, "u8": torch.uint8},
    "boolean": torch.bool,
}
_LAYERS = (
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
    "MatMul",
)


class IR(Runnable):
    """An OpenVINO model as a function from samples to one of its outputs, in float32.

    A fixed batch is kept to: samples go through so many at a time, the last ones with copies.

    Attributes:
        model: the `openvino.Model`.
        batch: how many samples it takes at a time; 0 = any number.
        output: the number of the output that it gives.

    Raises:
        ModelError: OpenVINO refuses it.
    """

    chooses = True

    def __init__(self, model: Any, output: int = 0) -> None:
        self.model, self.batch, self.output = model, batch_of(model), output
        self._run = compiled(model)
        self._rows = RowsFirst(self._part)

    @contextmanager
    def running(self, example: Samples, output: str | int | None = None) -> Iterator[Forward]:
        """Itself, for its first output or another; see `Runnable.running`."""
        if output is None:
            yield self
            return
        yield IR(self.model, asked_output(output, output_names(self.model)))

    @property
    def signature(self) -> Signature:
        """See `Runnable.signature`."""
        return signature_of(self.model)

    def __call__(self, samples: Samples) -> Tensor:
        """The first output, with a row for each sample where it has any."""
        samples = bound(self.model, samples)
        if not self.batch:
            return self._rows(samples)
        return in_parts(self._part, samples, self.batch)

    def _part(self, samples: Samples) -> Tensor:
        return run_model(self._run, samples)[self.output]


def signature_of(model: Any) -> Signature:
    """The inputs of an `openvino.Model`, by the names of their tensors, else by their place."""
    given = [min(value.get_names(), default="") for value in model.inputs]
    names = tuple(name or str(place) for place, name in enumerate(given))
    types = (value.get_element_type().get_type_name() for value in model.inputs)
    kinds = {name: _KINDS[of] for name, of in zip(names, types, strict=True) if of in _KINDS}
    return Signature(names=names, required=names, kinds=kinds)


def bound(model: Any, samples: Samples) -> Samples:
    """Samples by the names of a model's inputs, in their order and types.

    Raises:
        DataError: an input is missing, unknown, of another type, or given once for all samples.
    """
    samples = signature_of(model).bind(samples)
    if samples.constants:
        names = ", ".join(samples.constants)
        raise DataError(
            f"the inputs {names} are given once for all samples, expected a row for each sample of "
            "every input of an OpenVINO model: repeat them, or convert it with them fixed"
        )
    return samples


def output_names(model: Any) -> list[str]:
    """What the outputs of an `openvino.Model` are called; "" where one has no name."""
    return [min(value.get_names(), default="") for value in model.outputs]


def run_model(session: Any, samples: Samples) -> list[Tensor]:
    """The outputs of a compiled model for samples in the order of its inputs.

    Raises:
        ModelError: OpenVINO cannot run it on these.
    """
    tensors = list(samples.tensors.values())
    try:
        found = session([tensor.cpu().contiguous().numpy() for tensor in tensors])
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors)
        raise ModelError(
            f"OpenVINO cannot run the model on images of shape {shapes} ({reason(error)}), "
            "expected images like those it was made for: check size and preprocess"
        ) from error
    return [torch.from_numpy(np.array(found[at])) for at in range(len(session.outputs))]


def batch_of(model: Any) -> int:
    """How many samples an `openvino.Model` takes at a time; 0 = any number."""
    shapes = (value.get_partial_shape() for value in model.inputs)
    first = next((of[0] for of in shapes if of.rank.is_static and len(of) > 0), None)
    return 0 if first is None or first.is_dynamic else first.get_length()


def read_ir(path: str | Path) -> IR:
    """Reads an .xml file with the .bin file beside it, to be run; see `read_model`."""
    return IR(read_model(path))


def read_model(path: str | Path) -> Any:
    """Reads an .xml file with the .bin file beside it.

    Returns:
        An `openvino.Model`, which holds its weights: the files may change.

    Raises:
        ModelError: a file is missing, or OpenVINO refuses it.
        MissingExtraError: openvino is not installed.
    """
    path = Path(path)
    openvino = require_openvino("reading an OpenVINO file")
    for file, what in ((path, "an OpenVINO model"), (path.with_suffix(".bin"), "its weights")):
        if not file.is_file():
            raise ModelError(f"no such file: {file}, expected {what}: check the path")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise ModelError(
            f"{path} is not a readable OpenVINO file ({reason(error)}), expected a whole one with "
            "its .bin file: copy or convert it again"
        ) from error


def as_ir(model: Any) -> Any:
    """An `onnx.ModelProto` as an `openvino.Model`, simplified as OpenVINO's converter does it.

    That converter is not called, for it sends usage data without asking.

    Raises:
        ModelError: OpenVINO cannot convert it.
        MissingExtraError: openvino is not installed.
    """
    openvino = require_openvino("writing an OpenVINO file")
    from openvino._offline_transformations import apply_moc_transformations

    from secateur.frontends.onnx import loadable

    try:
        with loadable(model) as held:
            made = openvino.Core().read_model(held)
        apply_moc_transformations(made, cf=True)
    except RuntimeError as error:
        raise ModelError(
            f"OpenVINO cannot convert the network ({reason(error)}), expected one that it can: "
            "leave out OpenVINO; the other outputs do not need it"
        ) from error
    _number_names(made, names_in(model))
    return made


def names_in(model: Any) -> set[str]:
    """The names in an `onnx.ModelProto` that OpenVINO takes over."""
    nodes = model.graph.node
    return {name for node in nodes for name in (node.name, *node.input, *node.output)}


def _number_names(model: Any, given: Set[str]) -> None:
    """Numbers the names that OpenVINO has made up, with numbers that count up within a process.

    The same network gives the same bytes then.

    Args:
        model: the `openvino.Model`, which is changed.
        given: names that may look like made-up ones and are not.
    """
    numbers = itertools.count(1)
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if _MADE_UP.fullmatch(name) and name not in given:
            kind = node.get_type_name()
            names = (f"{kind}_{number}" for number in numbers)
            node.set_friendly_name(next(name for name in names if name not in given))


def write_ir(model: Any, path: Path, given: Set[str]) -> None:
    """Writes an `openvino.Model` as .xml and .bin, its weights as they are.

    Args:
        model: the network.
        path: of the .xml file.
        given: the names of the network that it was made from; others are numbered anew.
    """
    openvino = require_openvino("writing an OpenVINO file")
    _number_names(model, given)
    openvino.save_model(model, path, compress_to_fp16=False)


def write_copy(model: Any, path: Path) -> None:
    """Writes an `openvino.Model` as .xml and .bin, as it is."""
    openvino = require_openvino("writing an OpenVINO file")
    openvino.serialize(model, path, path.with_suffix(".bin"))


def ir_weights(model: Any) -> dict[str, np.ndarray]:
    """The constant matrix or kernel of each layer of an `openvino.Model`, as it multiplies with it.

    Returns:
        Float arrays by the layer's name; kernels of several groups have these as first axis.
    """
    fixed: set[str] = set()  # operations that depend on constants only
    operands: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        name, kind, values = node.get_friendly_name(), node.get_type_name(), node.input_values()
        constant = [value.get_node().get_friendly_name() in fixed for value in values]
        if kind == "Constant" or (values and all(constant)):
            fixed.add(name)
        elif kind in _LAYERS and any(constant[:2]):
            operands[name] = values[constant.index(True)]
    if not operands:
        return {}
    openvino = require_openvino("reading an OpenVINO file")
    found = compiled(openvino.Model(list(operands.values()), []))({})
    return {name: np.array(found[index]) for index, name in enumerate(operands)}


def compiled(model: Any) -> Any:
    """A model ready to run, as many threads wide as PyTorch, in float32 where it is not INT8.

    Without being told, OpenVINO computes in bfloat16 on processors that can.
    """
    openvino = require_openvino("running an OpenVINO file")
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    with kept_signal_stack():
        return openvino.Core().compile_model(model, "CPU", config)


def require_openvino(purpose: str, *, extra: str = "openvino") -> Any:
    """The module openvino.

    Raises:
        MissingExtraError: it is not installed.
    """
    (openvino,) = require(extra, purpose, "openvino")
    return openvino


def reason(error: Exception) -> str:
    """The last line of what OpenVINO says; those before tell where in its sources."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    return next(filter(None, reversed(lines)), type(error).__name__)[:300]
