"""An ONNX model behind the front-ends' common face."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.frontends.onnx import file, graph, signature
from secateur.frontends.onnx.branches import Decisions, Names, as_decided, in_line
from secateur.frontends.onnx.shrink import shrink
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.onnx.whole import Whole
from secateur.frontends.protocol import Forward, Frontend, check_same
from secateur.network.couplings import Removed, gone, masked, rescaled
from secateur.network.graph import Graph
from secateur.network.samples import AnySamples, Samples, Signature

_FLOATS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
}


@dataclass(frozen=True)
class OnnxFrontend(Frontend):
    """An `onnx.ModelProto`, run by ONNX Runtime; see `Frontend`."""

    model: ModelProto
    suffix = ".onnx"
    chooses = True

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
        """The type of most of its floats; float32 where it holds none."""
        counts = Counter[int]()
        for held in Names(self.model).constants().values():
            if held.data_type in _FLOATS:
                counts[held.data_type] += math.prod(held.dims)
        return _FLOATS[counts.most_common(1)[0][0]] if counts else torch.float32

    @property
    def signature(self) -> Signature:
        """See `Runnable.signature`."""
        return signature.signature(signature.inputs(self.model))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As the file says; 3 channels of 224 pixels where it leaves a size open."""
        return signature.input_shape(self.model)

    def example(self, shape: tuple[int, ...] | None = None) -> Samples:
        """See `Frontend.example`; zeros, and ones for whole numbers and masks."""
        return signature.blank(self.model, shape)

    def trace(self, example: Samples) -> Graph:
        """See `Frontend.trace`."""
        return graph.trace(self.model, example)

    def edited(self, changes: Mapping[str, Tensor]) -> OnnxFrontend:
        """A copy with some constants changed, stored as they were, and nothing else."""
        twin = ModelProto()
        twin.CopyFrom(self.model)
        known, stored = self._translation({*changes}), Names(twin).constants()
        for name, value in changes.items():
            file.put(stored[name], known.layouts[name].write(value, known.constant))
        return OnnxFrontend(twin)

    def _translation(self, names: set[str]) -> Translation:
        """What is known of the file where parameters of these names are in use."""
        found = self._ways(Names(self.model).decisions(names))
        return next((of for of in found if names <= of.layouts.keys()), found[0])

    def _ways(self, decisions: Decisions) -> list[Translation]:
        """What is known of the file with those branches that were decided for.

        With the other If as they are, and all with their first branch or their second one.
        """
        plain, others = file.inlined(self.model), (None, False, True)
        ways = [in_line(plain, as_decided(decisions, otherwise=other)) for other in others]
        return [Translation(way.model) for way in ways[: 3 if ways[1].left_out else 1]]

    def shrunk(self, removed: Removed, example: Samples) -> OnnxFrontend:
        """See `Frontend.shrunk`; the copy has functions expanded."""
        graph = self.trace(example)
        layouts = self._translation({*gone(removed)} & {*graph.parameters}).layouts
        mended = self.edited(rescaled(graph.parameters, removed)).model
        smaller = OnnxFrontend.of(shrink(mended, graph, layouts, removed))
        check_same(smaller, self.edited(masked(graph.parameters, removed)), example)
        return smaller

    def to_onnx(self, samples: AnySamples) -> ModelProto:
        """The model itself."""
        return self.model

    def tensors(self) -> dict[str, Tensor]:
        """The floating-point constants by name, as they are stored, and quantised weights; copied.

        Of these the zero point is taken off, so that zeros are zeros.
        """
        stored = Names(self.model).constants()
        floats = {name: held for name, held in stored.items() if held.data_type in _FLOATS}
        found = {name: file.tensor_of(held, name) for name, held in floats.items()}
        for known in self._ways({}):
            for name in known.layouts.keys() & stored.keys() - floats.keys():
                held = file.tensor_of(stored[name], name)
                found[name] = known.layouts[name].centred(held, known.constant)
        return found

    @contextmanager
    def running(self, example: Samples, output: str | int | None = None) -> Iterator[Forward]:
        """See `Runnable.running`; its first output with a row for each sample."""
        yield Whole(self.model, example, output)
