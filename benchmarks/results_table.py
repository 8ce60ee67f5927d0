"""Result files: CSV tables of which each row is written as soon as it is measured."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur import Evaluation

FOLDER = Path(__file__).resolve().parent / "results"
MACHINE = ("commit", "secateur", "torch", "cpu")  # the last columns of every table
SCORES = ("top1", "drop", "drop_error", "agreement", "kl")  # of an evaluation
_DIGITS = {"top1": ".2f", "drop": ".2f", "drop_error": ".3f", "agreement": ".2f", "kl": ".5g"}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read all rows; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def read_header(path: Path) -> list[str]:
    """The columns of a file; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as table:
        return next(csv.reader(table), [])


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row at once, with a header where the file is new.

    Raises:
        ValueError: the file has other columns.
    """
    held = read_header(path)
    if held and held != list(columns):
        raise ValueError(f"{path} has the columns {held}, expected {list(columns)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        if table.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
        table.flush()
        os.fsync(table.fileno())


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the whole file."""
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(path, columns, row)


def key(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """What tells a row from the others, as the file holds it."""
    return tuple(str(row[column]) for column in columns)


def scores(found: Evaluation, *names: str) -> dict[str, str]:
    """Fields of an evaluation, as the tables hold them; all of SCORES where none is named."""
    return {name: format(getattr(found, name), _DIGITS[name]) for name in names or SCORES}


def machine() -> dict[str, str]:
    """What a row was measured with: the columns MACHINE."""
    import torch  # here, because reading tables needs neither

    import secateur

    versions = (commit(), secateur.__version__, torch.__version__, cpu_name())
    return dict(zip(MACHINE, versions, strict=True))


def commit() -> str:
    """The commit of the code that is run, with a "+" where the package differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    name = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/src"], check=False)
    return name.stdout.strip() + ("+" if changed.returncode else "")


def cpu_name() -> str:
    """Name of the processor, and how many logical cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(iter(names), platform.processor() or platform.machine())} ({cores} cores)"
