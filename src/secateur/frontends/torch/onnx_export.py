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
from secateur.frontends.torch.modes import plain_copy
from secateur.frontends.torch.program import TRACING
from secateur.frontends.torch.signature import Arguments, any_length, signature_of
from secateur.network.returned import asked_output
from secateur.network.rows import RowsFirst, judged_output
from secateur.network.samples import Samples
from secateur.support.extras import require_onnx
from secateur.support.loggers import quiet

CHECKED_IMAGES = 8  # on which a file is compared with the network
_LARGE = 1_800_000_000  # bytes of weights that do not fit into the file itself


def exported(model: nn.Module, samples: Samples) -> tuple[nn.Module, Samples]:
    """A copy of a module as it is exported, and the samples that the file is run on."""
    few = signature_of(model).bind(samples)[:CHECKED_IMAGES]
    return plain_copy(model).cpu(), few.to("cpu")


def write_onnx(
    module: nn.Module,
    path: Path,
    samples: Samples,
    dtype: torch.dtype,
    output: str | int | None = None,
) -> Float[Tensor, "batch ..."]:
    """Writes an ONNX file with a dynamic batch, checks it and runs it.

    Args:
        module: in eval mode, on the CPU.
        path: where to write; weights over 2 GB go to a file beside it.
        samples: some inputs, on the CPU, by the names of the arguments of `forward`.
        dtype: of the module's inputs of floats.
        output: number of the output that is compared, or its name in the file; None = the one that
            a network is judged by.

    Returns:
        What the file gives for the samples: the output by which the network is judged.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the exporter or ONNX Runtime refuses the module.
    """
    onnx, runtime = require_onnx("writing ONNX", "onnxscript")
    samples = samples.floats(lambda tensor: tensor.to(dtype))
    given = Arguments.of(module, samples.pair())
    alone = len(samples.tensors) == 1 and not samples.constants
    names = ["input"] if alone else [*samples.tensors]
    once = {name: of.cpu().numpy() for name, of in samples.constants.items()}
    large = sum(tensor.nbytes for tensor in module.state_dict().values()) > _LARGE
    try:
        with TRACING, _quiet():
            torch.onnx.export(
                module,
                given.args,
                str(path),
                kwargs=dict(given.kwargs),
                dynamo=True,
                external_data=large,
                input_names=None if once else names,
                output_names=["output"],
                dynamic_shapes=given.shapes(module, any_length),
                verbose=False,
            )
        onnx.checker.check_model(str(path))
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(part: Samples) -> list[Tensor]:
            taken = {of.name for of in session.get_inputs()}
            feed = part.named(names).arrays() | {of: once[of] for of in once.keys() & taken}
            arrays = session.run(None, feed)
            return [torch.from_numpy(np.asarray(of)) for of in arrays]

        outputs = [of.name for of in session.get_outputs()]
        number = judged_output(run, samples) if output is None else asked_output(output, outputs)
        return RowsFirst(lambda part: run(part)[number])(samples)
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
