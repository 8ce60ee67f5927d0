"""What commands print: the files that were written, and notes about those that were not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import typer

from secateur.errors import MissingExtraError
from secateur.report.model import Report
from secateur.report.sweep import Sweep
from secateur.support.progress import Teller, telling


def working(quiet: bool | None) -> AbstractContextManager[Teller]:
    """Tells on standard error what is being done; print the result after it."""
    return telling(not quiet)


def write_page(data: Report | Sweep, path: Path) -> str:
    """Writes a page; or gives the reason, where the extra is not installed."""
    try:
        data.save_page(path)
    except MissingExtraError as error:
        return str(error)
    return ""


def note_missing(name: str, reason: str) -> None:
    """Prints that a page was not written, and what to install."""
    if reason:
        typer.echo(f"secateur: note: {name} was not written: {reason}", err=True)


def sizes(folder: Path) -> dict[Path, int]:
    """Bytes of each file in a folder, by its path in there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder): path.stat().st_size for path in files}


def list_files(out: Path, written: Mapping[Path, int]) -> None:
    """Prints the files that were written, one per line."""
    for path, size in written.items():
        typer.echo(file_line(out / path, size))


def file_line(path: Path, size: int) -> str:
    """A file that was written, with its size."""
    return f"{path}: {size:,} bytes"
