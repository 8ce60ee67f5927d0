"""How a call is carried out: where it keeps what is finished, in how much memory, by how many."""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.network.store import Spill
from secateur.pruning.journal import Journal
from secateur.support.group import Group


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What the steps of a call share. Results have the same bytes whatever it holds.

    The size of chunks travels beside it: results depend on that.

    Attributes:
        journal: has what was finished before, and is told of what is.
        spill: the cap on the memory of values between operations; None = there is none.
        group: the processes that share the work.
    """

    journal: Journal = field(default_factory=Journal)
    spill: Spill | None = None
    group: Group = field(default_factory=Group)
