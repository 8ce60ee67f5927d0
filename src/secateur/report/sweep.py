"""Several sparsities of one network, with the accuracy and size of each, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.core.patterns import Channels
from secateur.evaluation.results import Evaluation, evaluation_table
from secateur.report.model import DataReport, Report, check_run
from secateur.support.serialization import Saved, demand
from secateur.support.tables import Block, Cell, Column, Document, Table, renamed, warnings_first


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """A network pruned to one sparsity; fields as in `secateur.Report`.

    Attributes:
        sparsity: zeros / weights over the pruned layers, as achieved.
        network_sparsity: zeros / all parameters.
        macs_fraction, bytes_fraction: as fractions of the dense network's.
        calibration: against the dense network, on the calibration images; optimistic.
        evaluation: on evaluation images; None without any.
        seconds: time of the walk and the evaluation of this point.
    """

    sparsity: float
    network_sparsity: float
    macs_fraction: float
    bytes_fraction: float
    calibration: Evaluation | None
    evaluation: Evaluation | None
    seconds: float

    @classmethod
    def of(cls, report: Report) -> SweepPoint:
        """What a report says of the whole network."""
        return cls(
            sparsity=report.sparsity,
            network_sparsity=report.network_sparsity,
            macs_fraction=report.macs_fraction,
            bytes_fraction=report.bytes_fraction,
            calibration=report.calibration,
            evaluation=report.evaluation.get("pruned"),
            seconds=report.seconds["total"],
        )

    def costs(self) -> tuple[Cell, ...]:
        """What is left of the network, and the time that pruning it took."""
        shares = (self.sparsity, self.network_sparsity, self.bytes_fraction, self.macs_fraction)
        return *(100 * share for share in shares), self.seconds


@dataclass(frozen=True, kw_only=True)
class Sweep(Saved, Document):
    """The result of `secateur.sweep`.

    Attributes:
        synthetic: generator and seed of synthetic calibration images; None for real ones.
        points: one per sparsity, rising.
        dense: the dense network on the evaluation images; None without any.
        data: the calibration images.
        requested: the settings of the call, with `sparsities` instead of a target.
        seconds: wall-clock time by step, and "total".
        warnings: read these first.
        notes: other departures from the ordinary.
        versions: versions of secateur, torch and Python.
        reports: the report of each point, as `secateur.prune` would return it; not in the file
            that `save` writes.
    """

    schema = "secateur.sweep"
    schema_version = 3

    synthetic: str | None
    points: tuple[SweepPoint, ...]
    dense: Evaluation | None
    data: DataReport
    requested: dict[str, Any]
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    reports: tuple[Report, ...] = field(
        default=(), compare=False, repr=False, metadata={"saved": False}
    )

    def __post_init__(self) -> None:
        demand(bool(self.points), "points is empty")
        check_run(self.seconds, self.versions)

    @classmethod
    def of(
        cls, reports: Sequence[Report], sparsities: Sequence[float], seconds: dict[str, float]
    ) -> Sweep:
        """Puts the reports of several sparsities together.

        Args:
            reports: one for each sparsity, rising.
            sparsities: as asked for.
            seconds: of the whole call, by step.
        """
        first = reports[0]
        settings = {key: value for key, value in first.requested.items() if key != "target"}
        return cls(
            synthetic=first.synthetic,
            points=tuple(map(SweepPoint.of, reports)),
            dense=first.evaluation.get("dense"),
            data=first.data,
            requested={**settings, "sparsities": list(sparsities)},
            seconds=seconds,
            warnings=_together([of.warnings for of in reports], sparsities),
            notes=_together([of.notes for of in reports], sparsities),
            versions=first.versions,
            reports=tuple(reports),
        )

    @property
    def is_judged(self) -> bool:
        """Whether there are evaluation images."""
        return any(point.evaluation for point in self.points)

    @property
    def removes_channels(self) -> bool:
        """Whether whole channels leave, where others have zeros."""
        recipe = self.requested.get("recipe")
        pattern = recipe.get("pattern") if isinstance(recipe, dict) else None
        return isinstance(pattern, dict) and pattern.get("name") == Channels.name

    def evaluations(self) -> list[Evaluation | None]:
        """What is known of each point's accuracy: on evaluation images where there are any."""
        return [of.evaluation if self.is_judged else of.calibration for of in self.points]

    def table(self) -> Table:
        """A row for the dense network, where it was judged, and one for each sparsity."""
        judged = evaluation_table(
            [("", of) for of in (self.dense, *self.evaluations())], name="points"
        )
        costs: list[tuple[Cell, ...]] = [("dense", None, 100.0, 100.0, None)]
        costs += [of.costs() for of in self.points]
        rows = tuple((*cost, *row[1:]) for cost, row in zip(costs, judged.rows, strict=True))
        costs_of = _COST_COLUMNS
        if self.removes_channels:
            costs_of = renamed(_COST_COLUMNS, "zeros", "removed")
        on = "evaluation images" if self.is_judged else "calibration images (optimistic)"
        return Table(
            name="points",
            columns=(*costs_of, *judged.columns[1:]),
            rows=rows if self.dense is not None else rows[1:],
            title=f"On the {on}",
            note="" if self.is_judged else "There were no evaluation images (--eval).",
        )

    def blocks(self) -> list[Block]:
        """Warnings, and a row for each sparsity."""
        total = f"{self.seconds.get('total', 0.0):.1f} s in all"
        return [*warnings_first(self.warnings, self.synthetic), self.table(), total]


_COST_COLUMNS = (
    Column("zeros", "{:.2f}", unit="%"),
    Column("of all parameters", "{:.1f}", unit="%", detail=True),
    Column("bytes left", "{:.1f}", unit="%"),
    Column("MACs left", "{:.1f}", unit="%"),
    Column("time", "{:.1f}", unit="s"),
)


def _together(of: Sequence[Sequence[str]], sparsities: Sequence[float]) -> tuple[str, ...]:
    """Each remark once, with the sparsities that it belongs to where these are not all."""
    found: dict[str, list[float]] = {}
    for remarks, sparsity in zip(of, sparsities, strict=True):
        for remark in remarks:
            found.setdefault(remark, []).append(sparsity)
    return tuple(
        remark
        if len(at) == len(sparsities)
        else f"at {', '.join(f'{sparsity:.4g}' for sparsity in at)}: {remark}"
        for remark, at in found.items()
    )
