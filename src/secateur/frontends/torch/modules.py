"""PyTorch modules as people hold them: wrapped, with tied weights, with weights that no file holds.

A weight can be pruned where the state dict holds it, for then a saved file has its zeros and the
network that reads the file gets them. Tensors that share memory are copied so that they still do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from secateur.errors import ModelError

View = tuple[Any, ...]  # where a tensor's values lie, and as what
Named = tuple[str, Tensor]

_UNSAVED = "not in the state dict: no saved file would hold its zeros"
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within `torch.compile`, `DataParallel`, `AveragedModel` and the like."""
    while (inner := _within(model)) is not None:
        model = inner
    return model


def _within(model: nn.Module) -> nn.Module | None:
    if isinstance(model, _WRAPPERS):
        return model.module
    # torch.compile's class, without the import of all of its compiler
    return getattr(model, "_orig_mod", None) if _is_compiled(model) else None


def _is_compiled(model: nn.Module) -> bool:
    return type(model).__name__ == "OptimizedModule"


def computed_weights(model: nn.Module) -> dict[str, str]:
    """By a part's name, how to make parameters of its weights that are computed in each run.

    Those of masks (`torch.nn.utils.prune`), parametrizations, and the older weight and spectral
    norms.
    """
    found = {name: _how_to_hold(part) for name, part in model.named_modules()}
    return {name: how for name, how in found.items() if how}


def _how_to_hold(part: nn.Module) -> str:
    if is_parametrized(part):
        tensors = list(part.parametrizations)  # type: ignore[arg-type]
        return _call("parametrize.remove_parametrizations", tensors)
    for hook in part._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            return _call("prune.remove", [hook._tensor_name])
        if isinstance(hook, WeightNorm | SpectralNorm):
            norm = "weight" if isinstance(hook, WeightNorm) else "spectral"
            return _call(f"remove_{norm}_norm", [hook.name])
    return ""


def _call(function: str, tensors: Sequence[str]) -> str:
    tensor = "weight" if "weight" in tensors else tensors[0]
    return f"call torch.nn.utils.{function}(layer, {tensor!r}) first"


def check_usable(model: nn.Module) -> None:
    """Raises ModelError where a module has no weights yet, or no Python code to trace."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{_part(name)} is a TorchScript module, which torch.export cannot trace, expected "
                "a torch.nn.Module: build the network that it was made from and load its weights "
                "(script.state_dict() holds them)"
            )
    tensors = named_tensors(model)
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"the model's lazy layers have no weights yet ({_some(lazy)}), expected a trained "
            "network: run it once, as in model(images[:1]), and load its weights"
        )
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ModelError(
            f"the model's weights are on the device meta, without values ({_some(empty)}), "
            "expected a network with its weights: use model.to_empty(device='cpu') and load the "
            "weights, or load_state_dict(state, assign=True)"
        )


def _part(name: str) -> str:
    return f"the model's part {name}" if name else "the model"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_finite(module: nn.Module) -> None:
    """Raises ModelError naming the first parameter or buffer that holds a NaN or an infinity."""
    for name, tensor in module.state_dict().items():
        if (
            isinstance(tensor, Tensor)
            and tensor.is_floating_point()
            and not tensor.isfinite().all()
        ):
            raise ModelError(
                f"the weights hold NaN or Inf in {name}, expected finite numbers: "
                "check the checkpoint and how it was loaded"
            )


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have: tied ones have several."""
    parameters = module.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(module.named_buffers(remove_duplicate=False))


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Those of `named_tensors` that the state dict holds, whatever they are called there."""
    state = module.state_dict()
    held = {_view(tensor) for tensor in state.values() if _is_plain(tensor)}
    return {
        name: tensor
        for name, tensor in named_tensors(module).items()
        if name in state or (_is_plain(tensor) and _view(tensor) in held)
    }


def with_parameters(model: nn.Module, changes: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module in eval mode, with some parameters and buffers changed.

    Args:
        model: the module; not touched.
        changes: new values by state-dict name, cast to the old dtype and device.
    """
    result = copy_module(model).eval()
    tensors = named_tensors(result)
    with torch.no_grad():
        for name, value in changes.items():
            tensors[name].copy_(value)
    return result


def copy_module(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold computed tensors (the old `weight_norm` does).

    Tensors that share memory, such as Parameters tied through `.data`, share it in the copy too.

    Raises:
        ModelError: it is no module, or holds what cannot be copied, such as a lock.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model is a {type(model).__name__}, expected a torch.nn.Module: "
            "pass the module itself, with its weights loaded"
        )
    tensors = list(every_tensor(model))
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone() for _, tensor in tensors if not tensor.is_leaf
    }
    for group in _sharing(tensors):
        if len({id(tensor) for _, tensor in group}) > 1 or _overlaps_itself(group[0][1]):
            memo |= _copied_together([tensor for _, tensor in group])
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # of what a module holds, or of its own __deepcopy__
        held = _what_is_not_copied(model)
        raise ModelError(
            f"the model cannot be copied{held} ({type(error).__name__}: {error}), expected a "
            "module that copy.deepcopy copies: set what cannot be copied to None before pruning"
        ) from error


def _what_is_not_copied(model: nn.Module) -> str:
    """Where a module holds what cannot be copied, such as a lock or an open file."""
    for name, part in model.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules") or isinstance(value, Tensor):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f" for its attribute {name}.{key}" if name else f" for its attribute {key}"
    return ""


def _copied_together(tensors: list[Tensor]) -> dict[int, Tensor]:
    """Copies of tensors in one memory, by the tensors' ids."""
    own = max((tensor.untyped_storage() for tensor in tensors), key=len)
    memory = own.clone()
    copies: dict[int, Tensor] = {}
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != own.data_ptr():
            continue
        twin = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        twin.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())  # type: ignore[call-overload]
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, tensor.requires_grad)
        copies[id(tensor)] = twin
    return copies


@dataclass(frozen=True)
class Places:
    """Where a module's tensors are held.

    Attributes:
        first: the first name of the same values, by every name.
        fixed: why values cannot be changed, by name.
    """

    first: Mapping[str, str]
    fixed: Mapping[str, str]

    @classmethod
    def of(cls, module: nn.Module) -> Places:
        """Of a module whose parameters still share memory as they do in the user's."""
        named, saved = named_tensors(module), saved_tensors(module)
        fixed = {name: _UNSAVED for name in named if name not in saved}
        first: dict[str, str] = {name: name for name in named}
        for group in _sharing(list(every_tensor(module))):
            inside = [name for name, _ in group if name in named]
            same = len({_view(tensor) for _, tensor in group}) == 1
            if same and len(inside) == len(group) and not _overlaps_itself(group[0][1]):
                first |= dict.fromkeys(inside, inside[0])
                continue
            for name in inside:
                other = next((of for of, _ in group if of != name), "itself")
                other = other.removesuffix(".weight")
                fixed[name] = f"shares its memory with {other}"
        return cls(first, fixed)

    def why_fixed(self, name: str) -> str | None:
        """Why a value of the exported module cannot be changed; None where it can."""
        return self.fixed.get(name) if name in self.first else _UNSAVED

    def tie(self, module: nn.Module) -> None:
        """Makes one again of values that a cast has made several of."""
        tensors = named_tensors(module)
        for name, first in self.first.items():
            if name != first and tensors[name] is not tensors[first]:
                tensors[name].data = tensors[first].data


def every_tensor(module: nn.Module) -> Iterator[Named]:
    """A module's parameters and buffers by every name, and each tensor it holds otherwise once.

    That is in attributes, and in lists, tuples and dictionaries there, also by modules in these.
    """
    seen = {id(module)}
    named = named_tensors(module)
    for name, tensor in named.items():
        seen.add(id(tensor))
        yield name, tensor
    for name, part in module.named_modules():
        seen.add(id(part))
        yield from _unregistered(part, f"{name}." if name else "", seen)


def _unregistered(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[Named]:
    for key, value in vars(module).items():
        if key not in ("_parameters", "_buffers", "_modules"):
            yield from _within_value(value, f"{prefix}{key}", seen)


def _within_value(value: Any, path: str, seen: set[int]) -> Iterator[Named]:
    if not isinstance(value, Tensor | nn.Module | list | tuple | dict) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, nn.Module):
        for name, tensor in named_tensors(value).items():
            yield from _within_value(tensor, f"{path}.{name}", seen)
        for name, part in value.named_modules():
            seen.add(id(part))
            yield from _unregistered(part, f"{path}.{name}." if name else f"{path}.", seen)
    else:
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _within_value(part, f"{path}[{key!r}]", seen)


def paths_outside(module: nn.Module) -> dict[View, str]:
    """Where a module holds tensors that are neither parameters nor buffers."""
    named = named_tensors(module)
    return {
        _view(tensor): path
        for path, tensor in every_tensor(module)
        if path not in named and _is_plain(tensor)
    }


def cast_outside(module: nn.Module, device: torch.device) -> None:
    """Casts to float32, and moves, the tensors that `module.float()` and `to` leave as they are."""
    named = named_tensors(module)
    for path, tensor in every_tensor(module):
        if path not in named and tensor.is_floating_point():
            tensor.data = tensor.data.to(device, torch.float32)


def view_of(tensor: Tensor) -> View | None:
    """Where a tensor's values lie; None where that cannot be told."""
    return _view(tensor) if _is_plain(tensor) else None


def _view(tensor: Tensor) -> View:
    return (
        str(tensor.device),
        tensor.data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
    )


def _is_plain(tensor: Any) -> bool:
    """Whether a value is a tensor whose memory can be looked at."""
    usual = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not usual or tensor.layout != torch.strided:
        return False
    return not tensor.is_meta and tensor.numel() > 0


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """Device, first byte and the one behind the last that a tensor reaches."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    reach = 1 + sum((size - 1) * stride for size, stride in sizes)
    start = tensor.data_ptr()
    return str(tensor.device), start, start + reach * tensor.element_size()


def _sharing(tensors: Sequence[Named]) -> list[list[Named]]:
    """Groups of tensors that reach into each other's memory, or twice into their own."""
    spans = sorted(
        ((_span(tensor), name, tensor) for name, tensor in tensors if _is_plain(tensor)),
        key=lambda entry: entry[0],
    )
    order = {name: index for index, (name, _) in enumerate(tensors)}
    groups: list[list[Named]] = []
    for _, entries in groupby(spans, key=lambda entry: entry[0][0]):
        end = -1
        for (_, start, stop), name, tensor in entries:
            if start >= end:
                groups.append([])
            groups[-1].append((name, tensor))
            end = max(end, stop)
    found = [sorted(group, key=lambda entry: order[entry[0]]) for group in groups]
    return [group for group in found if len(group) > 1 or _overlaps_itself(group[0][1])]


def _overlaps_itself(tensor: Tensor) -> bool:
    _, start, stop = _span(tensor)
    return stop - start < tensor.numel() * tensor.element_size()


def check_in_floats(model: nn.Module) -> None:
    """Raises ModelError where layers are those that `secateur.accelerate` puts in."""
    for name, of in model.named_modules():
        if runtime := getattr(of, "accelerated_for", ""):
            raise ModelError(
                f"the module was accelerated (layer {name or 'at its top'}, for {runtime}), "
                "expected one in floats: prune first, then accelerate"
            )
