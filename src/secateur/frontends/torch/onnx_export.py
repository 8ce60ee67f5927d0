"""A PyTorch module as an ONNX file, written by PyTorch's exporter and run by ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.frontends.torch.modules import copy_module
from secateur.frontends.torch.program import TRACING
from secateur.network.rows import RowsFirst, judged_output
from secateur.support.extras import require_onnx
from secateur.support.loggers import quiet

CHECKED_IMAGES = 8  # on which a file is compared with the network
_LARGE = 1_800_000_000  # bytes of weights that do not fit into the file itself


def exported(
    model: nn.Module, images: Float[Tensor, "batch ..."]
) -> tuple[nn.Module, Float[Tensor, "few ..."]]:
    """A copy of a module as it is exported, and the images that the file is run on."""
    return copy_module(model).eval().cpu(), images[:CHECKED_IMAGES].cpu()


def write_onnx(
    module: nn.Module, path: Path, images: Float[Tensor, "batch ..."], dtype: torch.dtype
) -> Float[Tensor, "batch ..."]:
    """Writes an ONNX file with a dynamic batch, checks it and runs it.

    Args:
        module: in eval mode, on the CPU.
        path: where to write; weights over 2 GB go to a file beside it.
        images: some inputs, on the CPU.
        dtype: of the module's inputs.

    Returns:
        What the file gives for the images: the output by which the network is judged.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the exporter or ONNX Runtime refuses the module.
    """
    onnx, runtime = require_onnx("writing ONNX", "onnxscript")
    example = images[:2] if len(images) > 1 else torch.cat([images, images])
    large = sum(tensor.nbytes for tensor in module.state_dict().values()) > _LARGE
    try:
        with TRACING, _quiet():
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
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(part: Tensor) -> list[Tensor]:
            arrays = session.run(None, {"input": part.to(dtype).numpy()})
            return [torch.from_numpy(np.asarray(of)) for of in arrays]

        number = judged_output(run, images)
        return RowsFirst(lambda part: run(part)[number])(images)
    except OSError:
        raise
    except Exception as error:
        first = _reason(error)
        if dtype != torch.float32:
            first = f"{first} (in float32, after net.float(), it may be)"
        raise ModelError(
            f"the network cannot be written as ONNX ({first}), expected one that PyTorch's "
            "exporter takes: leave out ONNX, and OpenVINO and INT8, which are made from it; or "
            "export the saved weights with your own settings"
        ) from error


def _reason(error: Exception) -> str:
    """What a message is about: PyTorch's exporter puts that behind what to do next."""
    _, _, summary = str(error).partition("## Exception summary")
    lines = filter(None, map(str.strip, (summary or str(error)).splitlines()))
    return next(lines, type(error).__name__)[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's own progress lines, logs and warnings about its internals."""
    exporters = quiet("torch.onnx", "onnxscript", "onnx_ir", level=logging.ERROR)
    with exporters, open(os.devnull, "w") as sink, redirect_stdout(sink):
        yield
