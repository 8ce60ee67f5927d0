"""ONNX files: read, run layer by layer, and written back with other weights."""

from secateur.frontends.onnx.file import check, read
from secateur.frontends.onnx.graph import named_tensors, output_difference, trace, with_parameters
from secateur.frontends.onnx.runtime import Whole, input_shape

__all__ = [
    "Whole",
    "check",
    "input_shape",
    "named_tensors",
    "output_difference",
    "read",
    "trace",
    "with_parameters",
]
