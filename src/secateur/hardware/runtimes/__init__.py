"""The runtimes. To add one: write its file, and add its line here.

`RUNTIMES` may leave zeros out, and reports say of each what layers lack for it. `BY_KEY` are all
that users can name, those among them that smaller layers or files are for.
"""

from __future__ import annotations

from secateur.hardware.runtimes import (
    deepsparse,
    onnx_runtime,
    openvino,
    openvino_channels,
    pytorch,
    pytorch_eager,
    pytorch_int8,
    storage,
    tensorrt,
    xnnpack,
)
from secateur.hardware.runtimes.protocol import Runtime

RUNTIMES: tuple[Runtime, ...] = (
    onnx_runtime.RUNTIME,
    openvino.RUNTIME,
    pytorch_int8.RUNTIME,
    pytorch.RUNTIME,
    tensorrt.RUNTIME,
    deepsparse.RUNTIME,
    xnnpack.RUNTIME,
)
BY_KEY: dict[str, Runtime] = {
    of.key: of
    for of in (
        onnx_runtime.RUNTIME,
        openvino_channels.RUNTIME,
        pytorch_eager.RUNTIME,
        pytorch_int8.RUNTIME,
        pytorch.RUNTIME,
        tensorrt.RUNTIME,
        deepsparse.RUNTIME,
        openvino.RUNTIME,
        xnnpack.RUNTIME,
        storage.RUNTIME,
    )
}
