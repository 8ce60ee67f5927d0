"""What a journal holds of a walk: its layers as they were solved, and the outputs at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.network.layers import Layer
from secateur.pruning.journal import Chapter
from secateur.pruning.layer_fit import LayerResult, LayerSolution

Gone = dict[int, list[int]]
Outputs = tuple[Tensor | None, Tensor | None]

_LARGEST = 2**26  # values of outputs that are written; larger ones are computed again
_OUTPUTS = "outputs"


@dataclass(frozen=True)
class _Solved:
    """A layer's result as plain data.

    Attributes:
        level_errors: as a survey has found them.
        stages: that its method went through.
        gone: (coupling, units) that were chosen to leave where the layer was solved.
    """

    layer: str
    kept: int
    relative_error: float
    damping: float
    samples: int
    notes: tuple[str, ...]
    level_errors: tuple[float | None, ...]
    stages: int
    gone: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class _Reached:
    """Which outputs a walk ended with."""

    outputs: tuple[str, ...]


def solved_before(
    chapter: Chapter, layers: Sequence[Layer]
) -> Iterator[tuple[LayerSolution, Gone]]:
    """The solutions of the first layers, as far as they are known, and what left there."""
    for index, layer in enumerate(layers):
        entry = chapter.get(index, _Solved)
        if entry is None:
            return
        of = entry.record
        changes: list[dict[str, Tensor]] = [{} for _ in range(of.stages)]
        for name, tensor in entry.tensors.items():
            stage, _, parameter = name.partition("/")
            changes[int(stage)][parameter] = tensor
        result = LayerResult(
            layer=layer,
            kept=of.kept,
            relative_error=of.relative_error,
            damping=of.damping,
            samples=of.samples,
            notes=of.notes,
            level_errors=of.level_errors,
        )
        gone = {coupling: list(units) for coupling, units in of.gone}
        yield LayerSolution(result, changes), gone


def write_solution(
    chapter: Chapter, index: int, solution: LayerSolution, gone: Gone | None = None
) -> None:
    """Writes a layer's solution, and which units of which couplings were chosen to leave there."""
    of = solution.result
    record = _Solved(
        layer=of.layer.name,
        kept=of.kept,
        relative_error=float(of.relative_error),
        damping=float(of.damping),
        samples=int(of.samples),
        notes=tuple(of.notes),
        level_errors=tuple(None if at is None else float(at) for at in of.level_errors),
        stages=len(solution.changes),
        gone=tuple((coupling, tuple(units)) for coupling, units in (gone or {}).items()),
    )
    tensors = {
        f"{stage}/{name}": tensor
        for stage, changes in enumerate(solution.changes)
        for name, tensor in changes.items()
    }
    chapter.put(index, record, tensors)


def outputs_before(chapter: Chapter) -> Outputs | None:
    """The dense and the pruned network's outputs at the end; None where they are not known."""
    entry = chapter.get(_OUTPUTS, _Reached)
    return entry and (entry.tensors.get("dense"), entry.tensors.get("pruned"))


def write_outputs(chapter: Chapter, outputs: Outputs) -> None:
    """Writes them, unless they would take much more room than the weights."""
    named = zip(("dense", "pruned"), outputs, strict=True)
    tensors = {name: of for name, of in named if of is not None}
    if sum(of.numel() for of in tensors.values()) <= _LARGEST:
        chapter.put(_OUTPUTS, _Reached(tuple(tensors)), tensors)
