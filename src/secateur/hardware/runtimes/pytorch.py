"""PyTorch on NVIDIA GPUs: linear layers in the 2:4 pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.hardware.runtimes.protocol import (
    Runtime,
    no_ampere,
    not_installed,
    not_two_of_four,
    unless,
)

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

# Rows and columns of a 2:4 weight have to be multiples of these, by type. A test compares them
# with what the installed version refuses.
TORCH_SIZES = {"float32": (32, 32), "float16": (32, 64), "bfloat16": (32, 64), "int8": (16, 128)}


def _layer(layer: LayerFacts) -> list[str]:
    found = unless(layer.kind == "linear", f"{layer.operation}: only linear layers")
    rows, columns = TORCH_SIZES.get(layer.dtype, (0, 0))
    found += unless(rows > 0, f"{layer.dtype} weights: only {', '.join(TORCH_SIZES)}")
    if layer.kind == "linear" and rows:
        fits = layer.shape[0] % rows == 0 and layer.shape[-1] % columns == 0
        sizes = "x".join(map(str, layer.shape))
        found += unless(fits, f"{sizes}: sizes have to be multiples of {rows} and {columns}")
    return found + not_two_of_four(layer)


def _machine(machine: Machine) -> list[str]:
    return not_installed(machine, "torch") + no_ampere(machine)


RUNTIME = Runtime(
    name="PyTorch, CUDA",
    package="torch",
    distributions=("torch",),
    feature="2:4 sparse linear layers on GPUs of compute capability 8.0 or higher",
    machine=_machine,
    layer=_layer,
    source="https://docs.pytorch.org/docs/stable/sparse.html",
    key="torch-cuda-2:4",
    pattern="2:4",
    dtype="float16",
    prepared="moved to the GPU in float16, its weights by torch.sparse.to_sparse_semi_structured",
)
