"""Which kernel a layer gets: the one that takes the least time here, with the rows that it has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDS = 12
_REPEATS = 2  # runs of a round
MARGIN = 0.02  # by which others have to be faster than the plain form, as a share of the time


def seconds(
    runs: Mapping[str, Callable[[Tensor], Any]], rows: Tensor, count: int
) -> dict[str, float]:
    """Seconds of a layer in several forms, which take turns: the least of `ROUNDS` rounds.

    The least, not the median, and of one thread its own time: other work on the machine only ever
    adds to a time.

    Args:
        runs: each form of the layer.
        rows: some of its inputs (rows, inputs), which are repeated.
        count: how many rows to run it with.
    """
    whole = rows[torch.arange(count) % len(rows)].contiguous()

    def bound(run: Callable[[Tensor], Any]) -> Callable[[], Any]:
        return lambda: run(whole.view_as(whole))  # a new object: codes of the last one are kept

    with torch.inference_mode():
        found = _least([bound(run) for run in runs.values()])
    return dict(zip(runs, found, strict=True))


def _least(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """Seconds of each function, the least of the rounds, in which they take turns."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = [math.inf] * len(runs)
    for run in runs:
        run()
    for _ in range(ROUNDS):
        for number, run in enumerate(runs):
            start = clock()
            for _ in range(_REPEATS):
                run()
            least[number] = min(least[number], (clock() - start) / _REPEATS)
    return least


def fastest(times: Mapping[str, float], allowed: Sequence[str], *, plain: str = "float") -> str:
    """The form that takes the least time; the plain one unless others are clearly faster."""
    best = min((name for name in times if name in allowed), key=times.__getitem__)
    if plain in allowed and times[best] > (1 - MARGIN) * times[plain]:
        return plain
    return best
