"""How often ONNX operations multiply: multiply-accumulates of one image.

Counted are products that sum, as in matrices; numbers that are multiplied one by one are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from onnx import NodeProto

from secateur.frontends.onnx.nodes import option
from secateur.frontends.torch.products import einsum_macs

Sizes = Sequence[int]
Shape = Callable[[str], Sizes | None]  # of a value of one image, by name; None = not known

RECURRENT = ("LSTM", "GRU", "RNN")


def multiplies(node: NodeProto) -> bool:
    """Whether an operation is a product that sums."""
    return node.op_type in _COUNTS or node.op_type in RECURRENT


def uses_per_weight(node: NodeProto, shape: Shape) -> int | None:
    """How often a recurrent layer uses each weight: the steps of a sequence. None = not known."""
    sizes = shape(node.input[0])
    return None if sizes is None else math.prod(sizes[:2])


def product_macs(node: NodeProto, shape: Shape) -> int | None:
    """Multiply-accumulates of an operation for one image; None where a shape is not known."""
    try:
        return _COUNTS[node.op_type](node, shape)
    except (_UnknownError, IndexError):
        return None


class _UnknownError(Exception):
    """A shape is not known."""


def _sizes(shape: Shape, name: str) -> Sizes:
    found = shape(name)
    if found is None or 0 in found:
        raise _UnknownError
    return found


def _convolution(node: NodeProto, shape: Shape) -> int:
    places = _sizes(shape, node.output[0])[2:]
    return math.prod(places) * math.prod(_sizes(shape, node.input[1]))


def _quantised_convolution(node: NodeProto, shape: Shape) -> int:
    places = _sizes(shape, node.output[0])[2:]
    return math.prod(places) * math.prod(_sizes(shape, node.input[3]))


def _transposed_convolution(node: NodeProto, shape: Shape) -> int:
    places = _sizes(shape, node.input[0])[2:]
    return math.prod(places) * math.prod(_sizes(shape, node.input[1]))


def _matmul(node: NodeProto, shape: Shape, second: int = 1) -> int:
    """Each entry of the result is a sum over the last axis of the first factor."""
    first, other = (_sizes(shape, node.input[at]) for at in (0, second))
    summed = first[-2] if option(node, "transA", 0) and len(first) > 1 else first[-1]
    rows = math.prod(first) // summed
    columns = math.prod(other[-2:]) // summed if len(other) > 1 else 1
    batch, more = math.prod(first[:-2]), math.prod(other[:-2])
    return rows * columns * summed * (max(batch, more) // batch)


def _quantised_matmul(node: NodeProto, shape: Shape) -> int:
    return _matmul(node, shape, 3)


def _packed_matmul(node: NodeProto, shape: Shape) -> int:
    return math.prod(_sizes(shape, node.input[0])) * option(node, "N", 0)


def _einsum(node: NodeProto, shape: Shape) -> int:
    equation = option(node, "equation", b"").decode()
    return einsum_macs(equation, [tuple(_sizes(shape, name)) for name in node.input])


def _attention(node: NodeProto, shape: Shape) -> int:
    """Queries with keys and weights with values; of ONNX Runtime's, all three are made too."""
    if node.domain in ("", "ai.onnx") or node.op_type == "MultiHeadAttention":
        query = _sizes(shape, node.input[0])
        keys, values = (_sizes(shape, node.input[at]) for at in (1, 2))
        heads = math.prod(query[1:-1]) // query[-2] if len(query) > 3 else 1
        return math.prod(query[1:]) * keys[-2] + heads * query[-2] * keys[-2] * values[-1]
    (_, steps, width), weights = _sizes(shape, node.input[0]), _sizes(shape, node.input[1])
    made = weights[-1]
    parts = option(node, "qkv_hidden_sizes", [made // 3] * 3)
    return steps * width * made + steps * steps * (parts[0] + parts[2])


_COUNTS: dict[str, Callable[[NodeProto, Shape], int]] = {
    "Conv": _convolution,
    "FusedConv": _convolution,
    "ConvInteger": _convolution,
    "DeformConv": _convolution,
    "QLinearConv": _quantised_convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _matmul,
    "FusedGemm": _matmul,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _quantised_matmul,
    "MatMulNBits": _packed_matmul,
    "Einsum": _einsum,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _attention,
}
