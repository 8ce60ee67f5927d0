"""PyTorch's own integer kernels, and what a matrix is in them.

    y = scale_y (q_y - zero_y)
    q_y = round((q_x - zero_x) q_w^T scale_x scale_w / scale_y) + zero_y

Weights are symmetric, with a scale for each output: a zero is 0. Inputs have 7 bits (codes 0
to 127): the kernels multiply pairs of bytes into 16-bit sums, which saturate where inputs have 8
bits. Measured: with 8 bits up to 8 codes off, with 7 exact.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ModelError

BLOCK = 4  # neighbouring inputs that are zero together, for the sparse kernel to leave them out
INPUT_CODES = 127  # the largest code of an input
OUTPUT_CODES = 255
_WEIGHT_CODES = 127


@dataclass(frozen=True, kw_only=True)
class Codes:
    """How real numbers become codes: x = scale (q - zero), 0 <= q <= largest.

    Attributes:
        scale: the step between two codes.
        zero: the code of 0.
        largest: the last code.
    """

    scale: float
    zero: int
    largest: int

    @classmethod
    def of(cls, low: float, high: float, largest: int) -> Codes:
        """Codes of the numbers from `low` to `high`, with 0 among them."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / largest, torch.finfo(torch.float32).tiny * 2**20)
        return cls(scale=scale, zero=min(largest, round(-low / scale)), largest=largest)

    @property
    def high(self) -> float:
        """The largest number that has a code."""
        return self.scale * (self.largest - self.zero)

    def quantized(self, values: Tensor) -> Tensor:
        """Numbers as codes; those beyond the last code have that one."""
        found = torch.quantize_per_tensor(values, self.scale, self.zero, torch.quint8)
        return found if self.largest == OUTPUT_CODES else torch.clamp(found, max=self.high)

    def rounded(self, values: Tensor) -> Tensor:
        """The same numbers in floats, as far as the codes hold them."""
        codes = (values / self.scale).round() + self.zero
        return (codes.clamp(0, self.largest) - self.zero) * self.scale


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) as int8 and a scale for each row; zeros stay zeros."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / _WEIGHT_CODES
    scale = torch.where(scale > 0, scale, 1.0)  # biases are divided by it
    return (weight / scale[:, None]).round().to(torch.int8), scale


def zero_blocks(weight: Tensor) -> float:
    """Which share of the blocks of 1 x 4 of a matrix is zero."""
    whole = weight[:, : weight.shape[1] // BLOCK * BLOCK]
    blocks = whole.reshape(len(weight), -1, BLOCK)
    return float((blocks == 0).all(2).double().mean()) if blocks.numel() else 0.0


def _pack_sparse(weight: Tensor, bias: Tensor | None) -> Any:
    return torch.ops.sparse.qlinear_prepack(weight, bias, 1, BLOCK)


def _pack_dense(weight: Tensor, bias: Tensor | None) -> Any:
    return torch.ops.quantized.linear_prepack(weight, bias)


def _run_sparse(values: Tensor, packed: Any, scale: float, zero: int) -> Tensor:
    return torch.ops.sparse.qlinear(values, packed, scale, zero)


def _run_dense(values: Tensor, packed: Any, scale: float, zero: int) -> Tensor:
    return torch.ops.quantized.linear(values, packed, scale, zero)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An integer kernel of PyTorch.

    Attributes:
        engines: of `torch.backends.quantized` that have it, the better one first.
        pack: makes what it multiplies with of a quantised matrix and a bias.
        run: (codes, packed matrix, scale, zero) -> codes.
    """

    engines: tuple[str, ...]
    pack: Callable[[Tensor, Tensor | None], Any]
    run: Callable[[Tensor, Any, float, int], Tensor]


KERNELS = {
    "sparse": Kernel(engines=("fbgemm",), pack=_pack_sparse, run=_run_sparse),
    "dense": Kernel(engines=("x86", "fbgemm"), pack=_pack_dense, run=_run_dense),
}


def pack(kernel: str, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """A matrix of int8 with a scale for each row, in the form that a kernel multiplies with.

    Raises:
        ModelError: this PyTorch, or this processor, has no such kernel; or it changed the weights.
    """
    obstacle = missing(kernel)
    if obstacle:
        raise ModelError(f"the {kernel} INT8 kernel cannot run here: {obstacle}")
    supported = torch.backends.quantized.supported_engines
    engine = next(name for name in KERNELS[kernel].engines if name in supported)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with _engine(engine), silent():
        matrix = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
        packed = KERNELS[kernel].pack(matrix, bias)
        if kernel == "sparse":
            _check_packed(packed, weight)
    return packed


def _check_packed(packed: Any, weight: Tensor) -> None:
    """Raises ModelError where a kernel does not hold the weights that it was given."""
    held, _, block = torch.ops.sparse.qlinear_unpack(packed)
    if list(block) != [1, BLOCK] or not torch.equal(held.int_repr(), weight):
        raise ModelError(
            "PyTorch's sparse kernel holds other weights than it was given, expected the same, "
            "zeros too: please report your version of PyTorch"
        )


def missing(kernel: str) -> str:
    """Why a kernel cannot run here, in a few words; empty where it can."""
    engines = KERNELS[kernel].engines
    if not set(engines) & {*torch.backends.quantized.supported_engines}:
        machine = platform.machine() or "processor"
        return (
            f"this PyTorch has no {' or '.join(engines)} engine (it has them on x86 "
            f"processors with AVX2; this one is {machine})"
        )
    if kernel == "sparse" and not hasattr(torch.ops.sparse, "qlinear_prepack"):
        return f"PyTorch {torch.__version__} has no torch.ops.sparse.qlinear_prepack"
    return ""


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """PyTorch's quantised engine meanwhile: a matrix is packed for the one that is set."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def silent() -> Iterator[None]:
    """Without PyTorch's warning that its quantised tensors will go one day, which it gives once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are deprecated and will be removed.*")
        yield
