"""The time of a network from which channels have left, as measured."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.support.tables import Column, Table
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Time for one input on a runtime, measured in turns with the dense network.

    Attributes:
        runtime: "onnxruntime", "openvino" or "torch".
        threads: that it used.
        dense, pruned: milliseconds of either network.
        ratio, low, high: the pruned network's time over the dense one's, from rounds in pairs, and
            the ends of its 95 % interval.
        rounds: over all processes.
        predicted: what the table of the layers' times says of the ratio, before it was corrected;
            None = there is no table, for no time was asked for.
        tries: how often the whole network was measured to find the widths.
        table: how the layers were measured.
    """

    runtime: str
    threads: int
    dense: float
    pruned: float
    ratio: float
    low: float
    high: float
    rounds: int
    predicted: float | None = None
    tries: int = 0
    table: str = ""

    @property
    def text(self) -> str:
        """The outcome in a few words."""
        return (
            f"{self.ratio:.3f} of the dense network's time on {self.runtime} "
            f"({self.low:.3f} to {self.high:.3f})"
        )


def latency_table(of: LatencyReport) -> Table:
    """The times of both networks."""
    columns = (
        Column("network"),
        Column("time", "{:.3f}", unit="ms"),
        Column("ratio", "{:.3f}"),
        Column("95 % interval"),
    )
    rows = (
        ("dense", of.dense, 1.0, ""),
        ("pruned", of.pruned, of.ratio, f"{of.low:.3f} to {of.high:.3f}"),
    )
    note = f"In turns, {counted(of.rounds, 'round')} in several processes."
    if of.predicted is not None:
        note += (
            f" Widths found in {counted(of.tries, 'measurement')} of the whole network; the "
            f"layers' times alone say {of.predicted:.3f}. {of.table}."
        )
    title = f"One input on {of.runtime}, threads: {of.threads}"
    return Table(name="latency", columns=columns, rows=rows, title=title, note=note)
