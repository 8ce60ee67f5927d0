"""Models as they are given: objects, files that hold one, functions that build one; and weights.

`open` turns any of them into a front-end; the others make a model of a reference.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import ModelError, OptionError
from secateur.frontends.hubs import is_hub_name, load_from_hub
from secateur.frontends.openvino.runtime import require_openvino
from secateur.frontends.protocol import Frontend, Runnable
from secateur.frontends.torch.checkpoints import load_state, read_state, without_channels
from secateur.frontends.torch.exported_programs import read_program
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.frontends.torch.modules import copy_module
from secateur.support.extras import require_onnx
from secateur.support.file_kinds import (
    CHECKPOINT,
    IR,
    ONNX,
    PROGRAM,
    PYTHON,
    SAFETENSORS,
    FileKind,
    kind_named,
    kind_of,
)
from secateur.support.import_string import call
from secateur.support.settings import check_arguments

_NETWORKS = (
    "an .onnx, .xml (OpenVINO) or .pt2 file, file.py:callable, package.module:callable, timm:NAME "
    "or hf:PATH"
)
_WEIGHTS = "weights as .safetensors, .pt or .pth"


def open(model: Any) -> Frontend:
    """A network that is to be pruned, behind the front-end of its kind.

    Args:
        model: a module; an `onnx.ModelProto` or `openvino.Model`; what `load_model` takes; or a
            front-end, which is returned.

    Raises:
        ModelError: it is nothing of these or cannot be read, or a module has no weights yet (lazy,
            or on the device meta) or is TorchScript.
        OptionError: it is a file of weights only.
        MissingExtraError: what its kind needs is not installed.
    """
    if isinstance(model, Frontend):
        return model
    if isinstance(model, str | Path):
        kind = _network_kind(str(model))
        if kind in (CHECKPOINT, SAFETENSORS):
            _check_readable(kind, model)
            raise OptionError(
                f"{model} is {kind.what}, expected a torch.nn.Module or {_NETWORKS}: pass the "
                "module, with these weights loaded"
            )
        if kind is ONNX:
            return _onnx().read(model)
        if kind is IR:
            return _openvino().read(model)
        model = load_model(str(model))
    if isinstance(model, nn.Module):
        return TorchFrontend.of(model)
    if isinstance(model, getattr(sys.modules.get("onnx"), "ModelProto", ())):
        return _onnx().of(model)
    if isinstance(model, getattr(sys.modules.get("openvino"), "Model", ())):
        return _openvino()(model)
    raise ModelError(
        f"the model is a {type(model).__name__}, expected a torch.nn.Module or the path of an "
        ".onnx or .xml (OpenVINO) file: pass the module itself, with its weights loaded"
    )


def open_to_run(model: Any) -> Runnable:
    """As `open`, but also of a network that can only be run, which is returned."""
    return model if isinstance(model, Runnable) else open(model)


def _onnx() -> Any:
    """The front-end of ONNX models."""
    require_onnx("reading an ONNX file")
    return importlib.import_module("secateur.frontends.onnx.frontend").OnnxFrontend


def _openvino() -> Any:
    """The front-end of OpenVINO models."""
    require_openvino("reading an OpenVINO file")
    return importlib.import_module("secateur.frontends.openvino.frontend").OpenVinoFrontend


def saved_suffix(reference: str) -> str:
    """The ending of the file that a network given like this is saved as, before it is read."""
    suffix = Path(reference.lower()).suffix
    return suffix if suffix in (".onnx", ".xml") else TorchFrontend.suffix


def is_program_file(reference: str) -> bool:
    """Whether a model is given as an exported program."""
    return _network_kind(reference) is PROGRAM


def load_model(reference: str, weights: str | Path | None = None) -> Any:
    """The module behind `file.py:callable` or `package.module:callable`, weights loaded.

    Args:
        reference: a module, or a function or class without arguments that returns one; or the
            path of an `.onnx` or `.xml` file, of which an `onnx.ModelProto` or `openvino.Model` is
            returned, or of a `.pt2` file that `torch.export.save` wrote, to be trusted like a
            Python file; or `timm:NAME` or `hf:PATH`, see `secateur.frontends.hubs`.
        weights: a `.safetensors` file or a checkpoint that `torch.load` reads without running
            code; see `secateur.frontends.torch.checkpoints`.

    Raises:
        ModelError: anything does not exist, is of another kind, is not a module, or does not fit.
        OptionError: weights are given for a network that has its own.
        MissingExtraError: what reads the file is not installed.
    """
    kind = _network_kind(reference)
    if kind in (ONNX, IR):
        if weights is not None:
            what = kind.what.split(",")[0]
            raise OptionError(
                f"got the weights {weights} for {reference}, expected none, for {what} has its "
                "own: leave them out"
            )
        return (_onnx() if kind is ONNX else _openvino()).read(reference).model
    if kind is not None and kind is not PROGRAM:
        _check_readable(kind, reference)
        raise ModelError(kind.message(reference, _NETWORKS))
    if weights is not None:
        _check_weights(Path(weights))
    if kind is PROGRAM:
        model = read_program(reference)
    elif is_hub_name(reference):
        model = load_from_hub(reference, pretrained=weights is None)
    else:
        model = call(reference)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{reference} gives an object of type {type(model).__name__}, "
            "expected a torch.nn.Module: name the function that builds the network"
        )
    if weights is not None:
        _put(model, weights)
    return model.eval()


def load(model: nn.Module, weights: str | Path) -> nn.Module:
    """A copy of a module with the weights that `PruneResult.save` wrote.

    Where channels have left the network, the copy has the sizes of the file.

    Example:
        >>> import tempfile
        >>> import secateur
        >>> from secateur import example
        >>> images = example.calibration()[:64]  # few, to be quick
        >>> recipe = secateur.Recipe(pattern=secateur.Channels())  # in one walk, to be quick
        >>> result = secateur.prune(example.trained(), images, max_macs=0.8, recipe=recipe)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = result.save(folder)
        ...     network = secateur.load(example.trained(), f"{folder}/model.safetensors")
        >>> bool((network(images) == result.model(images)).all())
        True

    Args:
        model: as it was before; never modified.
        weights: a `.safetensors` file or a checkpoint that `torch.load` reads without running
            code.

    Returns:
        The copy, in eval mode.

    Raises:
        ModelError: no such file, it cannot be read, or its names or sizes do not fit.
    """
    check_arguments(load, locals())
    _check_weights(Path(weights))
    twin = copy_module(model).eval()
    _put(twin, weights)
    return twin


def _put(model: nn.Module, weights: str | Path) -> None:
    """Loads weights into a module, which gets the sizes of a file that says it has fewer."""
    state = read_state(Path(weights))
    load_state(model, state, str(weights), shrunk=without_channels(weights))


def load_network(reference: str, builder: str | None = None) -> Any:
    """A network to run, by any file that holds one.

    Args:
        reference: weights (`.safetensors`, `.pt`, `.pth`), for the network that `builder` builds;
            or what `load_model` takes.
        builder: `file.py:callable` or `package.module:callable`.

    Raises:
        ModelError: anything does not exist, is of another kind, cannot be read or does not fit.
        OptionError: weights without a builder.
        MissingExtraError: what reads the file is not installed.
    """
    kind = _network_kind(reference)
    if kind not in (CHECKPOINT, SAFETENSORS):
        return load_model(reference)
    if builder is None:
        _check_readable(kind, reference)
        raise OptionError(
            f"{reference} is {kind.what}, expected a network to put them into: pass --model "
            "file.py:callable or package.module:callable"
        )
    return load_model(builder, reference)


def _network_kind(reference: str) -> FileKind | None:
    """The kind of the file that a network is given as; None where it is a reference to Python.

    Raises:
        ModelError: no such file, or it cannot be read.
    """
    if is_hub_name(reference):
        return None
    path = Path(reference)
    try:
        kind = kind_of(path) if path.is_file() or path.is_dir() else None
    except OSError as error:
        raise ModelError(
            f"{reference[:200]} cannot be read ({error.strerror}), expected {_NETWORKS}: check it"
        ) from error
    if kind is None and kind_named(path) in (ONNX, IR):
        return kind_named(path)  # its reader tells that there is none, or what is not installed
    if kind is None and kind_named(path) not in (None, PYTHON):
        raise ModelError(f"no such file: {path}, expected {_NETWORKS}: check the path")
    return kind


def _check_readable(kind: FileKind, path: str | Path) -> None:
    """Raises ModelError for a checkpoint that is broken or holds a pickled module."""
    if kind is CHECKPOINT:
        read_state(Path(path))


def _check_weights(path: Path) -> None:
    """Raises where a file holds no weights, before a network is built for them."""
    try:
        if not (path.is_file() or path.is_dir()):
            raise ModelError(f"no such file: {path}, expected the model's weights: check the path")
        kind = kind_of(path)
    except OSError as error:
        raise ModelError(
            f"{str(path)[:200]} cannot be read ({error.strerror}), expected {_WEIGHTS}: check it"
        ) from error
    if kind not in (CHECKPOINT, SAFETENSORS):
        raise ModelError(kind.message(path, _WEIGHTS))
