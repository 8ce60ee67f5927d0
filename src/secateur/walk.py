"""One pass over the network with two streams, dense and pruned, that solves each layer on arrival.

`walk` runs the operations in order and carries the values of the dense network and of the network
as pruned so far. At a layer it gathers samples of the inputs and of the dense outputs, solves the
layer, and the pruned stream goes on through the new weights: every layer is fitted to the inputs
that it will really get and to the outputs it should have given, so later layers make good what
earlier ones lost.

Peak memory: all images' live values at the widest cut of the network, twice (dense and pruned;
once until the first pruned layer and with `inputs="dense"`), plus for the widest layer about
6 * cols^2 * 4 bytes. A value is dropped after its last reader. Images are run in chunks.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import NumericalError
from secateur.geometry import sample_positions
from secateur.graph import BiasSlot, Graph, Layer, Use, last_reads
from secateur.methods import Method
from secateur.patterns import Pattern
from secateur.problem import Solution, Statistics

Inputs = Literal["pruned", "dense"]


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What happened to a layer.

    Attributes:
        layer: the layer.
        kept: non-zero weights.
        relative_error: mean squared output error over the outputs' variance, on the samples.
        damping: relative damping of the solve, the largest of the column blocks.
        samples: output positions sampled.
        notes: what a reader of the report should know.
    """

    layer: Layer
    kept: int
    relative_error: float
    damping: float
    samples: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How many output positions a layer's statistics are taken from.

    Attributes:
        per_column: samples per column of the layer.
        least: samples at least, where the layer has as many.
        max_columns: wider layers are fitted in blocks of at most this many columns.
        seed: of the generator that picks the positions.
    """

    per_column: int = 16
    least: int = 8192
    max_columns: int = 8192
    seed: int = 0

    def count(self, columns: int) -> int:
        """Samples to take for a layer."""
        return max(self.least, self.per_column * min(columns, self.max_columns))


@dataclass(frozen=True)
class Walked:
    """The result of a walk.

    Attributes:
        changes: new values by parameter name.
        results: one per layer, in execution order.
        dense, pruned: the network's first output for all images; `pruned` is None when
            no pruned stream was run.
    """

    changes: dict[str, Tensor]
    results: list[LayerResult]
    dense: Tensor | None
    pruned: Tensor | None


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

    def fork(self, parameters: Mapping[str, Tensor]) -> Stream:
        """A stream that goes on from the same values (shared, not copied)."""
        twin = Stream.__new__(Stream)
        twin.graph, twin.parameters, twin.at = self.graph, parameters, self.at
        twin.values, twin.dead = dict(self.values), self.dead
        return twin


@dataclass
class _Block:
    """What a layer's fit needs of one chunk at one use."""

    use: Use
    images: int
    inputs: Tensor
    outputs: Tensor
    dense_inputs: Tensor
    bias: Tensor | None

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Patches of the inputs and of the dense inputs, and the outputs less the bias."""
        geometry, shape = self.use.geometry, self.outputs.shape
        positions = sample_positions(geometry.count(self.outputs), count, generator)
        positions = positions.to(self.outputs.device)
        x = geometry.inputs(self.inputs, positions, shape)
        same = self.dense_inputs is self.inputs
        dense = x if same else geometry.inputs(self.dense_inputs, positions, shape)
        y = geometry.outputs(self.outputs, positions)
        return x, dense, y if self.bias is None else y - geometry.rows(self.bias).unsqueeze(1)


class Walker:
    """Carries the streams through the network; `walk` is the way to use it."""

    def __init__(
        self, graph: Graph, images: Tensor, *, chunk: int, device: torch.device, inputs: Inputs
    ) -> None:
        self.graph, self.inputs, self.total = graph, inputs, len(images)
        self.changes: dict[str, Tensor] = {}
        self.pruned_parameters = ChainMap(self.changes, dict(graph.parameters))
        self.dense = [
            Stream(graph, graph.parameters, {graph.input: part})
            for part in images.to(device).split(chunk)
        ]
        self.pruned: list[Stream] | None = None

    def arrive(self, layer: Layer) -> list[_Block]:
        """Runs both streams up to a layer and returns what its fit needs, chunk by chunk."""
        first = layer.uses[0].op
        for stream in self.dense:
            stream.advance(first)
        if self.pruned is None and self.inputs == "pruned":
            self.pruned = [stream.fork(self.pruned_parameters) for stream in self.dense]
        return [
            block
            for dense, pruned in zip(self.dense, self.pruned or self.dense, strict=True)
            for block in self._blocks(layer, dense, pruned)
        ]

    def _blocks(self, layer: Layer, dense: Stream, pruned: Stream) -> Iterator[_Block]:
        images = len(dense.values[layer.uses[0].input])
        pruned.advance(layer.uses[0].op)
        yield self._block(layer.uses[0], images, dense, pruned)
        if len(layer.uses) == 1:
            return
        # Later uses of a shared weight: run ahead with the weights as they are now, and come back.
        ahead = dense.fork(dense.parameters)
        twin = ahead if pruned is dense else pruned.fork(pruned.parameters)
        for use in layer.uses[1:]:
            ahead.advance(use.op)
            twin.advance(use.op)
            yield self._block(use, images, ahead, twin)

    def _block(self, use: Use, images: int, dense: Stream, pruned: Stream) -> _Block:
        inputs, dense_inputs = pruned.values[use.input], dense.values[use.input]
        names = ChainMap(dense.values, dense.parameters)  # type: ignore[arg-type]
        bias = None if use.bias is None else names[use.bias]
        dense.advance(use.op + 1)
        outputs = dense.values[self.graph.ops[use.op].name]
        return _Block(use, images, inputs, outputs, dense_inputs, bias)

    def store(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
        """Puts a layer's new weight and change of bias into the pruned network."""
        old = self.graph.parameters
        assert layer.parameter is not None
        self.changes[layer.parameter] = weight
        if bias is not None and layer.bias is not None:
            slot: BiasSlot = layer.bias
            self.changes[slot.parameter] = old[slot.parameter] + slot.sign * bias

    def outputs(self, streams: list[Stream] | None) -> Tensor | None:
        """Runs streams to the end; the network's first output for all images."""
        if streams is None:
            return None
        for stream in streams:
            stream.advance(len(self.graph.ops))
        first = [stream.values[self.graph.outputs[0]] for stream in streams]
        return torch.cat(first) if all(isinstance(part, Tensor) for part in first) else None


def walk(
    graph: Graph,
    images: Float[Tensor, "batch ..."],
    layers: Sequence[Layer],
    kept: Sequence[int],
    *,
    method: Method,
    pattern: Pattern,
    inputs: Inputs = "pruned",
    sampling: Sampling | None = None,
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
        sampling: how many output positions are used; None = the defaults.
        chunk: images per run of an operation.
        device: where to run; None = where the images are.
        on_layer: called after each layer.

    Returns:
        The new parameters and what happened, layer by layer.

    Raises:
        NumericalError: values become NaN or infinite, or a layer cannot be solved; names it.
    """
    sampling = sampling or Sampling()
    walker = Walker(graph, images, chunk=chunk, device=device or images.device, inputs=inputs)
    results = []
    with torch.no_grad():
        for index, (layer, count) in enumerate(zip(layers, kept, strict=True)):
            blocks = walker.arrive(layer)
            fit = _Fit(layer, blocks, walker.total, sampling, index)
            weight, bias, result = fit.solve(graph, method, pattern, count)
            del blocks, fit  # they hold activations that the streams may drop
            walker.store(layer, weight, bias)
            results.append(result)
            on_layer(result)
        pruned = walker.outputs(walker.pruned)
        dense = walker.outputs(walker.dense)
    for outputs in (dense, pruned):
        if outputs is not None and not outputs.isfinite().all():
            raise NumericalError(
                "the network's outputs are NaN or Inf, expected finite numbers: "
                "check the images' scaling and the weights after the last pruned layer"
            )
    return Walked(walker.changes, results, dense, pruned)


@dataclass
class _Fit:
    """The fit of one layer: in one piece, or in blocks of columns when it is wide."""

    layer: Layer
    blocks: list[_Block]
    images: int
    sampling: Sampling
    index: int

    def solve(
        self, graph: Graph, method: Method, pattern: Pattern, kept: int
    ) -> tuple[Tensor, Tensor | None, LayerResult]:
        layer = self.layer
        assert layer.parameter is not None
        geometry = layer.uses[0].geometry
        dense = graph.parameters[layer.parameter]
        matrix = geometry.matrix(dense)
        scale = slope(layer, matrix)
        new = matrix.clone()
        solutions, error, samples = [], 0.0, 0
        bounds = self._bounds()
        shares = _shares(matrix * scale.unsqueeze(-1), bounds, kept)
        for columns, share in zip(bounds, shares, strict=True):
            statistics = self._statistics(matrix, new, columns)
            problem = statistics.problem(
                matrix[..., columns], scale=scale, fits_bias=layer.bias is not None
            )
            self._check(problem.gram, problem.cross)
            samples = problem.samples
            solution = _named(layer, method.solve, problem, pattern, share)
            error = problem.relative_error(solution.weight, _zero_if_left(solution, layer))
            solutions.append(solution)
            new[..., columns] = solution.weight / scale.unsqueeze(-1)
        bias = solutions[-1].bias
        result = LayerResult(
            layer=layer,
            kept=int(new.count_nonzero()),
            relative_error=error,
            damping=max(solution.damping for solution in solutions),
            samples=samples,
            notes=self._notes(solutions, bounds),
        )
        change = None if bias is None else (bias / scale).flatten()
        return geometry.weight(new, layer.shape), change, result

    def _bounds(self) -> list[slice]:
        parts = math.ceil(self.layer.columns / self.sampling.max_columns)
        width = math.ceil(self.layer.columns / parts)
        return [slice(at, at + width) for at in range(0, self.layer.columns, width)]

    def _statistics(self, dense: Tensor, new: Tensor, columns: slice) -> Statistics:
        """Sums for a block of columns; the other columns' share is taken out of the outputs.

        Columns already solved count as they will be deployed, so that each block makes good what
        the earlier ones lost; columns to come count as in the dense network.
        """
        statistics = Statistics()
        generator = torch.Generator().manual_seed(self.sampling.seed * 1_000_003 + self.index)
        total = self.sampling.count(self.layer.columns)
        for block in self.blocks:
            count = math.ceil(total * block.images / self.images)
            x, dense_x, y = block.sample(count, generator)
            if columns.stop - columns.start < self.layer.columns:
                y = y - x[..., : columns.start] @ new[..., : columns.start].mT
                y -= dense_x[..., columns.stop :] @ dense[..., columns.stop :].mT
            statistics.add(x[..., columns], y)
        return statistics

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

    def _notes(self, solutions: list[Solution], bounds: list[slice]) -> tuple[str, ...]:
        notes = [note for solution in solutions for note in solution.notes]
        if len(bounds) > 1:
            notes.append(f"{self.layer.columns} columns fitted in {len(bounds)} blocks")
        if self.layer.bias is None:
            notes.append("no place for a bias: none fitted")
        if len(self.layer.uses) > 1:
            notes.append(f"weight used {len(self.layer.uses)} times: one fit for all")
        return tuple(dict.fromkeys(notes))


def folded_weight(graph: Graph, layer: Layer) -> Float[Tensor, "groups rows cols"]:
    """A layer's dense weight matrix with a following BatchNorm's slope in its rows."""
    assert layer.parameter is not None
    matrix = layer.uses[0].geometry.matrix(graph.parameters[layer.parameter])
    return matrix * slope(layer, matrix).unsqueeze(-1)


def slope(layer: Layer, matrix: Tensor) -> Float[Tensor, "groups rows"]:
    """The following BatchNorm's slope per row; where it is 0, a tiny share of the largest."""
    if layer.scale is None:
        return torch.ones(matrix.shape[:2], dtype=matrix.dtype, device=matrix.device)
    scale = layer.uses[0].geometry.rows(layer.scale).abs()
    return scale.clamp_min(max(1e-6 * float(scale.max()), 1e-12)).to(matrix)


def _zero_if_left(solution: Solution, layer: Layer) -> Tensor | None:
    """The bias that the solution leads to: its own, none where there is no place or no change."""
    if solution.bias is not None and layer.bias is not None:
        return solution.bias
    return torch.zeros_like(solution.weight[..., 0])


def _shares(weight: Tensor, bounds: list[slice], kept: int) -> list[int]:
    """Kept weights per block of columns: as many as the whole layer's largest have in it."""
    if len(bounds) == 1:
        return [kept]
    chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    chosen[torch.topk(weight.abs().flatten(), kept, sorted=False).indices] = True
    return [int(chosen.view_as(weight)[..., columns].sum()) for columns in bounds]


def _named(layer: Layer, solve: Callable[..., Solution], *arguments: Any) -> Solution:
    try:
        return solve(*arguments)
    except NumericalError as error:
        raise NumericalError(f"layer {layer.name}: {error}") from error
