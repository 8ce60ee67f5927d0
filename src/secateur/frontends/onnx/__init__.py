"""ONNX files: read, run layer by layer, and written back with other weights."""

from secateur.frontends.onnx.file import check, read
from secateur.frontends.onnx.graph import named_tensors, output_difference, trace, with_parameters
from secateur.frontends.onnx.signature import input_shape
from secateur.frontends.onnx.whole import Whole

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
