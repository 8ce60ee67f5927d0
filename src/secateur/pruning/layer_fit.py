"""The fit of one layer: its statistics made a problem, and the problem solved."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.methods import Method, without_folds
from secateur.core.patterns import Pattern, UnitPattern, Unstructured
from secateur.core.problem import Problem, Solution
from secateur.core.statistics import Statistics, merged
from secateur.errors import NumericalError
from secateur.network.graph import Graph
from secateur.network.layers import Layer
from secateur.pruning.gathering import MIXED, ColumnBlock, Gathering
from secateur.pruning.sampling import Sampling
from secateur.pruning.streams import LayerChunks
from secateur.support.free_memory import give_back
from secateur.support.wording import counted

_LARGE = 2**23  # entries of a Gram matrix: what allocators keep of smaller ones is little
_NEAR = 2  # levels that a layer may come to in the next walk


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What happened to a layer.

    Attributes:
        layer: the layer.
        kept: non-zero weights.
        relative_error: mean squared output error over the dense outputs' variance, both of the
            whole layer, on the samples.
        damping: relative damping of the solve, the largest of the column blocks.
        samples: output positions sampled; of a constant those that differ.
        notes: what a reader of the report should know.
        level_errors: relative errors that the layer would have at each level of a survey, fitted
            from its new weights on; None at levels far from what it keeps; empty = none was asked
            for.
    """

    layer: Layer
    kept: int
    relative_error: float
    damping: float
    samples: int
    notes: tuple[str, ...]
    level_errors: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What a walk finds out about each layer, once it is solved, for the allocation of the next.

    Layers that are fitted in blocks of columns are left out.

    Attributes:
        method: fits a layer from its new weights on, to what it got in this walk.
        kept: weights that stay at each level, by the layer's number.
    """

    method: Method
    kept: Sequence[Sequence[int]]

    def near(self, layer: int, kept: int) -> range:
        """The levels that a layer which keeps so many weights may come to next, and no others."""
        levels = self.kept[layer]
        fewer = sum(count > kept for count in levels)
        first = max(0, min(fewer, len(levels) - _NEAR))
        return range(first, min(first + _NEAR, len(levels)))


@dataclass(frozen=True)
class LayerSolution:
    """A layer's result and its new values after each stage of the method."""

    result: LayerResult
    changes: list[dict[str, Tensor]]

    def with_errors(self, errors: tuple[float | None, ...]) -> LayerSolution:
        """The same with what a survey has found."""
        return replace(self, result=replace(self.result, level_errors=errors)) if errors else self


class LayerFit:
    """The fit of one layer: in one piece, or in blocks of columns when it is wide."""

    def __init__(
        self,
        graph: Graph,
        chunks: LayerChunks,
        *,
        index: int,
        sampling: Sampling,
        start: Mapping[str, Tensor],
        survey: Survey | None = None,
    ) -> None:
        """Looks at the layer's weights; the chunks are run through when it is solved.

        Args:
            graph: the dense network.
            chunks: of the layer; for a wide one they are run through once for each block.
            index: number of the layer among those that are fitted.
            sampling: how many output positions are used.
            start: weights by parameter name that methods start from, where they differ from the
                dense ones.
            survey: what is to be known besides; None = nothing.
        """
        self.graph, self.layer, self.chunks = graph, chunks.layer, chunks
        self.survey = survey
        self.group = chunks.group
        self.index, self.sampling = index, sampling
        name = str(self.layer.parameter)
        self.geometry = self.layer.calls[0].geometry
        self.dense = self.geometry.matrix(graph.parameters[name])
        self.scale = row_scale(self.layer, self.dense)
        begin = start.get(name)
        self.matrix = self.dense if begin is None else self.geometry.matrix(begin)
        self.free = self.dense != 0  # zeros of the dense network are never filled
        self.no_folds = self._no_folds()

    @property
    def in_blocks(self) -> bool:
        """Whether the layer is too wide for one piece."""
        return is_wide(self.layer, self.sampling)

    @property
    def constant(self) -> bool:
        """Whether the layer's input does not depend on the samples."""
        return all(layout is not None and layout.constant for layout in self.chunks.layouts)

    def solve(
        self, method: Method, pattern: Pattern, kept: int, solver: int = 0
    ) -> LayerSolution | None:
        """Gathers statistics and solves, block of columns by block of columns.

        Args:
            method, pattern, kept: how.
            solver: the process that does so; None is returned in the others.
        """
        if not self.in_blocks:
            problem = self.problem(method, solver=solver)
            if problem is None:
                return None
            problem = without_folds(method, problem, self._pattern(pattern, kept), kept)
            return self.solve_problem(problem, method, pattern, kept)
        pattern, bounds = self._pattern(pattern, kept), self._bounds(pattern)
        size = (self.matrix * self.scale.unsqueeze(-1)).abs()
        kept = min(kept, int(self.free.sum()))
        chosen = pattern.mask(torch.where(self.free, size, -1.0), kept) & self.free
        shares = [int(chosen[..., columns].sum()) for columns in bounds]
        del size, chosen
        new = self.dense.clone()
        solutions: list[Solution] = []
        problem: Problem | None = None
        for columns, share in zip(bounds, shares, strict=True):
            problem = self.problem(method, ColumnBlock(columns, new), solver)
            if problem is not None:
                solution = _named(self.layer, method.solve, problem, pattern, share)
                solutions.append(self._as_stored(solution, problem, new, columns))
                new[..., columns] = solutions[-1].weight / self.scale.unsqueeze(-1)
            new[..., columns] = self.group.broadcast(new[..., columns], solver)
        if problem is None:
            return None
        note = f"{counted(self.layer.columns, 'column')} fitted in {counted(len(bounds), 'block')}"
        return self._solution(solutions, problem, note)

    def solve_all(
        self, method: Method, pattern: Pattern, kept: Sequence[int], solver: int = 0
    ) -> Callable[[], list[LayerSolution]] | None:
        """Gathers statistics for several numbers of kept weights, the same where it can.

        Returns:
            What solves the layer for them, in the process that is to do so.
        """
        if self.in_blocks:
            solved = [self.solve(method, pattern, count, solver) for count in kept]
            found = [of for of in solved if of is not None]
            return (lambda: found) if found else None
        problem = self.problem(method, solver=solver)
        if problem is None:
            return None
        return lambda: [self.solve_problem(problem, method, pattern, count) for count in kept]

    def solve_problem(
        self, problem: Problem, method: Method, pattern: Pattern, kept: int
    ) -> LayerSolution:
        """Solves a layer in one piece."""
        solution = self._solved(problem, method, pattern, kept)
        return solution.with_errors(self._surveyed(problem, solution, pattern, kept))

    def _solved(
        self, problem: Problem, method: Method, pattern: Pattern, kept: int
    ) -> LayerSolution:
        pattern = self._pattern(pattern, kept)
        solution = _named(self.layer, method.solve, problem, pattern, kept)
        return self._solution([self._as_stored(solution, problem, self.dense)], problem)

    def _surveyed(
        self, problem: Problem, solution: LayerSolution, pattern: Pattern, kept: int
    ) -> tuple[float | None, ...]:
        """What a survey asks of a layer in one piece: its errors from the new weights on.

        Of the outputs that the dense layer makes of the same inputs: what layers before it have
        lost would be a part of every error otherwise.
        """
        if self.survey is None:
            return ()
        matrix = self.geometry.matrix(solution.changes[-1][str(self.layer.parameter)])
        weight, dense = (of * self.scale.unsqueeze(-1) for of in (matrix, self.dense))
        begun = problem.reproducing(dense, start=weight)
        near = self.survey.near(self.index, kept)
        return tuple(
            self._solved(begun, self.survey.method, pattern, count).result.relative_error
            if at in near
            else None
            for at, count in enumerate(self.survey.kept[self.index])
        )

    def problem(
        self, method: Method, block: ColumnBlock | None = None, solver: int = 0
    ) -> Problem | None:
        """The problem of the layer, or of a block of its columns. Runs through the chunks.

        Args:
            method: which solves it.
            block: the columns; None = all.
            solver: the process that gets it; there is None in the others.
        """
        gathered = Gathering(
            self.chunks,
            method,
            index=self.index,
            sampling=self.sampling,
            dense=self.dense,
            block=block,
            no_folds=self.no_folds,
        )
        if not gathered.run(solver):
            return None
        self._give_back()
        parts, folds, no_folds = gathered.statistics(), None, gathered.no_folds
        columns = slice(None) if block is None else block.where
        if len(parts) == 2 and not no_folds and all(fold.samples for fold in parts):
            folds = self._problem(parts[0], columns), self._problem(parts[1], columns)
        whole = merged(parts)
        del parts, gathered  # the second fold's sums
        problem = self._problem(whole, columns)
        self._check(problem, whole)
        del whole
        self._give_back()
        return replace(
            problem,
            folds=folds,
            no_folds=no_folds,
            samples=min(problem.samples, self._different),
        )

    def _give_back(self) -> None:
        """What sums of a large layer have left in the allocator: 0.4 GB of 4608 columns."""
        if self.dense.shape[0] * self.dense.shape[2] ** 2 >= _LARGE:
            give_back()

    def _pattern(self, pattern: Pattern, kept: int) -> Pattern:
        """The pattern, but for a layer that keeps all its weights: it is not in the pattern."""
        dense = isinstance(pattern, UnitPattern) and kept >= int(self.free.sum())
        return Unstructured() if dense else pattern

    @property
    def _different(self) -> int:
        """Positions that differ from each other, at most: a constant may be repeated."""
        if not self.constant:
            return sys.maxsize
        return sum(layout.count for layout in self.chunks.layouts if layout is not None)

    def _no_folds(self) -> str:
        """Why the samples cannot be split into folds; empty where they can."""
        layouts = self.chunks.layouts
        if self.constant:
            return "its input does not depend on the images"
        if self.chunks.samples < 2:
            return "there is one image"
        if any(layout is None for layout in layouts):
            return "all images are the same"
        if any(layout.inner is None and not layout.constant for layout in layouts if layout):
            return MIXED
        return ""

    def _problem(self, statistics: Statistics, columns: slice) -> Problem:
        problem = statistics.problem(
            self.matrix[..., columns], scale=self.scale, fits_bias=self.layer.bias is not None
        )
        free = self.free[..., columns]
        return problem if free.all() else replace(problem, free=free)

    def _solution(self, solutions: list[Solution], last: Problem, *notes: str) -> LayerSolution:
        stages = [
            self._changes(parts) for parts in zip(*(s.stages() for s in solutions), strict=True)
        ]
        final = solutions[-1]
        result = LayerResult(
            layer=self.layer,
            kept=int(stages[-1][str(self.layer.parameter)].count_nonzero()),
            relative_error=last.relative_error(final.weight, _zero_if_left(final, self.layer)),
            damping=max(solution.damping for solution in solutions),
            samples=last.samples,
            notes=self._notes(solutions, notes),
        )
        return LayerSolution(result, stages)

    def _changes(self, solutions: Sequence[Solution]) -> dict[str, Tensor]:
        """The layer's new weight and bias by parameter name."""
        layer, bias = self.layer, solutions[-1].bias
        matrix = torch.cat([part.weight for part in solutions], -1) / self.scale.unsqueeze(-1)
        matrix = torch.where(self.free, matrix, 0.0) + 0.0  # zeros without a sign
        changes = {str(layer.parameter): self.geometry.weight(matrix, layer.shape)}
        if bias is not None and layer.bias is not None:
            change = layer.bias.sign * (bias / self.scale).flatten()
            changes[layer.bias.name] = self.graph.parameters[layer.bias.name] + change
        return {name: self.graph.rounded(name, value) for name, value in changes.items()}

    def _as_stored(
        self, solution: Solution, problem: Problem, whole: Tensor, columns: slice = slice(None)
    ) -> Solution:
        """A solution with the weights that can be stored, and the bias that is best for these.

        Args:
            solution: of some columns.
            problem: theirs.
            whole: the layer's weights, with others there.
            columns: which they are.
        """
        name, layer = str(self.layer.parameter), self.layer
        if name not in self.graph.rounding:
            return solution
        whole = whole.clone()
        whole[..., columns] = solution.weight / self.scale.unsqueeze(-1)
        stored = self.graph.rounded(name, self.geometry.weight(whole, layer.shape))
        weight = (self.geometry.matrix(stored) * self.scale.unsqueeze(-1))[..., columns]
        bias = solution.bias
        if bias is not None:
            bias = bias + problem.bias(weight) - problem.bias(solution.weight)
        return replace(solution, weight=weight, bias=bias)

    def _bounds(self, pattern: Pattern) -> list[slice]:
        """Blocks of columns, cut between the units of a pattern."""
        unit = pattern.unit[1] if isinstance(pattern, UnitPattern) else 1
        units = self.layer.columns // unit
        parts = math.ceil(units / max(1, self.sampling.max_columns // unit))
        width = math.ceil(units / parts) * unit
        return [slice(at, at + width) for at in range(0, self.layer.columns, width)]

    def _check(self, problem: Problem, statistics: Statistics) -> None:
        """Raises where the sums are not finite, and says what is not."""
        if problem.gram.isfinite().all() and problem.cross.isfinite().all():
            return
        for what in ("inputs", "outputs"):
            means = [getattr(chunk, what) for chunk in statistics.chunks]
            if not all(bool(mean.isfinite().all()) for mean in means):
                raise NumericalError(
                    f"layer {self.layer.name}: its {what} hold NaN or Inf on the calibration "
                    "images, expected finite numbers: check the images' scaling and the weights"
                )
        raise NumericalError(
            f"layer {self.layer.name}: products of its inputs overflow, expected values below "
            "1e18: check the images' scaling and the weights"
        )

    def _notes(self, solutions: list[Solution], more: Sequence[str]) -> tuple[str, ...]:
        notes = [note for solution in solutions for note in solution.notes] + list(more)
        if self.layer.bias is None:
            notes.append("no place for a bias: none fitted")
        if self.constant:
            notes.append("its input does not depend on the images: fitted to what it is")
        if len(self.layer.calls) > 1:
            notes.append(f"weight used {len(self.layer.calls)} times: one fit for all")
        return tuple(dict.fromkeys(notes))


def is_wide(layer: Layer, sampling: Sampling) -> bool:
    """Whether a layer is fitted in blocks of columns."""
    return layer.columns > sampling.max_columns


def folded_weight(
    graph: Graph, layer: Layer, changes: Mapping[str, Tensor] | None = None
) -> Float[Tensor, "groups rows cols"]:
    """A layer's weight matrix with a following BatchNorm's scale in its rows.

    Dense, or as in `changes` (by parameter name) where the layer is in them.
    """
    assert layer.parameter is not None
    weight = (changes or {}).get(layer.parameter, graph.parameters[layer.parameter])
    matrix = layer.calls[0].geometry.matrix(weight)
    return matrix * row_scale(layer, matrix).unsqueeze(-1)


def row_scale(layer: Layer, matrix: Tensor) -> Float[Tensor, "groups rows"]:
    """The following BatchNorm's scale per row; where it is 0, a tiny share of the largest."""
    if layer.bn_scale is None:
        return torch.ones(matrix.shape[:2], dtype=matrix.dtype, device=matrix.device)
    scale = layer.calls[0].geometry.rows(layer.bn_scale).abs()
    return scale.clamp_min(max(1e-6 * float(scale.max()), 1e-12)).to(matrix)


def _zero_if_left(solution: Solution, layer: Layer) -> Tensor | None:
    """The bias that the solution leads to: its own, none where there is no place or no change."""
    if solution.bias is not None and layer.bias is not None:
        return solution.bias
    return torch.zeros_like(solution.weight[..., 0])


def _named(layer: Layer, solve: Callable[..., Solution], *arguments: Any) -> Solution:
    try:
        return solve(*arguments)
    except NumericalError as error:
        raise NumericalError(f"layer {layer.name}: {error}") from error
