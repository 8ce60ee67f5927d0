"""Numbers on the command line: what an option's text means, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import typer


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers that an option takes.

    Attributes:
        kind: float or int.
        several: whether it takes any number of them, separated by commas.
        least: the smallest that is allowed; None = any.
    """

    kind: type[float] | type[int] = float
    several: bool = False
    least: float | None = None

    def parse(self, text: str | float) -> float | Sequence[float]:
        """The number, or the numbers of a list; a default is a number already.

        Raises:
            typer.BadParameter: the text is something else; typer adds the option's name.
        """
        parts = str(text).replace(",", " ").split() if self.several else [text]
        try:
            values = tuple(self.kind(part) for part in parts)
        except ValueError:
            values = ()
        if not values or (self.least is not None and min(values) < self.least):
            raise typer.BadParameter(f"got {text!r}, expected {self}")
        return values if self.several else values[0]

    def __str__(self) -> str:
        name = "whole number" if self.kind is int else "number"
        if self.several:
            return f"{name}s separated by commas, such as 1,2,3"
        return f"a {name}" + (f", at least {self.least:g}" if self.least is not None else "")


def sides(text: str) -> int | tuple[int, int]:
    """The side of a square in pixels, or HEIGHTxWIDTH.

    Raises:
        typer.BadParameter: the text is neither.
    """
    parts = str(text).lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(
            f"got {text!r}, expected the side of a square or HEIGHTxWIDTH, such as 224 or 224x192"
        )
    height, width = int(parts[0]), int(parts[-1])
    return height if len(parts) == 1 else (height, width)
