"""ONNX files: read, run layer by layer, and written back with other weights."""

from secateur.frontends.onnx.file import check, read
from secateur.frontends.onnx.graph import output_difference, trace
from secateur.frontends.onnx.large import is_large, loadable, write
from secateur.frontends.onnx.signature import bound, declared_batch, images_input, input_shape
from secateur.frontends.onnx.whole import Whole

__all__ = [
    "Whole",
    "bound",
    "check",
    "declared_batch",
    "images_input",
    "input_shape",
    "is_large",
    "loadable",
    "output_difference",
    "read",
    "trace",
    "write",
]
