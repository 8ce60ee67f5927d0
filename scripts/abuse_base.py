"""What the parts of `scripts/abuse` share: what was tried, and failing inputs kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Outcome:
    """What a part did: how often what was tried, and the folders of the faults."""

    part: str
    what: str
    lines: list[tuple[str, int, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, tried: int, faults: list[str]) -> None:
        """A line of the table; `faults` may name a folder several times."""
        several = sorted(set(faults))
        self.lines.append((name, tried, len(several)))
        self.faults += several

    def __str__(self) -> str:
        return "\n".join(
            f"{self.part}  {name:10} {tried:>9,} {self.what}, {faults} faults"
            for name, tried, faults in self.lines
        )


def keep(out: Path, name: str, case: Path, fault: str, detail: str, command: str = "") -> str:
    """Keeps a failing input and how to try it again; returns the name of its folder.

    Args:
        out: the folder for all of them.
        name: of the part or target.
        case: a folder with the input.
        fault: one line, which tells this fault from others; one is not kept twice.
        detail: everything else.
        command: that tries it again; by default `--again` with the folder.
    """
    words = "".join(sign if sign.isalnum() else "_" for sign in fault)[:80]
    folder = out / f"{name}-{words}"
    if not folder.exists():
        folder.mkdir(parents=True)
        command = command or f"scripts/abuse --again {folder}"
        (folder / "fault.txt").write_text(f"{fault}\n\n{command}\n\n{detail}\n", errors="replace")
        (folder / "target.txt").write_text(name)
        if case.exists():
            shutil.copytree(case, folder / "case", symlinks=True)
    return folder.name
