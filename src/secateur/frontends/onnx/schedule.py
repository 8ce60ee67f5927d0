"""An ONNX model's operations in the order in which they run."""

from __future__ import annotations

from typing import Any

from secateur.frontends.onnx.file import reads
from secateur.frontends.onnx.segment import Segment
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.schedule import Part, Schedule
from secateur.network.ops import Op


def schedule(translation: Translation) -> list[Op]:
    """All operations in execution order; what ONNX Runtime runs comes just before it is needed."""
    nodes, sessions = translation.nodes, dict[bytes, Any]()

    def segment(part: Part) -> Segment:
        own = [nodes.nodes[index] for index in part.numbers]
        needed = dict.fromkeys(name for node in own for name in reads(node))
        return Segment(
            reads=part.reads,
            writes=part.writes,
            numbers=part.numbers,
            nodes=own,
            constants={name: nodes.constants[name] for name in needed if name in nodes.constants},
            source=translation.model,
            sessions=sessions,
            fast=part.fast,
        )

    whole = Schedule(
        reads=[reads(node) for node in nodes.nodes],
        writes=[node.output for node in nodes.nodes],
        fixed=nodes.fixed,
        outputs=translation.outputs,
        units=translation.units,
        absorbed=translation.absorbed,
        parameters=translation.layouts,
        fresh=nodes.fresh,
        segment=segment,
    )
    return list(whole.ops())
