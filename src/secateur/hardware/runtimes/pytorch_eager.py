"""PyTorch in eager mode: smaller layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.hardware.runtimes.protocol import Runtime, not_installed

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine


def _layer(layer: LayerFacts) -> list[str]:
    return []  # what is left of a layer is a smaller layer


def _machine(machine: Machine) -> list[str]:
    return not_installed(machine, "torch")


RUNTIME = Runtime(
    name="PyTorch",
    package="torch",
    distributions=("torch",),
    feature="smaller layers, once whole channels have left",
    machine=_machine,
    layer=_layer,
    source="https://docs.pytorch.org",
    key="torch",
    pattern="channels",
    prepared="the module itself, smaller",
)
