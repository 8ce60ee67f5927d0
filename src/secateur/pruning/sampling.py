"""Which output positions of a layer its statistics are taken from.

Which positions of a sample are used depends on the seed, the layer and the number of the sample
only: not on how the samples are grouped into chunks, nor on the order in which these are run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.support.settings import SEEDS, at_least, check_settings


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How many output positions a layer's statistics are taken from.

    Attributes:
        per_column: positions per column of the layer.
        least: positions at least, where the layer has as many.
        max_columns: wider layers are fitted in blocks of at most this many columns.
        seed: of the generator that picks the positions.
    """

    per_column: int = 16
    least: int = 8192
    max_columns: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self,
            per_column=at_least(1),
            least=at_least(1),
            max_columns=at_least(1),
            seed=SEEDS,
        )

    def count(self, columns: int) -> int:
        """Positions to take of a layer, of all samples together."""
        return max(self.least, self.per_column * min(columns, self.max_columns))

    def draws(self, layer: int, samples: int, *counts: int) -> list[Draw]:
        """Random choices for a layer, one for each of `counts`.

        Args:
            layer: its number.
            samples: how many there are.
            counts: how many items to choose, of all samples together.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
        return [Draw.of(samples, count, generator) for count in counts]


@dataclass(frozen=True)
class Draw:
    """A random choice of items of each sample: one from each of equal strata of its items.

    Strata spread what is chosen evenly over the places within a sample.

    Attributes:
        counts: items to choose of each sample.
        offsets: where in its stratum each of these lies, in [0, 1).
    """

    counts: Int[Tensor, " samples"]
    offsets: Float[Tensor, "samples most"]

    @classmethod
    def of(cls, samples: int, total: int, generator: torch.Generator) -> Draw:
        """A choice of `total` items in all, as evenly from the samples as can be."""
        counts = (torch.arange(samples + 1) * total // samples).diff()
        size = samples, int(counts.max())
        return cls(counts, torch.rand(size, generator=generator, dtype=torch.float64))

    def part(self, first: int, count: int) -> Draw:
        """The choice for some samples that follow each other."""
        return Draw(self.counts[first : first + count], self.offsets[first : first + count])

    def merged(self) -> Draw:
        """As many items of one sample that stands for all of these."""
        total = int(self.counts.sum())
        return Draw(self.counts.sum(0, keepdim=True), self.offsets.reshape(1, -1)[:, :total])

    def choose(
        self, available: int | Int[Tensor, " samples"]
    ) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
        """The sample and the place in it of each item chosen, in the order of the samples.

        Args:
            available: items that each sample has; all are chosen where they are not more than
                were asked for.
        """
        there = torch.as_tensor(available).expand(len(self.counts)).unsqueeze(1)
        counts = torch.minimum(self.counts.unsqueeze(1), there)
        stratum = torch.arange(self.offsets.shape[1]).expand_as(self.offsets)
        width = there.double() / counts.clamp_min(1)
        places = ((stratum + self.offsets) * width).floor().long()
        places = torch.where(counts == there, stratum, torch.minimum(places, there - 1))
        taken = stratum < counts
        return taken.nonzero()[:, 0], places[taken]
