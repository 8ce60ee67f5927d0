"""What each part of a pruning brought: channels that left, zeros in what they left, INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.evaluation.results import Evaluation, evaluation_table
from secateur.support.serialization import are_finite, demand
from secateur.support.tables import Column, Table

CHANNELS, ZEROS, INT8 = "channels", "zeros", "INT8"


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """The network after a part and all parts before it.

    Attributes:
        name: "channels", "zeros" or "INT8".
        macs_fraction: multiply-accumulates with nonzero weights / all of the dense network's.
        bytes_fraction: bytes of the weights / the dense network's: of a plain file; of a packed
            one (a bit for each weight, and those that are not zero) after zeros; of the INT8 ONNX
            file itself.
        milliseconds: time for one input; None = no runtime was named, or it does not run it.
        ratio: of that time over the dense network's.
        calibration: against the dense network, on the calibration images; None if not measured.
        evaluation: the same on evaluation data; None without any.
    """

    name: str
    macs_fraction: float
    bytes_fraction: float
    milliseconds: float | None = None
    ratio: float | None = None
    calibration: Evaluation | None = None
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        demand(are_finite(self.macs_fraction, self.bytes_fraction), "a part has no finite share")


def part_table(parts: Sequence[PartReport]) -> Table:
    """A row after each part, against the dense network."""
    judged = all(of.evaluation is not None for of in parts)
    rows = [(of.name, of.evaluation if judged else of.calibration) for of in parts]
    accuracy = evaluation_table(rows, name="parts", what="after")
    columns = (
        Column("after"),
        Column("MACs left", "{:.1f}", unit="%"),
        Column("bytes left", "{:.1f}", unit="%"),
        Column("time", "{:.3f}", unit="ms"),
        Column("time left", "{:.1f}", unit="%"),
        *accuracy.columns[1:],
    )
    cells = (
        (
            of.name,
            100 * of.macs_fraction,
            100 * of.bytes_fraction,
            of.milliseconds,
            None if of.ratio is None else 100 * of.ratio,
            *found[1:],
        )
        for of, found in zip(parts, accuracy.rows, strict=True)
    )
    where = "evaluation" if judged else "calibration"
    table = Table(
        name="parts",
        columns=columns,
        rows=tuple(cells),
        title=f"After each part, accuracy on the {where} images",
        note="Against the dense network; each row has the parts above it too. Bytes are those of "
        "the weights: packed after zeros, of the ONNX file in INT8.",
    )
    return table.without_empty_columns()
