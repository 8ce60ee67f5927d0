"""The layers of a pruned network: the result for each, or the reason why it stayed dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.hardware.requirements import Requirement
from secateur.pruning.allocations import Curve
from secateur.support.tables import Cell, Column, Table, renamed, shape_text


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """A pruned layer.

    Attributes:
        name: as in the state dict, without ".weight".
        kind: "conv" or "linear".
        shape: shape of the weight, in the dense network.
        columns: inputs per output.
        weights, zeros: counts; with channels removed, zeros are the weights that are gone.
        shape_left: shape of the weight without the channels that left; None = the same.
        sparsity: zeros / weights.
        macs: multiply-accumulates per image, dense.
        bytes: bytes of the weights, dense.
        packed_bytes: bytes of a mask (one bit per weight) and the nonzero weights.
        relative_error: mean squared output error / the outputs' variance, on the calibration
            samples that the layer was fitted to.
        damping: relative damping of the fit; 0 for methods without one.
        samples: number of output positions in the statistics.
        sensitivity: change of the network's output when this layer alone is pruned; None if the
            allocation does not measure it.
        requirements: by runtime, what this layer lacks for its zeros to be skipped; see
            `secateur.hardware.requirements`.
        notes: departures from the ordinary.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    columns: int
    weights: int
    zeros: int
    sparsity: float
    macs: int
    bytes: int
    packed_bytes: int
    relative_error: float
    damping: float
    samples: int
    shape_left: tuple[int, ...] | None = None
    sensitivity: Curve | None = None
    requirements: tuple[Requirement, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A layer that stayed dense, and why; `macs` and `bytes` as in `LayerReport`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    macs: int
    bytes: int
    reason: str


class Totals:
    """The totals over all layers with weights, pruned or not, for shares."""

    def __init__(self, layers: Sequence[LayerReport], dense_layers: Sequence[DenseLayer]) -> None:
        every = [*layers, *dense_layers]
        self.bytes = sum(layer.bytes for layer in every) or 1
        self.macs = sum(layer.macs for layer in every) or 1

    def bytes_shares(self, layer: LayerReport) -> tuple[float, float]:
        """Percent of all bytes, dense and packed."""
        return 100 * layer.bytes / self.bytes, 100 * layer.packed_bytes / self.bytes

    def macs_shares(self, layer: LayerReport) -> tuple[float, float]:
        """Percent of all multiply-accumulates, dense and without those with zeros."""
        share = 100 * layer.macs / self.macs
        return share, share * (1 - layer.sparsity)


_LAYER_COLUMNS = (
    Column("no.", "{:d}", detail=True),
    Column("layer"),
    Column("kind", detail=True),
    Column("shape"),
    Column("weights", "{:,}"),
    Column("zeros", "{:.1f}", unit="%"),
    Column("error", "{:.3g}", unit="%"),
    Column("damping", "{:.2g}"),
    Column("samples", "{:,}"),
    Column("bytes", "{:.1f} → {:.1f}", unit="% of all", detail=True),
    Column("MACs", "{:.1f} → {:.1f}", unit="% of all", detail=True),
    Column("runtimes that can skip its zeros", detail=True),
    Column("notes"),
)


def layer_table(layers: Sequence[LayerReport], totals: Totals) -> Table:
    """The pruned layers, in execution order."""
    is_smaller = any(layer.shape_left is not None for layer in layers)
    columns = renamed(_LAYER_COLUMNS, "zeros", "removed") if is_smaller else _LAYER_COLUMNS
    return Table(
        name="layers",
        columns=columns,
        rows=tuple(_layer_row(*numbered, totals) for numbered in enumerate(layers, 1)),
        label=1,
        note="The pruned layers. “before → after”: bytes in a packed file, and multiplications "
        "with nonzero weights, as shares of those of all layers.",
    )


def _layer_row(number: int, layer: LayerReport, totals: Totals) -> tuple[Cell, ...]:
    fit = (of.runtime for of in layer.requirements if of.met)
    return (
        number,
        layer.name,
        layer.kind,
        _shape(layer),
        layer.weights,
        100 * layer.sparsity,
        100 * layer.relative_error,
        layer.damping,
        layer.samples,
        totals.bytes_shares(layer),
        totals.macs_shares(layer),
        ", ".join(fit) or "none",
        "; ".join(layer.notes),
    )


def _shape(layer: LayerReport) -> str:
    left = "" if layer.shape_left is None else f" → {shape_text(layer.shape_left)}"
    return shape_text(layer.shape) + left


def dense_table(layers: Sequence[DenseLayer]) -> Table:
    """The layers that stayed dense, by the reason."""
    by_reason: dict[str, list[DenseLayer]] = {}
    for layer in layers:
        by_reason.setdefault(layer.reason, []).append(layer)
    columns = (
        Column("reason"),
        Column("layers", "{:,}"),
        Column("weights", "{:,}"),
        Column("names"),
    )
    rows = (
        (reason, len(of), sum(layer.weights for layer in of), ", ".join(layer.name for layer in of))
        for reason, of in by_reason.items()
    )
    return Table(name="dense", columns=columns, rows=tuple(rows), title="Layers left dense")


def sensitivity_table(layers: Sequence[LayerReport]) -> Table | None:
    """The loss curves of those layers that have one at the same sparsities as the first."""
    curves = [(number, of, of.sensitivity) for number, of in enumerate(layers, 1) if of.sensitivity]
    if not curves:
        return None
    levels = curves[0][2].sparsities
    losses = (Column(f"{100 * level:.0f} % zeros", "{:.2g}") for level in levels)
    columns = (Column("no.", "{:d}"), Column("layer"), *losses, Column("source"))
    rows = (
        (number, layer.name, *curve.loss_increase, "measured" if curve.measured else "estimated")
        for number, layer, curve in curves
        if curve.sparsities == levels
    )
    return Table(
        name="curves",
        columns=columns,
        rows=tuple(rows),
        label=1,
        note="Squared error of the outputs, relative to their variance, when one layer alone has "
        "this many zeros.",
    )
