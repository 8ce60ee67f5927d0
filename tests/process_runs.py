"""What `test_processes` runs in several processes, and in one.

    python tests/process_runs.py FOLDER RUN ...

with the environment that `torchrun` gives. Each process writes what it found to FOLDER/RANK.json.
A run is one of `RUNS`, "failures" or "resumed".
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_resume import CASES, IMAGES, JUDGED, Attentive, held, network, recipe
from torch import nn

import secateur
from secateur.core.patterns import Channels
from secateur.network import samples
from secateur.pruning.allocations import Uniform
from secateur.support.group import together

TOKENS = torch.randn(40, 6, 16, generator=torch.Generator().manual_seed(3))
FEW = 1 << 11  # values in a chunk, so that there are many of them


def pruned(net: nn.Module, images: torch.Tensor, **options: Any) -> str:
    """A digest of a pruned network, and of its report but for the time it took."""
    result = secateur.prune(net, images, **options)
    found = hashlib.sha256()
    for name, value in held(result).items():
        found.update(name.encode() + value)
    report = result.report
    notes = [note for note in report.notes if "work folder" not in note and "memory:" not in note]
    for part in (report.layers, report.channels, notes, report.evaluation, report.calibration):
        found.update(repr(part).encode())
    return found.hexdigest()


def small(**options: Any) -> str:
    return pruned(network(), IMAGES, **options)


class Twice(nn.Module):
    """A weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.shared = nn.Linear(16, 16), nn.Linear(16, 16)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.shared(self.first(x)).relu())


SMALLER = recipe(pattern=Channels(), schedule=(0.0,), reconstruction=None)
DENSE = recipe(inputs="dense", schedule=(0.0,), reconstruction=None)
RUNS: dict[str, Callable[[], str]] = {
    "zeros": lambda: small(**CASES["zeros"], evaluation=JUDGED[:30]),
    "2:4": lambda: small(pattern="2:4", recipe=recipe(reconstruction=None)),
    "the paper's": lambda: small(**CASES["the paper's"]),
    "dense inputs": lambda: small(sparsity=0.7, recipe=DENSE),
    "2:4, statistics taken anew": lambda: small(
        pattern="2:4",
        recipe=recipe(reconstruction=None, recalibration="all"),
        memory="200 kB",
        evaluation=JUDGED[:30],
    ),
    "in blocks": lambda: small(
        sparsity=0.7, recipe=recipe(reconstruction=None), max_columns=50, allocation=Uniform()
    ),
    "channels": lambda: small(**CASES["channels"]),
    "a search": lambda: small(**CASES["a search"]),
    "a transformer": lambda: pruned(Attentive(), TOKENS, sparsity=0.7),
    "a transformer's channels": lambda: pruned(Attentive(), TOKENS, max_macs=0.6, recipe=SMALLER),
    "a weight used twice": lambda: pruned(Twice(), TOKENS, sparsity=0.5),
}
WORK: dict[str, Any] = {"sparsity": 0.7, "recipe": recipe()}


def failing(call: Callable[[], Any]) -> str:
    """What a call says when it fails."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it did not fail"


def failures(rank: int, folder: Path) -> dict[str, str]:
    """What each process says when one fails, or all."""
    other = IMAGES if rank == 0 else IMAGES + 1e-3

    def step(done: int, total: int, layer: str) -> None:
        if done == 5:
            raise RuntimeError("stopped here")

    return {
        "all": failing(lambda: small(sparsity=2.0)),
        "one": failing(lambda: small(**WORK, work_dir=folder / "work", progress=step)),
        "others' images": failing(lambda: pruned(network(), other, sparsity=0.5)),
        "a second process": failing(lambda: _fails_in_the_second(rank)),
    }


def _fails_in_the_second(rank: int) -> None:
    with together() as group:
        if rank == 1:
            raise ValueError("no more")
        group.receive(1)


def run(name: str, rank: int, folder: Path) -> Any:
    """What comes of a run in this process, with as small chunks as in all others."""
    samples._CHUNK_VALUES = FEW
    if name == "failures":
        return failures(rank, folder)
    if name == "resumed":
        return small(**WORK, work_dir=folder / "work")
    return RUNS[name]()


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"  # a port may be taken by another test meanwhile
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=int(os.environ["WORLD_SIZE"])
    )
    found = {name: run(name, rank, folder) for name in sys.argv[2:] or ["failures", *RUNS]}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
