"""Two reports of the same network side by side: settings, results and layers that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.errors import DataError
from secateur.report.layers import LayerReport
from secateur.report.model import Report
from secateur.support.settings import check_arguments
from secateur.support.tables import Block, Cell, Column, Document, Table
from secateur.support.wording import counted

_SHOWN = 3  # layers named in the sentence about different networks


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting that differs; None = one report has no such setting."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of both reports.

    Attributes:
        name: what it is.
        unit: "%", "points", "nats" or "s"; empty = none.
        first, second: in that unit; None = not measured.
        error: standard error of the difference, if known.
        note: a remark, such as on which images.
    """

    name: str
    unit: str
    first: float | None
    second: float | None
    error: float | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first

    def row(self) -> tuple[Cell, ...]:
        """Name, both figures, their difference and the note."""
        digits = {"nats": 4, "s": 1, "": 4}.get(self.unit, 2)
        first, second = (
            None if of is None else f"{of:.{digits}f}" for of in (self.first, self.second)
        )
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        difference = None
        if self.difference is not None:
            difference = f"{self.difference:+.{digits}f}{error}"
        return ", ".join(filter(None, (self.name, self.unit))), first, second, difference, self.note


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """A layer in both reports; a layer that stayed dense has no zeros and no error.

    Attributes:
        name: of the layer.
        sparsities: fractions of zeros, first and second.
        errors: relative output errors, first and second.
    """

    name: str
    sparsities: tuple[float, float]
    errors: tuple[float, float]

    @property
    def difference(self) -> float:
        """Sparsity, second minus first."""
        return self.sparsities[1] - self.sparsities[0]


@dataclass(frozen=True, kw_only=True)
class Comparison(Document):
    """What differs between two reports.

    Attributes:
        settings: the settings that differ, including sources of images and versions.
        figures: sparsity, accuracy, bytes and cost of both.
        layers: the layers that differ, largest difference in zeros first.
        same_layers: number of layers that do not differ.
        names: names of the two reports.
    """

    settings: tuple[Setting, ...]
    figures: tuple[Figure, ...]
    layers: tuple[LayerPair, ...]
    same_layers: int
    names: tuple[str, str] = ("first", "second")

    def setting_table(self) -> Table:
        """The settings that differ."""
        rows = ((of.name, _setting(of.first), _setting(of.second)) for of in self.settings)
        columns = (Column("setting"), Column("A"), Column("B"))
        return Table(name="settings", columns=columns, rows=tuple(rows))

    def figure_table(self) -> Table:
        """The figures of both, with as many digits as their unit deserves."""
        columns = (Column("figure"), *(Column(of, "{}") for of in ("A", "B", "B - A")), Column(""))
        rows = tuple(of.row() for of in self.figures)
        return Table(name="figures", columns=columns, rows=rows)

    def layer_table(self) -> Table:
        """The layers that differ."""
        rows = (
            (
                of.name,
                *(100 * sparsity for sparsity in of.sparsities),
                100 * of.difference,
                *(100 * error for error in of.errors),
                100 * (of.errors[1] - of.errors[0]),
            )
            for of in self.layers
        )
        title = "Zeros and errors in percent, the largest difference first"
        return Table(name="layers", columns=_LAYER_COLUMNS, rows=tuple(rows), title=title)

    def blocks(self) -> list[Block]:
        """The differences in settings, results and layers."""
        names: list[Block] = [f"{of}: {name}" for of, name in zip("AB", self.names, strict=True)]
        settings = self.setting_table() if self.settings else "same settings"
        layers: list[Block] = [self.layer_table()] if self.layers else []
        same = f"{counted(self.same_layers, 'layer')} without a difference"
        return [*names, "", settings, "", self.figure_table(), "", *layers, same]


_LAYER_COLUMNS = (
    Column("layer"),
    Column("zeros A", "{:.1f}"),
    Column("zeros B", "{:.1f}"),
    Column("B - A", "{:+.1f}"),
    Column("error A", "{:.3g}"),
    Column("error B", "{:.3g}"),
    Column("B - A", "{:+.3g}"),
)


def _setting(value: Any) -> str | None:
    return None if value is None else str(value)


def compare_reports(
    first: Report, second: Report, names: tuple[str, str] = ("first", "second")
) -> Comparison:
    """Compares two reports of the same network.

    Args:
        first, second: reports of `secateur.prune`.
        names: names of the two, for tables and messages.

    Raises:
        DataError: they are of different networks; the message names layers that only one has.
    """
    check_arguments(compare_reports, locals())
    _check_same(first, second, names)
    pairs = [_pair(name, first, second) for name in _layers(first)]
    differ = [pair for pair in pairs if pair.sparsities[0] != pair.sparsities[1] or _moved(pair)]
    return Comparison(
        settings=tuple(_settings(first, second)),
        figures=tuple(_figures(first, second)),
        layers=tuple(sorted(differ, key=lambda pair: (-abs(pair.difference), -_moved(pair)))),
        same_layers=len(pairs) - len(differ),
        names=names,
    )


def _check_same(first: Report, second: Report, names: tuple[str, str]) -> None:
    shapes = _layers(first), _layers(second)
    for mine, other, of in ((*shapes, names[0]), (*shapes[::-1], names[1])):
        alone = [name for name, shape in mine.items() if other.get(name) != shape]
        if alone:
            listed = ", ".join(f"{name} {list(mine[name])}" for name in alone[:_SHOWN])
            more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
            raise DataError(
                f"{names[0]} and {names[1]} are reports of different networks: only {of} has "
                f"{listed}{more}; expected the same layers: compare reports of one network"
            )


def _layers(report: Report) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in (*report.layers, *report.dense_layers)}


def _pair(name: str, first: Report, second: Report) -> LayerPair:
    one, two = _find(first, name), _find(second, name)
    return LayerPair(
        name=name,
        sparsities=(one.sparsity if one else 0.0, two.sparsity if two else 0.0),
        errors=(one.relative_error if one else 0.0, two.relative_error if two else 0.0),
    )


def _find(report: Report, name: str) -> LayerReport | None:
    return next((layer for layer in report.layers if layer.name == name), None)


def _moved(pair: LayerPair) -> float:
    return abs(pair.errors[1] - pair.errors[0])


def _settings(first: Report, second: Report) -> Iterator[Setting]:
    one, two = (dict(_flat(_stated(report))) for report in (first, second))
    for name in dict.fromkeys((*one, *two)):
        if one.get(name) != two.get(name):
            yield Setting(name=name, first=one.get(name), second=two.get(name))


def _stated(report: Report) -> dict[str, Any]:
    data = {"source": report.data.source, "images": report.data.images}
    synthetic = {"synthetic": report.synthetic}
    return {**report.requested, "data": {**data, **synthetic}, "versions": report.versions}


def _flat(held: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted names."""
    for key, value in held.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _figures(first: Report, second: Report) -> Iterator[Figure]:
    both = first, second

    def figure(name: str, unit: str, values: list[Any], **more: Any) -> Figure:
        return Figure(name=name, unit=unit, first=values[0], second=values[1], **more)

    yield figure("zeros in pruned layers", "%", [100 * of.sparsity for of in both])
    yield figure("zeros in all parameters", "%", [100 * of.network_sparsity for of in both])
    yield from _accuracy(first, second)
    yield figure("bytes left, packed", "%", [100 * of.bytes_fraction for of in both])
    yield figure("MACs left", "%", [100 * of.macs_fraction for of in both])
    yield figure("time", "s", [of.seconds.get("total") for of in both])


def _accuracy(first: Report, second: Report) -> Iterator[Figure]:
    """On evaluation images, and agreement on those of the calibration."""
    one, two = (report.evaluation.get("pruned") for report in (first, second))
    if one is not None or two is not None:
        fields = (("top1", "top-1", "%"), ("drop", "points lost", "points"))
        fields += (("agreement", "agreement with dense", "%"), ("kl", "KL", "nats"))
        fields += (("perplexity", "perplexity", ""), ("cosine", "cosine with dense", ""))
        fields += (("metric", "metric", ""), ("metric_drop", "metric lost", ""))
        for field, name, unit in fields:
            values = [getattr(of, field, None) for of in (one, two)]
            if values != [None, None]:
                errors = [getattr(of, _ERRORS.get(field, ""), None) for of in (one, two)]
                yield Figure(
                    name=name,
                    unit=unit,
                    first=values[0],
                    second=values[1],
                    error=None if None in errors else math.hypot(*errors),  # type: ignore[arg-type]
                    note=""
                    if field.startswith("metric")
                    else _images(one, two, known=None not in errors),
                )
    near = [report.calibration for report in (first, second)]
    note = "on the calibration images, optimistic"
    for held, on in (((one, two), "on the evaluation images"), (near, note)):
        errors = [_percent(getattr(of, "output_error", None)) for of in held]
        if errors != [None, None]:
            yield Figure(
                name="output error",
                unit="% of variance",
                first=errors[0],
                second=errors[1],
                note=on,
            )
    for field, unit in (("agreement", "%"), ("cosine", "")):
        values = [getattr(of, field, None) for of in near]
        if values != [None, None]:
            yield Figure(name=field, unit=unit, first=values[0], second=values[1], note=note)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


_ERRORS = {"top1": "standard_error", "drop": "drop_error", "cosine": "cosine_error"}


def _images(one: Any, two: Any, *, known: bool) -> str:
    """How far the two can be compared."""
    for name, of in (("A", one), ("B", two)):
        if of is None:
            return f"{name} was not evaluated"
    if one.images != two.images:
        return f"on {one.images:,} and {counted(two.images, 'image')}: not the same"
    smaller = " (± is smaller if these are the same)" if known else ""
    return f"on {counted(one.images, 'image')} each{smaller}"
