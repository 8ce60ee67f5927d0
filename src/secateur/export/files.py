"""The pruned network as files: safetensors, ONNX, OpenVINO, INT8; each is read back and checked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.evaluation.inference import NoRowsError, first_output
from secateur.evaluation.metrics import output_error
from secateur.export.int8 import check_zeros, feed_of, in_int8, quantized
from secateur.frontends import open as open_model
from secateur.frontends.openvino.runtime import (
    as_ir,
    ir_weights,
    names_in,
    read_ir,
    write_copy,
    write_ir,
)
from secateur.frontends.torch.checkpoints import MARK, SHRUNK
from secateur.frontends.torch.modules import copy_module, named_tensors
from secateur.frontends.torch.onnx_export import CHECKED_IMAGES, exported, write_onnx
from secateur.network.samples import AnySamples, Samples, as_samples
from secateur.support.extras import require_onnx

_WARN_DIFFERENCE = 1e-3  # relative to the largest output
_WARN_ERROR = 0.1  # of an INT8 file, relative to the outputs' variance and to the largest


def save_safetensors(
    model: nn.Module, path: Path, parameters: Sequence[str] = (), *, shrunk: bool = False
) -> dict[str, Any]:
    """Writes a module's state dict; tied tensors are stored once, as safetensors requires.

    Read it with `safetensors.torch.load_model(module, path)`. Where tensors overlap in memory and
    none covers the others, or some are transposes of others, that function refuses the module: all
    are stored then, and `module.load_state_dict(load_file(path))` reads them.

    Args:
        model: the pruned module.
        path: where to write.
        parameters: names of the pruned weights, whose zeros are looked for in the file.
        shrunk: whether channels have left the network, which the file says then.

    Returns:
        bytes, and zeros of the pruned weights, all of which were found in the file.

    Raises:
        ModelError: a pruned weight is not in the file, or a zero was lost.
    """
    twin = copy_module(model).cpu()
    # One metadata key only: safetensors writes several in varying order, and a seed gives bytes.
    metadata = {MARK: SHRUNK} if shrunk else {"format": "pt"}
    try:
        safetensors.torch.save_model(twin, str(path), metadata=metadata)
    except RuntimeError:  # it finds none to keep
        state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
        safetensors.torch.save_file(
            {name: of.contiguous() for name, of in state.items()}, str(path), metadata
        )
    known, held = named_tensors(model), safetensors.torch.load_file(path)
    stored = {name: _stored_as(name, known, held) for name in parameters}
    return {
        "bytes": path.stat().st_size,
        "zeros": check_zeros(
            _arrays({name: known[name] for name in parameters}),
            _arrays({name: held[of] for name, of in stored.items() if of}),
            path.name,
        ),
    }


def _stored_as(name: str, known: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> str:
    """The name that a tensor has in a file, where tied ones have the first of theirs."""
    same = (other for other, tensor in known.items() if tensor is known[name] and other in held)
    return name if name in held else next(same, "")


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def save_onnx(
    model: nn.Module,
    path: Path,
    images: AnySamples,
    parameters: Sequence[str],
    *,
    output: str | int | None = None,
) -> dict[str, Any]:
    """Writes an ONNX file with a dynamic batch and compares it with the module.

    Args:
        model: the pruned module.
        path: where to write; weights over 2 GB go to a file beside it.
        images: some inputs; a few of them are run through both.
        parameters: names of the pruned weights, whose zeros are looked for in the file.
        output: name or number of the output that is compared; None = the one that it is judged by.

    Returns:
        bytes, the largest absolute difference of the outputs, and zeros of the pruned weights, all
        of which were found in the file, layer by layer.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the exporter or ONNX Runtime refuses the module, or zeros were lost.
    """
    module, few = exported(model, as_samples(images))
    found = write_onnx(module, path, few, open_model(model).precision, output)
    held = sum(entry.stat().st_size for entry in path.parent.glob(f"{path.name}*"))
    return {
        "bytes": held,
        **_difference(found.float(), _judged(module, few, output)),
        "zeros": _check_zeros(path, named_tensors(module), parameters),
    }


def rehearse(
    model: Any,
    images: AnySamples,
    *,
    onnx: bool = False,
    openvino: bool = False,
    int8: bool = False,
) -> None:
    """Makes extra formats of the dense network, to find out before long work what cannot be made.

    Args:
        model: a module or an `onnx.ModelProto`.
        images: some inputs, of which two are used.
        onnx: whether a module is to be written as ONNX.
        openvino: whether OpenVINO files are, and
        int8: whether they, or an ONNX file where there are none, are to be in INT8 too.

    Raises:
        ModelError: one of them cannot be made, or the network does not take the images.
        MissingExtraError: a package is not installed.

    Cost: that of writing the files, but for the number of images.
    """
    network, few = open_model(model), as_samples(images)[:2].to("cpu")
    if openvino or int8:
        _check_float32(network.precision, "OpenVINO" if openvino else "INT8")
    try:
        with network.running(few):  # an ONNX file's first run is not another library's
            pass
        if network.suffix == ".xml" and int8:
            in_int8(network, few)
            return
        if not (onnx or openvino or int8):
            return
        exported = network.to_onnx(few)
    except ModelError:
        network.trace(few)  # tells more, where the network is the reason
        raise
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if openvino:
            save_openvino(exported, folder / "model.xml", few)
        if openvino and int8:
            save_openvino(exported, folder / "int8.xml", few, int8=few)
        elif int8:
            in_int8(exported, few)


def _check_float32(precision: torch.dtype, what: str) -> None:
    """Raises ModelError for weights of another precision than the one that files are made from."""
    if precision != torch.float32:
        name = str(precision).removeprefix("torch.")
        raise ModelError(
            f"the network's weights are {name}, expected float32 for {what}: pass the network in "
            f"float32 (net.float()), or leave out {what}"
        )


def save_int8(
    model: Any, path: Path, images: AnySamples, pruned: Any, *, output: str | int | None = None
) -> dict[str, Any]:
    """Writes a quantised `onnx.ModelProto`, reads it back and looks for every zero.

    Args:
        model: from `secateur.quantize`.
        path: where to write.
        images: some inputs; a few of them are run through both.
        pruned: the `onnx.ModelProto` that it was made from.
        output: as for `save_onnx`.

    Returns:
        As `save_openvino`.

    Raises:
        ModelError: the file is refused by onnx.checker or ONNX Runtime, or a zero was lost.
    """
    write_model(model, path)
    held = open_model(path).model
    found = _onnx_weights(held)
    return {
        "bytes": path.stat().st_size,
        **_differences(held, pruned, images, output),
        "zeros": check_zeros(_onnx_weights(pruned), found, path.name),
    }


def save_openvino(
    model: Any,
    path: Path,
    images: AnySamples,
    *,
    int8: AnySamples | None = None,
    output: str | int | None = None,
) -> dict[str, Any]:
    """Writes OpenVINO IR, reads it back, runs it against ONNX Runtime and looks for every zero.

    Weights stay float32, or become integers where `int8` is given.

    Args:
        model: the pruned module or `onnx.ModelProto`.
        path: of the .xml file to write; weights go into the .bin file beside it.
        images: some inputs; a few of them are run through both.
        int8: calibration images to quantise on, as `secateur.quantize` takes them; None = float32.
        output: as for `save_onnx`.

    Returns:
        bytes of both files, the largest absolute difference from the outputs that ONNX Runtime
        gives for `model`, the same as a share of the largest output, and the zeros of the layers'
        weights in `model`, all of which were found in the file.

    Raises:
        MissingExtraError: openvino, onnx or, with `int8`, nncf is not installed.
        ModelError: OpenVINO or NNCF refuses the network, or a zero was lost.
    """
    model = open_model(model).to_onnx(as_samples(images))
    made = as_ir(model)
    if int8 is not None:
        integers = quantized(made, feed_of(made, as_samples(int8)))
        check_zeros(ir_weights(made), ir_weights(integers), path.name)
        made = integers
    path.parent.mkdir(exist_ok=True)
    write_ir(made, path, names_in(model))
    held = read_ir(path)
    return {
        "bytes": path.stat().st_size + path.with_suffix(".bin").stat().st_size,
        **_differences(held, model, images, output),
        "zeros": check_zeros(_onnx_weights(model), ir_weights(held.model), path.name),
    }


def _differences(
    held: Any, pruned: Any, images: AnySamples, output: str | int | None
) -> dict[str, float]:
    """How far what a file gives is from what ONNX Runtime gives for the pruned network."""
    few = as_samples(images)[:CHECKED_IMAGES].to("cpu")
    return _difference(_judged(held, few, output), _judged(pruned, few, output))


def _judged(model: Any, images: Samples, output: str | int | None) -> Tensor | None:
    """The output by which a network is judged; None where none has a row for each image."""
    try:
        return first_output(model, images, output=output)
    except NoRowsError:
        return None


def _difference(found: Tensor | None, expected: Tensor | None) -> dict[str, float]:
    """How far an output is from the expected one; nothing where the values decide its rows."""
    if found is None or expected is None or found.shape != expected.shape:
        return {}
    return {
        **_told(float((found - expected).abs().max()), float(expected.abs().max())),
        "output_error": output_error(expected.float(), found.float()),
    }


def _told(difference: float, largest: float) -> dict[str, float]:
    return {
        "largest_difference": difference,
        "relative_difference": difference / max(largest, 1e-12),
    }


def _onnx_weights(model: Any) -> Any:
    from secateur.export.onnx_weights import layer_weights

    return layer_weights(model)


def write_model(model: Any, path: Path) -> None:
    """Writes an `onnx.ModelProto`; one over 2 GB with a file of its weights beside it."""
    from secateur.frontends.onnx import write

    write(model, path)


def _output_difference(
    model: Any, images: Samples, output: str | int | None
) -> tuple[float, float] | None:
    from secateur.frontends.onnx import output_difference

    return output_difference(model, images, output)


def save_model(
    model: Any,
    path: Path,
    images: AnySamples,
    parameters: Sequence[str],
    *,
    output: str | int | None = None,
) -> dict[str, Any]:
    """Writes an `onnx.ModelProto`, reads it back, checks it and runs it.

    Args:
        model: the pruned model.
        path: where to write; the weights of a model over 2 GB go to a file beside it.
        images: some inputs; a few of them are run by ONNX Runtime and layer by layer.
        parameters: names of the pruned weights, whose zeros are looked for in the file.
        output: as for `save_onnx`.

    Returns:
        bytes, the largest absolute difference of the outputs, also as a share of the largest
        output, and zeros of the pruned weights, all of which were found in the file.

    Raises:
        ModelError: the file is refused by onnx.checker or ONNX Runtime, or a zero was lost.
    """
    write_model(model, path)
    held = open_model(path)
    found = _output_difference(held.model, as_samples(images)[:CHECKED_IMAGES], output)
    before, after = open_model(model).tensors(), held.tensors()
    return {
        "bytes": sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
        **(_told(*found) if found else {}),
        "zeros": _zeros_of(parameters, before, after, path),
    }


def save_ir(
    model: Any,
    path: Path,
    images: AnySamples,
    parameters: Sequence[str],
    *,
    output: str | int | None = None,
) -> dict[str, Any]:
    """Writes an `openvino.Model` as .xml and .bin, reads them back, checks them and runs them.

    Args:
        model: the pruned model.
        path: of the .xml file to write.
        images: some inputs; a few of them are run by OpenVINO and layer by layer.
        parameters: names of the pruned weights, whose zeros are looked for in the files.
        output: as for `save_onnx`.

    Returns:
        As `save_model`; bytes are those of both files.

    Raises:
        ModelError: OpenVINO refuses the file, it holds other numbers than the model, or a zero was
            lost.
    """
    from secateur.frontends.openvino.graph import output_difference

    write_copy(model, path)
    held = open_model(path)
    before, after = open_model(model).tensors(), held.tensors()
    if before.keys() != after.keys() or any(not before[of].equal(after[of]) for of in before):
        raise ModelError(
            f"{path.name} holds other numbers than the network, expected the same: please report "
            "how the file was made that you have pruned"
        )
    found = output_difference(held.model, as_samples(images)[:CHECKED_IMAGES], output)
    return {
        "bytes": path.stat().st_size + path.with_suffix(".bin").stat().st_size,
        **(_told(*found) if found else {}),
        "zeros": _zeros_of(parameters, before, after, path),
    }


def _zeros_of(
    parameters: Sequence[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor], path: Path
) -> int:
    """Zeros of the pruned weights; it raises where one is none in a file that has their names."""
    was, held = (_arrays({name: of[name] for name in parameters}) for of in (before, after))
    return check_zeros(was, held, path.name)


def save_int8_ir(
    model: Any, path: Path, images: AnySamples, pruned: Any, *, output: str | int | None = None
) -> dict[str, Any]:
    """As `save_int8`, of an `openvino.Model` that was made from another one."""
    write_copy(model, path)
    held = read_ir(path)
    return {
        "bytes": path.stat().st_size + path.with_suffix(".bin").stat().st_size,
        **_differences(held, pruned, images, output),
        "zeros": check_zeros(ir_weights(pruned), ir_weights(held.model), path.name),
    }


# How a network is written as ONNX, by the ending of the file that it is saved as itself.
ONNX_WRITERS = {".safetensors": save_onnx, ".onnx": save_model}


def _check_zeros(path: Path, weights: Mapping[str, Tensor], pruned: Sequence[str]) -> int:
    """Zeros of the pruned weights; it raises where one is none in the file's initializers."""
    onnx, _ = require_onnx("writing ONNX")
    initializers = onnx.load(str(path)).graph.initializer
    arrays = {
        entry.name: onnx.numpy_helper.to_array(entry, base_dir=str(path.parent))
        for entry in initializers
    }
    found = {name: array for name, array in arrays.items() if array.dtype.kind in "fV"}
    return check_zeros(_arrays({name: weights[name] for name in pruned}), found, path.name)


def differs(check: Mapping[str, Any]) -> bool:
    """Whether an exported file's outputs differ by more than rounding would."""
    return not check.get("relative_difference", 0.0) <= _WARN_DIFFERENCE


def far_off(check: Mapping[str, Any]) -> bool:
    """Whether an INT8 file's outputs differ by more than such files' do where they are of use.

    By much of the largest output too: outputs that hardly vary are easily off by their variance.
    """
    figures = (check.get("output_error", 0.0), check.get("relative_difference", 0.0))
    return not any(figure <= _WARN_ERROR for figure in figures)
