"""In what order a graph's operations run: what ONNX Runtime runs between those of PyTorch.

The nodes between layers become segments, each as late as possible. What depends on constants only
is part of every segment that needs it, where ONNX Runtime works it out once.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from secateur.frontends.onnx.file import reads
from secateur.frontends.onnx.segment import Segment
from secateur.frontends.onnx.translation import Translation
from secateur.network.ops import Convolution, Fused, GetItem, Op


def schedule(translation: Translation) -> list[Op]:
    """All operations in execution order; what ONNX Runtime runs comes just before it is needed."""
    return list(_Schedule(translation).ops())


class _Schedule:
    """Cuts what is between the units into segments."""

    def __init__(self, translation: Translation) -> None:
        self.translation, self.nodes = translation, translation.nodes
        self.sessions: dict[bytes, Any] = {}
        ops = [op for unit in translation.units.values() for op in unit]
        self.read_by_units = {name for op in ops for name in op.reads}
        self.images = {op.input for op in ops if isinstance(op, Convolution)}
        self.done: set[int] = set(translation.units) | translation.absorbed

    def ops(self) -> Iterator[Op]:
        for _, unit in sorted(self.translation.units.items()):
            yield from self._before(name for op in unit for name in op.reads)
            yield from unit
        yield from self._before(self.translation.outputs)

    def _before(self, names: Iterable[str]) -> Iterator[Op]:
        """The segment that makes these values, where they are not there yet."""
        group = self._makers(name for name in names if name not in self.translation.layouts)
        moving = [index for index in group if not self.nodes.is_fixed(self.nodes.nodes[index])]
        if moving:
            self.done.update(moving)
            yield from self._segment(sorted(group), set(moving))

    def _makers(self, values: Iterable[str]) -> set[int]:
        """The nodes not run yet that values depend on, those of constants included."""
        found: set[int] = set()
        names = list(values)
        while names:
            index = self.nodes.makers.get(names.pop())
            if index is not None and index not in self.done and index not in found:
                found.add(index)
                names += reads(self.nodes.nodes[index])
        return found

    def _segment(self, group: list[int], moving: set[int]) -> Iterator[Op]:
        nodes = [self.nodes.nodes[index] for index in group]
        needed = list(dict.fromkeys(name for node in nodes for name in reads(node)))
        constants = self.nodes.constants
        held = {name: constants[name] for name in needed if name in constants}
        made = {name for node in nodes for name in node.output}
        writes = tuple(
            name
            for index in sorted(moving)
            for name in self.nodes.nodes[index].output
            if name and self._is_read_outside(name, moving)
        )
        inputs = tuple(name for name in needed if name not in made | self.nodes.fixed)
        segment = Segment(
            reads=inputs,
            writes=writes,
            numbers=group,
            nodes=nodes,
            constants=held,
            source=self.translation.model,
            sessions=self.sessions,
            fast=frozenset(writes) & self.images,
        )
        name = writes[0] if len(writes) == 1 else self.nodes.fresh(writes[0])
        yield Fused(name=name, inputs=inputs, parts=(), compute=segment, operation="segment")
        if len(writes) > 1:
            for index, part in enumerate(writes):
                take = operator.itemgetter(index)
                yield GetItem(name=part, inputs=(name,), index=index, compute=take)

    def _is_read_outside(self, name: str, group: set[int]) -> bool:
        if name in self.translation.outputs or name in self.read_by_units:
            return True
        return any(index not in group for index in self.nodes.readers.get(name, ()))
