"""The pruned network in INT8 as well: as a file, and on PyTorch's own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.export.int8 import Quantized, in_int8
from secateur.frontends import Frontend
from secateur.hardware.acceleration.run import Acceleration, accelerate
from secateur.hardware.paying import CUDA_SPARSE, INT8_SPARSE
from secateur.session import Job
from secateur.support.threads import torch_threads


@dataclass(frozen=True, kw_only=True)
class LowPrecision:
    """What a call has asked for besides the network in its own precision.

    Attributes:
        int8: an `onnx.ModelProto` or `openvino.Model`, with notes; None = not asked for or missing.
        exported: the pruned network as an `onnx.ModelProto`, where that was made on the way.
        why_no_int8: why it could not be made; empty = it was, or was not asked for.
        accelerated: the module on PyTorch's sparse kernels; None = not asked for, or missing, or
            for a GPU that this machine does not have.
        why_not_accelerated: as `why_no_int8`.
    """

    int8: Quantized
    exported: Any
    why_no_int8: str
    accelerated: Acceleration | None
    why_not_accelerated: str

    @property
    def missing(self) -> dict[str, str]:
        """Files that cannot be written, with the reason."""
        return {"int8": self.why_no_int8} if self.why_no_int8 else {}

    @property
    def warnings(self) -> Sequence[str]:
        """What was asked for and is not there."""
        found = []
        if self.why_not_accelerated:
            found.append(f"no accelerated module was made: {self.why_not_accelerated}")
        if self.why_no_int8:
            found.append(f"no INT8 network was made: {self.why_no_int8}")
        return found


def check_accelerated(runtime: str | None, network: Frontend) -> None:
    """Tells before long work that a network cannot run PyTorch's INT8 kernels, if it should.

    Raises:
        ModelError: it is no module.
    """
    if runtime == INT8_SPARSE and not isinstance(network.model, nn.Module):
        raise ModelError(
            f"the model is an {network.suffix} file and the runtime {runtime}, whose kernels run "
            "in modules only, expected a torch.nn.Module: pass the module that the file was made "
            "from, or choose another runtime"
        )


def low_precision(job: Job, pruned: Frontend) -> LowPrecision:
    """Quantises the pruned network, if the call asks for that."""
    int8, exported, why_no_int8 = Quantized(model=None), None, ""
    accelerated, why_not_accelerated = None, ""
    if job.options.quantize is not None:
        job.watch.begin("quantising to INT8")
        try:
            if pruned.suffix != ".xml":
                exported = pruned.to_onnx(job.images.samples)
            int8 = in_int8(exported or pruned, job.images.samples)
        except ModelError as error:  # the pruned network is there all the same
            why_no_int8 = str(error)
        job.watch.lap("quantize")
    runtime = job.options.runtime
    if runtime == INT8_SPARSE or (
        runtime == CUDA_SPARSE and torch.cuda.is_available() and isinstance(pruned.model, nn.Module)
    ):
        job.watch.begin(f"replacing layers for {runtime}")
        try:
            with torch_threads(job.options.threads):
                accelerated = accelerate(
                    pruned.model, job.images, runtime=runtime, mask=job.options.mask
                )
        except ModelError as error:
            why_not_accelerated = str(error)
        job.watch.lap("acceleration")
    return LowPrecision(
        int8=int8,
        exported=exported,
        why_no_int8=why_no_int8,
        accelerated=accelerated,
        why_not_accelerated=why_not_accelerated,
    )
