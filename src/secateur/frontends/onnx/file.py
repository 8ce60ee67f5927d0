"""ONNX files: read with suspicion, and their constants by name.

A file comes from anywhere, so nothing in it is believed before it is checked: external data lie in
the model's folder, sizes fit what is there, functions end. Nothing is run here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.onnx.large import changed, content, is_large, without_numbers
from secateur.frontends.onnx.messages import within
from secateur.support.model_files import steady

_MOST_BYTES = 2**31 - 1  # protobuf's limit for one message
_MOST_MEMORY = 0.5  # of the machine's, for external data
_MOST_NODES = 1_000_000  # of a model whose functions are expanded
_DEEPEST = 100  # calls within each other, which onnx follows on the stack
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # of types under a byte
_SMALL_INTEGERS = [getattr(TensorProto, name, -1) for name in ("INT4", "UINT4", "INT2", "UINT2")]


def read(path: str | Path) -> ModelProto:
    """Reads an ONNX file with its external data, and checks it.

    Args:
        path: the file. External data are read from its folder and the folders within, and
            from nowhere else.

    Raises:
        ModelError: no such file, not ONNX, broken, over 2 GB without its external data, or with
            external data that are missing, too short, outside its folder or more than half of the
            memory.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no such file: {path}, expected an ONNX model: check the path")
    with steady(path, ModelError):
        model = _parsed(path)
        _check_texts(model, str(path))
        _load_external(model, path)
    check(model, str(path))
    return model


def _parsed(path: Path) -> ModelProto:
    _check_size(path.stat().st_size, str(path))
    content = path.read_bytes()
    try:
        return ModelProto.FromString(content)
    except Exception as error:  # protobuf's own kinds
        raise ModelError(
            f"{path} is not a readable ONNX file ({first_line(error)}), expected a whole one: "
            "copy or export it again"
        ) from error


def check(model: ModelProto, name: str = "the ONNX model") -> None:
    """Raises ModelError unless a model is complete and passes `onnx.checker`."""
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in within(model, TensorProto)):
        raise ModelError(
            f"{name} has weights in other files that were not loaded, expected them within: "
            "pass the file's path, or load it with onnx.load"
        )
    large = is_large(model)
    if not large:
        _check_size(len(content(model)), name)
    _check_texts(model, name)
    try:
        onnx.checker.check_model(_with_output_shapes(without_numbers(model) if large else model))
    except Exception as error:  # ValidationError, and what protobuf raises
        raise ModelError(
            f"{name} is not valid ONNX ({first_line(error)}), expected a file that onnx.checker "
            "accepts: export it again"
        ) from error
    _check_functions(model, name)
    _check_references(model, name)


def _check_references(model: ModelProto, name: str) -> None:
    """Raises ModelError for attributes that name one of a function, outside of any."""
    for node in within(model.graph, NodeProto):
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise ModelError(
                    f"{name} has a node ({node.name or node.op_type}) whose attribute "
                    f"{attribute.name} stands for one of a function, expected a value: export the "
                    "file again"
                )


def _check_size(size: int, name: str) -> None:
    if size > _MOST_BYTES:
        raise ModelError(
            f"{name} holds {size / 1e9:.1f} GB, expected at most 2 GB in a file: "
            "write it with external data (onnx.save and save_as_external_data=True)"
        )


def _check_texts(model: ModelProto, name: str) -> None:
    """Raises ModelError when a text is not UTF-8; protobuf gives such a one as bytes."""
    for message in within(model, Message):
        for field, value in message.ListFields():
            if field.type != FieldDescriptor.TYPE_STRING:
                continue
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise ModelError(
                        f"{name} has a {field.name} that is not UTF-8 ({text[:50]!r}), expected a "
                        "text: copy or export the file again"
                    )


def inlined(model: ModelProto) -> ModelProto:
    """The model without functions of its own: itself, or a copy with them expanded."""
    return changed(model, onnx.inliner.inline_local_functions) if model.functions else model


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """A graph's initializers and the tensors of its Constant nodes, by name."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            for attribute in node.attribute:
                if attribute.name == "value":
                    held[node.output[0]] = attribute.t
    return held


def tensor_of(stored: TensorProto, name: str) -> Tensor:
    """A stored tensor's values, copied.

    Raises:
        ModelError: the values do not fit its shape and type.
    """
    try:
        array = onnx.numpy_helper.to_array(stored)
        if array.dtype.kind == "V":  # of a type that PyTorch does not take from NumPy
            array = array.astype(np.float32 if stored.data_type not in _SMALL_INTEGERS else np.int8)
        return torch.from_numpy(array.copy())
    except Exception as error:  # whatever NumPy finds wrong with the sizes
        raise ModelError(
            f"the ONNX model's tensor {name} cannot be read ({first_line(error)}), expected as "
            "many values as its shape says: export the file again"
        ) from error


def put(stored: TensorProto, values: Tensor) -> None:
    """Writes new values into a stored tensor; name, shape and type stay as they are.

    Raises:
        ModelError: one is too large for the type.
    """
    kind = onnx.helper.tensor_dtype_to_np_dtype(stored.data_type)
    with np.errstate(over="ignore"):
        array = values.detach().cpu().numpy().astype(kind)
    new = onnx.numpy_helper.from_array(array)
    if kind != np.float32 and not np.isfinite(array.astype(np.float32)).all():
        raise ModelError(
            f"new weights of {stored.name} are too large for {array.dtype}, expected smaller ones: "
            "leave the layer out, or pass the file in float32"
        )
    for field in ("float_data", "int32_data"):
        stored.ClearField(field)
    stored.raw_data = new.raw_data


def reads(node: NodeProto) -> list[str]:
    """The values that a node reads, those that its bodies (If, Loop, Scan) read included."""
    names = [name for name in node.input if name]
    for graph in bodies(node):
        names += reads_within(graph)
    return list(dict.fromkeys(names))


def has_body(node: NodeProto) -> bool:
    """Whether a node has graphs of its own, as If, Loop and Scan have."""
    return next(bodies(node), None) is not None


def first_line(error: object) -> str:
    """What a library's error says, in one line of bearable length."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs within a node."""
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def reads_within(graph: GraphProto) -> list[str]:
    """The values that a body reads from outside."""
    known = {value.name for value in graph.input} | {held.name for held in graph.initializer}
    known |= {held.values.name for held in graph.sparse_initializer}
    free: list[str] = []
    for node in graph.node:
        free += [name for name in reads(node) if name not in known]
        known.update(node.output)
    return free + [value.name for value in graph.output if value.name not in known]


def _with_output_shapes(model: ModelProto) -> ModelProto:
    """For the checker, which wants a shape for each output, if only an empty one."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    twin = ModelProto()
    twin.CopyFrom(model)
    for value in twin.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return twin


def _load_external(model: ModelProto, path: Path) -> None:
    tensors = within(model, TensorProto)
    outside = [held for held in tensors if held.data_location == TensorProto.EXTERNAL]
    sizes = [_bytes(held, path) for held in outside]
    places = [_place(held, path) for held in outside]
    if sum(sizes) > (most := _MOST_MEMORY * _memory()):
        raise ModelError(
            f"{path} holds {sum(sizes) / 1e9:.1f} GB in external data, expected at most half of "
            f"this machine's memory ({most / 1e9:.1f} GB): prune it on a larger machine"
        )
    with ExitStack() as files:
        for place in dict.fromkeys(places):
            files.enter_context(steady(place, ModelError))
        for held, size, place in zip(outside, sizes, places, strict=True):
            held.raw_data = _external_bytes(held, size, place, path)
            held.data_location = TensorProto.DEFAULT
            del held.external_data[:]


def _memory() -> float:
    """Bytes of this machine's memory; infinity where the system does not tell."""
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _bytes(stored: TensorProto, path: Path) -> int:
    """How many bytes a tensor's shape and type ask for."""
    count, kind, dtype = math.prod(stored.dims), stored.data_type, np.dtype(object)
    with suppress(KeyError, TypeError, ValueError):  # a type that the installed onnx does not know
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if dtype.hasobject or min(stored.dims, default=0) < 0:
        raise ModelError(
            f"{path}: the external tensor {stored.name} has shape {list(stored.dims)} and type "
            f"{kind}, expected sizes of numbers that the installed onnx knows: update onnx, or "
            "export the file again"
        )
    name = onnx.helper.tensor_dtype_to_string(kind).rpartition(".")[2]
    return (count * _BITS.get(name, 8 * dtype.itemsize) + 7) // 8


def _entries(stored: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in stored.external_data}


def _external_bytes(stored: TensorProto, size: int, place: Path, path: Path) -> bytes:
    entries = _entries(stored)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        offset = length = -1
    if offset < 0 or length != size or offset + size > place.stat().st_size:
        raise ModelError(
            f"{path}: the external data of {stored.name} are {entries.get('length', size)} bytes "
            f"from {entries.get('offset', 0)} on in {place.name} ({place.stat().st_size} bytes), "
            f"expected {size} within the file: copy or export both files again"
        )
    with place.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _place(stored: TensorProto, path: Path) -> Path:
    """The file of external data; refused where it is not below the model's folder."""
    name, location = stored.name, _entries(stored).get("location", "")
    folder = path.parent.resolve()
    place = folder / location
    try:
        place = place.resolve()
        inside = place.is_relative_to(folder) and not Path(location).is_absolute()
        found = place.is_file()
    except (OSError, ValueError):  # a name that the system refuses
        inside, found = True, False
    if not inside:
        raise ModelError(
            f"{path}: the external data of {name} lie in {location!r}, outside the model's folder, "
            "expected them within: copy the files into one folder (refused for safety)"
        )
    if not found:
        raise ModelError(
            f"{path}: the external data of {name} are missing ({location!r}), expected them beside "
            "the model: copy that file too"
        )
    return place


def _check_functions(model: ModelProto, name: str) -> None:
    """Raises ModelError when functions call each other without end, or grow beyond measure."""
    bodies: dict[Any, Message] = {(of.domain, of.name, of.overload): of for of in model.functions}
    bodies[None] = model.graph
    nodes = {key: [*within(body, NodeProto)] for key, body in bodies.items()}
    calls = {
        key: [of for node in own if (of := (node.domain, node.op_type, node.overload)) in bodies]
        for key, own in nodes.items()
    }
    sizes, depths = dict[Any, int](), dict[Any, int]()
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = len(nodes[key]) + sum(sizes[of] for of in calls[key])
            depths[key] = 1 + max((depths[of] for of in calls[key]), default=0)
    except CycleError as error:
        raise ModelError(
            f"{name} has the function {min(error.args[1])[1]} that calls itself, expected "
            "functions that end: export the file again"
        ) from error
    if sizes[None] > _MOST_NODES or depths[None] - 1 > _DEEPEST:
        raise ModelError(
            f"{name} expands to {sizes[None]:.2g} nodes, expected at most {_MOST_NODES} and "
            f"functions at most {_DEEPEST} deep (they are {depths[None] - 1}): export it without "
            "functions"
        )
