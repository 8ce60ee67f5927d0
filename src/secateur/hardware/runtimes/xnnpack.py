"""XNNPACK, which runs LiteRT files on CPUs: sparse 1x1 convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.hardware.runtimes.protocol import Runtime, not_installed, unless

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

ZEROS = 2 / 3  # the least share of zeros for which it takes its sparse kernels


def _layer(layer: LayerFacts) -> list[str]:
    one = layer.kind == "conv" and layer.groups == 1 and all(size == 1 for size in layer.shape[2:])
    found = unless(one, f"{layer.operation}: only 1x1 convolutions")
    found += unless(layer.dtype.startswith("float"), f"{layer.dtype} weights: only float ones")
    few = layer.sparsity is not None and layer.sparsity < ZEROS
    return found + unless(not few, f"{layer.sparsity or 0:.1%} zeros: two thirds are needed")


def _machine(machine: Machine) -> list[str]:
    return not_installed(machine, "xnnpack")


RUNTIME = Runtime(
    name="XNNPACK (LiteRT)",
    package="xnnpack",
    distributions=("ai-edge-litert", "tflite-runtime", "tensorflow", "executorch"),
    feature="sparse float 1x1 convolutions, from two thirds zeros on",
    machine=_machine,
    layer=_layer,
    zeros="two thirds",
    source="https://github.com/google/XNNPACK",
    key="xnnpack-arm",
    pattern="unstructured",
    prepared="exported with explicit padding, for the sparse kernels are taken only in a row of "
    "layers: first a 3x3 convolution of 3 channels and stride 2, then 1x1 and depthwise ones, and "
    "a global average pooling in the end",
    unmeasured=lambda _: "XNNPACK runs sparse kernels on Arm, not on x86 processors with AVX",
)
