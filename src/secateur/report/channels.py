"""The channels of a network: how many are left of each group, or why they all stay."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.pruning.groups import ChannelGroup
from secateur.support.tables import Column, Table


def channel_table(groups: Sequence[ChannelGroup]) -> Table:
    """The groups whose channels can leave."""
    columns = (
        Column("channels made by"),
        Column("channels", "{:,}"),
        Column("left", "{:,}"),
        Column("removed", "{:.1f}", unit="%"),
    )
    rows = (
        (of.name, of.channels, of.left, 100 * (1 - of.left / of.channels))
        for of in groups
        if of.reason is None
    )
    return Table(name="channels", columns=columns, rows=tuple(rows), title="Channels")


def free_table(groups: Sequence[ChannelGroup]) -> Table:
    """The groups whose channels can leave, before any does."""
    columns = (Column("channels made by"), Column("channels", "{:,}"))
    rows = ((of.name, of.channels) for of in groups if of.reason is None)
    title = "Channels that can leave"
    return Table(name="free", columns=columns, rows=tuple(rows), title=title)


def stuck_table(groups: Sequence[ChannelGroup]) -> Table | None:
    """The groups whose channels all stay, by the reason; None = there are none."""
    by_reason: dict[str, list[ChannelGroup]] = {}
    for of in groups:
        if of.reason is not None:
            by_reason.setdefault(of.reason, []).append(of)
    if not by_reason:
        return None
    columns = (Column("reason"), Column("groups", "{:,}"), Column("channels", "{:,}"), Column("of"))
    rows = (
        (reason, len(found), sum(of.channels for of in found), ", ".join(of.name for of in found))
        for reason, found in by_reason.items()
    )
    return Table(name="stuck", columns=columns, rows=tuple(rows), title="Channels that stay")
