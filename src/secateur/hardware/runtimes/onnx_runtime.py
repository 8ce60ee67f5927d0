"""ONNX Runtime: zeros are multiplied like other numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.hardware.runtimes.protocol import (
    Engine,
    EngineOptions,
    Input,
    Runtime,
    not_installed,
)

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


def _layer(layer: LayerFacts) -> list[str]:
    return ["it has no kernels for sparse weights: zeros save disk only"]


def _machine(machine: Machine) -> list[str]:
    return not_installed(machine, "onnxruntime")


def session_options(threads: int) -> Any:
    """Settings of a session that is measured."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # threads that wait would take time from the other runtimes, which run in turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _start(path: Path, options: EngineOptions) -> Engine:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), session_options(options.threads), providers=["CPUExecutionProvider"]
    )
    inputs = tuple(
        Input(
            name=of.name,
            shape=options.filled(of.shape, number),
            dtype=np.dtype(_TYPES[of.type]).name,
        )
        for number, of in enumerate(session.get_inputs())
    )
    return Engine(
        inputs=inputs,
        run=lambda feed: session.run(None, dict(feed)),
        precision="not told",
    )


RUNTIME = Runtime(
    name="ONNX Runtime",
    package="onnxruntime",
    distributions=("onnxruntime", "onnxruntime-gpu"),
    feature="none: zeros are multiplied like other numbers",
    machine=_machine,
    layer=_layer,
    source="https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md",
    engines={"ONNX Runtime": _start},
    formats=(".onnx",),
    extra="onnx",
    key="onnxruntime",
    pattern="channels",
    prepared="written as an ONNX file; INT8 (quantize='int8') is faster still",
)
