"""Memory that was freed goes back to the system, where that is known how."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from secateur.support import free_memory
from secateur.support.free_memory import give_back


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_lies_between_values_that_stay_goes_back() -> None:
    size = 4 * 2**20  # bytes, which come from the heap, once a larger block was freed
    block = torch.ones(5 * 2**20)
    del block
    give_back()
    before = resident()
    values = [torch.ones(size // 4) for _ in range(100)]
    stay = values[1::2]
    values.clear()
    give_back()
    assert resident() - before <= 60 * size
    assert all(bool((of == 1).all()) for of in stay)


def test_other_systems_keep_it(monkeypatch) -> None:
    def refuse(name: None) -> None:
        raise TypeError("expected a name")

    free_memory._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    give_back()
    assert free_memory._trim() is None
    free_memory._trim.cache_clear()
