"""TensorRT: convolutions and linear layers in the 2:4 pattern."""

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


def _layer(layer: LayerFacts) -> list[str]:
    found = unless(layer.kind in ("conv", "linear"), f"{layer.operation}: only conv and linear")
    found += unless(layer.groups == 1, f"{layer.groups} groups: only convolutions of one group")
    return found + not_two_of_four(layer)


def _machine(machine: Machine) -> list[str]:
    return not_installed(machine, "tensorrt") + no_ampere(machine)


RUNTIME = Runtime(
    name="TensorRT",
    package="tensorrt",
    distributions=("tensorrt",),
    feature="2:4 sparse convolutions and linear layers on GPUs from compute capability 8.0 on",
    machine=_machine,
    layer=_layer,
    source="https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/"
    "inference-library/io-formats-sparsity.html",
    key="tensorrt",
    pattern="2:4",
    dtype="float16",
    prepared="written as an ONNX file and built with SPARSE_WEIGHTS; whether TensorRT took sparse "
    "kernels, its log of the build says",
    unmeasured=lambda machine: (
        "; ".join(_machine(machine)) or "building a network for TensorRT is not part of Secateur"
    ),
)
