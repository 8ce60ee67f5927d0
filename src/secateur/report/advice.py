"""What each pattern would bring on each runtime, and what it would cost in accuracy, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secateur.support.serialization import Saved
from secateur.support.tables import Block, Cell, Column, Document, Table, warnings_first
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A pattern on a runtime.

    Attributes:
        runtime: its name in `runtime=` and `--runtime`.
        pattern: that pays there.
        asked: how far the network was pruned in it, in words.
        what: what `share` is of: the dense network's time there, or its bytes.
        share: of the dense network's, as measured here; None where it could not be measured.
        low, high: ends of the 95 % interval, where there is one.
        lost: accuracy lost by a quick fit, in the unit of `Advice.lost`; None = not known.
        lost_error: standard error of it.
        note: what else there is to know: why something is not known, what the figure is of.
    """

    runtime: str
    pattern: str
    asked: str
    what: Literal["time", "bytes"] = "time"
    share: float | None = None
    low: float | None = None
    high: float | None = None
    lost: float | None = None
    lost_error: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Advice(Saved, Document):
    """The result of `secateur.advise`.

    Attributes:
        suggestions: a row for each runtime.
        lost: what is counted as lost, such as "points lost"; empty where nothing has a unit.
        images: samples that layers were fitted to.
        judged_on: samples that the loss was measured on, in words.
        cpu: name of the processor, threads: used of it.
        seconds: by step, and "total".
        versions: of secateur, torch and Python.
        warnings: read these first.
    """

    schema = "secateur.advice"
    schema_version = 1

    suggestions: tuple[Suggestion, ...]
    lost: str
    images: int
    judged_on: str
    cpu: str
    threads: int
    seconds: dict[str, float]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()

    def table(self) -> Table:
        """A row for each runtime: what pays there, what it brings, and what it costs."""
        columns = (
            Column("runtime"),
            Column("pattern"),
            Column("pruned to"),
            Column("time of dense", "{:.2f}"),
            Column("bytes of dense", "{:.2f}"),
            Column(self.lost or "lost", "{:.2f}"),
            Column("±", "{:.2f}"),
            Column("note"),
        )
        rows = tuple(self._row(of) for of in self.suggestions)
        return Table(name="advice", columns=columns, rows=rows, note=_NOTE).without_empty_columns()

    def _row(self, of: Suggestion) -> tuple[Cell, ...]:
        time, size = (of.share if of.what == what else None for what in ("time", "bytes"))
        return of.runtime, of.pattern, of.asked, time, size, of.lost, of.lost_error, of.note

    def blocks(self) -> list[Block]:
        """Warnings, the table, and how it was measured."""
        return [
            *warnings_first(self.warnings),
            self.table(),
            f"A quick fit to {counted(self.images, 'sample')}, judged on {self.judged_on}: prune "
            "keeps more, with more samples and its own recipe.",
            f"Times of one sample, or of a batch where said, on {self.cpu}, threads: "
            f"{self.threads}. prune --runtime NAME prunes for one.",
        ]


_NOTE = (
    "What a network pruned in the pattern that pays on each runtime takes of the dense network's "
    "time or bytes, and what a quick fit has lost. A dash was not measured: the note says why."
)
