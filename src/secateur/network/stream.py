"""The values of a network for some samples, run operation by operation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from secateur.network.graph import Graph, last_reads, overlay


class Stream:
    """The values of one network for one chunk of samples, from one operation to the next.

    Attributes:
        graph: the network.
        parameters: by name; they may be others than the graph's.
        values: those that later operations read, by name: at first the network's inputs.
        at: number of the operation to run next.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, Tensor],
        values: MutableMapping[str, Any],
        at: int = 0,
    ) -> None:
        self.graph, self.parameters, self.values, self.at = graph, parameters, values, at
        self._last_reads = last_reads(graph)
        self._kept: list[str] = []

    def advance(self, stop: int, keep: Collection[str] = ()) -> None:
        """Runs the operations before number `stop`, and drops what nothing reads after them.

        Args:
            stop: nothing is done where the stream is there already.
            keep: names of values to drop only when the stream goes on from there.
        """
        if stop <= self.at:
            return
        for name in self._kept:
            del self.values[name]
        self._kept = []
        names = overlay(self.values, self.parameters)
        for index in range(self.at, stop):
            self.values[self.graph.ops[index].name] = self.graph.run(index, names)
            for name in self._last_reads.get(index, ()):
                if name in keep:
                    self._kept.append(name)
                else:
                    del self.values[name]
        self.at = stop

    def value(self, name: str) -> Any:
        """A value, or the parameter, buffer or constant of that name."""
        return self.values[name] if name in self.values else self.parameters[name]

    def fork(
        self,
        parameters: Mapping[str, Tensor],
        values: MutableMapping[str, Any] | None = None,
    ) -> Stream:
        """A stream that goes on from the same values, which are shared, not copied.

        Args:
            parameters: of the new stream.
            values: where it keeps its values; None = in a dictionary.
        """
        twin = Stream.__new__(Stream)
        twin.graph, twin.parameters, twin.at = self.graph, parameters, self.at
        twin._last_reads, twin._kept = self._last_reads, []
        held: MutableMapping[str, Any] = {} if values is None else values
        twin.values = held
        for name in self.values:
            if name not in self._kept:
                twin.values[name] = self.values[name]  # one by one: not all may fit into memory
        return twin
