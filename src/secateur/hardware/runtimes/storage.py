"""A disk, a download, an update over the air: zeros that take no room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.hardware.runtimes.protocol import Runtime

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine


def _layer(layer: LayerFacts) -> list[str]:
    return []


def _machine(machine: Machine) -> list[str]:
    return []


RUNTIME = Runtime(
    name="storage",
    package="secateur",
    distributions=("secateur",),
    feature="zeros anywhere: a bit each in packed files",
    machine=_machine,
    layer=_layer,
    source="docs/packed-format.md",
    key="storage",
    pattern="unstructured",
    prepared="packed by secateur pack, or compressed by anything else",
)
