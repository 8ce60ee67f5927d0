"""ONNX files: read, run layer by layer, and written back with other weights."""

from secateur.frontends.onnx.file import check, read
from secateur.frontends.onnx.graph import named_tensors, output_difference, trace, with_parameters
from secateur.frontends.onnx.signature import declared_batch, images_input, input_shape
from secateur.frontends.onnx.whole import Whole

__all__ = [
    "Whole",
    "check",
    "declared_batch",
    "images_input",
    "input_shape",
    "named_tensors",
    "output_difference",
    "read",
    "trace",
    "with_parameters",
]
