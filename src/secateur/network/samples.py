"""What a network is run on: named tensors, with the samples on the first axis of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Inputs of a network, or all of its values at a cut.

    Attributes:
        tensors: of any type, by name, each with a row for each sample.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if len({shape[:1] for shape in shapes.values()} - {()}) != 1 or () in shapes.values():
            raise ValueError(f"got tensors of shapes {shapes}, expected as many rows in each")

    def __len__(self) -> int:
        """How many samples."""
        return len(next(iter(self.tensors.values())))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    @property
    def values_per_sample(self) -> int:
        """Numbers in each sample, of all tensors together."""
        return sum(tensor[:1].numel() for tensor in self.tensors.values())

    def only(self) -> Tensor:
        """The tensor, where there is one.

        Raises:
            ValueError: there are several.
        """
        if len(self.tensors) != 1:
            raise ValueError(f"got the inputs {', '.join(self.tensors)}, expected one")
        return next(iter(self.tensors.values()))

    def named(self, names: Sequence[str]) -> Samples:
        """The same tensors by other names, in the same order."""
        return Samples(dict(zip(names, self.tensors.values(), strict=True)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """Each tensor changed by a function that leaves the samples where they are."""
        return Samples({name: change(tensor) for name, tensor in self.tensors.items()})

    def select(self, rows: Tensor | slice | Sequence[int]) -> Samples:
        """Some of the samples: a slice is a view, numbers or a mask a copy."""
        return self.map(lambda tensor: tensor[rows])

    def split(self, size: int) -> list[Samples]:
        """All samples in parts of so many; the last may be smaller. No copies."""
        parts = zip(*(torch.split(tensor, size) for tensor in self.tensors.values()), strict=True)
        return [Samples(dict(zip(self.tensors, part, strict=True))) for part in parts]

    def to(self, device: torch.device | str | int | None) -> Samples:
        """The samples on a device; None = where they are."""
        return self if device is None else self.map(lambda tensor: tensor.to(device))

    def same(self, one: int, other: int) -> bool:
        """Whether two samples are equal in all their values."""
        return all(torch.equal(tensor[one], tensor[other]) for tensor in self.tensors.values())

    def blank(self, count: int) -> Samples:
        """So many samples of the same shapes and types, of zeros, which take no memory."""
        return self.map(lambda tensor: tensor.new_zeros(1).expand(count, *tensor.shape[1:]))

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """The samples of several parts, behind each other."""
        names = parts[0].tensors
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in names})
