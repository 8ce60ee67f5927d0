"""An ONNX model behind the front-ends' common face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.frontends.onnx import file, graph, signature
from secateur.frontends.onnx.shrink import shrink
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.onnx.whole import Whole
from secateur.frontends.protocol import Forward, Frontend, check_same
from secateur.network.couplings import Removed, masked, rescaled
from secateur.network.graph import Graph
from secateur.network.samples import AnySamples, Samples, Signature

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class OnnxFrontend(Frontend):
    """An `onnx.ModelProto`, run by ONNX Runtime; see `Frontend`."""

    model: ModelProto
    suffix = ".onnx"

    @classmethod
    def of(cls, model: ModelProto) -> OnnxFrontend:
        """A model as it was given.

        Raises:
            ModelError: it is not a valid one.
        """
        file.check(model)
        return cls(model)

    @classmethod
    def read(cls, path: str | Path) -> OnnxFrontend:
        """What a file holds.

        Raises:
            ModelError: there is none, it cannot be read, or is not valid.
        """
        return cls(file.read(path))

    @property
    def device(self) -> torch.device:
        """Main memory."""
        return torch.device("cpu")

    @property
    def precision(self) -> torch.dtype:
        """Files are float32 where they can be pruned."""
        return torch.float32

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As the file says; 3 channels of 224 pixels where it leaves a size open."""
        return signature.input_shape(self.model)

    def trace(self, example: Samples) -> Graph:
        """See `Frontend.trace`."""
        return graph.trace(self.model, example.only())

    def edited(self, changes: Mapping[str, Tensor]) -> OnnxFrontend:
        """A copy with some constants changed, stored as they were, and nothing else."""
        twin = ModelProto()
        twin.CopyFrom(self.model)
        layouts, stored = Translation(self.model).layouts, file.constants(twin.graph)
        for name, value in changes.items():
            file.put(stored[name], layouts[name].write(value))
        return OnnxFrontend(twin)

    def shrunk(self, removed: Removed, example: Samples) -> OnnxFrontend:
        """See `Frontend.shrunk`; the copy has functions expanded."""
        graph, layouts = self.trace(example), Translation(self.model).layouts
        mended = self.edited(rescaled(graph.parameters, removed)).model
        smaller = OnnxFrontend.of(shrink(mended, graph, layouts, removed))
        check_same(smaller, self.edited(masked(graph.parameters, removed)), example)
        return smaller

    def to_onnx(self, samples: AnySamples) -> ModelProto:
        """The model itself."""
        return self.model

    def tensors(self) -> dict[str, Tensor]:
        """The floating-point constants by name, as they are stored; copied."""
        stored = file.constants(self.model.graph)
        floats = {name: held for name, held in stored.items() if held.data_type in _FLOATS}
        return {name: file.tensor_of(held, name) for name, held in floats.items()}

    @contextmanager
    def running(self, example: Samples) -> Iterator[Forward]:
        """See `Runnable.running`; its first output with a row for each image."""
        yield Whole(self.model, example)

    @property
    def signature(self) -> Signature:
        """See `Runnable.signature`."""
        name = signature.images_input(self.model).name
        return Signature(names=(name,), required=(name,))
