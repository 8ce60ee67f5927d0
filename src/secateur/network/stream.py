"""The values of a network for some images, run operation by operation."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secateur.network.graph import Graph, last_reads


class Stream:
    """The values of one network for one chunk of images, from one operation to the next."""

    def __init__(self, graph: Graph, parameters: Mapping[str, Tensor], values: dict, at: int = 0):
        self.graph, self.parameters, self.values, self.at = graph, parameters, values, at
        self.dead = last_reads(graph)

    def advance(self, stop: int) -> None:
        """Runs the operations before number `stop`."""
        names = ChainMap(self.values, self.parameters)  # type: ignore[arg-type]
        for index in range(self.at, stop):
            self.values[self.graph.ops[index].name] = self.graph.run(index, names)
            for name in self.dead.get(index, ()):
                del self.values[name]
        self.at = max(self.at, stop)

    def value(self, name: str) -> Any:
        """A value, or the parameter, buffer or constant of that name."""
        return self.values[name] if name in self.values else self.parameters[name]

    def fork(self, parameters: Mapping[str, Tensor]) -> Stream:
        """A stream that goes on from the same values (shared, not copied)."""
        twin = Stream.__new__(Stream)
        twin.graph, twin.parameters, twin.at = self.graph, parameters, self.at
        twin.values, twin.dead = dict(self.values), self.dead
        return twin
