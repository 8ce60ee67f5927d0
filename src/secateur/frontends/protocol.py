"""What the rest of the package does with a network, whatever kind it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor

from secateur.data.preprocess import Transform
from secateur.network.graph import Graph
from secateur.network.samples import Samples

Forward = Callable[[Tensor], Any]


class Runnable(ABC):
    """A network that can be run as a whole."""

    @property
    def preprocess(self) -> Transform | None:
        """How it wants its images, where it says so."""
        return None

    @abstractmethod
    def running(self, example: Tensor) -> AbstractContextManager[Forward]:
        """The network as a function from images to whatever it returns.

        Args:
            example: one image or two.
        """


class Frontend(Runnable):
    """A network that can be pruned: a module, an ONNX model.

    Attributes:
        model: what users have, a `torch.nn.Module` or an `onnx.ModelProto`; never modified.
        suffix: of the file that it is saved as.
        exporters: packages, besides those for ONNX, that writing it as ONNX needs.
    """

    model: Any
    suffix: str
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
    def to_onnx(self, images: Tensor) -> Any:
        """The network as an `onnx.ModelProto` that ONNX Runtime can run.

        Args:
            images: some inputs; a few of them are run.

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
