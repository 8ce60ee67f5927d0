"""Statistics of one layer, gathered bundle by bundle, in all processes that have chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.methods import Method, needs_folds, stored_patches
from secateur.core.statistics import ChunkSums, Statistics
from secateur.errors import NumericalError
from secateur.pruning.sampling import Draw, Sampling
from secateur.pruning.streams import Bundle, LayerChunk, LayerChunks

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
class FoldRows:
    """The sampled positions of one fold in one chunk.

    Attributes:
        inputs, outputs: of the columns that are fitted.
        whole: what the dense layer makes of all columns, where that is not in the outputs.
    """

    inputs: Tensor
    outputs: Tensor
    whole: Tensor | None


@dataclass(frozen=True)
class ChunkRows:
    """The sampled positions of one chunk at one call.

    Attributes:
        first: number of the chunk's first sample.
        folds: of each fold.
        stored: samples that are kept as they are.
        derives: whether the outputs are what the dense weights make of the inputs.
        mixed: whether nobody knows which position belongs to which sample.
    """

    first: int
    folds: list[FoldRows]
    stored: tuple[Tensor, Tensor] | None
    derives: bool
    mixed: bool


@dataclass(frozen=True)
class CallSums:
    """What a bundle of chunks gives at one call.

    Attributes:
        call: the number of its operation.
        number: of the bundle and the call, in their order.
        folds: the sums of each fold; None where it has none of the samples.
        stored: samples that are kept as they are, by the number of their chunk's first sample.
        mixed: whether nobody knows which position belongs to which sample.
    """

    call: int
    number: int
    folds: list[ChunkSums | None]
    stored: dict[int, tuple[Tensor, Tensor]]
    mixed: bool


class Gathering:
    """Statistics of a layer: of all samples, or of each fold where the method needs them.

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
        for bundle in chunks.bundles:
            owner = group.owner(bundle.number)
            if owner == group.rank:
                for sums in self.sums(bundle):
                    self.include(sums) if solver == group.rank else group.send(sums, solver)
            elif solver == group.rank:
                for _ in chunks.layer.calls:
                    self.include(group.receive(owner))
        return solver == group.rank

    def sums(self, bundle: Bundle) -> Iterator[CallSums]:
        """The sums of a bundle at each call."""
        calls = [call.op for call in self.chunks.layer.calls]
        rows: dict[int, list[ChunkRows]] = {call: [] for call in calls}
        for number in bundle.chunks:
            for chunk in self.chunks.of(number):
                rows[chunk.call.op].append(self.rows(chunk))
                del chunk  # before the next one is run
        for index, call in enumerate(calls):
            parts = rows.pop(call)
            weight = self.dense if all(part.derives for part in parts) else None
            yield CallSums(
                call=call,
                number=bundle.number * len(calls) + index,
                folds=[_summed(of, weight) for of in zip(*(p.folds for p in parts), strict=True)],
                stored={part.first: part.stored for part in parts if part.stored is not None},
                mixed=any(part.mixed for part in parts),
            )

    def rows(self, chunk: LayerChunk) -> ChunkRows:
        """The positions of one chunk that are sampled."""
        sampled = chunk.sample(*self.draws[chunk.call.op])
        x, y = sampled.inputs, sampled.outputs
        whole = None
        if self.block is not None:
            columns, new, whole = self.block.where, self.block.new, y
            y = y - x[..., : columns.start] @ new[..., : columns.start].mT
            y -= sampled.dense_inputs[..., columns.stop :] @ self.dense[..., columns.stop :].mT
            x = x[..., columns]
        middle = sampled.middle if len(self.folds) == 2 else x.shape[1]
        halves = [slice(middle), slice(middle, None)][: len(self.folds)]
        return ChunkRows(
            first=chunk.first,
            folds=[
                FoldRows(x[:, at], y[:, at], None if whole is None else whole[:, at])
                for at in halves
            ],
            stored=(x[:, sampled.patches], y[:, sampled.patches]) if len(sampled.patches) else None,
            derives=sampled.is_dense and self.block is None,
            mixed=not (chunk.has_samples or chunk.is_shared),
        )

    def include(self, sums: CallSums) -> None:
        """Adds them."""
        for fold, part in zip(self.folds, sums.folds, strict=True):
            fold.include(sums.number, part)
        for first, stored in sums.stored.items():
            self.patches[sums.call, first] = stored
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


def _summed(parts: Sequence[FoldRows], weight: Tensor | None) -> ChunkSums | None:
    """The sums of some chunks' rows of a fold, multiplied together.

    Args:
        parts: the rows, chunk by chunk.
        weight: see `ChunkSums.of`.
    """
    inputs = torch.cat([part.inputs for part in parts], 1)
    outputs = torch.cat([part.outputs for part in parts], 1)
    wholes = [part.whole for part in parts if part.whole is not None]
    return ChunkSums.of(inputs, outputs, torch.cat(wholes, 1) if wholes else None, weight)
