"""Settings that check themselves: one sentence for a value that cannot be meant.

    def __post_init__(self) -> None:
        check_settings(self, damping=at_least(0), levels=between(0, 1).rising())

The types come from the annotations, the ranges from the keywords. A list is turned into a tuple.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import numbers
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from secateur.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a setting may have; of several numbers, each.

    Attributes:
        low, high: the ends.
        open_low, open_high: whether an end itself is left out.
        order: "rising" or "falling": several numbers, each beyond the one before it.
        count: how many; None = any number of them (one at least where there is an order).
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    order: str = ""
    count: int | None = None

    def rising(self, count: int | None = None) -> Range:
        """Several numbers, each greater than the one before it."""
        return replace(self, order="rising", count=count)

    def holds(self, value: float) -> bool:
        """Whether a number lies in it; NaN and infinity never do."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def is_ordered(self, values: Sequence[float]) -> bool:
        """Whether several numbers are in order, and as many as there should be."""
        right = self.count is None or len(values) == self.count
        pairs = itertools.pairwise(values)
        return right and (not self.order or (bool(values) and all(a < b for a, b in pairs)))

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"more than {self.low:g}" if self.open_low else f"at least {self.low:g}"
        ends = "(["[not self.open_low], ")]"[not self.open_high]
        return f"in {ends[0]}{self.low:g}, {self.high:g}{ends[1]}"


def at_least(low: float) -> Range:
    """Numbers from one on."""
    return Range(low=low)


def more_than(low: float) -> Range:
    """Numbers above one."""
    return Range(low=low, open_low=True)


def from_to(low: float, high: float) -> Range:
    """Numbers between two, both included."""
    return Range(low=low, high=high)


def between(low: float, high: float) -> Range:
    """Numbers between two, both left out."""
    return Range(low=low, high=high, open_low=True, open_high=True)


SEEDS = from_to(0, 2**32 - 1)


def check_settings(setting: Any, **ranges: Range) -> None:
    """Checks the fields of a frozen dataclass: types by the annotations, numbers by their ranges.

    Raises:
        OptionError: a field has another type, or a number out of range; tells which is expected.
    """
    for name, kind in _kinds(type(setting)).items():
        value = getattr(setting, name)
        if get_origin(kind) is tuple and isinstance(value, list):
            value = tuple(value)
            object.__setattr__(setting, name, value)
        allowed = ranges.get(name, Range())
        if not _is_kind(kind, value) or not _is_in(allowed, value):
            raise OptionError(
                f"{type(setting).__name__}'s {name} is {_shown(value)}, expected "
                f"{_expected(kind, ranges.get(name))}"
            )


@functools.cache
def _kinds(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _is_kind(kind: Any, value: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is_kind(one, value) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_kind(inner[0], one) for one in value)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, kind) and not isinstance(value, type)


def _is_in(allowed: Range, value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(allowed.holds, value)) and allowed.is_ordered(value)
    return not isinstance(value, numbers.Real) or allowed.holds(value)  # type: ignore[arg-type]


def _expected(kind: Any, allowed: Range | None) -> str:
    inner = [of for of in get_args(kind) if of not in (type(None), ...)]
    if get_origin(kind) is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, inner[:-1])), repr(inner[-1])]))
    if get_origin(kind) is tuple:
        if allowed is None:
            return "numbers"
        parts = [str(allowed.count) if allowed.count else "", allowed.order, "numbers"]
        return f"{' '.join(filter(None, parts))}, each {allowed}"
    name = {int: "a whole number", float: "a number", str: "a text"}.get(kind)
    if name is None:
        names = [of.__name__ for of in inner or [kind]]
        return " or ".join(f"an object of kind {of}" for of in names)
    return f"{name} {allowed}" if allowed is not None else name


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)
