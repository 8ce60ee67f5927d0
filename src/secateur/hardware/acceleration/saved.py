"""Accelerated modules as files: integers, scales and what each layer runs, without pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.frontends.torch.modules import copy_module
from secateur.hardware.acceleration.candidates import find
from secateur.hardware.acceleration.kernels import Codes
from secateur.hardware.acceleration.layers import Int8Layer, Integers, SharedInput
from secateur.hardware.acceleration.replacing import replaced
from secateur.hardware.acceleration.semi_structured import (
    GPU,
    HALF,
    SemiStructuredLinear,
    is_packed,
    missing,
    packed_layers,
)
from secateur.hardware.paying import CUDA_SPARSE, INT8_SPARSE
from secateur.support.files import write_file
from secateur.support.settings import check_arguments

_KEY = "secateur.acceleration"
_VERSION = 1


def save_accelerated(
    model: nn.Module, path: str | Path, *, runtime: str = INT8_SPARSE, overwrite: bool = False
) -> None:
    """Writes an accelerated module's tensors and what each layer runs, as .safetensors.

    A module whose layers all run in floats, because that is faster, has its tensors alone. Layers
    in 2:4 are written with their zeros, and packed where the file is loaded.

    Raises:
        OutputError: the file exists and `overwrite` is not given, or it cannot be written.
    """
    check_arguments(save_accelerated, locals())
    layers = int8_layers(model)
    groups = {id(of.shared): number for number, of in enumerate(layers.values())}
    table = {name: _facts(of, groups[id(of.shared)]) for name, of in layers.items()}
    table |= {name: {"kernel": "2:4"} for name in packed_layers(model)}
    held = {"version": _VERSION, "runtime": runtime, "layers": table}
    metadata = {_KEY: json.dumps(held)}
    tensors = {name: _plain(of.detach()) for name, of in _once(model).items()}
    write_file(Path(path), save(tensors, metadata), overwrite=overwrite)


def int8_layers(model: nn.Module) -> dict[str, Int8Layer]:
    """The layers of a module that run integers, by name."""
    return {name: of for name, of in model.named_modules() if isinstance(of, Int8Layer)}


def _plain(tensor: Tensor) -> Tensor:
    """With its zeros, on the CPU."""
    return (tensor.to_dense() if is_packed(tensor) else tensor).cpu().contiguous()


def _once(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, those that share memory once."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors = model.state_dict()
    for name, of in tensors.items():
        alone = is_packed(of) or not of.numel()  # layers whose weights are shared are not packed
        kept.setdefault((name,) if alone else (of.data_ptr(), of.shape, of.dtype), name)
    return {name: tensors[name] for name in kept.values()}


def _facts(layer: Int8Layer, group: int) -> dict[str, Any]:
    return {
        "kernel": layer.kernel,
        "input": asdict(layer.shared.codes),
        "output": asdict(layer.output),
        "group": group,
    }


def load_accelerated(model: nn.Module, path: str | Path) -> nn.Module:
    """The accelerated module of a file, in a process of its own or on another machine.

    Args:
        model: the module in floats, as it was given to `accelerate`; with any weights, and not
            changed.
        path: what `Acceleration.save` wrote.

    Raises:
        ModelError: the file is none of these, or of another network; or PyTorch has no such
            kernels on this machine.
    """
    check_arguments(load_accelerated, locals())
    runtime, table, tensors = _read(Path(path))
    twin = copy_module(model).eval()
    if runtime == CUDA_SPARSE:
        return _load_packed(twin, table, tensors, path)
    candidates = {of.name: of for of in find(twin).candidates}
    shared: dict[int, SharedInput] = {}
    for name, facts in table.items():
        if name not in candidates or f"{name}.weight_int8" not in tensors:
            raise ModelError(
                f"{path} has a layer {name}, which the network does not have, expected the file "
                "of this network: pass the module that was accelerated"
            )
        of, held = candidates[name], tensors.get(f"{name}.bias")
        weight = tensors[f"{name}.weight_int8"]
        _check_shape(path, name, weight, of.matrix)
        integers = Integers(
            weight=weight,
            scale=tensors[f"{name}.weight_scale"],
            bias=held,
            output=Codes(**facts["output"]),
            factor=tensors.get(f"{name}.output_factor"),
        )
        factor = tensors.get(f"{name}.input_factor")
        group = shared.setdefault(facts["group"], SharedInput(Codes(**facts["input"]), factor))
        replaced(twin, of.module, of.made(integers, facts["kernel"], group))
    _load_rest(twin, tensors, path)
    return twin


def _load_packed(
    model: nn.Module, table: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path
) -> nn.Module:
    """A module on the GPU in float16, with the layers of a table in 2:4."""
    if obstacle := missing():
        raise ModelError(f"{path} is for {CUDA_SPARSE}, which cannot run here: {obstacle}")
    model = model.to(GPU, HALF)
    linear = {name: of for name, of in model.named_modules() if isinstance(of, nn.Linear)}
    unknown = [name for name in table if name not in linear]
    held = {name: of.shape for name, of in tensors.items()}
    wrong = [at for at, of in model.state_dict().items() if held.get(at, of.shape) != of.shape]
    if unknown or wrong:
        raise ModelError(
            f"{path} does not fit the network (at {[*unknown, *wrong][0]}), expected the file of "
            "this network: pass the module that was accelerated"
        )
    _load_rest(model, tensors, path)
    for name in table:
        replaced(model, linear[name], SemiStructuredLinear.of(linear[name]))
    return model


def _read(path: Path) -> tuple[str, Mapping[str, Any], dict[str, Tensor]]:
    """The runtime of a file, its layers and its tensors."""
    try:
        with safe_open(path, "pt") as file:
            held = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}, expected an accelerated module") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}), expected an accelerated module: check the path"
        ) from error
    if held.get("version") != _VERSION:
        raise ModelError(
            f"{path} holds no accelerated module of this version of secateur, expected what "
            "Acceleration.save wrote"
        )
    return held.get("runtime", INT8_SPARSE), held["layers"], tensors


def _check_shape(path: str | Path, name: str, weight: Tensor, matrix: Tensor) -> None:
    if weight.shape != matrix.shape:
        raise ModelError(
            f"{path} has a layer {name} of {tuple(weight.shape)}, the network one of "
            f"{tuple(matrix.shape)}, expected the same: pass the module that was accelerated"
        )


def _load_rest(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Everything that is no integer layer's; tensors that share memory were saved once."""
    own = _once(model)
    absent = sorted(own.keys() - tensors.keys())
    if absent or tensors.keys() - model.state_dict().keys():
        name = next(iter([*absent, *(tensors.keys() - model.state_dict().keys())]))
        raise ModelError(
            f"{path} does not fit the network (at {name}), expected the file of this network: "
            "pass the module that was accelerated"
        )
    for name, of in model.state_dict().items():
        if name in tensors and not name.endswith((".weight_int8", ".weight_scale")):
            of.copy_(tensors[name])
