"""The runtimes that networks can be pruned for, and what this machine can do with each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur.hardware.machine import Machine
from secateur.hardware.runtimes import BY_KEY
from secateur.support.tables import Block, Column, Document, Table
from secateur.version import __version__


@dataclass(frozen=True, kw_only=True)
class RuntimeHere:
    """A runtime, and what this machine can do with it.

    Attributes:
        key: its name in `runtime=` and `--runtime`.
        name: what people call it.
        pattern: of the zeros that pay there; "channels" = smaller layers.
        precision: that weights have there.
        version: of the installed one; None = not installed.
        obstacle: why it cannot be measured here; empty where it can.
        feature: what makes a network faster or smaller there.
        prepared: how a network is made ready for it.
    """

    key: str
    name: str
    pattern: str
    precision: str
    version: str | None
    obstacle: str
    feature: str
    prepared: str


@dataclass(frozen=True, kw_only=True)
class Runtimes(Document):
    """All runtimes that `prune(runtime=...)` knows.

    Attributes:
        runtimes: each of them.
        cpu: name of this machine's processor.
    """

    runtimes: tuple[RuntimeHere, ...]
    cpu: str

    def data(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """A row for each runtime."""
        rows = tuple(
            (
                of.key,
                of.pattern,
                of.precision,
                of.version or "no",
                f"no: {of.obstacle}" if of.obstacle else "yes",
                of.feature,
                of.prepared,
            )
            for of in self.runtimes
        )
        return Table(name="runtimes", columns=_COLUMNS, rows=rows, note=self.cpu)

    def blocks(self) -> list[Block]:
        """The table, and what to do with it."""
        return [
            self.table(),
            f"{self.cpu}. prune --runtime NAME chooses the pattern that pays there.",
        ]


_COLUMNS = (
    Column("runtime"),
    Column("pattern"),
    Column("precision"),
    Column("installed"),
    Column("can be measured here"),
    Column("what pays", detail=True),
    Column("how a network is made ready", detail=True),
)


def runtimes() -> Runtimes:
    """The runtimes that networks can be pruned for, with what this machine can do.

    Example:
        >>> import secateur
        >>> found = secateur.runtimes()
        >>> [of.pattern for of in found.runtimes if of.key == "torch-int8-sparse"]
        ['1x4']
    """
    machine = Machine.here()
    found = tuple(
        RuntimeHere(
            key=key,
            name=of.name,
            pattern=of.pattern,
            precision=of.dtype,
            version=machine.versions.get(of.package) if of.package != "secateur" else __version__,
            obstacle=of.obstacle_here(machine),
            feature=of.feature,
            prepared=of.prepared,
        )
        for key, of in BY_KEY.items()
    )
    return Runtimes(runtimes=found, cpu=machine.cpu)
