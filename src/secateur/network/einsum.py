"""Einstein's notation: how often an einsum multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Sizes = Sequence[int]


def einsum_macs(equation: str, shapes: Sequence[Sizes]) -> int:
    """Multiply-accumulates of an einsum whose factors are multiplied from left to right.

    Products that sum over no axis are numbers multiplied one by one, and not counted.

    Args:
        equation: as `torch.einsum` takes it.
        shapes: of the factors.
    """
    given, _, result = equation.replace(" ", "").partition("->")
    labels = [
        _labels(text, len(shape)) for text, shape in zip(given.split(","), shapes, strict=True)
    ]
    length: dict[str, int] = {}
    for names, shape in zip(labels, shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            length[name] = max(size, length.get(name, 0))
    results = set(_result(result, labels) if "->" in equation else _implied(labels))
    first, *rest = (set(names) for names in labels)
    total = 0
    for index, second in enumerate(rest):
        kept = results.union(*rest[index + 1 :])
        first, second = (a & (b | kept) for a, b in ((first, second), (second, first)))
        if (first & second) - kept:
            total += math.prod(length[name] for name in first | second)
        first = (first | second) & kept
    return total


def _labels(text: str, axes: int) -> list[str]:
    """A label for each axis; those of an ellipsis are numbers, counted from its end."""
    before, dots, after = text.partition("...")
    more = axes - len(before) - len(after) if dots else 0
    return [*before, *(str(-at) for at in range(-more, 0)), *after]


def _result(text: str, labels: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (name for name in text if name != ".")
    if "..." in text:
        yield from (name for names in labels for name in names if name.isdigit())


def _implied(labels: Sequence[Sequence[str]]) -> Iterator[str]:
    every = [name for names in labels for name in names]
    return (name for name in every if name.isdigit() or every.count(name) == 1)
