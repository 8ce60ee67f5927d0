"""What a block of the network should give, and how far from it outputs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secateur.core.outputs import counts_positions, rows_of
from secateur.core.precision import widened
from secateur.network.cuts import Block
from secateur.network.samples import Samples

_PART = 8  # samples whose squares are added up at a time


@dataclass(frozen=True)
class Goal:
    """What a block should give.

    Attributes:
        values: those of the dense network, but for what is carried past the block.
        mask: which positions of each sample count, (samples, positions); None = all.
    """

    values: Samples
    mask: Tensor | None

    @classmethod
    def of(cls, target: Samples, block: Block, mask: Tensor | None) -> Goal:
        """Of what a block gives in the dense network."""
        values = {name: of for name, of in target.tensors.items() if name not in block.carried}
        return cls(replace(target, tensors=values), mask)

    def select(self, rows: Tensor) -> Goal:
        """That of some samples."""
        return Goal(self.values.select(rows), self.select_mask(rows))

    def select_mask(self, rows: Tensor) -> Tensor | None:
        """Which positions of some samples count."""
        return None if self.mask is None else self.mask[rows]

    def variances(self, release: Callable[[], Any] = lambda: None) -> dict[str, Tensor]:
        """By name, of what counts; added up a few samples at a time.

        Args:
            release: called after these.
        """
        parts = len(self.values.split(_PART))
        rows = [slice(at * _PART, (at + 1) * _PART) for at in range(parts)]
        masks = [None if self.mask is None else self.mask[at] for at in rows]

        def sums(of: Tensor, center: Tensor | float, power: int) -> tuple[int, Tensor]:
            count, total = 0, widened(of.new_zeros(()))
            for at, mask in zip(rows, masks, strict=True):
                real = rows_of(of[at], mask) if counts_positions(of[at], mask) else of[at]
                count, total = (
                    count + real.numel(),
                    total + (widened(real) - center).pow(power).sum(),
                )
                release()
            return count, total

        found: dict[str, Tensor] = {}
        for name, of in self.values.tensors.items():
            count, total = sums(of, 0.0, 1)
            _, squares = sums(of, total / count, 2)
            found[name] = (squares / count).to(of.dtype).clamp_min(torch.finfo(of.dtype).tiny)
        return found

    def distance(self, outputs: Samples, variances: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error relative to given variances; the mean over several values."""
        errors = [
            (self._real(outputs.tensors[name]) - self._real(of)).square().mean() / variances[name]
            for name, of in self.values.tensors.items()
        ]
        return torch.stack(errors).mean()

    def error(self, outputs: Samples) -> float:
        """The same, in float32 at least, relative to the variances of what is wanted."""
        whole = Goal(self.values.map(Tensor.float), self.mask)
        return float(whole.distance(outputs, whole.variances()))

    def _real(self, value: Tensor) -> Tensor:
        """What is no padding, where the value has the positions of the mask."""
        return rows_of(value, self.mask) if counts_positions(value, self.mask) else value
