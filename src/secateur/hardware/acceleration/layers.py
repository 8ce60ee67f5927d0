"""Layers of a module that run integer kernels: floats in, floats out.

What is saved are integers and scales. What the kernels multiply with is made of them when a layer
is read, in whatever process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.hardware.acceleration.kernels import (
    INPUT_CODES,
    KERNELS,
    Codes,
    pack,
    silent,
)


class SharedInput:
    """A value as codes, kept as long as it lives: layers that read the same value share this.

    Queries, keys and values of attention read one tensor, which is quantised once. It is the same
    tensor as before if it is the same object and was not written to; inference mode does not tell
    of writing, so that calibration makes sure that nothing writes between the readers.

    Attributes:
        codes: of the values, once they are multiplied.
        factor: that each channel is multiplied with first, so that all use the codes alike; None =
            1. Without, a channel of large values leaves few codes to the others.
    """

    def __init__(self, codes: Codes, factor: Tensor | None = None) -> None:
        self.codes, self.factor = codes, factor
        self._held: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def of(self, value: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """The codes of a value, the axis of the channels last."""
        held, version = self._held, -1 if value.is_inference() else value._version
        if held is not None and held[0]() is value and held[1] == version:
            return held[2]
        found = rows(value)
        found = self.codes.quantized(found if self.factor is None else found * self.factor)
        self._held = (weakref.ref(value, self._forget), version, found)
        return found

    def _forget(self, reference: Any) -> None:
        if self._held is not None and self._held[0] is reference:
            self._held = None

    def __getstate__(self) -> dict[str, Any]:
        return {"codes": self.codes, "factor": self.factor, "_held": None}


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A layer's matrix and bias in integers.

    Attributes:
        weight: int8 (outputs, inputs), of inputs that were multiplied with their factor.
        scale: of each output.
        bias: in floats; None = none.
        output: codes of its outputs.
        factor: that each output is multiplied with in the end; None = 1.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    output: Codes
    factor: Tensor | None = None


class Int8Layer(nn.Module):
    """A linear layer in INT8, for inference on a CPU.

    Attributes:
        kernel: "sparse", which leaves out blocks of 1 x 4 zeros, or "dense".
        weight_int8, weight_scale, bias, output_factor: see `Integers`.
        input_factor: see `SharedInput`.
    """

    accelerated_for: ClassVar[str] = "torch-int8-sparse"
    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_factor: Tensor | None
    output_factor: Tensor | None

    def __init__(self, integers: Integers, kernel: str, shared: SharedInput) -> None:
        super().__init__()
        self.kernel, self.output, self.shared = kernel, integers.output, shared
        self.out_features, self.in_features = integers.weight.shape
        self.register_buffer("weight_int8", integers.weight)
        self.register_buffer("weight_scale", integers.scale)
        self.register_buffer("bias", integers.bias)
        self.register_buffer("input_factor", shared.factor)
        self.register_buffer("output_factor", integers.factor)
        self._packed: Any = None
        self._pack()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the type of its input."""
        if x.device.type != "cpu":
            raise ModelError(
                f"got an input on {x.device}, expected one on the CPU: PyTorch's INT8 kernels run "
                "there only"
            )
        if x.dim() == 1:  # the kernels take rows
            return self(x.unsqueeze(0)).squeeze(0)
        codes = self.shared.of(x, self.rows)
        found = self._run(codes, self._packed, self.output.scale, self.output.zero).dequantize()
        if self.output_factor is not None:
            found.mul_(self.output_factor)
        return self.back(found if x.dtype == torch.float32 else found.to(x.dtype))

    def rows(self, x: Tensor) -> Tensor:
        """An input in float32 with its channels last."""
        return x.detach().float()

    def back(self, y: Tensor) -> Tensor:
        """An output with its channels where the layer has them."""
        return y

    @property
    def weight(self) -> Tensor:
        """What the layer multiplies with, in floats and in the shape of the layer before."""
        matrix = self.matrix if self.input_factor is None else self.matrix * self.input_factor
        factor = self.output_factor
        return self.shaped(matrix if factor is None else matrix * factor[:, None])

    @property
    def matrix(self) -> Tensor:
        """What the kernel multiplies with, in floats."""
        return self.weight_int8 * self.weight_scale[:, None]

    def shaped(self, weight: Tensor) -> Tensor:
        """A matrix (outputs, inputs) in the shape of the layer's weight."""
        return weight

    def _pack(self) -> None:
        self._packed = pack(self.kernel, self.weight_int8, self.weight_scale, self.bias)
        self._run = KERNELS[self.kernel].run

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Layer:
        """Leaves the layer as it is: it has no other device or type."""
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._pack()

    def __getstate__(self) -> dict[str, Any]:
        held = {**self.__dict__, "_packed": None}
        held.pop("_run")
        return held

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(dict(state))
        self._pack()

    def extra_repr(self) -> str:
        """For `print(module)`."""
        return f"{self.in_features}, {self.out_features}, {self.kernel} INT8"


class Int8Linear(Int8Layer):
    """An `nn.Linear`."""


class Int8Conv1D(Int8Layer):
    """A `Conv1D` of Transformers: a linear layer whose weight is (inputs, outputs)."""

    def shaped(self, weight: Tensor) -> Tensor:
        """See `Int8Layer`."""
        return weight.mT


class Int8Conv1x1(Int8Layer):
    """A 1 x 1 convolution: with the channels last, a linear layer of each pixel."""

    def __init__(
        self,
        integers: Integers,
        kernel: str,
        shared: SharedInput,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(integers, kernel, shared)
        self.stride = stride

    def rows(self, x: Tensor) -> Tensor:
        """See `Int8Layer`; no copy of a tensor in `torch.channels_last`."""
        return pixels_last(x, self.stride).detach().float()

    def back(self, y: Tensor) -> Tensor:
        """See `Int8Layer`; in `torch.channels_last`."""
        return y.movedim(-1, -3)

    def shaped(self, weight: Tensor) -> Tensor:
        """See `Int8Layer`."""
        return weight[..., None, None]


def pixels_last(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """(..., channels, height, width) with the channels last, every so many pixels."""
    return x[..., :: stride[0], :: stride[1]].movedim(-3, -1)


with silent():  # PyTorch tells of its plans at the first quantised tensor of a process
    Codes.of(-1.0, 1.0, INPUT_CODES).quantized(torch.zeros(1))
