"""A PyTorch module behind the front-ends' common face."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.data.preprocess import Transform
from secateur.errors import ModelError
from secateur.frontends.hubs import own_input_shape, own_preprocess
from secateur.frontends.protocol import Forward, Frontend, check_same
from secateur.frontends.torch import graph, modules
from secateur.frontends.torch.modes import inference
from secateur.frontends.torch.onnx_export import exported, write_onnx
from secateur.frontends.torch.shrink import shrink
from secateur.frontends.torch.shrink_program import shrink_program
from secateur.frontends.torch.signature import (
    Arguments,
    any_length,
    batch_of_any_size,
    cast,
    signature_of,
)
from secateur.network.couplings import Removed, masked
from secateur.network.graph import Graph
from secateur.network.layout import to_channels_last
from secateur.network.samples import AnySamples, Samples, Signature, as_samples

_TRACED = "the smaller network is a traced program, for forward holds sizes as numbers"


@dataclass(frozen=True)
class TorchFrontend(Frontend):
    """A module; see `Frontend`.

    Attributes:
        model: of `torch.compile(net)`, `DataParallel(net)` and the like the network within.
        notes: what a reader of the report should know of it.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()
    suffix = ".safetensors"
    exporters = ("onnxscript",)

    @classmethod
    def of(cls, model: nn.Module) -> TorchFrontend:
        """The network within a module.

        Raises:
            ModelError: it has no weights yet (lazy, or on the device meta) or is TorchScript.
        """
        model = modules.unwrapped(model)
        modules.check_usable(model)
        return cls(model)

    @property
    def device(self) -> torch.device:
        """Where its first tensor is."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def precision(self) -> torch.dtype:
        """The type of its first parameter of floats."""
        return next(_precisions(self.model), torch.float32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As a network from a hub says; 3 channels of 224 pixels of any other."""
        return own_input_shape(self.model) or (3, 224, 224)

    @property
    def signature(self) -> Signature:
        """See `Runnable.signature`: the arguments of `forward`."""
        return signature_of(self.model)

    @property
    def preprocess(self) -> Transform | None:
        """As a network from a hub says; None of any other."""
        return own_preprocess(self.model)

    def trace(self, example: Samples) -> Graph:
        """See `Frontend.trace`."""
        modules.check_in_floats(self.model)
        return graph.trace(self.model, self.signature.bind(example))

    def edited(self, changes: Mapping[str, Tensor]) -> TorchFrontend:
        """See `Frontend.edited`; the copy is in eval mode."""
        return TorchFrontend(modules.with_parameters(self.model, changes))

    def shrunk(self, removed: Removed, example: Samples) -> TorchFrontend:
        """See `Frontend.shrunk`; the copy has submodules of its own, smaller.

        Where these do not give the same, for forward holds sizes as numbers, it is the module's
        traced program, which `notes` says.
        """
        ignoring = self.edited(masked(self.tensors(), removed))
        failure = None
        for every in (False, True) if any(of.query_keys for of, _ in removed) else (False,):
            smaller = TorchFrontend(shrink(self.model, removed, every=every))
            try:
                check_same(smaller, ignoring, example)
            except ModelError as error:
                failure = failure or error
            else:
                return smaller
        few = cast(self.signature.bind(example), self.device, self.precision)
        graph, note = self.trace(example), f"{_TRACED}: {failure}"
        if any(any_length(of) != batch_of_any_size(of) for of in few.tensors.values()):
            with suppress(ModelError):
                traced = shrink_program(self.model, graph, removed, few, any_length)
                smaller = TorchFrontend(traced, notes=(note,))
                check_same(smaller, ignoring, example)
                return smaller
            note += "; it takes samples of this length only"
        smaller = TorchFrontend(shrink_program(self.model, graph, removed, few), notes=(note,))
        check_same(smaller, ignoring, example)
        return smaller

    def to_onnx(self, samples: AnySamples) -> Any:
        """See `Frontend.to_onnx`."""
        module, few = exported(self.model, as_samples(samples))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(module, path, few, self.precision)
            return importlib.import_module("secateur.frontends.onnx").read(path)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, by name."""
        return modules.named_tensors(self.model)

    def saved_tensors(self) -> dict[str, Tensor]:
        """Those that the state dict holds."""
        return modules.saved_tensors(self.model)

    def parameters(self) -> list[Tensor]:
        """Parameters, tied ones once."""
        return list({one.data_ptr() or id(one): one for one in self.model.parameters()}.values())

    @contextmanager
    def running(self, example: Samples, output: str | int | None = None) -> Iterator[Forward]:
        """See `Runnable.running`; the module is as in `modes` meanwhile."""
        device = self.device
        layouts = (to_channels_last, Tensor.contiguous)
        ways = [(kind, layout) for kind in input_kinds(self.model) for layout in layouts]

        signature = self.signature

        def run(samples: Samples) -> Any:
            samples, failure = signature.bind(samples), None
            for tried, (kind, layout) in enumerate(ways):
                try:
                    given = cast(samples, device, kind).map(layout)
                    output = Arguments.of(self.model, given).call(self.model)
                except RuntimeError as error:  # it may view values as only one layout allows
                    failure = failure or error
                else:
                    del ways[:tried]
                    return output
            assert failure is not None
            raise failure

        with inference(self.model):
            yield run


def input_kinds(model: nn.Module) -> list[torch.dtype]:
    """The types that a module's inputs of floats may have, to be tried in their order.

    That of its floating-point parameters, where they are all of one type. Where they are not (the
    body in half precision, normalisations in float32, a table in float64), float32 and then
    theirs: which of them meets the input, only running the module tells.
    """
    kinds = dict.fromkeys(_precisions(model))
    return list(kinds if len(kinds) == 1 else {torch.float32: None, **kinds})


def _precisions(model: nn.Module) -> Iterator[torch.dtype]:
    return (of.dtype for of in model.parameters() if of.is_floating_point())
