"""The inputs of a module's `forward`, and how it is called with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from secateur.errors import ModelError
from secateur.network.samples import Samples, Signature

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Arguments:
    """Inputs as `forward` takes them: by place as far as they follow each other, then by name.

    Attributes:
        args, kwargs: of the call.
        once: names among these of inputs that are the same for all samples.
        takes_any: whether `forward` takes them by `*args`.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Any]
    takes_any: bool
    once: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, module: nn.Module, samples: Samples) -> Arguments:
        """Those of a call with samples that are bound to the module's signature."""
        taken = _parameters(module)
        names = [of.name for of in taken if of.kind is not of.KEYWORD_ONLY]
        given = dict(samples.tensors)
        by_place = [given.pop(name) for name in _beginning(names, given)]
        takes_any = not names and all(map(str.isdecimal, given))
        if takes_any:
            by_place, given = [*given.values()], {}
        numbers = {of.name for of in taken if "Tensor" not in str(of.annotation)}
        once = {
            name: value.item() if name in numbers and value.dim() == 0 else value
            for name, value in samples.constants.items()
        }
        return cls(tuple(by_place), {**given, **once}, takes_any, once)

    def call(self, module: Callable[..., Any]) -> Any:
        """What a module returns."""
        return module(*self.args, **self.kwargs)

    def shapes(self, module: nn.Module, of: Callable[[Tensor], Any]) -> Any:
        """Something of each input, nested as `torch.export` wants its dynamic shapes."""
        by_place = tuple(map(of, self.args))
        if self.takes_any and any(p.kind is p.VAR_POSITIONAL for p in _all(module)):
            return (by_place,)
        if not self.kwargs:
            return by_place
        names = (parameter.name for parameter in _parameters(module))
        named = {
            name: None if name in self.once else of(value) for name, value in self.kwargs.items()
        }
        return {**dict(zip(names, by_place, strict=False)), **named}


def batch_of_any_size(tensor: Tensor) -> dict[int, Any]:
    """A dynamic first axis."""
    return {0: Dim.DYNAMIC}


def any_length(tensor: Tensor) -> dict[int, Any]:
    """A dynamic first axis; of tokens and their masks any length, if the network allows it."""
    tokens = tensor.dim() == 2 and not tensor.is_floating_point()
    return {0: Dim.DYNAMIC, **({1: Dim.AUTO} if tokens else {})}


def signature_of(module: nn.Module) -> Signature:
    """The inputs that a module takes.

    Raises:
        ModelError: it takes none.
    """
    every = _all(module)
    rest = not every or any(of.kind is of.VAR_POSITIONAL for of in every)
    taken = _parameters(module)
    if every and not taken and not rest:
        names = f"keywords only ({', '.join(map(str, every))})"
        raise ModelError(
            f"the network's forward takes {names}, expected inputs with names of their own: wrap "
            "it in a module whose forward takes these"
        )
    if not every and hasattr(module.forward, "__code__"):
        raise ModelError(
            "the network's forward takes no input, expected a batch of inputs: wrap it in a "
            "module whose forward takes that"
        )
    return Signature(
        names=tuple(of.name for of in taken),
        required=tuple(of.name for of in taken if of.default is of.empty),
        any_number=rest,
        numbers_once=True,
        main=str(getattr(module, "main_input_name", "")),  # of a network of Transformers
    )


def cast(samples: Samples, device: torch.device, kind: torch.dtype) -> Samples:
    """Copies of samples, for a network may change them, on a device, floats in some precision."""
    return samples.to(device).floats(lambda tensor: tensor.to(kind)).map(Tensor.clone)


def _beginning(names: list[str], given: Mapping[str, Tensor]) -> list[str]:
    """The first names, as far as all are given."""
    missing = (place for place, name in enumerate(names) if name not in given)
    return names[: next(missing, len(names))]


def _all(module: nn.Module) -> list[inspect.Parameter]:
    """All parameters of `forward`; none where it is written in C, say."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Those with a name of their own."""
    return [of for of in _all(module) if of.kind not in _REST]
