"""Einstein's notation: how often an einsum multiplies."""

from __future__ import annotations

import math
from collections.abc import Sequence

Sizes = Sequence[int]


def einsum_macs(equation: str, shapes: Sequence[Sizes]) -> int:
    """Multiply-accumulates of an einsum whose factors are multiplied from left to right.

    Products that sum over no axis are numbers multiplied one by one, and not counted.

    Args:
        equation: as `torch.einsum` takes it.
        shapes: of the factors.
    """
    labels, result = labelled(equation, [len(shape) for shape in shapes])
    length: dict[str, int] = {}
    for names, shape in zip(labels, shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            length[name] = max(size, length.get(name, 0))
    results = set(result)
    first, *rest = (set(names) for names in labels)
    total = 0
    for index, second in enumerate(rest):
        kept = results.union(*rest[index + 1 :])
        first, second = (a & (b | kept) for a, b in ((first, second), (second, first)))
        if (first & second) - kept:
            total += math.prod(length[name] for name in first | second)
        first = (first | second) & kept
    return total


def labelled(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The axes of an einsum by their labels.

    Args:
        equation: as `torch.einsum` takes it.
        ranks: how many axes each factor has.

    Returns:
        A label for each axis of each factor, and for each axis of the result.
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    labels = [_labels(text, rank) for text, rank in zip(given.split(","), ranks, strict=True)]
    return labels, _result(result, labels) if arrow else _implied(labels)


def _labels(text: str, axes: int) -> list[str]:
    """A label for each axis; those of an ellipsis are numbers, counted from its end."""
    before, dots, after = text.partition("...")
    more = axes - len(before) - len(after) if dots else 0
    return [*before, *(str(-at) for at in range(-more, 0)), *after]


def _result(text: str, labels: Sequence[Sequence[str]]) -> list[str]:
    before, dots, after = text.partition("...")
    return [*before, *(_ellipsis(labels) if dots else ()), *after]


def _implied(labels: Sequence[Sequence[str]]) -> list[str]:
    every = [name for names in labels for name in names if not name.isdigit()]
    return [*_ellipsis(labels), *sorted(name for name in every if every.count(name) == 1)]


def _ellipsis(labels: Sequence[Sequence[str]]) -> list[str]:
    """The labels of the axes that dots stand for, in order: they are counted from the end."""
    numbers = {int(name) for names in labels for name in names if name.isdigit()}
    return [str(number) for number in sorted(numbers, reverse=True)]
