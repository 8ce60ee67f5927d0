"""How a module is set while it is traced or run: eval mode, no cache, no nested tensors.

A decoder of Hugging Face returns the keys and values of all positions too (`config.use_cache`),
which no tracer takes. `nn.TransformerEncoder` packs what its padding mask leaves into a nested
tensor, so that it gives zeros for padded positions where its operations, one by one, do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from secateur.frontends.torch.modules import copy_module

_SETTINGS = ("use_cache", "use_nested_tensor")


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode that can be traced: without a cache and nested tensors."""
    twin = copy_module(model).eval()
    for held, name in _switched_on(twin):
        setattr(held, name, False)
    return twin


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """A module in eval mode, without a cache and nested tensors, and then as it was."""
    modes = {module: module.training for module in model.modules()}
    settings = _switched_on(model)
    model.eval()
    for held, name in settings:
        setattr(held, name, False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for held, name in settings:
            setattr(held, name, True)


def _switched_on(model: nn.Module) -> list[tuple[Any, str]]:
    """What holds a setting that is on: parts of a module, and their configurations, each once."""
    parts = [*model.modules()]
    holders = {id(of): of for part in parts for of in (part, vars(part).get("config"))}
    return [
        (of, name)
        for of in holders.values()
        for name in _SETTINGS
        if of is not None and getattr(of, name, None) is True
    ]
