"""The runtimes that may leave zeros out. To add one: write its file, and add its line here."""

from __future__ import annotations

from secateur.hardware.runtimes import onnx_runtime, openvino, pytorch, tensorrt, xnnpack
from secateur.hardware.runtimes.protocol import Runtime

RUNTIMES: tuple[Runtime, ...] = (
    onnx_runtime.RUNTIME,
    openvino.RUNTIME,
    pytorch.RUNTIME,
    tensorrt.RUNTIME,
    xnnpack.RUNTIME,
)
