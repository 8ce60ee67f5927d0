"""What commands print: what is being done, and the files that were written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import typer

from secateur.cli.started import is_another
from secateur.support.progress import Teller, telling
from secateur.support.wording import counted


def working(quiet: bool | None) -> AbstractContextManager[Teller]:
    """Tells on standard error what is being done, in the first process; print the result after."""
    return telling(not (quiet or is_another()))


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
    return f"{path}: {counted(size, 'byte')}"
