"""What the rest of the package does with a network, whatever kind it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.data.preprocess import Transform
from secateur.errors import DataError, ModelError
from secateur.network.couplings import Removed
from secateur.network.graph import Graph
from secateur.network.samples import AnySamples, Samples, Signature

Forward = Callable[[Samples], Any]

_ROUNDING = 1e-4  # of outputs of float32, relative to the largest of them


class Runnable(ABC):
    """A network that can be run as a whole.

    Attributes:
        chooses: whether, run for one of its outputs, it gives that alone.
    """

    chooses: ClassVar[bool] = False

    @property
    def preprocess(self) -> Transform | None:
        """How it wants its images, where it says so."""
        return None

    @abstractmethod
    def running(
        self, example: Samples, output: str | int | None = None
    ) -> AbstractContextManager[Forward]:
        """The network as a function from samples to whatever it returns.

        Args:
            example: one sample or two.
            output: name or number of the output that is needed; None = what counts, as a rule.

        Raises:
            OptionError: there is no such output, where it `chooses`.
        """

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """The inputs that it takes."""


def asked_or_own(asked: Transform | None, *networks: Runnable) -> Transform | None:
    """The preprocess of a call, else that of the first network that has one."""
    ways = (asked, *(network.preprocess for network in networks))
    return next((way for way in ways if way is not None), None)


class Frontend(Runnable):
    """A network that can be pruned: a module, an ONNX model.

    Attributes:
        model: what users have, a `torch.nn.Module`, an `onnx.ModelProto` or an `openvino.Model`;
            never modified.
        suffix: of the file that it is saved as.
        notes: what a reader of the report should know of how the network was made.
        exporters: packages, besides those for ONNX, that writing it as ONNX needs.
    """

    model: Any
    suffix: str
    notes: tuple[str, ...] = ()
    exporters: tuple[str, ...] = ()

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its tensors are."""

    @property
    @abstractmethod
    def precision(self) -> torch.dtype:
        """The type that its weights have."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, as far as it says; 3 channels of 224 pixels where nothing is said."""

    def example(self, shape: tuple[int, ...] | None = None) -> Samples:
        """Two blank samples.

        Args:
            shape: of one input; None = as the network says.

        Raises:
            DataError: it takes several inputs, and does not say of what shapes.
        """
        if len(self.signature.required) > 1:
            names = ", ".join(self.signature.required)
            raise DataError(
                f"the network takes the inputs {names}, expected some of each to trace it with: "
                "pass data (--data)"
            )
        sizes = self.input_shape if shape is None else shape
        return self.signature.bind(Samples({"0": torch.zeros(2, *sizes)}))

    @abstractmethod
    def trace(self, example: Samples) -> Graph:
        """The network as a graph with a batch of any size.

        Raises:
            ModelError: it cannot be traced or run with such inputs, or has weights that are not
                finite.
        """

    @abstractmethod
    def edited(self, changes: Mapping[str, Tensor]) -> Self:
        """A copy with some parameters changed, by their names in the graph."""

    @abstractmethod
    def shrunk(self, removed: Removed, example: Samples) -> Self:
        """A copy without some units of its couplings, as `masked` has it ignore them.

        The copy is run on the example, and gives what this network gives with the units masked
        (`secateur.network.couplings.masked`).

        Args:
            removed: couplings of the graph that `trace` gives, with the units to leave out. Of a
                coupling in blocks as many of each.
            example: a few samples.

        Raises:
            ModelError: a coupling is fixed, its blocks would be of different sizes, or the network
                holds sizes that cannot be mended.
        """

    @abstractmethod
    def to_onnx(self, samples: AnySamples) -> Any:
        """The network as an `onnx.ModelProto` that ONNX Runtime can run.

        Args:
            samples: some inputs; a few of them are run.

        Raises:
            MissingExtraError: a package is not installed.
            ModelError: the exporter or ONNX Runtime refuses the network, or it is over 2 GB.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, or constants, by name."""

    def saved_tensors(self) -> dict[str, Tensor]:
        """Those of `tensors` that a saved file holds: all of them, where nothing else is said."""
        return self.tensors()

    def parameters(self) -> list[Tensor]:
        """What counts as a parameter, tied ones once; all tensors, where nothing else is said."""
        return list(self.tensors().values())


def check_same(shrunk: Runnable, masked: Runnable, example: Samples) -> None:
    """Raises ModelError unless a network without some channels gives what the masked one gives."""
    few = example[:2]
    with torch.no_grad(), masked.running(few) as run:
        expected = _numbers(run(few))
    try:
        with torch.no_grad(), shrunk.running(few) as run:
            found = _numbers(run(few))
    except Exception as error:  # whatever sizes that do not fit lead to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the network without its removed channels does not run ({reason}), expected sizes "
            "that follow from the weights: use sizes of values or attributes of modules in "
            "forward, not numbers"
        ) from error
    difference = _difference(found, expected)
    if not difference <= 1:
        raise ModelError(
            f"the network without its removed channels differs by {difference:.2g} times the "
            "rounding of its largest output from the one that ignores them, expected the same: "
            "please report its operations"
        )


def _numbers(output: Any) -> list[Tensor]:
    return [of for of in tree_leaves(output) if isinstance(of, Tensor) and of.is_floating_point()]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of some outputs, as a multiple of what rounding makes of each."""
    if [of.shape for of in found] != [of.shape for of in expected]:
        return float("inf")
    worst = [torch.zeros(())]
    for one, other in zip(found, expected, strict=True):
        if one.numel():
            rounding = max(_ROUNDING, 4 * torch.finfo(other.dtype).eps)
            largest = other.double().abs().max().clamp(min=1e-6)
            worst.append((one.double() - other.double()).abs().max() / largest / rounding)
    return float(torch.stack([of.double().cpu() for of in worst]).max())
