"""OpenVINO on any CPU: smaller layers, and INT8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.hardware.runtimes.protocol import Runtime, not_installed

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine


def _layer(layer: LayerFacts) -> list[str]:
    return []  # what is left of a layer is a smaller layer


def _machine(machine: Machine) -> list[str]:
    return not_installed(machine, "openvino")


RUNTIME = Runtime(
    name="OpenVINO",
    package="openvino",
    distributions=("openvino",),
    feature="smaller layers, once whole channels have left",
    machine=_machine,
    layer=_layer,
    source="https://docs.openvino.ai",
    extra="openvino",
    key="openvino",
    pattern="channels",
    prepared="written as an OpenVINO file; INT8 (--int8) is faster still",
)
