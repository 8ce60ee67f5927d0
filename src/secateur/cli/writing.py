"""The files that `secateur prune` writes: each is checked against the network in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateur.api import PruneResult
from secateur.errors import ModelError, SecateurWarning
from secateur.evaluation.metrics import percent_text
from secateur.export.files import (
    as_onnx,
    differs,
    far_off,
    save_int8,
    save_model,
    save_onnx,
    save_openvino,
    save_safetensors,
)
from secateur.export.int8 import recurrent_note
from secateur.frontends import is_onnx, named_tensors, read
from secateur.frontends.openvino.runtime import read_ir
from secateur.frontends.torch.exported_programs import save_program
from secateur.support.progress import Teller

WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model-int8.onnx"
PROGRAM = "model.pt2"  # where MODEL is one
IR, INT8_IR = "openvino/model.xml", "openvino/model-int8.xml"
REPORT = "report.json"


def write_files(
    result: PruneResult,
    folder: Path,
    images: Any,
    files: Sequence[str],
    source: str,
    teller: Teller,
) -> dict[str, str]:
    """Writes all files; `images` are run through them to check them, and INT8 is fitted to them.

    Returns:
        Which of those after the first could not be written, and why; the others are no worse.
    """
    report, missing = result.report, dict[str, str]()
    writers = _writers(result, folder, images, source)
    for name in files:
        teller.step(f"writing and checking {name}")
        try:
            report.exports[name] = writers[name](folder / name)
        except (ModelError, MemoryError) as error:
            if name == files[0]:
                raise
            missing[name] = str(error) or "there is not enough memory"
            report.warnings.append(f"{name} was not written: {missing[name]}")
            _remove(folder / name)
        else:
            warn_of_difference(result, name)
    report.save(folder / REPORT)
    return missing


def _writers(
    result: PruneResult, folder: Path, images: Any, source: str
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """How each file is written, by its name; each gives what was found out about it."""
    parameters = _pruned_parameters(result)

    def exported() -> Any:
        if (folder / ONNX).exists():
            return read(folder / ONNX)
        return as_onnx(result.model, images) if result.exported is None else result.exported

    def write_int8(path: Path) -> dict[str, Any]:
        if result.quantized is None:
            raise ModelError(result.missing["int8"])
        return save_int8(result.quantized, path, images, exported())

    save = save_model if is_onnx(result.model) else save_onnx
    return {
        WEIGHTS: lambda path: save_safetensors(result.model, path, parameters),
        PROGRAM: lambda path: save_program(result.model, source, path),
        ONNX: lambda path: save(result.model, path, images, parameters),
        INT8: write_int8,
        IR: lambda path: _write_openvino(result, exported(), path, images, None),
        INT8_IR: lambda path: _write_openvino(result, exported(), path, images, images),
    }


def _remove(path: Path) -> None:
    """Removes what is there of a file that could not be written, with what lies beside it."""
    for left in (path.with_suffix(".bin"), *path.parent.glob(f"{path.name}*")):
        left.unlink(missing_ok=True)
    if path.suffix == ".xml" and path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _write_openvino(
    result: PruneResult, pruned: Any, path: Path, images: Any, calibration: Any
) -> dict[str, Any]:
    check = save_openvino(pruned, path, images, int8=calibration)
    if calibration is not None and (note := recurrent_note(read_ir(path).model, INT8_IR)):
        result.report.notes.append(note)
    if result.evaluation_set is not None:
        name = INT8_IR if calibration is not None else IR
        result.report.evaluation[name] = result.evaluation_set.evaluate(read_ir(path))
    return check


def warn_of_difference(result: PruneResult, name: str) -> None:
    """A warning, in the report too, where a file does not give what the network gives."""
    check = result.report.exports[name]
    if name in (INT8, INT8_IR) and far_off(check):
        message = (
            f"{name} is far from the network in float32: the error of its outputs is "
            f"{percent_text(check['output_error'])} of their variance: evaluate it before you "
            "ship it, or leave out INT8"
        )
    elif name in (ONNX, IR) and differs(check):
        message = (
            f"{name} differs from the network's outputs by {check['largest_difference']:.2g}"
            ", more than rounding would: evaluate it before you ship it"
        )
    else:
        return
    result.report.warnings.append(message)
    warnings.warn(message, SecateurWarning, stacklevel=2)


def _pruned_parameters(result: PruneResult) -> list[str]:
    tensors = named_tensors(result.model)
    names = (layer.name for layer in result.report.layers)
    return [name if name in tensors else f"{name}.weight" for name in names]
