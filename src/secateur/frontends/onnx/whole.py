"""An ONNX model as a function of samples."""

from __future__ import annotations

from onnx import ModelProto
from torch import Tensor

from secateur.frontends.onnx.constant_inputs import holding
from secateur.frontends.onnx.first_run import batch_of
from secateur.frontends.onnx.runtime import as_tensor, call, start
from secateur.frontends.onnx.signature import fed, inputs, several, signature
from secateur.frontends.onnx.widening import runnable
from secateur.network.returned import asked_output
from secateur.network.rows import RowsFirst, in_parts, judged_output
from secateur.network.samples import Samples

_NUMBERS = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(int64)")


class Whole:
    """An ONNX model as a function from samples to its first output with a row for each of these.

    A fixed batch is kept to: samples go through so many at a time, the last ones with copies.
    """

    def __init__(
        self, model: ModelProto, example: Samples, output: str | int | None = None
    ) -> None:
        self.takes = signature(inputs(model))
        example = self.takes.bind(example)
        self.model = runnable(holding(model, example.constants))
        self.batch = batch_of(self.model, several(self.model, example))
        self.session = start(self.model)
        self.name = self._judged(example) if output is None else self._asked(output)
        self.rows = RowsFirst(self._run)

    def __call__(self, samples: Samples) -> Tensor:
        """The first output, with a row for each sample where it has any."""
        samples = self.takes.bind(samples)
        if not self.batch:
            return self.rows(samples)
        return in_parts(self._run, samples, self.batch)

    def _run(self, samples: Samples) -> Tensor:
        return self._outputs(samples, [self.name])[0]

    def _outputs(self, samples: Samples, names: list[str]) -> list[Tensor]:
        return [as_tensor(of) for of in call(self.session, fed(self.model, samples), names)]

    def _asked(self, output: str | int) -> str:
        names = [of.name for of in self.session.get_outputs()]
        return names[asked_output(output, names)]

    def _judged(self, example: Samples) -> str:
        """The output that the model is judged by; of a fixed batch the first of a fixed shape."""
        given = [of for of in self.session.get_outputs() if of.type.startswith("tensor(")]
        names = [of.name for of in given if of.type in _NUMBERS]
        if len(names) < 2:
            return self.session.get_outputs()[0].name
        if not self.batch:
            return names[judged_output(lambda samples: self._outputs(samples, names), example)]
        fixed = (of.name for of in given if all(isinstance(size, int) for size in of.shape or [""]))
        return next((name for name in fixed if name in names), names[0])
