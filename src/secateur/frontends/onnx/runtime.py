"""ONNX Runtime: sessions, and tensors in and out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.onnx.file import first_line
from secateur.frontends.onnx.large import loadable


def start(model: ModelProto, *, literal: bool = False) -> onnxruntime.InferenceSession:
    """A session as many threads wide as PyTorch; threads that wait do not spin.

    Args:
        model: to run.
        literal: whether quantised values are computed as the nodes say, in floats, where ONNX
            Runtime would compute in integers and round otherwise.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_cpu_mem_arena = False  # many sessions, each of which would keep its peak
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1" if literal else "0")
    try:
        with loadable(model) as held:
            return onnxruntime.InferenceSession(held, options, providers=["CPUExecutionProvider"])
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
    arrays = {name: as_array(value) for name, value in feed.items()}
    try:
        return session.run(outputs, arrays)
    except Exception as error:  # onnxruntime's own kinds
        if "alloc" in str(error):
            raise MemoryError(first_line(error)) from error
        raise ModelError(
            f"ONNX Runtime cannot run the model on these inputs ({first_line(error)}), expected "
            "some like those it was made for: check their sizes and, of tokens, their numbers"
        ) from error


def as_tensor(value: Any) -> Any:
    """A result as a tensor on the same memory; what is no tensor of numbers stays as it is."""
    array = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    return torch.from_numpy(value) if array else value


def as_array(value: Any) -> Any:
    """A tensor as an array, on the same memory where that is possible; others as they are."""
    return value.cpu().contiguous().numpy() if isinstance(value, Tensor) else value
