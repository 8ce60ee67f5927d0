"""An OpenVINO model behind the front-ends' common face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.openvino import graph
from secateur.frontends.openvino.nodes import distinct_names
from secateur.frontends.openvino.runtime import IR, output_names, read_model, signature_of
from secateur.frontends.openvino.shrink import shrink
from secateur.frontends.openvino.translation import Translation, constant_like, floats, type_of
from secateur.frontends.protocol import Forward, Frontend, check_same
from secateur.network.couplings import Removed, masked, rescaled
from secateur.network.graph import Graph
from secateur.network.returned import asked_output
from secateur.network.samples import AnySamples, Samples, Signature

_FLOATS = ("f32", "f16", "bf16", "f64")
_USUAL = (0, 3, 224, 224, 224)  # sizes where a file leaves them open


@dataclass(frozen=True)
class OpenVinoFrontend(Frontend):
    """An `openvino.Model`, run by OpenVINO; see `Frontend`."""

    model: Any
    suffix = ".xml"
    chooses = True

    @classmethod
    def read(cls, path: str | Path) -> OpenVinoFrontend:
        """What an .xml file holds, with the .bin file beside it.

        Raises:
            ModelError: a file is missing, or OpenVINO refuses it.
        """
        return cls(read_model(path))

    @property
    def device(self) -> torch.device:
        """Main memory."""
        return torch.device("cpu")

    @property
    def precision(self) -> torch.dtype:
        """Layers are computed in float32, whatever their weights are stored in."""
        return torch.float32

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As the file says; 3 channels of 224 pixels where it leaves a size open."""
        shape = self.model.inputs[0].get_partial_shape()
        if shape.rank.is_dynamic:
            return _USUAL[1:4]
        usual = _USUAL if len(shape) > 2 else (0, 224)
        pairs = list(zip(shape, usual, strict=False))
        return tuple(known if of.is_dynamic else of.get_length() for of, known in pairs)[1:]

    def trace(self, example: Samples) -> Graph:
        """See `Frontend.trace`."""
        return graph.trace(self.model, example)

    def edited(self, changes: Mapping[str, Tensor]) -> OpenVinoFrontend:
        """A copy with some constants changed, stored as they were, and nothing else."""
        translation = Translation(self.model.clone())
        held = translation.nodes.constants
        new = {
            held[name].get_friendly_name(): translation.layouts[name].write(value)
            for name, value in changes.items()
        }
        twin = self.model.clone()
        for node, name in distinct_names(twin).items():
            if name in new and node.get_type_name() == "Constant":
                node.output(0).replace(constant_like(node, new[name]).output(0))
        return OpenVinoFrontend(twin)

    def shrunk(self, removed: Removed, example: Samples) -> OpenVinoFrontend:
        """See `Frontend.shrunk`."""
        traced = self.trace(example)
        mended = self.edited(rescaled(traced.parameters, removed)).model
        smaller = OpenVinoFrontend(shrink(mended, traced, removed))
        check_same(smaller, self.edited(masked(traced.parameters, removed)), example)
        return smaller

    def to_onnx(self, samples: AnySamples) -> Any:
        """Not possible."""
        raise ModelError(
            "an OpenVINO file cannot be written as ONNX, expected a PyTorch module or an .onnx "
            "file for other runtimes: prune what the file was made from"
        )

    def tensors(self) -> dict[str, Tensor]:
        """The floating-point constants by name, in the types that they are stored in; copied."""
        constants = Translation(self.model.clone()).nodes.constants
        kinds = {"f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
        return {
            name: floats(of).to(kinds.get(type_of(of.output(0)), torch.float32))
            for name, of in constants.items()
            if type_of(of.output(0)) in _FLOATS
        }

    @contextmanager
    def running(self, example: Samples, output: str | int | None = None) -> Iterator[Forward]:
        """See `Runnable.running`; its first output, or the one that is asked for."""
        number = 0 if output is None else asked_output(output, output_names(self.model))
        yield IR(self.model, number)

    @property
    def signature(self) -> Signature:
        """See `Runnable.signature`."""
        return signature_of(self.model)
