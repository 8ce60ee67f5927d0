"""An ONNX model as a function of images."""

from __future__ import annotations

from onnx import ModelProto
from torch import Tensor

from secateur.frontends.onnx.first_run import batch_of
from secateur.frontends.onnx.runtime import as_tensor, call, start
from secateur.frontends.onnx.signature import images_input, several
from secateur.rows import RowsFirst, in_parts


class Whole:
    """An ONNX model as a function from images to its first output.

    A fixed batch is kept to: images go through so many at a time, the last ones with copies.
    """

    def __init__(self, model: ModelProto, example: Tensor) -> None:
        self.input = images_input(model).name
        self.batch = batch_of(model, several(model, example))
        self.session = start(model)
        self.rows = RowsFirst(self._run)

    def __call__(self, images: Tensor) -> Tensor:
        """The first output, with a row for each image where it has any."""
        if not self.batch:
            return self.rows(images)
        return in_parts(self._run, images, self.batch)

    def _run(self, images: Tensor) -> Tensor:
        name = self.session.get_outputs()[0].name
        return as_tensor(call(self.session, {self.input: images}, [name])[0])
