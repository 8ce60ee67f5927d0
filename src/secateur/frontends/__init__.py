"""Front-ends turn a model into a `secateur.network.graph.Graph`, and write weights back.

There is one for PyTorch modules and one for ONNX files. The functions here choose by the model's
type, so that the rest of the package asks neither.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, device, nn  # a folder here is called torch

from secateur.errors import ModelError
from secateur.frontends.torch import graph, modules
from secateur.network.graph import Graph
from secateur.network.samples import Samples
from secateur.support.extras import require


def read(model: Any) -> Any:
    """The model itself; of the path of an `.onnx` file, what it holds (an `onnx.ModelProto`).

    Of `torch.compile(net)`, `DataParallel(net)` and the like it is the network within.

    Raises:
        ModelError: neither a module nor an ONNX model, the file cannot be read, or a module has
            no weights yet (lazy, or on the device meta) or is TorchScript.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    if isinstance(model, nn.Module):
        model = modules.unwrapped(model)
        modules.check_usable(model)
        return model
    if is_onnx(model):
        _onnx().check(model)
        return model
    if isinstance(model, str | Path) and Path(model).suffix.lower() == ".onnx":
        return _onnx().read(model)
    got = repr(str(model)) if isinstance(model, str | Path) else f"a {type(model).__name__}"
    raise ModelError(
        f"the model is {got}, expected a torch.nn.Module or the path of an .onnx file: "
        "pass the module itself, with its weights loaded"
    )


def is_onnx(model: Any) -> bool:
    """Whether a model is an `onnx.ModelProto`."""
    return isinstance(model, getattr(sys.modules.get("onnx"), "ModelProto", ()))


def trace(model: Any, example: Samples) -> Graph:
    """A model as a graph with a batch of any size; see the front-ends' own `trace`."""
    return _frontend(model).trace(model, example.only())


def with_parameters(model: Any, changes: Mapping[str, Tensor]) -> Any:
    """A copy of a model with some parameters changed, by their names in its graph."""
    return _frontend(model).with_parameters(model, changes)


def named_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and buffers of a module, or the constants of an ONNX model, by name."""
    return _frontend(model).named_tensors(model)


def saved_tensors(model: Any) -> dict[str, Tensor]:
    """Those of `named_tensors` that a saved file holds."""
    return named_tensors(model) if is_onnx(model) else modules.saved_tensors(model)


def parameters(model: Any) -> list[Tensor]:
    """What counts as a parameter, tied ones once: of an ONNX model all floating-point constants."""
    if is_onnx(model):
        return list(named_tensors(model).values())
    return list({one.data_ptr() or id(one): one for one in model.parameters()}.values())


def device_of(model: Any) -> device:
    """Where a module's first tensor is; an ONNX model's are in main memory."""
    tensors = () if is_onnx(model) else (*model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors), device("cpu"))


def input_shape(model: Any) -> tuple[int, ...]:
    """Of one image: as an ONNX model says, 3 channels of 224 pixels where nothing is said."""
    return _onnx().input_shape(model) if is_onnx(model) else (3, 224, 224)


def onnx_function(model: Any, example: Tensor) -> Callable[[Tensor], Tensor]:
    """An ONNX model as a function from images to its first output, run by ONNX Runtime."""
    return _onnx().Whole(model, example)


def output_difference(model: Any, images: Tensor) -> tuple[float, float] | None:
    """How far an ONNX model's first output is, at most, from its layers' run one by one.

    Returns:
        The largest difference, and the largest output; None where the values decide how many rows
        an output has, and it has other numbers of them.
    """
    return _onnx().output_difference(model, images)


def require_onnx(purpose: str, *more: str, extra: str = "onnx") -> tuple[Any, Any]:
    """The modules onnx and onnxruntime, with `more` packages at hand, or the install line.

    Args:
        purpose: what needs them, for the message.
        more: names of packages.
        extra: the one to name in the message, which installs all that `purpose` needs.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    onnx, runtime, *_ = require(extra, purpose, "onnx", "onnxruntime", *more)
    return onnx, runtime


def _frontend(model: Any) -> Any:
    return _onnx() if is_onnx(model) else graph


def _onnx() -> Any:
    require_onnx("reading an ONNX file")
    return importlib.import_module("secateur.frontends.onnx")
