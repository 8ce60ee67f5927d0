"""The plan of a run, before anything is pruned: zeros, expected loss and cost of each layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from secateur.errors import OptionError
from secateur.pruning.channels.run import ChannelRun
from secateur.pruning.run import PruningRun
from secateur.pruning.targets import MaxBytes, MaxDrop, MaxMacs, Sparsity, Target
from secateur.report.model import left_text
from secateur.support.tables import Block, Column, Document, Table, shape_text
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """A layer to be pruned.

    Attributes:
        name: as in the state dict, without ".weight".
        shape: shape of the weight.
        weights: number of weights.
        kept: number of nonzero weights after pruning.
        sparsity: the fraction of zeros.
        loss_increase: expected change of the output when only this layer is pruned to this
            sparsity (see `secateur.pruning.allocations.Curve`); None if the allocation does not
            measure it.
        dense_macs: multiply-accumulates per image, dense.
        macs: multiply-accumulates with nonzero weights.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    sparsity: float
    loss_increase: float | None
    dense_macs: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class ChannelPlan:
    """Channels to be removed.

    Attributes:
        name: of the layers that make them.
        channels: how many there are.
        left: how many will be left.
        loss_increase: expected change of the output when channels of this group alone leave.
    """

    name: str
    channels: int
    left: int
    loss_increase: float


@dataclass(frozen=True, kw_only=True)
class Plan(Document):
    """What `secateur.prune` would do with the same arguments.

    Attributes:
        target, value: name and value of the target, such as "sparsity" and 0.7.
        layers: the layers to be pruned, in execution order.
        sparsity: zeros / weights over these layers.
        macs_fraction, bytes_fraction: of the dense network's; see `secateur.pruning.targets.Costs`.
        loss_increase: sum over the layers. The joint effect is not measured; it is usually smaller,
            because each layer compensates for the errors of the layers before it.
        channels: groups of channels, where whole channels are to be removed; then no layers.
        notes: remarks, such as on gradual pruning.
    """

    target: str
    value: float
    layers: tuple[LayerPlan, ...]
    sparsity: float
    macs_fraction: float
    bytes_fraction: float
    loss_increase: float | None
    channels: tuple[ChannelPlan, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def table(self) -> Table:
        """A row for each layer that would be pruned, or for each group of channels."""
        if self.channels:
            groups = tuple(
                (of.name, of.channels, of.left, of.loss_increase) for of in self.channels
            )
            return Table(name="channels", columns=_CHANNEL_COLUMNS, rows=groups)
        rows = (
            (
                of.name,
                shape_text(of.shape),
                of.weights,
                of.kept,
                100 * of.sparsity,
                of.loss_increase,
                of.macs,
            )
            for of in self.layers
        )
        return Table(name="layers", columns=_COLUMNS, rows=tuple(rows))

    def blocks(self) -> list[Block]:
        """The layers, the sums, and notes."""
        weights = sum(layer.weights for layer in self.layers)
        gone = f"{self.sparsity:.2%} of {counted(weights, 'prunable weight')} zero"
        if self.channels:
            gone = f"{self.sparsity:.2%} of the prunable weights gone, in whole channels"
        left = left_text(self.macs_fraction, self.bytes_fraction, packed=not self.channels)
        blocks: list[Block] = [
            self.table(),
            f"plan for {self.target} {self.value:g}: {gone}; {left}",
        ]
        if self.loss_increase is not None:
            blocks.append(
                f"expected loss {self.loss_increase:.2g} in sum (squared error of the output "
                "relative to its variance; each layer alone)"
            )
        return [*blocks, *self.notes]


_CHANNEL_COLUMNS = (
    Column("channels made by"),
    Column("channels", "{:,}"),
    Column("left", "{:,}"),
    Column("loss", "{:.2g}"),
)
_COLUMNS = (
    Column("layer"),
    Column("shape"),
    Column("weights", "{:,}"),
    Column("kept", "{:,}"),
    Column("zeros", "{:.1f}", unit="%"),
    Column("loss", "{:.2g}"),
    Column("MACs left", "{:,}"),
)


def plan_of(run: PruningRun) -> Plan:
    """Plans a run of any pattern; see `make_plan`."""
    return plan_channels(run) if isinstance(run, ChannelRun) else make_plan(run)


def plan_channels(run: ChannelRun) -> Plan:
    """Plans a run that removes channels. Cost: what the curves take."""
    target, notes = _without_search(run, run.target)
    if run.reconstructs(target):
        notes.append("block reconstruction follows the walk and reduces the loss expected here")
    notes += [*run.ignored, *run.left_out(target)]
    counts = run.counts(target)
    losses = run.fitted_channels.loss_increase(counts)
    groups = zip(run.space.removable, counts, losses, strict=True)
    left = {name: of.at(np.array(counts)) / of.dense for name, of in run.prices.items()}
    return Plan(
        target=run.target.name,
        value=run.target.value,
        layers=(),
        channels=tuple(
            ChannelPlan(name=of.name, channels=of.units, left=of.units - gone, loss_increase=loss)
            for of, gone, loss in groups
        ),
        sparsity=1 - left[Sparsity.name],
        macs_fraction=left[MaxMacs.name],
        bytes_fraction=left[MaxBytes.name],
        loss_increase=sum(losses),
        notes=tuple(notes),
    )


def make_plan(run: PruningRun) -> Plan:
    """Plans a run. Cost: what the allocation measures.

    Raises:
        OptionError: a `max_drop` where the allocation has no curves to guess it from.
    """
    fitted, asked = run.fitted_allocation, run.target
    target, notes = _without_search(run, asked)
    if len(targets := run.schedule(target)) > 1:
        notes.append(
            f"planned for the dense network: the recipe prunes to {targets[0].value:g} first and "
            "measures again"
        )
    if run.reconstructs(target):
        notes.append("block reconstruction follows and reduces the loss expected here")
    elif run.asks_for_reconstruction(target):
        notes.append(f"no block reconstruction: {run.cannot_reconstruct}")
    notes += run.zeros_before()
    kept = run.kept(fitted, target)
    losses = fitted.loss_increase(kept) or [None] * len(kept)
    layers = tuple(
        LayerPlan(
            name=layer.name,
            shape=tuple(layer.shape),
            weights=layer.weights,
            kept=count,
            sparsity=1 - count / layer.weights,
            loss_increase=loss,
            dense_macs=layer.macs,
            macs=round(layer.macs * count / layer.weights),
        )
        for layer, count, loss in zip(run.layers, kept, losses, strict=True)
    )
    return Plan(
        target=asked.name,
        value=asked.value,
        layers=layers,
        sparsity=1 - sum(kept) / sum(run.costs.sizes),
        macs_fraction=run.costs.macs.share(kept),
        bytes_fraction=run.costs.bytes.share(kept),
        loss_increase=sum(of for of in losses if of is not None) if fitted.curves else None,
        notes=tuple(notes),
    )


def _without_search(run: PruningRun, target: Target) -> tuple[Target, list[str]]:
    """A guessed sparsity in place of a drop that only walks can measure."""
    if not isinstance(target, MaxDrop):
        return target, []
    if not run.curves:
        raise OptionError(
            "max_drop cannot be planned with an allocation that measures no loss, expected "
            "'sensitivity': plan a sparsity instead, or prune"
        )
    guess = run.predicted_loss().sparsity(max(target.value, 1e-3))
    return Sparsity(guess), [
        "the sparsity is an estimate from the measured layers: prune searches by measuring"
    ]
