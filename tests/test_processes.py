"""Several processes give the bytes of one, and fail with one sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import process_runs
import pytest
import torch

from secateur.network import samples
from secateur.pruning.sharing import divided
from secateur.support.group import Group, _Layout, _packed, _unpacked

# the others of `RUNS` came to the same bytes too, but take their time
TOGETHER = {
    2: ("failures", "resumed", "a transformer's channels"),
    3: ("2:4, statistics taken anew",),
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in the processes; in one thread products are summed up in another order."""
    monkeypatch.setattr(samples, "_CHUNK_VALUES", process_runs.FEW)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(count: int, *command: Any) -> list[subprocess.Popen[str]]:
    """So many processes with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = Path(process_runs.secateur.__file__).parents[1]
    paths = os.pathsep.join([str(source), str(Path(__file__).parent)])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def run_together(count: int, folder: Path) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    started = start(count, "-W", "ignore", process_runs.__file__, folder, *TOGETHER[count])
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.parametrize("count", TOGETHER)
def test_several_processes_give_the_bytes_of_one_and_fail_with_a_sentence(count, tmp_path):
    found = run_together(count, tmp_path)
    for name in TOGETHER[count]:
        if name in process_runs.RUNS:
            alone = process_runs.run(name, 0, Path())
            assert [of[name] for of in found] == [alone] * count, name
    if "resumed" in TOGETHER[count]:  # after a run that failed
        alone = process_runs.small(**process_runs.WORK)
        assert [of["resumed"] for of in found] == [alone] * count
        check_failures(*(of["failures"] for of in found))


def check_failures(first: dict[str, str], second: dict[str, str]) -> None:
    """Who fails says why, the others that it did."""
    assert first["one"] == "RuntimeError: stopped here"
    assert second["one"] == "ProcessError: process 0 of 2 failed: stopped here"
    assert first["a second process"] == "ProcessError: process 1 of 2 failed: no more"
    assert second["a second process"] == "ValueError: no more"
    assert first["all"] == second["all"]
    assert first["all"].startswith("OptionError: sparsity is 2.0")
    for of in (first, second):
        assert "processes 0 and 1 of 2 make different calls" in of["others' images"]
        assert "images" in of["others' images"]


def test_layers_are_divided_without_more_memory_than_the_largest_takes():
    sizes, costs = [1.0, 4, 2, 3, 4, 1], [5.0, 9, 1, 1, 9, 4]
    for processes in (1, 2, 3, 8):
        windows = list(divided(range(1, 6), costs, sizes, processes))
        assert [task.index for window in windows for task in window] == [1, 2, 3, 4, 5]
        for window in windows:
            for process in range(processes):
                assert sum(sizes[of.index] for of in window if of.solver == process) <= 4
    assert [len(window) for window in divided(range(6), costs, sizes, 1)] == [1] * 6
    (window,) = divided(range(4), [1.0, 1, 1, 5], [1.0] * 3 + [9.0], 2)
    assert len({of.solver for of in window[:3]}) == 1 != window[3].solver


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(24.0).view(4, 6)[:, 1:4],
        torch.tensor(3.0),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.ones(2, 1).expand(2, 3),
        torch.arange(6.0).view(2, 3).bfloat16(),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype}",
)
def test_a_tensor_arrives_with_its_bytes_and_its_order_in_memory(tensor):
    content, tensors = _packed({"held": [tensor]})
    flats = iter([_Layout(of).flat(of) for of in tensors if of.numel()])

    def receive(layout: _Layout) -> torch.Tensor:
        values = layout.empty()
        if values.numel():
            values.view(torch.uint8).copy_(next(flats))
        return layout.tensor(values)

    (arrived,) = _unpacked(content, receive)["held"]
    assert arrived.dtype == tensor.dtype
    assert torch.equal(arrived, tensor)
    is_dense = tensor.untyped_storage().nbytes() == tensor.nbytes
    assert not is_dense or arrived.stride() == tensor.stride()


def test_a_group_of_one_does_nothing():
    group = Group()
    assert group.gather(3) == [3]
    assert group.broadcast(4) == 4
    assert list(group.share(3)) == [0, 1, 2]
    assert group.in_order({0: "a", 1: "b"}, 2) == ["a", "b"]
    with pytest.raises(ValueError, match="expected another one"):
        group.send(1, 0)
