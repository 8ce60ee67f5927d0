"""One pass over the network with two streams, dense and pruned, that solves each layer on arrival.

`walk` runs the operations in order and carries the values of the dense network and of the network
as pruned so far. At a layer it gathers samples of the inputs and of the dense outputs, solves the
layer, and the pruned stream goes on through the new weights: every layer is fitted to the inputs
that it will really get and to the outputs it should have given, so later layers make good what
earlier ones lost.

Peak memory: all images' live values at the widest cut of the network, twice (dense and pruned;
once until the first pruned layer and with `inputs="dense"`), plus for the widest layer, measured,
6 * cols^2 * 4 bytes: the sums of both halves of the images and what is made of them, and then as
much for the solve. A value is dropped after its last reader. Images are run in chunks. Methods
that train on patches add patches * (cols + rows) * 4 bytes for each of a few layers at a time.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import ChainMap, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.methods import Method, compares_halves, stored_patches
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution
from secateur.core.statistics import ChunkSums, Statistics, merged
from secateur.errors import NumericalError
from secateur.network.graph import Graph
from secateur.network.layers import BiasParameter, Layer, LayerCall
from secateur.network.sample_layout import Layout, Layouts, find_layouts
from secateur.network.stream import Stream
from secateur.pruning.reconstruction import Tuned
from secateur.pruning.sampling import Draw, Sampling

Inputs = Literal["pruned", "dense"]


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
    """

    layer: Layer
    kept: int
    relative_error: float
    damping: float
    samples: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Walked:
    """The result of a walk.

    Attributes:
        changes: new values by parameter name.
        results: one per layer, in execution order.
        steps: new values after each step of a method that improves another's solution, the
            last one equal to `changes`; only that one when layers differ in their steps.
        dense, pruned: the network's first output for all images; None where it has no row for
            each of them; `pruned` also when no pruned stream was run, or the network was changed
            after it.
        tuned: what tuning blocks did, where they were.
        before: what the network was pruned to on the way, where there was such a level.
        notes: what a reader of the report should know of the whole.
        kept: non-zero weights that each layer was to have.
        target: what was asked for.
    """

    changes: dict[str, Tensor]
    results: list[LayerResult]
    steps: list[dict[str, Tensor]]
    dense: Tensor | None
    pruned: Tensor | None
    tuned: Tuned | None = None
    before: Sequence[str] = ()
    notes: Sequence[str] = ()
    kept: Sequence[int] = ()
    target: Any = None


class _Samples(NamedTuple):
    """Some output positions of a chunk: (groups, samples, columns or rows)."""

    inputs: Tensor
    dense_inputs: Tensor
    outputs: Tensor  # less the bias
    middle: int  # where those of the second half of the images begin
    patches: Tensor  # which of them are stored


@dataclass
class _Block:
    """What a layer's fit needs of one chunk at one call.

    Attributes:
        call: the call.
        layout: which position belongs to which image; None where nothing is known.
        number: of the chunk and the call, in their order.
        first, images: the chunk's first image, and how many it has.
        inputs, outputs: what the layer gets, and what it should give.
        dense_inputs: what it gets in the dense network.
        bias: what the outputs hold that the weights do not make.
    """

    call: LayerCall
    layout: Layout | None
    number: int
    first: int
    images: int
    inputs: Tensor
    outputs: Tensor
    dense_inputs: Tensor
    bias: Tensor | None

    @property
    def constant(self) -> bool:
        """Whether the inputs are the same whatever the images are."""
        return self.layout is not None and self.layout.constant

    @property
    def has_halves(self) -> bool:
        """Whether the positions are known to belong to the images, each to one."""
        positions = self.call.geometry.count(self.outputs)
        return self.layout is not None and self.layout.has_samples(positions, self.images)

    @property
    def belongs_to_no_image(self) -> bool:
        """Whether it is a constant that is not repeated for each image."""
        return self.constant and not self.has_halves

    def sample(self, positions: Draw, patches: Draw | None) -> _Samples:
        """Samples of all images: those of even numbers first, which are one of the halves.

        Args:
            positions: which output positions to take of each image.
            patches: which of these to store.
        """
        geometry, shape = self.call.geometry, self.outputs.shape
        image, at = self._positions(self._own(positions))
        odd = (self.first + image) % 2
        order = odd.argsort(stable=True)
        chosen = at[order].to(self.outputs.device)
        x = geometry.inputs(self.inputs, chosen, shape)
        same = self.dense_inputs is self.inputs
        dense = x if same else geometry.inputs(self.dense_inputs, chosen, shape)
        y = geometry.outputs(self.outputs, chosen)
        y = y if self.bias is None else y - geometry.rows(self.bias).unsqueeze(1)
        stored = image[:0] if patches is None else _within(image, self._own(patches))
        stored = order.argsort()[stored].to(x.device)
        return _Samples(x, dense, y, int((odd == 0).sum()), stored)

    def _own(self, draw: Draw) -> Draw:
        """The part of a choice that is about this chunk: image by image, where they are known."""
        if self.belongs_to_no_image:  # and is sampled once
            return (draw if self.first == 0 else draw.part(0, 0)).merged()
        own = draw.part(self.first, self.images)
        return own.merged() if self.call.geometry.count(self.outputs) % self.images else own

    def _positions(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The image of each position that is sampled, and the position."""
        available = self.call.geometry.count(self.outputs)
        each = available // len(draw.counts)
        image, place = draw.choose(each)
        ranks = image * each + place
        if self.layout is None or self.belongs_to_no_image:
            return image, ranks
        return image, self.layout.positions(ranks, available, self.images)


def _within(image: Tensor, draw: Draw) -> Tensor:
    """Numbers of some of the items that lie in the order of their images."""
    counts = image.bincount(minlength=len(draw.counts))
    chosen, rank = draw.choose(counts)
    return (counts.cumsum(0) - counts)[chosen] + rank


class Walker:
    """Carries the streams through the network; `walk` is the way to use it."""

    def __init__(
        self,
        graph: Graph,
        images: Tensor,
        *,
        chunk: int,
        device: torch.device,
        inputs: Inputs,
        layouts: Layouts | None = None,
    ) -> None:
        self.graph, self.inputs, self.total, self.device = graph, inputs, len(images), device
        self.changes: dict[str, Tensor] = {}
        self.pruned_parameters = ChainMap(self.changes, dict(graph.parameters))
        images = images.to(device)
        self.layouts = find_layouts(graph, images) if layouts is None else layouts
        parts = images.split(chunk)
        self.images = [len(part) for part in parts]
        self.dense = [Stream(graph, graph.parameters, {graph.input: part}) for part in parts]
        self.pruned: list[Stream] | None = None

    def arrive(self, layer: Layer) -> list[_Block]:
        """Runs both streams up to a layer and returns what its fit needs, chunk by chunk."""
        first = layer.calls[0].op
        for stream in self.dense:
            stream.advance(first)
        if self.pruned is None and self.inputs == "pruned":
            self.pruned = [stream.fork(self.pruned_parameters) for stream in self.dense]
        begins = [0, *itertools.accumulate(self.images)]
        streams = zip(self.dense, self.pruned or self.dense, strict=True)
        blocks = [
            replace(block, first=begin, images=images)
            for (dense, pruned), begin, images in zip(streams, begins, self.images, strict=False)
            for block in self._blocks(layer, dense, pruned)
        ]
        return [replace(block, number=number) for number, block in enumerate(blocks)]

    def _blocks(self, layer: Layer, dense: Stream, pruned: Stream) -> Iterator[_Block]:
        pruned.advance(layer.calls[0].op)
        yield self._block(layer.calls[0], dense, pruned)
        if len(layer.calls) == 1:
            return
        # Later calls of a shared weight: run ahead with the weights as they are now, and come back.
        ahead = dense.fork(dense.parameters)
        twin = ahead if pruned is dense else pruned.fork(pruned.parameters)
        for call in layer.calls[1:]:
            ahead.advance(call.op)
            twin.advance(call.op)
            yield self._block(call, ahead, twin)

    def _block(self, call: LayerCall, dense: Stream, pruned: Stream) -> _Block:
        inputs, dense_inputs = pruned.value(call.input), dense.value(call.input)
        bias = None if call.bias is None else dense.value(call.bias)
        dense.advance(call.op + 1)
        outputs = dense.values[self.graph.ops[call.op].name]
        layout = self.layouts.get(call.op)
        return _Block(call, layout, 0, 0, 0, inputs, outputs, dense_inputs, bias)

    def outputs(self, streams: list[Stream] | None) -> Tensor | None:
        """Runs streams to the end; the first output for all images, if it has a row for each."""
        if streams is None:
            return None
        for stream in streams:
            stream.advance(len(self.graph.ops))
        first = [stream.values[self.graph.outputs[0]] for stream in streams]
        rows = [len(part) if isinstance(part, Tensor) and part.dim() else 0 for part in first]
        return torch.cat(first) if rows == self.images else None


@torch.no_grad()
def outputs(graph: Graph, images: Float[Tensor, "batch ..."], *, chunk: int) -> Tensor | None:
    """The network's first output for all images; None where it has no row for each of them."""
    walker = Walker(graph, images, chunk=chunk, device=images.device, inputs="dense", layouts={})
    return walker.outputs(walker.dense)


def walk(
    graph: Graph,
    images: Float[Tensor, "batch ..."],
    layers: Sequence[Layer],
    kept: Sequence[int],
    *,
    method: Method,
    pattern: Pattern,
    inputs: Inputs = "pruned",
    start: Mapping[str, Tensor] | None = None,
    sampling: Sampling | None = None,
    layouts: Layouts | None = None,
    chunk: int = 32,
    device: torch.device | None = None,
    on_layer: Callable[[LayerResult], Any] = lambda result: None,
) -> Walked:
    """Solves the layers in execution order in one pass over the network.

    Args:
        graph: the dense network.
        images: calibration inputs, batch first.
        layers: the layers to prune, in execution order.
        kept: non-zero weights to leave in each of them.
        method, pattern: which zeros, and what the other weights become.
        inputs: "pruned" fits a layer to the inputs it will get, "dense" (the paper) to those
            of the dense network, each layer on its own.
        start: weights by parameter name that methods start from (and damp to) in place of the
            dense ones; the outputs to come close to are the dense network's all the same.
        sampling: how many output positions are used; None = the defaults.
        layouts: which position belongs to which image, as `find_layouts` finds it; None = it is
            found out here.
        chunk: images per run of an operation.
        device: where to run; None = where the images are.
        on_layer: called after each layer.

    Returns:
        The new parameters and what happened, layer by layer.

    Raises:
        NumericalError: values become NaN or infinite, or a layer cannot be solved; names it.
    """
    sampling = sampling or Sampling()
    device = device or images.device
    walker = Walker(graph, images, chunk=chunk, device=device, inputs=inputs, layouts=layouts)
    results: list[LayerResult] = []
    ways: list[list[dict[str, Tensor]]] = []

    def finish(solved: Solved) -> None:
        walker.changes.update(solved.changes[-1])
        ways.append(solved.changes)
        results.append(solved.result)
        on_layer(solved.result)

    with torch.no_grad(), _Workers(finish, method, inputs, walker.device) as workers:
        for index, (layer, count) in enumerate(zip(layers, kept, strict=True)):
            blocks = walker.arrive(layer)
            fit = Fit(layer, blocks, walker.total, sampling, index, graph, start or {})
            workers.solve(fit, method, pattern, count)
            del blocks, fit  # they hold activations that the streams may drop
        workers.finish()
        pruned = walker.outputs(walker.pruned)
        dense = walker.outputs(walker.dense)
    for outputs in (dense, pruned):
        if outputs is not None and not outputs.isfinite().all():
            raise NumericalError(
                "the network's outputs are NaN or Inf, expected finite numbers: "
                "check the images' scaling and the weights after the last pruned layer"
            )
    return Walked(walker.changes, results, _steps(ways), dense, pruned)


def _steps(ways: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """The network's changes step by step, where all layers went the same number of steps."""
    if len({len(way) for way in ways}) != 1:
        ways = [way[-1:] for way in ways]
    return [
        {name: value for changes in step for name, value in changes.items()}
        for step in zip(*ways, strict=True)
    ]


class _Workers:
    """Solves layers at once, or several at a time where they do not depend on each other.

    With dense inputs no layer waits for another's solution. Methods that train on patches take
    many small steps, which one thread does as fast as several: so each core gets a layer. Others
    use all cores by themselves.
    """

    def __init__(
        self,
        finish: Callable[[Solved], None],
        method: Method,
        inputs: Inputs,
        device: torch.device,
    ) -> None:
        several = inputs == "dense" and device.type == "cpu" and stored_patches(method) > 0
        self.threads = torch.get_num_threads()
        self.pool = (
            ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
            if several
            else None
        )
        self.pending: deque[Future[Solved]] = deque()
        self.on_solved = finish

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=kind is not None)
            torch.set_num_threads(self.threads)

    def solve(self, fit: Fit, method: Method, pattern: Pattern, kept: int) -> None:
        """Solves a layer; the layers' results come out in the order they were given."""
        if self.pool is None or fit.in_blocks:
            self.finish()
            self.on_solved(fit.solve(method, pattern, kept))
            return
        problem = fit.problem(method)
        fit.blocks = []
        while len(self.pending) > self.threads:  # bounds the problems held
            self.on_solved(self.pending.popleft().result())
        self.pending.append(self.pool.submit(self._alone, fit, problem, method, pattern, kept))

    def _alone(self, fit: Fit, problem: Problem, *arguments: Any) -> Solved:
        with torch.no_grad():  # which holds for one thread only
            return fit.solve_problem(problem, *arguments)

    def finish(self) -> None:
        """Waits for the layers under way."""
        while self.pending:
            self.on_solved(self.pending.popleft().result())


@dataclass(frozen=True)
class Solved:
    """A layer's result and its new values after each step of the method."""

    result: LayerResult
    changes: list[dict[str, Tensor]]


@dataclass
class Fit:
    """The fit of one layer: in one piece, or in blocks of columns when it is wide."""

    layer: Layer
    blocks: list[_Block]
    images: int
    sampling: Sampling
    index: int
    graph: Graph
    start: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        name = self.layer.parameter
        assert name is not None
        self.geometry = self.layer.calls[0].geometry
        self.dense = self.geometry.matrix(self.graph.parameters[name])
        self.scale = row_scale(self.layer, self.dense)
        begin = self.start.get(name)
        self.matrix = self.dense if begin is None else self.geometry.matrix(begin)
        self.free = self.dense != 0  # zeros of the dense network are never filled
        self.constant = all(block.constant for block in self.blocks)

    @property
    def in_blocks(self) -> bool:
        """Whether the layer is too wide for one piece."""
        return self.layer.columns > self.sampling.max_columns

    def solve(self, method: Method, pattern: Pattern, kept: int) -> Solved:
        """Gathers statistics and solves, block of columns by block of columns."""
        if not self.in_blocks:
            return self.solve_problem(self.problem(method), method, pattern, kept)
        bounds = self._bounds()
        size = (self.matrix * self.scale.unsqueeze(-1)).abs()
        kept = min(kept, int(self.free.sum()))
        shares = _shares(torch.where(self.free, size, -1.0), bounds, kept)
        new = self.dense.clone()
        solutions, problem = [], None
        for columns, share in zip(bounds, shares, strict=True):
            problem = self.problem(method, new, columns)
            solutions.append(_named(self.layer, method.solve, problem, pattern, share))
            new[..., columns] = solutions[-1].weight / self.scale.unsqueeze(-1)
        assert problem is not None
        note = f"{self.layer.columns} columns fitted in {len(bounds)} blocks"
        return self._solved(solutions, problem, note)

    def solve_all(self, method: Method, pattern: Pattern, kept: Sequence[int]) -> list[Solved]:
        """Solves for several numbers of kept weights, from the same statistics where it can."""
        if self.in_blocks:
            return [self.solve(method, pattern, count) for count in kept]
        problem = self.problem(method)
        return [self.solve_problem(problem, method, pattern, count) for count in kept]

    def solve_problem(
        self, problem: Problem, method: Method, pattern: Pattern, kept: int
    ) -> Solved:
        """Solves a layer in one piece."""
        return self._solved([_named(self.layer, method.solve, problem, pattern, kept)], problem)

    def problem(
        self, method: Method, new: Tensor | None = None, columns: slice = slice(None)
    ) -> Problem:
        """The problem of the layer, or of some columns given the others' `new` weights."""
        found = self._statistics(method, new, columns)
        halves = None
        if len(found) == 2 and all(half.samples for half in found):
            halves = self._problem(found[0], columns), self._problem(found[1], columns)
        whole = merged(found)
        del found  # the second half's sums
        problem = self._problem(whole, columns)
        self._check(problem.gram, problem.cross)
        return replace(
            problem,
            halves=halves,
            no_halves=self._no_halves,
            samples=min(problem.samples, self._different),
        )

    @property
    def _different(self) -> int:
        """Positions that differ from each other, at most: a constant is repeated for each image."""
        if not self.constant:
            return sys.maxsize
        return sum({of.call.op: of.layout.count for of in self.blocks if of.layout}.values())

    @cached_property
    def _no_halves(self) -> str:
        """Why the halves of the images cannot be kept apart; empty where they can."""
        if self.constant:
            return "its input does not depend on the images"
        if self.images < 2:
            return "there is one image"
        if any(block.layout is None for block in self.blocks):
            return "all images are the same"
        if not all(block.has_halves or block.constant for block in self.blocks):
            return "its output positions cannot be told apart by image"
        return ""

    def _problem(self, statistics: Statistics, columns: slice) -> Problem:
        problem = statistics.problem(
            self.matrix[..., columns], scale=self.scale, fits_bias=self.layer.bias is not None
        )
        free = self.free[..., columns]
        return problem if free.all() else replace(problem, free=free)

    def _solved(self, solutions: list[Solution], last: Problem, *notes: str) -> Solved:
        steps = [
            self._changes(parts) for parts in zip(*(s.steps() for s in solutions), strict=True)
        ]
        found = solutions[-1]
        result = LayerResult(
            layer=self.layer,
            kept=int(steps[-1][str(self.layer.parameter)].count_nonzero()),
            relative_error=last.relative_error(found.weight, _zero_if_left(found, self.layer)),
            damping=max(solution.damping for solution in solutions),
            samples=last.samples,
            notes=self._notes(solutions, notes),
        )
        return Solved(result, steps)

    def _changes(self, solutions: Sequence[Solution]) -> dict[str, Tensor]:
        """The layer's new weight and bias by parameter name."""
        layer, bias = self.layer, solutions[-1].bias
        matrix = torch.cat([part.weight for part in solutions], -1) / self.scale.unsqueeze(-1)
        matrix = torch.where(self.free, matrix, 0.0) + 0.0  # zeros without a sign
        changes = {str(layer.parameter): self.geometry.weight(matrix, layer.shape)}
        if bias is not None and layer.bias is not None:
            place: BiasParameter = layer.bias
            change = place.sign * (bias / self.scale).flatten()
            changes[place.name] = self.graph.parameters[place.name] + change
        return changes

    def _bounds(self) -> list[slice]:
        parts = math.ceil(self.layer.columns / self.sampling.max_columns)
        width = math.ceil(self.layer.columns / parts)
        return [slice(at, at + width) for at in range(0, self.layer.columns, width)]

    def _statistics(self, method: Method, new: Tensor | None, columns: slice) -> list[Statistics]:
        """Sums for a block of columns: of all images, or of each half where the method asks so.

        The other columns' share is taken out of the outputs. Columns already solved count as
        they will be deployed, so that each block makes good what the earlier ones lost; columns
        to come count as in the dense network.
        """
        apart = compares_halves(method) and not self._no_halves
        halves = [Statistics() for _ in range(2 if apart else 1)]
        draws = self._draws(stored_patches(method))
        patches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for block in self.blocks:
            x, dense_x, dense_y, middle, stored = block.sample(*draws[block.call.op])
            y = dense_y
            if new is not None:
                y = y - x[..., : columns.start] @ new[..., : columns.start].mT
                y -= dense_x[..., columns.stop :] @ self.dense[..., columns.stop :].mT
            x = x[..., columns]
            if not apart or block.belongs_to_no_image:
                middle = x.shape[1]
            for half, at in zip(halves, (slice(middle), slice(middle, None)), strict=False):
                whole = None if new is None else dense_y[:, at]
                half.include(block.number, ChunkSums.of(x[:, at], y[:, at], whole))
            if len(stored):
                patches[block.call.op, block.first] = x[:, stored], y[:, stored]
        if not any(half.samples for half in halves):  # a layer on what was found in the images
            raise NumericalError(
                f"layer {self.layer.name}: it gets no input at all from the calibration images, "
                "expected some: add images, or leave it out with exclude"
            )
        for key in sorted(patches):  # in an order that does not depend on the chunks
            halves[0].store(*patches[key])
        return halves

    def _draws(self, patches: int) -> dict[int, tuple[Draw, Draw | None]]:
        """Which positions are sampled at each call, and which of these are stored."""
        calls = [call.op for call in self.layer.calls]
        positions = self.sampling.count(self.layer.columns)
        counts = [positions] * len(calls) + [patches] * len(calls) * (patches > 0)
        draws = self.sampling.draws(self.index, self.images, *counts)
        stored = draws[len(calls) :] or [None] * len(calls)
        return dict(zip(calls, zip(draws, stored, strict=False), strict=True))

    def _check(self, *tensors: Tensor) -> None:
        if all(bool(tensor.isfinite().all()) for tensor in tensors):
            return
        for block in self.blocks:
            for what, value in (("inputs", block.inputs), ("outputs", block.outputs)):
                if not value.isfinite().all():
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


def _shares(size: Tensor, bounds: list[slice], kept: int) -> list[int]:
    """Kept weights per block of columns: as many as the whole layer's largest have in it."""
    if len(bounds) == 1:
        return [kept]
    chosen = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
    chosen[torch.topk(size.flatten(), kept, sorted=False).indices] = True
    return [int(chosen.view_as(size)[..., columns].sum()) for columns in bounds]


def _named(layer: Layer, solve: Callable[..., Solution], *arguments: Any) -> Solution:
    try:
        return solve(*arguments)
    except NumericalError as error:
        raise NumericalError(f"layer {layer.name}: {error}") from error
