"""Models of half precision as models of float32, in which their layers are run and fitted.

float16 and bfloat16 are how numbers are stored. ONNX Runtime itself computes in float32 where its
processor has no other kernels, and for bfloat16 most of its operations have none at all. New
weights are stored as the old ones were.
"""

from __future__ import annotations

import torch
from onnx import AttributeProto, ModelProto, TensorProto, TypeProto

from secateur.frontends.onnx.file import put, tensor_of
from secateur.frontends.onnx.messages import within

HALF: dict[int, torch.dtype] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
_NAME_TYPES = ("to", "dtype", "output_dtype", "precision", "softmax_precision")  # attributes


def widened(model: ModelProto) -> ModelProto:
    """The same model with float32 in the place of half precision: itself where it has none."""
    if not has_kind(model, *HALF):
        return model
    twin = ModelProto()
    twin.CopyFrom(model)
    for tensor in [of for of in within(twin, TensorProto) if of.data_type in HALF]:
        _widen(tensor)
    for kind in within(twin, TypeProto.Tensor):
        kind.elem_type = TensorProto.FLOAT if kind.elem_type in HALF else kind.elem_type
    for attribute in within(twin, AttributeProto):
        if _is_half(attribute):
            attribute.i = TensorProto.FLOAT
    return twin


def runnable(model: ModelProto) -> ModelProto:
    """The model as ONNX Runtime can run it: without bfloat16."""
    return widened(model) if has_kind(model, TensorProto.BFLOAT16) else model


def has_kind(model: ModelProto, *kinds: int) -> bool:
    """Whether any tensor, input, output or cast of a model is of one of some types."""
    return (
        any(tensor.data_type in kinds for tensor in within(model, TensorProto))
        or any(of.elem_type in kinds for of in within(model, TypeProto.Tensor))
        or any(_is_half(of) and of.i in kinds for of in within(model, AttributeProto))
    )


def _is_half(attribute: AttributeProto) -> bool:
    is_number = attribute.type == AttributeProto.INT and attribute.name in _NAME_TYPES
    return is_number and attribute.i in HALF


def _widen(tensor: TensorProto) -> None:
    values = tensor_of(tensor, tensor.name)
    tensor.ClearField("int32_data")
    tensor.data_type = TensorProto.FLOAT
    put(tensor, values)
