"""Tables and lines as data: `str()` is plain text, `secateur.render` shows them on other media.

Whatever has something to show gives it as `blocks`: tables, lines and notices, from top to bottom.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Number = int | float
Cell = str | Number | tuple[Number, ...] | None
"""Text, a number, several numbers for one format (a value and its error), or None = not known."""

_GAP = "  "  # between columns of plain text


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: what is in it.
        format: of its numbers, as `str.format` takes it: "{:,}", or "{:.2f} ± {:.2f}" for two in a
            cell. Empty = a column of text.
        unit: of its numbers; shown in the heading.
        detail: left out where there is little room: in plain text and on a terminal.
    """

    heading: str
    format: str = ""
    unit: str = field(default="", kw_only=True)
    detail: bool = field(default=False, kw_only=True)

    @property
    def align(self) -> Literal["left", "right"]:
        """Text is aligned left, numbers right."""
        return "right" if self.format else "left"

    @property
    def title(self) -> str:
        """The heading with its unit."""
        return ", ".join(filter(None, (self.heading, self.unit)))

    def text(self, cell: Cell) -> str:
        """A cell as this column shows it: text as it is, "-" for None."""
        if cell is None:
            return "-"
        if isinstance(cell, str):
            return printable(cell)
        return (self.format or "{}").format(*(cell if isinstance(cell, tuple) else (cell,)))


def renamed(columns: Sequence[Column], heading: str, to: str) -> tuple[Column, ...]:
    """The columns, of which one has another heading."""
    return tuple(replace(of, heading=to) if of.heading == heading else of for of in columns)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, whoever shows it.

    Attributes:
        name: a word that tells it from the others of the same document.
        columns: from left to right.
        rows: from top to bottom; a cell for each column.
        title: what is in it; empty = the lines around it say so.
        note: how to read it, for readers new to pruning; only the page has room for it.
        label: the place of the column that tells what a row is about.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""
    label: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: {len(row)} cells for {len(self.columns)} columns")

    def texts(self) -> list[list[str]]:
        """The cells of each row as text."""
        return [
            [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def without_details(self) -> Table:
        """The columns for which there is always room."""
        return self._only([not column.detail for column in self.columns])

    def without_empty_columns(self) -> Table:
        """The columns in which something is known of at least one row."""
        cells = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return self._only([any(cell is not None for cell in column) for column in cells])

    def _only(self, chosen: Sequence[bool]) -> Table:
        def taken(cells: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(cell for cell, is_chosen in zip(cells, chosen, strict=True) if is_chosen)

        rows, label = tuple(map(taken, self.rows)), sum(chosen[: self.label])
        return replace(self, columns=taken(self.columns), rows=rows, label=label)

    def __str__(self) -> str:
        return "\n".join(_lines(self.without_details()))


@dataclass(frozen=True)
class Notice:
    """A line that should not be overlooked."""

    text: str

    def __str__(self) -> str:
        return printable(self.text)


Block = Table | Notice | str


class Document:
    """What gives blocks to show, and joins them where it is asked for a string."""

    def blocks(self) -> Sequence[Block]:
        """Tables, lines and notices, from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        return plain(self.blocks())


def plain(blocks: Sequence[Block]) -> str:
    """Blocks as plain text, for files and pipes: no name is cut or folded."""
    return "\n".join(printable(of) if isinstance(of, str) else str(of) for of in blocks)


def warnings_first(warnings: Sequence[str], synthetic: str | None = None) -> list[Notice]:
    """What has to be read before any figure."""
    images = [f"calibrated on synthetic data, no real ones: {synthetic}"] if synthetic else []
    return [*map(Notice, images), *(Notice(f"! {warning}") for warning in warnings)]


def printable(text: str) -> str:
    """Text with control characters and the like written out: names may command a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _lines(table: Table) -> Iterator[str]:
    """A table as plain text, as wide as its widest cells."""
    if table.title:
        yield printable(table.title)
    rows = [[column.title for column in table.columns], *table.texts()]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(table.columns, row, widths, strict=True)
        yield _GAP.join(_padded(*cell) for cell in cells).rstrip()


def _padded(column: Column, text: str, width: int) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if column.align == "right" else text + blanks


def _width(text: str) -> int:
    """How many columns of a terminal a text takes: none for accents, two for wide letters."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def shape_text(shape: Sequence[int]) -> str:
    """64x3x7x7; N where a size depends on the batch, - where there is nothing of a shape."""
    return "x".join(str(size) if size else "N" for size in shape) or "-"
