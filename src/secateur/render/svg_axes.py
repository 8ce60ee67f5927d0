"""Axes of charts: from numbers to places, and the round numbers that are written beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MOST = 1e300  # larger numbers would overflow in a difference
_LEAST = 1e-290  # a smaller difference could not be divided
_TICKS = 8  # about so many on an axis


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis: numbers from `low` to `high` lie between the places `start` and `end`.

    Attributes:
        low, high: numbers, low < high; both above 0 where it is logarithmic.
        start, end: their places, in the units of the drawing; `end` may be the smaller.
        logarithmic: whether equal distances are equal factors.
        whole: whether only whole numbers are written.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Where a number lies."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers within the axis, and how they are written."""
        if self.logarithmic:
            return [(value, f"{value:g}") for value in self._powers() or self._rounds()]
        numbers = self._rounds()
        digits = _digits(numbers)
        return [
            (value, f"{value:.{digits}f}" if digits <= 4 else f"{value:.4g}") for value in numbers
        ]

    def _rounds(self) -> list[float]:
        step = _round_step((self.high - self.low) / _TICKS)
        step = max(1.0, step) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        numbers = [count * step for count in range(first, last + 1)]
        return [value for value in numbers if value > 0] if self.logarithmic else numbers

    def _powers(self) -> list[float]:
        """Powers of ten, with 2 and 5 times them on a short axis; none where two are too many."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, round((last - first) / _TICKS))
        factors = (1, 2, 5) if last - first <= 2 else (1,)
        powers = range(first, last + 1, every)
        numbers = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in numbers if self.low <= value <= self.high]
        return inside if len(inside) > 1 else []


def spanning(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    low: float | None = None,
    logarithmic: bool = False,
) -> Scale:
    """An axis with room for values that can be drawn, and a margin.

    Args:
        values: those that cannot be drawn are passed over, see `drawable`.
        start, end: places of the ends.
        low: where it begins, if no value is below.
        logarithmic: as in `Scale`.
    """
    known = [value for value in values if drawable(value, logarithmic=logarithmic)]
    least, most = (min(known), max(known)) if known else (1.0, 2.0)
    if logarithmic:
        margin = max((most / least) ** 0.05, 1.01) if most > least else 2.0
        return Scale(low=least / margin, high=most * margin, start=start, end=end, logarithmic=True)
    margin = 0.05 * (most - least) or 0.05 * abs(most) or 0.5
    margin = max(margin, 1e-9 * abs(least), 1e-9 * abs(most), _LEAST)
    begin = least - margin if low is None or least < low else low
    return Scale(low=begin, high=most + margin, start=start, end=end)


def drawable(*values: float, logarithmic: bool = False) -> bool:
    """Whether numbers have places: finite, not beyond all measure, above 0 for a logarithm."""
    low, high = (_MOST**-0.25, _MOST**0.25) if logarithmic else (-_MOST, _MOST)
    return all(low <= value <= high for value in values)


def _digits(numbers: list[float]) -> int:
    """Digits after the point that tell evenly spaced numbers apart; many where they are large."""
    if len(numbers) < 2 or max(map(abs, numbers)) >= 1e6:
        return 99
    return max(0, -math.floor(math.log10(numbers[1] - numbers[0]) + 1e-9))


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least so large."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
