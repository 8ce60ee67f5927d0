"""In what order a graph's operations run: what a runtime runs between those of PyTorch.

The nodes between layers become segments, each as late as possible. What depends on constants only
is part of every segment that needs it, where the runtime works it out once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from secateur.network.ops import Convolution, Fused, GetItem, Op


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a segment is made of.

    Attributes:
        numbers: of its nodes, in execution order; those of constants are among them.
        reads: names of the values that it takes.
        writes: names of the values that it gives.
        fast: those of them that convolutions read, which want channels-last memory.
    """

    numbers: Sequence[int]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    fast: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A file's nodes, and which of them PyTorch runs.

    Attributes:
        reads: the values that each node reads, in execution order.
        writes: the values that each node gives.
        fixed: values that depend on constants only.
        outputs: values that the network returns.
        units: the operations that PyTorch runs, by number of the node that they stand for.
        absorbed: numbers of further nodes that they stand for.
        parameters: weights of the units.
        fresh: gives a new name like one that there is.
        segment: gives a part as a function of the values that it reads.
    """

    reads: Sequence[Collection[str]]
    writes: Sequence[Collection[str]]
    fixed: Collection[str]
    outputs: Sequence[str]
    units: Mapping[int, Sequence[Op]]
    absorbed: Collection[int]
    parameters: Collection[str]
    fresh: Callable[[str], str]
    segment: Callable[[Part], Callable[..., Any]]

    def ops(self) -> Iterator[Op]:
        """All operations in execution order; what a runtime runs comes just before it is needed."""
        done = {*self.units, *self.absorbed}
        for _, unit in sorted(self.units.items()):
            yield from self._before((name for op in unit for name in op.reads), done)
            yield from unit
        yield from self._before(self.outputs, done)

    @cached_property
    def _makers(self) -> Mapping[str, int]:
        return {name: index for index, names in enumerate(self.writes) for name in names if name}

    @cached_property
    def _readers(self) -> Mapping[str, Sequence[int]]:
        readers: dict[str, list[int]] = {}
        for index, names in enumerate(self.reads):
            for name in names:
                readers.setdefault(name, []).append(index)
        return readers

    @cached_property
    def _read_by_units(self) -> Collection[str]:
        return {name for unit in self.units.values() for op in unit for name in op.reads}

    @cached_property
    def _images(self) -> Collection[str]:
        ops = (op for unit in self.units.values() for op in unit)
        return {op.input for op in ops if isinstance(op, Convolution)}

    def _before(self, names: Iterable[str], done: set[int]) -> Iterator[Op]:
        """The segment that makes these values, where they are not there yet."""
        group = self._group((name for name in names if name not in self.parameters), done)
        moving = {index for index in group if not self._is_fixed(index)}
        if moving:
            done.update(moving)
            yield from self._segment(sorted(group), moving)

    def _is_fixed(self, index: int) -> bool:
        return all(name in self.fixed for name in self.writes[index] if name)

    def _group(self, values: Iterable[str], done: Collection[int]) -> set[int]:
        """The nodes not run yet that values depend on, those of constants included."""
        found: set[int] = set()
        names = list(values)
        while names:
            index = self._makers.get(names.pop())
            if index is not None and index not in done and index not in found:
                found.add(index)
                names += self.reads[index]
        return found

    def _segment(self, group: Sequence[int], moving: Collection[int]) -> Iterator[Op]:
        needed = dict.fromkeys(name for index in group for name in self.reads[index])
        made = {name for index in group for name in self.writes[index]}
        reads = tuple(name for name in needed if name not in made and name not in self.fixed)
        writes = tuple(
            name
            for index in sorted(moving)
            for name in self.writes[index]
            if name and self._is_read_outside(name, moving)
        )
        fast = frozenset(name for name in writes if name in self._images)
        compute = self.segment(Part(numbers=group, reads=reads, writes=writes, fast=fast))
        name = writes[0] if len(writes) == 1 else self.fresh(writes[0])
        yield Fused(name=name, inputs=reads, parts=(), compute=compute, operation="segment")
        if len(writes) > 1:
            for index, part in enumerate(writes):
                take = operator.itemgetter(index)
                yield GetItem(name=part, inputs=(name,), index=index, compute=take)

    def _is_read_outside(self, name: str, group: Collection[int]) -> bool:
        if name in self.outputs or name in self._read_by_units:
            return True
        return any(index not in group for index in self._readers.get(name, ()))
