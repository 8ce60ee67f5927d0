"""Which runtimes can make use of a layer's zeros here, and why the others cannot.

Most runtimes multiply with a zero as slowly as with any other number. Each of `RUNTIMES` says what
has to hold of a layer for it to leave zeros out, and what of the machine. Meeting all that is
necessary for a speed-up and not sufficient: `secateur bench` measures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.machine import Machine
from secateur.hardware.runtimes import RUNTIMES
from secateur.hardware.runtimes.protocol import Runtime
from secateur.support.tables import Column, Table
from secateur.support.wording import counted

NO_SPEED_UP = "no speed-up expected"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What a runtime asks of a layer before it leaves out its zeros.

    Attributes:
        runtime: its name.
        obstacles: what the layer lacks; empty when nothing.
    """

    runtime: str
    obstacles: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the layer fits."""
        return not self.obstacles


@dataclass(frozen=True, kw_only=True)
class RuntimeReport:
    """A runtime on the machine that wrote a report.

    Attributes:
        name, feature: see `Runtime`.
        version: of the installed one; None = not installed.
        obstacles: what the machine lacks; empty when nothing.
        layers: how many of the layers could make use of it.
        reason: why zeros bring no speed-up here, or what to do for one.
        zeros: how many zeros a layer needs, in a word; empty = any.
    """

    name: str
    feature: str
    version: str | None
    obstacles: tuple[str, ...]
    layers: int
    reason: str
    zeros: str = ""

    @property
    def met(self) -> bool:
        """Whether a speed-up is possible here, in at least one layer."""
        return not self.obstacles and self.layers > 0


def requirements(layer: LayerFacts) -> tuple[Requirement, ...]:
    """Every runtime against one layer, whatever machine this is."""
    return tuple(
        Requirement(runtime=one.name, obstacles=tuple(one.layer(layer))) for one in RUNTIMES
    )


def survey(layers: Sequence[Sequence[Requirement]], machine: Machine) -> list[RuntimeReport]:
    """Every runtime on a machine, with what it asks of a network's layers."""
    return [_runtime_report(one, layers, machine) for one in RUNTIMES]


def _runtime_report(
    runtime: Runtime, layers: Sequence[Sequence[Requirement]], machine: Machine
) -> RuntimeReport:
    mine = [of for asked in layers for of in asked if of.runtime == runtime.name]
    fit = sum(of.met for of in mine)
    obstacles = tuple(runtime.machine(machine))
    return RuntimeReport(
        name=runtime.name,
        feature=runtime.feature,
        version=machine.versions.get(runtime.package),
        obstacles=obstacles,
        layers=fit,
        reason=_reason(obstacles, mine, fit),
        zeros=runtime.zeros,
    )


def _reason(obstacles: Sequence[str], asked: Sequence[Requirement], fit: int) -> str:
    """One line: what stands in the way, the most frequent obstacle of the layers first."""
    if fit:
        share = f"{fit} of {counted(len(asked), 'layer')}"
        if not obstacles:
            return f"{share} {'fits' if fit == 1 else 'fit'}: measure"
        return f"{NO_SPEED_UP}: {'; '.join(obstacles)} ({share} would fit)"
    counts: dict[str, int] = {}
    for text in (obstacle for of in asked for obstacle in of.obstacles):
        general = re.sub(r"^[^:]*: ", "", text)
        counts[general] = counts.get(general, 0) + 1
    common = sorted(counts, key=lambda text: -counts[text])[:3]
    return f"{NO_SPEED_UP}: {'; '.join(dict.fromkeys((*common, *obstacles)))}"


def speed_up_expected(runtimes: Iterable[RuntimeReport]) -> bool:
    """Whether any runtime could be faster here."""
    return any(of.met for of in runtimes)


def runtime_table(runtimes: Sequence[RuntimeReport], *, title: str, note: str) -> Table:
    """What each runtime could gain on the machine that was looked at."""
    columns = (
        Column("runtime"),
        Column("installed"),
        Column("layers that fit", "{:,}"),
        Column("outcome"),
        Column("what it can leave out", detail=True),
    )
    rows = ((of.name, of.version or "no", of.layers, of.reason, of.feature) for of in runtimes)
    return Table(name="runtimes", columns=columns, rows=tuple(rows), title=title, note=note)
