"""Settings and arguments that are checked: one sentence for a value that cannot be meant.

    def __post_init__(self) -> None:
        check_settings(self, damping=at_least(0), levels=between(0, 1).rising())

    def inspect(model: Any, shape: Sequence[int] | None = None) -> Inspection:
        check_arguments(inspect, locals(), shape=at_least(1))

The types come from the annotations, the ranges from the keywords. Settings become Python's own:
of a list, a set or an array a tuple, of NumPy's numbers Python's.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import numbers
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

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

    def several(self, count: int) -> Range:
        """One number, or so many in any order, where the type takes both."""
        return replace(self, count=count)

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


def check_settings(setting: Any, /, *, named: bool = True, **ranges: Range) -> None:
    """Checks the fields of a frozen dataclass: types by the annotations, numbers by their ranges.

    Args:
        setting: the object; its fields become Python's own numbers and tuples.
        named: whether the message says whose field it is.
        ranges: by field.

    Raises:
        OptionError: a field has another type, or a number out of range; tells which is expected.
    """
    whose = f"{type(setting).__name__}'s " * named
    for name, kind in _kinds(type(setting)).items():
        value = _own(kind, getattr(setting, name))
        object.__setattr__(setting, name, value)
        _check(f"{whose}{name}", kind, value, ranges.get(name))


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], /, **ranges: Range
) -> None:
    """Checks the arguments of a call: types by the function's annotations, numbers by ranges.

    Args:
        function: whose annotations are all known at run time. What may be `Any`, or an iterable
            of that, is left to the function.
        arguments: by name, such as `locals()` at its beginning.
        ranges: by name.

    Raises:
        OptionError: an argument has another type, or a number out of range.
    """
    parameters = inspect.signature(function).parameters
    for name, kind in _kinds(function).items():
        if any(of in (Any, Iterable[Any]) for of in _alternatives(kind)):
            continue
        several = parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        for value in arguments[name] if several else [arguments[name]]:
            _check(name, kind, _own(kind, value), ranges.get(name))


def shown(value: Any) -> str:
    """A value in a message: the class itself of a class, the type of what would take long."""
    shown = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    return shown if len(shown) <= _LONGEST and "\n" not in shown else f"a {type(value).__name__}"


_LONGEST = 200  # characters of a value in a message


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    """The types of a class's fields or a function's parameters."""
    hints = get_type_hints(kind)
    if isinstance(kind, type):
        return {item.name: hints[item.name] for item in dataclasses.fields(kind)}
    return {name: hints[name] for name in inspect.signature(kind).parameters if name in hints}


def _check(what: str, kind: Any, value: Any, allowed: Range | None) -> None:
    if not _is_kind(kind, value) or not _is_in(allowed or Range(), value):
        expected = _expected(kind, allowed)
        raise OptionError(f"{what} is {shown(value)}, expected {expected}{_way_out(kind)}")


def _own(kind: Any, value: Any) -> Any:
    """A value with Python's own numbers and, where several are expected, as a tuple.

    A set is one of several whose order means nothing: it is sorted, so that reports are the same.
    """
    if isinstance(value, np.number | np.bool):
        return value.item()
    origins = {get_origin(of) for of in _alternatives(kind)}
    if not origins & _SEVERAL:
        return value
    if isinstance(value, Set) and Collection in origins:
        return tuple(sorted(value, key=str))
    listed = getattr(value, "tolist", None)  # of NumPy and PyTorch
    value = value if listed is None or isinstance(value, type) else listed()
    return tuple(_own(None, of) for of in value) if isinstance(value, list | tuple) else value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of any other, itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_kind(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is_kind(one, value) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in _SEVERAL:
        fits = isinstance(value, tuple if origin is tuple else Sequence) and not isinstance(
            value, str | bytes
        )
        count = len(inner) if origin is tuple and ... not in inner else None
        right = fits and count in (None, len(value))
        return right and all(_is_kind(inner[0], one) for one in value)
    if origin is Callable:
        return callable(value)
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    kind = os.PathLike if kind is Path else kind
    return isinstance(value, origin or kind) and not isinstance(value, type)


_SEVERAL = {tuple, Sequence, Collection}  # the last where order means nothing: sets are welcome
_NUMBERS: dict[Any, type] = {float: numbers.Real, int: numbers.Integral}


def _is_in(allowed: Range, value: Any) -> bool:
    if isinstance(value, tuple):
        figures = [of for of in value if isinstance(of, numbers.Real)]
        return all(map(allowed.holds, figures)) and allowed.is_ordered(figures)  # type: ignore[arg-type]
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return not is_number or allowed.holds(value)  # type: ignore[arg-type]


def _expected(kind: Any, allowed: Range | None) -> str:
    """What a type and a range take, in words."""
    words = [_in_words(of, allowed) for of in _alternatives(kind)]
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _in_words(kind: Any, allowed: Range | None) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, inner[:-1])), repr(inner[-1])]))
    if origin in _SEVERAL:
        return _several(inner[0], allowed)
    if origin is Callable:
        return "a function"
    kind = origin or kind
    if kind in _WORDS:
        ranged = allowed is not None and kind in _NUMBERS
        return f"{_WORDS[kind]} {allowed}" if ranged else _WORDS[kind]
    return f"an object of kind {kind.__name__}"


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    Path: "a path",
    Mapping: "a table",
    types.NoneType: "None",
}


def _several(kind: Any, allowed: Range | None) -> str:
    if kind not in _NUMBERS:
        return f"a list of {_in_words(kind, None) if get_origin(kind) is Literal else 'texts'}"
    plural = {int: "whole numbers", float: "finite numbers"}[kind]
    if allowed is None:
        return plural
    parts = [str(allowed.count) if allowed.count else "", allowed.order, "numbers"]
    return f"{' '.join(filter(None, parts))}, each {allowed}"


def _way_out(kind: Any) -> str:
    """How to get an object of a kind that is saved in files."""
    saved = [of.__name__ for of in _alternatives(kind) if hasattr(of, "schema")]
    return f": {' or '.join(f'{name}.load' for name in saved)} reads one" if saved else ""
