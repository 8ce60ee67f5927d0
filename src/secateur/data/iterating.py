"""Loaders, datasets and other iterables: told apart, run again, and their failures told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch

from secateur.errors import DataError, SecateurError


@runtime_checkable
class Indexed(Protocol):
    """Single images by number, as a Dataset has them."""

    def __len__(self) -> int:
        """How many images."""
        ...

    def __getitem__(self, row: int, /) -> Any:
        """An image, with a class number or without."""
        ...


@dataclass
class Replay:
    """What an iterator gives, as often as it is asked for; each item is kept."""

    rest: Iterator
    items: list[Any] = field(default_factory=list)

    def __iter__(self) -> Iterator:
        for place in itertools.count():
            if place == len(self.items):
                try:
                    self.items.append(next(self.rest))
                except StopIteration:
                    return
            yield self.items[place]


def guarded(batches: Callable[[], Iterable], name: str) -> Iterator:
    """What a loader gives; what it raises is told in a sentence."""
    try:
        yield from batches()
    except SecateurError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        said = lines[-1 if lines[0].startswith("Caught") else 0]  # the last is the worker's own
        raise DataError(
            f"{name} cannot be read ({type(error).__name__}: {said}), expected batches of images: "
            "try it alone"
        ) from error


def is_indexed(data: Any) -> TypeGuard[Indexed]:
    """Whether data are single samples by number: a Dataset, or an object like one."""
    if isinstance(data, torch.utils.data.IterableDataset):
        return False
    like = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return isinstance(data, torch.utils.data.Dataset) or (like and not isinstance(data, Iterable))


def gives_rows(data: Any) -> bool:
    """Whether an iterable gives single samples: a dataset of Hugging Face, or a list of such rows.

    In a list these are mappings with a flat list of numbers in each entry that is a list.
    """
    if type(data).__module__.partition(".")[0] == "datasets":
        return True
    first = data[0] if isinstance(data, list) and data else None
    entries = first.values() if isinstance(first, Mapping) else ()
    lists = [of for of in entries if isinstance(of, list)]
    return bool(lists) and not any(isinstance(of, list) for entry in lists for of in entry)
