"""Statistics of one layer, gathered chunk by chunk, in all processes that have chunks."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from secateur.core.methods import Method, needs_folds, stored_patches
from secateur.core.statistics import ChunkSums, Statistics
from secateur.errors import NumericalError
from secateur.pruning.sampling import Draw, Sampling
from secateur.pruning.streams import LayerChunk, LayerChunks

MIXED = "its output positions cannot be told apart by image"  # why there are no folds


@dataclass(frozen=True)
class ColumnBlock:
    """A block of a wide layer's columns.

    Attributes:
        where: which columns.
        new: weights of the layer; of the columns before these they are solved.
    """

    where: slice
    new: Tensor


@dataclass(frozen=True)
class CallSums:
    """What a chunk of samples gives at one call.

    Attributes:
        call, number, first: of the chunk, see `LayerChunk`.
        folds: the sums of each fold; None where it has none of the samples.
        stored: samples that are kept as they are.
        mixed: whether nobody knows which position belongs to which sample.
    """

    call: int
    number: int
    first: int
    folds: list[ChunkSums | None]
    stored: tuple[Tensor, Tensor] | None
    mixed: bool


class Gathering:
    """Statistics of a layer's chunks: of all samples, or of each fold where the method needs them.

    Of a block of columns the other columns' share is taken out of the outputs. Columns already
    solved count as they will be deployed, so that each block compensates for the errors of earlier
    ones; columns to come count as in the dense network.
    """

    def __init__(
        self,
        chunks: LayerChunks,
        method: Method,
        *,
        index: int,
        sampling: Sampling,
        dense: Float[Tensor, "groups rows cols"],
        block: ColumnBlock | None = None,
        no_folds: str = "",
    ) -> None:
        """Chooses the positions that are sampled.

        Args:
            chunks: of the layer.
            method: which solves it; tells whether it needs folds, and samples as they are.
            index: number of the layer among those that are fitted.
            sampling: how many output positions are used.
            dense: the layer's weights in the dense network.
            block: the columns; None = all.
            no_folds: why the samples cannot be split into folds; empty where they can.
        """
        self.chunks, self.dense, self.block, self.no_folds = chunks, dense, block, no_folds
        self.index, self.sampling = index, sampling
        apart = needs_folds(method) and not no_folds
        self.folds = [Statistics() for _ in range(2 if apart else 1)]
        self.draws = self._draws(stored_patches(method))
        self.patches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _draws(self, patches: int) -> dict[int, tuple[Draw, Draw | None]]:
        """Which positions are sampled at each call, and which of these are stored."""
        layer, calls = self.chunks.layer, [call.op for call in self.chunks.layer.calls]
        positions = self.sampling.count(layer.columns)
        counts = [positions] * len(calls) + [patches] * len(calls) * (patches > 0)
        draws = self.sampling.draws(self.index, self.chunks.samples, *counts)
        stored = draws[len(calls) :] or [None] * len(calls)
        return dict(zip(calls, zip(draws, stored, strict=False), strict=True))

    def run(self, solver: int) -> bool:
        """Runs through the chunks, those of each process there; whether this one has all sums."""
        group, chunks = self.chunks.group, self.chunks
        for number in range(len(chunks)):
            owner = group.owner(number)
            if owner == group.rank:
                for chunk in chunks.of(number):
                    sums = self.sums(chunk)
                    del chunk  # before the next one is run
                    self.include(sums) if solver == group.rank else group.send(sums, solver)
            elif solver == group.rank:
                for _ in chunks.layer.calls:
                    self.include(group.receive(owner))
        return solver == group.rank

    def sums(self, chunk: LayerChunk) -> CallSums:
        """The sums of one chunk."""
        sampled = chunk.sample(*self.draws[chunk.call.op])
        x, y = sampled.inputs, sampled.outputs
        whole = None
        if self.block is not None:
            columns, new, whole = self.block.where, self.block.new, y
            y = y - x[..., : columns.start] @ new[..., : columns.start].mT
            y -= sampled.dense_inputs[..., columns.stop :] @ self.dense[..., columns.stop :].mT
            x = x[..., columns]
        weight = self.dense if sampled.is_dense and self.block is None else None
        middle = sampled.middle if len(self.folds) == 2 else x.shape[1]
        folds: list[ChunkSums | None] = []
        for _, at in zip(self.folds, (slice(middle), slice(middle, None)), strict=False):
            part = None if whole is None else whole[:, at]
            folds.append(ChunkSums.of(x[:, at], y[:, at], part, weight))
        stored = (x[:, sampled.patches], y[:, sampled.patches]) if len(sampled.patches) else None
        mixed = not (chunk.has_samples or chunk.is_shared)
        return CallSums(chunk.call.op, chunk.number, chunk.first, folds, stored, mixed)

    def include(self, sums: CallSums) -> None:
        """Adds them."""
        for fold, part in zip(self.folds, sums.folds, strict=True):
            fold.include(sums.number, part)
        if sums.stored is not None:
            self.patches[sums.call, sums.first] = sums.stored
        if sums.mixed:
            self.no_folds = self.no_folds or MIXED

    def statistics(self) -> list[Statistics]:
        """The sums of each fold, and the stored samples in an order that is the same always."""
        if not any(fold.samples for fold in self.folds):  # a layer on what was found in the images
            raise NumericalError(
                f"layer {self.chunks.layer.name}: it gets no input at all from the calibration "
                "images, expected some: add images, or leave it out with exclude"
            )
        for key in sorted(self.patches):
            self.folds[0].store(*self.patches[key])
        return self.folds
