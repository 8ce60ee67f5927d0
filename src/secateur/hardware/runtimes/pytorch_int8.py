"""PyTorch on x86: INT8 linear layers without their blocks of 1 x 4 zeros, in the stock wheel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.hardware.runtimes.protocol import Runtime, not_installed, unless

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

BLOCKS = 0.5  # zero blocks from which on the sparse kernel can be faster; measured 1.0 at 50 %


def _layer(layer: LayerFacts) -> list[str]:
    one = layer.kind == "conv" and layer.groups == 1 and all(size == 1 for size in layer.shape[2:])
    found = unless(
        one or layer.kind == "linear",
        f"{layer.operation}: only linear layers and 1x1 convolutions",
    )
    few = layer.zero_blocks is not None and layer.zero_blocks < BLOCKS
    return found + unless(
        not few, f"{layer.zero_blocks or 0:.1%} of the 1x4 blocks are zero: half are needed"
    )


def _machine(machine: Machine) -> list[str]:
    found = not_installed(machine, "torch")
    if not found and "fbgemm" not in machine.quantized:
        found.append("this PyTorch has no fbgemm engine, which it has on x86 with AVX2")
    return found


RUNTIME = Runtime(
    name="PyTorch, INT8 on x86",
    package="torch",
    distributions=("torch",),
    feature="INT8 linear layers and 1x1 convolutions without blocks of 1x4 zeros (FBGEMM)",
    machine=_machine,
    layer=_layer,
    zeros="half of the 1x4 blocks",
    source="https://github.com/pytorch/pytorch/tree/main/aten/src/ATen/native/ao_sparse",
    key="torch-int8-sparse",
    pattern="1x4",
    dtype="int8",
    prepared="secateur.accelerate: static INT8 with 7-bit inputs, each layer by its fastest kernel",
)
