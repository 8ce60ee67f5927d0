"""The pruned network as files: safetensors, ONNX, OpenVINO, INT8; each is read back and checked."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.evaluate import first_output
from secateur.frontends import is_onnx, named_tensors, output_difference, read, require_onnx
from secateur.frontends.torch_modules import copy_module
from secateur.ir import as_ir, batch_of, ir_weights, read_ir, write_ir
from secateur.quantization import check_zeros, parts, quantized

_CHECKED_IMAGES = 8
_WARN_DIFFERENCE = 1e-3  # relative to the largest output


def save_safetensors(model: nn.Module, path: Path) -> dict[str, Any]:
    """Writes a module's state dict; tied tensors are stored once, as safetensors requires.

    Read it with `safetensors.torch.load_model(module, path)`. Where tensors overlap in memory and
    none covers the others, or some are transposes of others, that function refuses the module: all
    are stored then, and `module.load_state_dict(load_file(path))` reads them.
    """
    from safetensors.torch import save_file, save_model

    twin = copy_module(model).cpu()
    # One metadata key only: safetensors writes several in varying order, and a seed gives bytes.
    metadata = {"format": "pt"}
    try:
        save_model(twin, str(path), metadata=metadata)
    except RuntimeError:  # it finds none to keep
        state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
        save_file({name: of.contiguous() for name, of in state.items()}, str(path), metadata)
    return {"bytes": path.stat().st_size}


def save_onnx(
    model: nn.Module, path: Path, images: Float[Tensor, "batch ..."], parameters: Sequence[str]
) -> dict[str, Any]:
    """Writes an ONNX file with a dynamic batch and compares it with the module.

    Args:
        model: the pruned module.
        path: where to write; weights over 2 GB go to a file beside it.
        images: some inputs; a few of them are run through both.
        parameters: names of the pruned weights, whose zeros are counted in the file.

    Returns:
        bytes, the largest absolute difference of the outputs, and zeros in the file.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the exporter or ONNX Runtime refuses the module, or zeros were lost.
    """
    onnx, runtime = require_onnx("writing ONNX", "onnxscript")
    images = images[:_CHECKED_IMAGES].cpu()
    module = copy_module(model).eval().cpu()
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    example = images[:2] if len(images) > 1 else torch.cat([images, images])
    large = sum(tensor.nbytes for tensor in module.state_dict().values()) > 1_800_000_000
    try:
        with _quiet():
            torch.onnx.export(
                module,
                (example.to(dtype),),
                str(path),
                dynamo=True,
                external_data=large,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
        onnx.checker.check_model(str(path))
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {"input": images.to(dtype).numpy()})[0]
    except OSError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the pruned network cannot be written as ONNX: {first}; the other outputs do not "
            "need it: leave out --onnx, or export the saved weights with your own settings"
        ) from error
    expected = first_output(module, images)
    difference = float((torch.from_numpy(found).float() - expected).abs().max())
    held = sum(entry.stat().st_size for entry in path.parent.glob(f"{path.name}*"))
    return {
        "bytes": held,
        "largest_difference": difference,
        "relative_difference": difference / max(float(expected.abs().max()), 1e-12),
        "zeros": _check_zeros(onnx, path, named_tensors(module), parameters),
    }


def as_onnx(model: Any, images: Float[Tensor, "batch ..."]) -> Any:
    """A network as an `onnx.ModelProto`: itself, or what `save_onnx` makes of a module.

    Args:
        model: a module or an `onnx.ModelProto`.
        images: some inputs.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the exporter or ONNX Runtime refuses the module, or it is over 2 GB.
    """
    if is_onnx(model):
        return model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(model, path, images, [])
        return read(path)


def save_int8(
    model: Any, path: Path, images: Float[Tensor, "batch ..."], pruned: Any
) -> dict[str, Any]:
    """Writes a quantised `onnx.ModelProto`, reads it back and looks for every zero.

    Args:
        model: from `secateur.quantize`.
        path: where to write.
        images: some inputs; a few of them are run through both.
        pruned: the `onnx.ModelProto` that it was made from.

    Returns:
        As `save_openvino`.

    Raises:
        ModelError: the file is refused by onnx.checker or ONNX Runtime, or a zero was lost.
    """
    path.write_bytes(model.SerializeToString())
    held = read(path)
    found = _onnx_weights(held)
    return {
        "bytes": path.stat().st_size,
        **_differences(held, pruned, images),
        "zeros": check_zeros(_onnx_weights(pruned), found, path.name),
    }


def save_openvino(
    model: Any, path: Path, images: Float[Tensor, "batch ..."], *, int8: Any = None
) -> dict[str, Any]:
    """Writes OpenVINO IR, reads it back, runs it against ONNX Runtime and looks for every zero.

    Weights stay float32, or become integers where `int8` is given.

    Args:
        model: the pruned module or `onnx.ModelProto`.
        path: of the .xml file to write; weights go into the .bin file beside it.
        images: some inputs; a few of them are run through both.
        int8: calibration images to quantise on, as `secateur.quantize` takes them; None = float32.

    Returns:
        bytes of both files, the largest absolute difference from the outputs that ONNX Runtime
        gives for `model`, the same as a share of the largest output, and the zeros of the layers'
        weights in `model`, all of which were found in the file.

    Raises:
        MissingExtraError: openvino, onnx or, with `int8`, nncf is not installed.
        ModelError: OpenVINO or NNCF refuses the network, or a zero was lost.
    """
    model = as_onnx(model, images)
    made = as_ir(model)
    if int8 is not None:
        integers = quantized(made, parts(int8, batch_of(made)))
        check_zeros(ir_weights(made), ir_weights(integers), path.name)
        made = integers
    path.parent.mkdir(exist_ok=True)
    write_ir(made, path)
    held = read_ir(path)
    return {
        "bytes": path.stat().st_size + path.with_suffix(".bin").stat().st_size,
        **_differences(held, model, images),
        "zeros": check_zeros(_onnx_weights(model), ir_weights(held.model), path.name),
    }


def _differences(held: Any, pruned: Any, images: Tensor) -> dict[str, float]:
    """How far what a file gives is from what ONNX Runtime gives for the pruned network."""
    images = images[:_CHECKED_IMAGES].cpu()
    expected = first_output(pruned, images)
    difference = float((first_output(held, images) - expected).abs().max())
    return {
        "largest_difference": difference,
        "relative_difference": difference / max(float(expected.abs().max()), 1e-12),
    }


def _onnx_weights(model: Any) -> Any:
    from secateur.frontends.onnx import layer_weights

    return layer_weights(model)


def save_model(
    model: Any, path: Path, images: Float[Tensor, "batch ..."], parameters: Sequence[str]
) -> dict[str, Any]:
    """Writes an `onnx.ModelProto`, reads it back, checks it and runs it.

    Args:
        model: the pruned model.
        path: where to write.
        images: some inputs; a few of them are run by ONNX Runtime and layer by layer.
        parameters: names of the pruned weights, whose zeros are counted in the file.

    Returns:
        bytes, the largest absolute difference of the outputs, also as a share of the largest
        output, and zeros in the file's pruned weights.

    Raises:
        ModelError: the file is refused by onnx.checker or ONNX Runtime.
    """
    path.write_bytes(model.SerializeToString())
    held = read(path)
    difference, largest = output_difference(held, images[:_CHECKED_IMAGES])
    tensors = named_tensors(held)
    return {
        "bytes": path.stat().st_size,
        "largest_difference": difference,
        "relative_difference": difference / max(largest, 1e-12),
        "zeros": sum(int((tensors[name] == 0).sum()) for name in parameters),
    }


def _check_zeros(
    onnx: Any, path: Path, weights: Mapping[str, Tensor], pruned: Sequence[str]
) -> int:
    """Zeros among the file's initializers; at least those of the pruned weights, or it raises."""
    initializers = onnx.load(str(path)).graph.initializer
    arrays = (
        onnx.numpy_helper.to_array(entry, base_dir=str(path.parent)) for entry in initializers
    )
    found = sum(int((array == 0).sum()) for array in arrays if array.dtype.kind in "fV")
    expected = sum(int((weights[name] == 0).sum()) for name in pruned)
    if found < expected:
        raise ModelError(
            f"the ONNX exporter lost zeros ({found} of {expected} left), expected all of them: "
            "please report this model's layer types"
        )
    return found


def differs(check: Mapping[str, Any]) -> bool:
    """Whether an exported file's outputs differ by more than rounding would."""
    return not check["relative_difference"] <= _WARN_DIFFERENCE


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's own progress lines and warnings about its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), open(os.devnull, "w") as sink, redirect_stdout(sink):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
