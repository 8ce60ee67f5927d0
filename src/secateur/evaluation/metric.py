"""A metric of the user's own: a function of a network as the user has it, larger is better."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.errors import OptionError
from secateur.evaluation.results import Evaluation
from secateur.frontends import Runnable
from secateur.support.settings import shown

Metric = Callable[[Any], float]


@dataclass(frozen=True)
class DenseMetric:
    """A user's metric, with what it says of the dense network.

    Attributes:
        function: from a module or an `onnx.ModelProto` to a number.
        kind: of network that it is a function of.
        dense: of the dense network.
    """

    function: Metric
    kind: type[Runnable]
    dense: float

    @classmethod
    def of(cls, function: Metric, network: Any) -> DenseMetric:
        """Measures the dense network.

        Raises:
            OptionError: the function gives no finite number.
        """
        return cls(function, type(network), measured(function, network))

    @property
    def point(self) -> float:
        """A hundredth of the dense network's, for a first guess at what a sparsity costs."""
        return abs(self.dense) / 100 or 0.01

    def added(self, found: Evaluation | None, network: Any) -> Evaluation | None:
        """An evaluation with the metric; as it is of a network of another kind."""
        if not isinstance(network, self.kind):
            return found
        return self.compared(found, network)

    def compared(self, found: Evaluation | None, network: Any) -> Evaluation:
        """An evaluation with the metric, whatever kind of network it is of."""
        return self._with(found, measured(self.function, network))

    def left_out(self, int8: Any) -> list[str]:
        """A warning where the network in INT8 is of a kind that the metric is no function of."""
        if isinstance(int8, self.kind):
            return []
        return [
            "metric was not measured on the network in INT8, which is an onnx.ModelProto and not "
            "what prune was given: call it with result.quantized, if it takes that"
        ]

    def added_to_all(
        self, found: Mapping[str, Evaluation], pruned: Any, int8: Any = None
    ) -> dict[str, Evaluation]:
        """The evaluations of the dense, the pruned and, if there is one, the INT8 network with it.

        Args:
            found: by these names; may be empty.
            pruned, int8: the networks.
        """
        dense = self._with(found.get("dense"), self.dense)
        every = {"dense": dense, "pruned": self.added(found.get("pruned"), pruned)}
        every["int8"] = self.added(found.get("int8"), int8)
        return {name: of for name, of in every.items() if of is not None}

    def _with(self, found: Evaluation | None, value: float) -> Evaluation:
        return replace(found or Evaluation(images=0), metric=value, metric_drop=self.dense - value)


def check_metric(function: Metric | None) -> None:
    """Raises OptionError where a metric cannot be called with a network alone."""
    try:
        if function is not None:
            inspect.signature(function).bind(None)
    except TypeError as error:
        raise OptionError(
            f"metric is a function that cannot be called with a network: {error}; expected one "
            "that takes it and gives a number"
        ) from error
    except ValueError:  # written in C, without a signature
        pass


def measured(function: Metric, network: Any) -> float:
    """What a metric says of a network, without gradients; a module is in eval mode meanwhile.

    Raises:
        OptionError: it is no finite number.
    """
    model = network.model
    modes = {part: part.training for part in model.modules()} if _is_module(model) else {}
    for part in modes:
        part.training = False
    try:
        with torch.no_grad():
            value = function(model)
    finally:
        for part, mode in modes.items():
            part.training = mode
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(
            f"metric gives {shown(value)}, expected a finite number, larger for a better network"
        )
    return number


def _is_module(model: Any) -> bool:
    return isinstance(model, nn.Module)
