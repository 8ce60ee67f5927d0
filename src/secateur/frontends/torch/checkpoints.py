"""Weights from files as people have them, and into networks whose names may differ a little.

Files come from anywhere: PyTorch's restricted unpickler reads them, which runs no code of theirs.
What a training script saved beside the weights (settings, times, counters) becomes empty objects.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load
from torch import Tensor, nn

from secateur.errors import ModelError, SecateurWarning
from secateur.frontends.torch.shrink import fit_to
from secateur.support.file_kinds import SAFETENSORS, kind_of
from secateur.support.model_files import steady

MARK, SHRUNK = "secateur", "channels-removed"  # metadata of a safetensors file

# where training scripts put the weights, in the order in which they are looked for
_PLACES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
_AVERAGES = (  # moving averages of the weights
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
)
_WRAPPERS = ("module", "_orig_mod")  # of DataParallel and torch.compile, as parts of a name
_PREFIXES = tuple(f"{part}." for part in _WRAPPERS)
_USUAL = ("", "model.", "net.", "network.")  # in this order, where the weights lie several times
_DEEPEST = 4  # wrappers within each other
_SHOWN = 3  # names in a message


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors by name, and what modules saved as their extra state.

    Wrappers such as {"state_dict": ...} are taken off, and "module." and "_orig_mod.", which
    DataParallel and torch.compile put before all names.

    Raises:
        ModelError: it cannot be read, holds no state dict or several.
    """
    held = dict(_unwrapped(_read(path), path))
    while any(all(name.startswith(prefix) for name in held) for prefix in _PREFIXES):
        held = {name.partition(".")[2]: tensor for name, tensor in held.items()}
    return held


def without_channels(path: str | Path) -> bool:
    """Whether a file says that it holds a network from which channels have left."""
    if Path(path).suffix != ".safetensors":
        return False
    with safetensors.safe_open(path, framework="pt") as held:
        return (held.metadata() or {}).get(MARK) == SHRUNK


def load_state(
    model: nn.Module, state: Mapping[str, Any], name: str, *, shrunk: bool = False
) -> None:
    """Puts a checkpoint's tensors into a module.

    A prefix that all of the module's names have in the checkpoint, such as Lightning's "model.", is
    taken off; what lies beside them there belongs to other parts of the training.

    Args:
        model: changed in place.
        state: from `read_state`.
        name: of the file, for messages.
        shrunk: whether channels may have left the network, which is brought to the sizes of the
            tensors then.

    Raises:
        ModelError: names or shapes differ; nothing is changed then.
    """
    own = {key: of for key, of in model.state_dict().items() if not _is_extra(key)}
    fitted = _renamed(state, list(own), name) if own else state
    missing = [key for key in own if key not in fitted and not _may_be_absent(key)]
    missing = [key for key in missing if not _is_tied(own, key, fitted)]
    unknown = [key for key in fitted if key not in own and not _is_extra(key)]
    if any(key.endswith(".weight_int8") for key in unknown):
        raise ModelError(
            f"{name} holds an accelerated module, in integers, expected weights in floats: "
            "secateur.load_accelerated reads it"
        )
    if missing or unknown:
        raise ModelError(
            f"{name} does not fit the model: {_listed(missing)} missing, {_listed(unknown)} "
            "unknown; expected the model's own names: check that the weights belong to this network"
        )
    if shrunk:
        fit_to(model, fitted)
        own = model.state_dict()
    for key, tensor in fitted.items():
        _check_shape(key, tensor, own.get(key), name)
    try:
        model.load_state_dict(dict(fitted), strict=False)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise ModelError(
            f"{name} does not fit the model: {detail}; expected the model's own names and shapes: "
            "check that the weights belong to this network"
        ) from error


def _check_shape(key: str, tensor: Any, own: Any, name: str) -> None:
    expected = _shape(own)
    if expected is None or expected == tensor.shape:
        return
    if not expected and tensor.shape == (1,):  # of PyTorch before 0.4
        return
    raise ModelError(
        f"{name} does not fit the model: {key} has shape {tuple(tensor.shape)}, expected "
        f"{tuple(expected)}: check that the weights belong to this network, with as many classes "
        "and channels"
    )


def plain_name(name: str) -> str:
    """A tensor's name without what DataParallel and torch.compile add to it, wherever that is."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class _Inert:
    """In the place of any object that a checkpoint holds beside its tensors."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _read(path: Path) -> Any:
    with steady(path, ModelError):
        return _unpickled(path)


def _unpickled(path: Path) -> Any:
    unknown = _unknown_objects(path)
    try:
        if kind_of(path) is SAFETENSORS:  # mapped into memory, a file cut meanwhile is a crash
            return load(path.read_bytes())
        inert = torch.serialization.safe_globals([(_Inert, name) for name in unknown])
        with inert, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about old or foreign kinds of tensors
            with path.open("rb") as file:  # of a name PyTorch may map it into memory, see above
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and safetensors raise many kinds
        message = str(error).rpartition("WeightsUnpickler error: ")[2]
        if held := re.search(r"nsupported (?:global|class|GLOBAL):? ?(?:GLOBAL )?(\S+)", message):
            unknown = [held[1]]
        if unknown:
            raise _not_unpickled(path, unknown) from error
        first = next(iter(message.splitlines()), "") or type(error).__name__
        raise ModelError(
            f"{path} cannot be read as weights ({first[:200]}), expected .safetensors or a "
            "checkpoint with tensors only: save model.state_dict()"
        ) from error


def _unknown_objects(path: Path) -> list[str]:
    """Names of the objects in a checkpoint that PyTorch's restricted unpickler does not make."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # broken, not a checkpoint, or one from before PyTorch 1.6
        return []


def _not_unpickled(path: Path, objects: Sequence[str]) -> ModelError:
    named = sorted(objects, key=lambda name: name.startswith("torch."))  # others tell more
    return ModelError(
        f"{path} holds a pickled module or other Python objects ({_listed(named)}), which may run "
        "any code when they are read and are never unpickled here, expected a state dict: save "
        "model.state_dict() and pass that as weights; or, if you trust the file, pass "
        f"net.py:build, where build returns torch.load({str(path)!r}, weights_only=False)"
    )


def _unwrapped(held: Any, path: Path, depth: int = _DEEPEST) -> Mapping[str, Any]:
    """The state dict in what a file holds."""
    if _is_state(held):
        return held
    if isinstance(held, _Inert):
        raise _not_unpickled(path, _unknown_objects(path))
    key = _place(held, path) if isinstance(held, Mapping) and depth else None
    if key is not None:
        return _unwrapped(held[key], path, depth - 1)
    named = isinstance(held, Mapping)
    got = f"a table of {_listed(list(held))}" if named else f"a {type(held).__name__}"
    raise ModelError(
        f"{path} holds {got}, expected a state dict (names to tensors): save model.state_dict()"
    )


def _place(held: Mapping[Any, Any], path: Path) -> Any:
    """The name under which the weights lie; None where they lie nowhere."""
    leads = {key for key in (*_PLACES, *_AVERAGES) if _leads_to_state(held.get(key))}
    averages = [key for key in _AVERAGES if key in leads]
    for key in _PLACES:
        if key in leads:
            if averages:
                warnings.warn(
                    f"{path} holds weights as {key!r}, which are used, and a moving average of "
                    f"them as {averages[0]!r}, which is not: to use that, save it alone as a file",
                    SecateurWarning,
                    stacklevel=6,
                )
            return key
    found = averages or [key for key, of in held.items() if _is_state(of)]
    if len(found) > 1 and not averages:
        raise ModelError(
            f"{path} holds several state dicts ({', '.join(map(str, found))}), expected one: save "
            "the network's alone as a file"
        )
    return found[0] if found else None


def _is_state(held: Any) -> bool:
    """Whether it maps names to tensors, but for what modules save beside them."""
    return (
        isinstance(held, Mapping)
        and any(isinstance(of, Tensor) for of in held.values())
        and all(isinstance(of, Tensor) or _is_extra(key, of) for key, of in held.items())
        and all(isinstance(key, str) for key in held)
    )


def _is_extra(key: Any, value: Any = None) -> bool:
    """Whether it is what a module's `get_extra_state` gave."""
    return str(key).endswith("_extra_state") and not isinstance(value, _Inert)


def _leads_to_state(held: Any, depth: int = _DEEPEST) -> bool:
    if isinstance(held, _Inert) or _is_state(held):
        return True
    inner = held.values() if isinstance(held, Mapping) and depth else ()
    return any(_leads_to_state(of, depth - 1) for of in inner if isinstance(of, Mapping))


def _renamed(state: Mapping[str, Any], own: Sequence[str], name: str) -> Mapping[str, Any]:
    """A checkpoint's tensors by the module's own names, as far as they can be told."""
    if set(own) <= set(state):
        return state
    plain = {plain_name(key): key for key in own}
    held = {plain_name(key): tensor for key, tensor in state.items()}
    if len(plain) < len(own) or len(held) < len(state):  # two names become one
        return state
    counts = {of: sum(of + key in held for key in plain) for of in _prefixes(held, list(plain))}
    most = max(counts.values(), default=0)
    best = [of for of in counts if counts[of] == most]
    if len(best) > 1 and not set(best) & set(_USUAL):
        raise ModelError(
            f"{name} holds the model's weights several times, as {', '.join(best)}, expected them "
            "once: save those that you want alone as a file"
        )
    prefix = next((of for of in _USUAL if of in best), next(iter(best), ""))
    renamed = {plain[key]: held[prefix + key] for key in plain if prefix + key in held}
    if all(key in renamed or _may_be_absent(key) for key in own) and prefix:
        return renamed
    others = {key: of for key, of in held.items() if key.removeprefix(prefix) not in plain}
    return renamed | others


def _prefixes(names: Mapping[str, Any], own: Sequence[str]) -> list[str]:
    """What may stand before the module's names in a checkpoint, shortest first."""
    found = {
        key.removesuffix(end)
        for end in (own[0], own[-1])
        for key in names
        if key == end or key.endswith(f".{end}")
    }
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _shape(tensor: Any) -> torch.Size | None:
    """A tensor's shape; None of one that a lazy module has not made yet."""
    if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor):
        return None
    return tensor.shape


def _may_be_absent(key: str) -> bool:
    """Whether PyTorch fills in what is missing: batches counted, which old files do not hold."""
    return key.endswith("num_batches_tracked")


def _is_tied(own: Mapping[str, Any], key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a missing tensor is shared with one that is there (safetensors stores one)."""
    if _shape(own[key]) is None:
        return False
    place = own[key].data_ptr()
    others = (own[other] for other in state if other in own)
    return bool(place) and any(
        _shape(other) is not None and other.data_ptr() == place for other in others
    )


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name)[:100] for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{more}" if names else "nothing"
