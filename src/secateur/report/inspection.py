"""A network's layers before anything is pruned, and what zeros in them would be good for here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.core.patterns import NM, Pattern, Unstructured
from secateur.core.patterns import Block as Blocks
from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.machine import Machine
from secateur.hardware.requirements import Requirement, RuntimeReport, requirements, survey
from secateur.network.couplings import find_couplings
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.pruning.channels.space import find_space
from secateur.pruning.groups import ChannelGroup
from secateur.pruning.layer_selection import in_pattern
from secateur.pruning.sampling import Sampling
from secateur.report.channels import free_table, stuck_table
from secateur.support.tables import Block, Column, Document, Table, shape_text
from secateur.support.wording import counted


@dataclass(frozen=True)
class Inspection(Document):
    """A network's layers, before anything is pruned.

    Attributes:
        layers: in order of first use; see `secateur.network.graph.Layer`.
        requirements: of each layer, by runtime: what it lacks for zeros in it to be left out,
            however many these will be.
        runtimes: which could be faster on this machine, if there are enough zeros.
        channels: groups of channels, and why those that stay cannot leave (`pattern="channels"`).
    """

    layers: Sequence[Layer]
    requirements: Sequence[Sequence[Requirement]] = ()
    runtimes: Sequence[RuntimeReport] = ()
    channels: Sequence[ChannelGroup] = ()

    @classmethod
    def of(cls, graph: Graph, pattern: Pattern | None = None) -> Inspection:
        """The layers of a traced network, against the runtimes on this machine.

        Args:
            graph: the network.
            pattern: of the zeros; None = zeros anywhere.
        """
        layers = tuple(in_pattern(graph.layers, pattern or Unstructured()))
        weights = [graph.parameters.get(str(layer.parameter)) for layer in layers]
        facts = [
            LayerFacts.of(layer, weight, pruned=False)
            for layer, weight in zip(layers, weights, strict=True)
        ]
        fits = isinstance(pattern, NM) and pattern.makes_two_of_four
        blocks = None if isinstance(pattern, Blocks) and pattern.cols % 4 == 0 else 0.0
        asked = [
            requirements(dataclasses.replace(of, two_of_four=fits, zero_blocks=blocks))
            for of in facts
        ]
        return cls(layers, asked, survey(asked, Machine.here()), _groups(graph))

    def data(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "output": list(layer.output),
                "weights": layer.weights,
                "macs": layer.macs,
                "pruned": not status(layer),
                "reason": status(layer),
                "requirements": [dataclasses.asdict(one) for one in of],
            }
            for layer, of in zip(self.layers, self.requirements, strict=True)
        ]
        return {
            "layers": layers,
            "runtimes": [dataclasses.asdict(of) for of in self.runtimes],
            "channels": [
                {"name": of.name, "channels": of.channels, "reason": of.reason}
                for of in self.channels
            ],
        }

    @property
    def prunable_weights(self) -> int:
        """Weights of the layers that are pruned unless excluded."""
        return sum(layer.weights for layer in self.layers if not status(layer))

    def table(self) -> Table:
        """One row per layer: whether it is pruned, protected, or cannot be pruned."""
        rows = (
            (
                layer.name,
                layer.kind,
                shape_text(layer.shape),
                shape_text(layer.output),
                layer.weights,
                layer.macs,
                _answer(layer),
            )
            for layer in self.layers
        )
        return Table(name="layers", columns=_COLUMNS, rows=tuple(rows))

    def blocks(self, *, verbose: bool = False) -> list[Block]:
        """What zeros are good for here, and the layers.

        With `verbose` also which layers each runtime could make use of, and what others lack.
        """
        total = sum(layer.weights for layer in self.layers)
        share = self.prunable_weights / total if total else 0.0
        weights = f"{self.prunable_weights:,} of {counted(total, 'weight')}"
        last = f"{weights} ({share:.1%}) pruned by default"
        blocks: list[Block] = [_gain(self.runtimes), "", self.table(), last, self._channels_line()]
        if not verbose:
            return blocks
        tables = [free_table(self.channels), stuck_table(self.channels)]
        for table in filter(None, tables):
            blocks += ["", table]
        return [*blocks, "", *self._requirement_lines()]

    def _channels_line(self) -> str:
        """How many channels can leave."""
        free = [of.channels for of in self.channels if of.reason is None]
        stuck = [of.channels for of in self.channels if of.reason is not None]
        groups = counted(len(free), "group")
        line = f"whole channels (pattern channels): {sum(free):,} in {groups} can leave"
        if not stuck:
            return line
        return (
            f"{line}, {sum(stuck):,} in {counted(len(stuck), 'group')} cannot (--verbose tells why)"
        )

    def _requirement_lines(self) -> Iterator[str]:
        """Each runtime, and its layers by what they lack."""
        yield "Which runtimes could leave out the zeros of which layers:"
        for runtime in self.runtimes:
            yield f"  {' '.join(filter(None, (runtime.name, runtime.version)))}: {runtime.reason}"
            names: dict[str, list[str]] = {}
            for layer, asked in zip(self.layers, self.requirements, strict=True):
                for one in asked:
                    if one.runtime == runtime.name:
                        lacks = "; ".join(one.obstacles) or "they fit"
                        names.setdefault(lacks, []).append(layer.name)
            for lacks, layers in names.items():
                yield f"    {lacks}: {', '.join(layers)}"


_COLUMNS = (
    Column("layer"),
    Column("kind"),
    Column("shape"),
    Column("output"),
    Column("weights", "{:,}"),
    Column("MACs", "{:,}"),
    Column("pruned by default"),
)


def _groups(graph: Graph) -> tuple[ChannelGroup, ...]:
    """The channels of a network, those that can leave first."""
    layers = [layer for layer in graph.layers if not status(layer)]
    space = find_space(find_couplings(graph), layers, sampling=Sampling())
    free = [(of.name, of.units, None) for of in space.removable]
    stuck = [(of.name, of.units, of.reason) for of in space.stuck]
    return tuple(
        ChannelGroup(name=name, channels=units, left=units, reason=why)
        for name, units, why in (*free, *stuck)
    )


def _gain(runtimes: Sequence[RuntimeReport]) -> str:
    """What zeros are good for on this machine, in a sentence."""
    faster = (f"{of.name} ({_zeros_needed(of)})" for of in runtimes if of.met)
    if names := ", ".join(faster):
        return f"On this machine zeros may make faster: {names}. Measure it."
    return (
        "On this machine no runtime is expected to get faster with zeros; what you gain is a "
        "smaller packed file."
    )


def _zeros_needed(runtime: RuntimeReport) -> str:
    return f"from {runtime.zeros} zeros on" if runtime.zeros else "any zeros"


def _answer(layer: Layer) -> str:
    why = status(layer)
    if not why:
        return "yes"
    return f"no: {why}" if layer.obstacle else f"no: {why} (include= to prune)"


def status(layer: Layer) -> str:
    """Why a layer stays dense by default; empty when it is pruned."""
    return layer.obstacle or layer.protected or ""
