"""In what order a graph's steps run, and what ONNX Runtime runs between those of PyTorch.

The nodes between layers become segments, each as late as possible. What depends on constants only
is part of every segment that needs it, where ONNX Runtime works it out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from secateur.frontends.onnx.file import reads
from secateur.frontends.onnx.plan import Plan
from secateur.frontends.onnx.segment import Segment
from secateur.frontends.onnx.steps import Convolve, Part, Step


def schedule(plan: Plan, sessions: dict[bytes, Any]) -> list[Step]:
    """All steps in execution order; what ONNX Runtime runs comes just before it is needed."""
    return list(_Schedule(plan, sessions).steps())


class _Schedule:
    """Cuts what is between the units into segments."""

    def __init__(self, plan: Plan, sessions: dict[bytes, Any]) -> None:
        self.plan, self.nodes, self.sessions = plan, plan.nodes, sessions
        run = [step for steps in plan.units.values() for step in steps]
        self.read_by_units = {name for step in run for name in step.reads}
        self.images = {step.input for step in run if isinstance(step, Convolve)}
        self.done: set[int] = set(plan.units) | plan.absorbed

    def steps(self) -> Iterator[Step]:
        for index in sorted(self.plan.units):
            yield from self._before(name for step in self.plan.units[index] for name in step.reads)
            yield from self.plan.units[index]
        yield from self._before(self.plan.outputs)

    def _before(self, wanted: Iterable[str]) -> Iterator[Step]:
        """The segment that makes these values, where they are not there yet."""
        group = self._makers(name for name in wanted if name not in self.plan.stored)
        moving = [index for index in group if not self.nodes.is_fixed(self.nodes.nodes[index])]
        if moving:
            self.done.update(moving)
            yield from self._segment(sorted(group), set(moving))

    def _makers(self, wanted: Iterable[str]) -> set[int]:
        """The nodes not run yet that values depend on, those of constants included."""
        found: set[int] = set()
        names = list(wanted)
        while names:
            index = self.nodes.makers.get(names.pop())
            if index is not None and index not in self.done and index not in found:
                found.add(index)
                names += reads(self.nodes.nodes[index])
        return found

    def _segment(self, group: list[int], moving: set[int]) -> Iterator[Step]:
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
        segment = Segment(
            name=writes[0] if len(writes) == 1 else self.nodes.fresh(writes[0]),
            reads=tuple(name for name in needed if name not in made | self.nodes.fixed),
            writes=writes,
            nodes=nodes,
            constants=held,
            source=self.plan.model,
            sessions=self.sessions,
            fast=frozenset(writes) & self.images,
        )
        yield segment
        if len(writes) > 1:
            for index, name in enumerate(writes):
                yield Part(name=name, input=segment.name, index=index)

    def _is_read_outside(self, name: str, group: set[int]) -> bool:
        if name in self.plan.outputs or name in self.read_by_units:
            return True
        return any(index not in group for index in self.nodes.readers.get(name, ()))
