"""Models by reference, and checkpoints into them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, OptionError
from secateur.frontends import read
from secateur.ir import is_ir_file, read_ir
from secateur.references import call

_WEIGHTS = (".safetensors", ".pt", ".pth")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")


def is_onnx_file(reference: str) -> bool:
    """Whether a model is given as an ONNX file."""
    return reference.lower().endswith(".onnx")


def load_model(reference: str, weights: str | Path | None = None) -> Any:
    """The module behind `file.py:callable` or `package.module:callable`, weights loaded.

    Args:
        reference: a module, or a function or class without arguments that returns one; or the
            path of an `.onnx` file, of which an `onnx.ModelProto` is returned.
        weights: a `.safetensors` file or a checkpoint that `torch.load` reads without running
            code; wrappers such as {"state_dict": ...} and a common "module." prefix are removed.

    Raises:
        ModelError: anything does not exist, is not a module, or does not fit.
        OptionError: weights are given for an ONNX file, which has its own, or in the place of a
            network, or the other way round.
        MissingExtraError: an ONNX file, and onnx or onnxruntime is not installed.
    """
    if is_onnx_file(reference):
        if weights is not None:
            raise OptionError(
                f"got the weights {weights} for {reference}, expected none, for an ONNX file has "
                "its own: leave them out"
            )
        return read(reference)
    _check_kind(reference, weights)
    if weights is not None and not Path(weights).is_file():
        raise ModelError(f"no such file: {weights}, expected the model's weights: check the path")
    model = call(reference)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{reference} gives an object of type {type(model).__name__}, "
            "expected a torch.nn.Module: name the function that builds the network"
        )
    if weights is not None:
        _load_state(model, read_state(Path(weights)), str(weights))
    return model.eval()


def _check_kind(reference: str, weights: str | Path | None) -> None:
    """Raises OptionError where a file of another kind is given as the network or its weights."""
    suffix = Path(reference).suffix.lower()
    if suffix in _WEIGHTS:
        raise OptionError(
            f"{reference} holds weights only, expected the network that they are for: pass "
            f"net.py:build --weights {reference}, where build returns the network"
        )
    if suffix != ".py" and Path(reference).is_file():
        raise OptionError(
            f"{reference} is a file that holds no network, expected an .onnx file, "
            "file.py:callable or package.module:callable: pass one of these"
        )
    if weights is not None and is_onnx_file(str(weights)):
        raise OptionError(
            f"{weights} is an ONNX file, which is a network of its own, expected .safetensors, "
            ".pt or .pth as weights: pass it in the place of the network"
        )


def load_network(reference: str, builder: str | None = None) -> Any:
    """A network to run, by any file that holds one.

    Args:
        reference: an `.onnx` file; an OpenVINO `.xml` file; weights (`.safetensors`, `.pt`,
            `.pth`), for the network that `builder` builds; or what `load_model` takes.
        builder: `file.py:callable` or `package.module:callable`.

    Raises:
        ModelError: anything does not exist, cannot be read or does not fit.
        OptionError: weights without a builder.
        MissingExtraError: what reads the file is not installed.
    """
    if is_ir_file(reference):
        return read_ir(reference)
    if Path(reference).suffix.lower() not in _WEIGHTS:
        return load_model(reference)
    if builder is None:
        raise OptionError(
            f"{reference} holds weights only, expected a network to put them into: pass --model "
            "file.py:callable or package.module:callable"
        )
    return load_model(builder, reference)


def read_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name."""
    held = _read(path)
    for key in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ModelError(
            f"{path} holds a {type(held).__name__}, expected a state dict (names to tensors): "
            "save model.state_dict()"
        )
    if held and all(name.startswith("module.") for name in held):  # saved from DataParallel
        held = {name.removeprefix("module."): tensor for name, tensor in held.items()}
    return dict(held)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and safetensors raise many kinds
        if held := re.search(r"Unsupported (?:global|class): ?(?:GLOBAL )?(\S+)", str(error)):
            raise ModelError(
                f"{path} holds a whole module or other Python objects ({held[1]}), expected a "
                "state dict: save model.state_dict()"
            ) from error
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{path} cannot be read as weights ({first[:200]}), expected .safetensors or a "
            "checkpoint with tensors only: save model.state_dict()"
        ) from error


def _load_state(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes differ
        detail = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise ModelError(
            f"{name} does not fit the model: {detail}; expected the same shapes: "
            "check that the weights belong to this network"
        ) from error
    tied = [key for key in missing if _is_tied(model, key, state)]
    missing = [key for key in missing if key not in tied]
    if missing or unexpected:
        raise ModelError(
            f"{name} does not fit the model: {len(missing)} names missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(unexpected)} unknown "
            f"({', '.join(unexpected[:3]) or 'none'}); expected the model's own names: "
            "check that the weights belong to this network"
        )


def _is_tied(model: nn.Module, key: str, state: dict[str, Tensor]) -> bool:
    """Whether a missing tensor is shared with one that was there (safetensors stores one)."""
    own = model.state_dict()
    return any(own[other].data_ptr() == own[key].data_ptr() for other in state if other in own)
