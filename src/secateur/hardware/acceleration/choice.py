"""Which kernel a layer gets: the one that takes the least time here, with the rows that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.hardware.bench_worker import measure

ROUNDS = 9
MARGIN = 0.02  # by which integers have to be faster than floats, as a share of the time


def seconds(
    runs: Mapping[str, Callable[[Tensor], Any]], rows: Tensor, count: int
) -> dict[str, float]:
    """Seconds of a layer in several forms, which take turns: the least of `ROUNDS` rounds.

    The least, not the median: other work on the machine only ever adds to a time.

    Args:
        runs: each form of the layer.
        rows: some of its inputs (rows, inputs), which are repeated.
        count: how many rows to run it with.
    """
    whole = rows[torch.arange(count) % len(rows)].contiguous()

    def bound(run: Callable[[Tensor], Any]) -> Callable[[], Any]:
        return lambda: run(whole.view_as(whole))  # a new object: codes of the last one are kept

    with torch.inference_mode():
        found = measure([bound(run) for run in runs.values()], ROUNDS)
    return {name: 1e-3 * min(of) for name, of in zip(runs, found, strict=True)}


def fastest(times: Mapping[str, float], allowed: Sequence[str]) -> str:
    """The form that takes the least time; floats unless others are clearly faster."""
    best = min((name for name in times if name in allowed), key=times.__getitem__)
    if "float" in allowed and times[best] > (1 - MARGIN) * times["float"]:
        return "float"
    return best
