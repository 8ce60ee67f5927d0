"""Which layers of a module can run an integer kernel, and why the others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from secateur.frontends.torch.modules import computed_weights
from secateur.hardware.acceleration.layers import (
    Int8Conv1D,
    Int8Conv1x1,
    Int8Layer,
    Int8Linear,
    Integers,
    SharedInput,
    pixels_last,
)

_FUNCTIONS = ("linear", "conv2d", "addmm")  # what the layers themselves do with their weights


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layer that could run an integer kernel.

    Attributes:
        name: its first name in the module.
        module: the layer.
        kind: "linear", "1x1 convolution" or "Conv1D".
    """

    name: str
    module: nn.Module
    kind: str

    @property
    def matrix(self) -> Tensor:
        """The weight as (outputs, inputs)."""
        weight = self.parameter.detach().flatten(1)
        return weight.mT if self.kind == "Conv1D" else weight

    @property
    def parameter(self) -> Tensor:
        """The weight."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """In float32; None = the layer has none."""
        bias = self.module.bias
        return bias.detach().float().clone() if isinstance(bias, Tensor) else None

    @property
    def stride(self) -> tuple[int, int]:
        """Of a convolution; (1, 1) of others."""
        stride = self.module.stride if self.kind == "1x1 convolution" else (1, 1)
        return stride  # type: ignore[return-value]

    def rows(self, value: Tensor) -> Tensor:
        """An input with its channels last."""
        return value if self.kind != "1x1 convolution" else pixels_last(value, self.stride)

    def made(self, integers: Integers, kernel: str, shared: SharedInput) -> Int8Layer:
        """The layer in integers."""
        if self.kind == "1x1 convolution":
            return Int8Conv1x1(integers, kernel, shared, self.stride)
        return (Int8Conv1D if self.kind == "Conv1D" else Int8Linear)(integers, kernel, shared)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The layers of a module.

    Attributes:
        candidates: that could run an integer kernel.
        reasons: why the others cannot, by name.
    """

    candidates: tuple[Candidate, ...]
    reasons: Mapping[str, str]

    def without(self, reasons: Mapping[str, str]) -> Found:
        """The same with some layers left alone."""
        left = tuple(of for of in self.candidates if of.name not in reasons)
        return Found(candidates=left, reasons={**self.reasons, **reasons})


def find(model: nn.Module) -> Found:
    """Linear layers and convolutions of a module, as far as a look at it tells."""
    computed, owners = computed_weights(model), _owners(model)
    candidates, reasons = [], {}
    for name, module in model.named_modules():
        kind = _kind(module)
        if not kind:
            continue
        obstacle = _obstacle(module, computed.get(name, "")) or _shared(module, name, owners)
        if obstacle:
            reasons[name] = obstacle
        else:
            candidates.append(Candidate(name=name, module=module, kind=kind))
    return Found(candidates=tuple(candidates), reasons=reasons)


def _kind(module: nn.Module) -> str:
    """What a layer is; empty where it is none of those that have a matrix."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "1x1 convolution"
    is_conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return "Conv1D" if is_conv1d else ""


def _obstacle(module: nn.Module, computed: str) -> str:
    if computed:
        return f"its weight is computed in each run: {computed}"
    for kind in (nn.Linear, nn.Conv2d):
        if isinstance(module, kind) and type(module).forward is not kind.forward:
            return f"{type(module).__name__} has a forward of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which would be lost"
    return _convolution(module) if isinstance(module, nn.Conv2d) else ""


def _convolution(module: nn.Conv2d) -> str:
    if module.kernel_size != (1, 1):
        sizes = "x".join(map(str, module.kernel_size))
        return f"{sizes} convolution: PyTorch's sparse kernel takes only 1x1"
    if module.groups > 1:
        return f"{module.groups} groups: only convolutions of one group"
    return "padding: only 1x1 convolutions without" if module.padding not in ((0, 0), 0) else ""


def _owners(model: nn.Module) -> Counter[int]:
    """How many places each parameter has in a module."""
    every = (of for part in model.modules() for of in part._parameters.values())
    return Counter(id(of) for of in every if of is not None)


def _shared(module: nn.Module, name: str, owners: Mapping[int, int]) -> str:
    shared = any(owners[id(of)] > 1 for of in module._parameters.values() if of is not None)
    return "its weight is shared with another part of the network" if shared else ""


class _Readers(TorchFunctionMode):
    """Counts which functions of PyTorch take some tensors."""

    def __init__(self, tensors: Mapping[int, str]) -> None:
        super().__init__()
        self.tensors, self.counts = tensors, Counter[tuple[str, str]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name != "__get__":  # a look at its shape or type
            for of in tree_leaves((args, kwargs or {})):
                if id(of) in self.tensors:
                    self.counts[self.tensors[id(of)], name] += 1
        return func(*args, **(kwargs or {}))


def used_otherwise(found: Found, run: Callable[[], Any]) -> dict[str, str]:
    """Why layers have to stay whose weights a run reads without calling them, or not at all.

    Args:
        found: the layers.
        run: runs the module.
    """
    tensors = {id(of.parameter): of.name for of in found.candidates}
    calls = Counter[str]()
    with _Readers(tensors) as readers, torch.no_grad():
        run()
    handles = [_counting(of, calls) for of in found.candidates]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return dict(_reasons(found, readers.counts, calls))


def _counting(of: Candidate, calls: Counter[str]) -> Any:
    def count(*_: Any) -> None:
        calls[of.name] += 1

    return of.module.register_forward_pre_hook(count)


def _reasons(
    found: Found, reads: Counter[tuple[str, str]], calls: Counter[str]
) -> Iterator[tuple[str, str]]:
    for of in found.candidates:
        by = {name: count for (layer, name), count in reads.items() if layer == of.name}
        others = [name for name in by if name not in _FUNCTIONS]
        if others:
            yield of.name, f"its weight is used otherwise too, by {', '.join(sorted(others))}"
        elif not calls[of.name]:
            used = "its weight is used, but the layer is never called" if by else "it never runs"
            yield of.name, used
        elif sum(by.values()) != calls[of.name]:
            yield of.name, "its weight is used otherwise too"
