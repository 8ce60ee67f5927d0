"""Latencies of several networks on one runtime: the ratios, the rounds, and real ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import ModelError, OptionError
from secateur.hardware import compare_latency
from secateur.hardware.bench_worker import measure
from secateur.hardware.compare_latency import compare, compare_modules, try_run
from secateur.hardware.latency import PROCESSES

IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"")
    return path


def test_ratios_are_of_pairs_of_rounds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower slows both down; processes that differ widen the interval."""
    factors = iter((0.5, 0.6, 0.5, 0.4, 0.5))

    def turns(files, engine, options, *, seconds, seed):
        factor = next(factors)
        assert (engine, seconds) == ("ONNX Runtime", 2)
        return [[1.0, 4.0, 9.0], [factor, 4 * factor, 9 * factor]]

    monkeypatch.setattr(compare_latency, "_turns", turns)
    first, other = compare([file, file], IMAGES, "onnxruntime", 2 * PROCESSES)
    assert (first.ratio, first.low, first.high) == pytest.approx((1, 1, 1))
    assert other.low < 0.49 < other.ratio < 0.5 < other.high
    assert first.seconds == pytest.approx(4e-3)
    assert other.rounds == 3 * PROCESSES


def test_a_quick_look_is_one_process_and_the_median_of_its_rounds(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def turns(files, engine, options, *, seconds, seed):
        asked.append(seconds)
        return [[2.0] * 9, [1.0, *[0.8] * 7, 0.2]]

    monkeypatch.setattr(compare_latency, "_turns", turns)
    first, other = compare([file, file], IMAGES, "onnxruntime", 7, quick=True)
    assert asked == [7]
    assert (first.ratio, first.low, first.high) == (1, 1, 1)
    assert (other.low, other.ratio, other.high) == pytest.approx((0.4, 0.4, 0.4))
    assert (other.seconds, other.rounds) == (0.8e-3, 9)


def test_rounds_go_on_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    ((*times,),) = measure([lambda: None], 2, seconds=30.0)
    assert 2 < len(times) <= 15  # each reads the clock three times
    ((*times,),) = measure([lambda: None], 2, seconds=0.0)
    assert len(times) == 2


def test_a_network_compared_with_itself_takes_as_many_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare_latency, "PROCESSES", 2)  # each imports torch
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    found = compare([net, net], IMAGES, "torch", 0.5)
    assert [one.rounds for one in found] == [found[0].rounds] * 2
    assert found[0].rounds >= 2 * 2
    assert all(0 < one.low <= one.ratio <= one.high for one in found)
    assert all(one.seconds > 0 for one in found)


def test_modules_take_turns_in_this_process_with_as_many_threads_as_asked_for() -> None:
    seen: list[tuple[int, int]] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((len(x), torch.get_num_threads()))
            return super().forward(x)

    nets = [Watched(8, 8), Watched(8, 800)]
    before = torch.get_num_threads()
    first, other = compare_modules(nets, torch.zeros(5, 8), 0.2, threads=1)
    assert set(seen) == {(1, 1)}
    assert torch.get_num_threads() == before
    assert first.ratio == 1
    assert first.rounds == other.rounds >= 2
    assert other.low <= other.ratio <= other.high


def test_a_network_is_tried_in_one_process(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def turns(files, engine, options, *, seconds, seed):
        asked.append(seconds)
        return [[1.0, 1.0]]

    monkeypatch.setattr(compare_latency, "_turns", turns)
    try_run(file, IMAGES, "onnxruntime")
    assert asked == [0]


@pytest.mark.parametrize(
    ("models", "runtime", "seconds", "error", "says"),
    [
        ([], "torch", 1, OptionError, "got no models"),
        (["a"], "tensorrt", 1, OptionError, "runtime is 'tensorrt'"),
        (["a"], "torch", 0, OptionError, "seconds is 0"),
        (["absent.onnx"], "openvino", 1, ModelError, "check the path"),
        (["absent.onnx"], "torch", 1, ModelError, r"expected a \.pt2 file"),
    ],
)
def test_mistakes_are_told(models, runtime, seconds, error, says) -> None:
    with pytest.raises(error, match=says):
        compare(models, IMAGES, runtime, seconds)


def test_a_module_stays_as_it_is_given(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).train()
    compare_latency.file_for(module, IMAGES, "torch", tmp_path / "net")
    assert module.training
    assert module[1].training
