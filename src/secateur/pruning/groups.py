"""What became of channels that the same layers make."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.pruning.allocations import Curve


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that the same layers make.

    Attributes:
        name: of these layers.
        channels: how many there were.
        left: how many there are.
        reason: why none of them can leave; None = they can.
        sensitivity: what the network's output loses when channels of this group alone leave.
    """

    name: str
    channels: int
    left: int
    reason: str | None = None
    sensitivity: Curve | None = None
