"""Measured latency: the intervals, the turns, what is said of them, and real files."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
from test_cli import assert_mistake, invoke
from test_page import Page

from secateur import Bench, MissingExtraError, ModelError, OptionError, bench
from secateur import bench as bench_function
from secateur.hardware.bench_worker import measure
from secateur.hardware.latency import (
    CONFIDENCE,
    NO_DIFFERENCE,
    PROCESSES,
    Timing,
    interval,
    verdict,
)
from secateur.hardware.machine import Machine
from secateur.render.page import report_page

onnx = pytest.importorskip("onnx")
MODULE = __import__("sys").modules["secateur.hardware.bench"]


def timing(*medians: float, file: str = "a.onnx") -> Timing:
    """Of processes whose rounds all take as long as given."""
    low, middle, high = interval(medians)
    return Timing(
        file=file,
        runtime="OpenVINO",
        milliseconds=tuple((of, of) for of in medians),
        median=middle,
        low=low,
        high=high,
        peak_bytes=None,
        precision="f32",
        layers=7,
        sparse_layers=0,
    )


def convolutions(path: Path, layers: int, size: int = 8) -> Path:
    """A file with so many 3x3 convolutions of 16 channels, for any number of images."""
    build, nodes, held = onnx.helper, [], []
    for index in range(layers):
        weight = np.full((16, 3 if index == 0 else 16, 3, 3), 0.01, np.float32)
        held.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        reads = ["input" if index == 0 else f"x{index - 1}", f"w{index}"]
        nodes.append(build.make_node("Conv", reads, [f"x{index}"], pads=[1] * 4))
    value = build.make_tensor_value_info
    inputs = [value("input", 1, ["n", 3, size, size])]
    outputs = [value(f"x{layers - 1}", 1, ["n", 16, size, size])]
    graph = build.make_graph(nodes, "graph", inputs, outputs, held)
    opsets = [build.make_opsetid("", 17)]
    onnx.save(build.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        low, middle, high = interval(np.exp(0.3 * rng.standard_normal(PROCESSES)))
        assert low <= middle <= high
        held += low <= 1 <= high
    assert held / 4000 == pytest.approx(CONFIDENCE, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_differences_smaller_than_those_between_processes_are_not_told() -> None:
    first = timing(1.0, 1.0, 1.0, 1.0, 1.0)
    assert verdict(first, timing(1.3, 1.25, 0.9, 1.3, 1.0)) == NO_DIFFERENCE
    assert verdict(first, timing(0.7, 1.1, 0.9, 0.95, 1.05)) == NO_DIFFERENCE
    assert NO_DIFFERENCE == "no measurable difference"


def test_a_difference_is_told_in_percent_of_the_first_time() -> None:
    first, slow = timing(1.0, 1.1, 1.0, 0.9, 1.0), timing(1.24, 1.364, 1.24, 1.116, 1.24)
    assert verdict(first, slow) == "24 % slower (24 to 24 %)"  # by the same factor in each process
    assert verdict(slow, first) == "19 % faster (19 to 19 %)"
    low, ratio, high = interval([1.02, 1.04, 1.03, 1.02, 1.04])
    assert verdict(timing(1, 1, 1, 1, 1), timing(1.02, 1.04, 1.03, 1.02, 1.04)) == (
        f"{100 * ratio - 100:.1f} % slower ({100 * low - 100:.1f} to {100 * high - 100:.1f} %)"
    )


def test_rounds_are_compared_in_pairs() -> None:
    """A machine that gets slower from round to round slows both files down."""
    drift = (1.0, 2.0, 3.0, 4.0)
    first, other = (
        replace(timing(1, 1, 1, 1, 1), milliseconds=(tuple(of * m for m in drift),) * 5)
        for of in (1.0, 1.5)
    )
    assert verdict(first, other) == "50 % slower (50 to 50 %)"


@pytest.mark.parametrize(
    ("load", "threads", "medians", "says"),
    [
        (0.2, 2, (1, 1, 1, 1, 1.05), []),
        (None, 2, (1, 1, 1, 1, 1.05), []),
        (0.9, 1, (1, 1, 1, 1, 1), []),
        (0.9, 2, (1, 1, 1, 1, 1), ["the machine was busy (load average 0.9"]),
        (0.0, 1, (1, 1.2, 1, 1, 1), ["the same file took up to 20% longer in one process"]),
    ],
)
def test_a_busy_machine_is_told(
    monkeypatch: pytest.MonkeyPatch,
    load: float | None,
    threads: int,
    medians: tuple[float, ...],
    says: list[str],
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = MODULE._warnings([timing(1, 1, 1, 1, 1), timing(*medians)], load, threads)
    assert len(found) == len(says)
    assert all(text.startswith(start) for text, start in zip(found, says, strict=True))


def test_files_of_the_same_name_are_told_apart() -> None:
    found = reports.bench(
        timing(1, 2, 3, 2, 1, file="a/m.onnx"), timing(1, 2, 3, 2, 1, file="b/m.onnx")
    )
    assert [found.label(one) for one in found.timings] == ["a/m.onnx", "b/m.onnx"]
    other = reports.bench(
        timing(1, 2, 3, 2, 1, file="a/m.onnx"), timing(1, 2, 3, 2, 1, file="b/n.onnx")
    )
    assert [other.label(one) for one in other.timings] == ["m.onnx", "n.onnx"]


def test_functions_take_turns_in_changing_order() -> None:
    calls: list[int] = []

    def run(index: int) -> None:
        calls.append(index)
        time.sleep(0.003)  # long enough for one run a measurement

    found = measure([lambda: run(0), lambda: run(1), lambda: run(2)], 12, seed=1)
    assert [len(times) for times in found] == [12, 12, 12]
    assert all(1e-3 < value < 1000 for times in found for value in times)
    rounds = [tuple(calls[start : start + 3]) for start in range(len(calls) - 36, len(calls), 3)]
    assert all(sorted(turn) == [0, 1, 2] for turn in rounds)
    assert len(set(rounds)) > 1


def test_short_runs_are_repeated_and_told_per_run() -> None:
    calls = itertools.count()
    ((first, *_),) = measure([lambda: next(calls)], 10)
    assert next(calls) > 100
    assert first < 0.1


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    small = convolutions(folder / "small.onnx", 1)
    large = convolutions(folder / "large.onnx", 12, size=8)
    return bench(small, large, rounds=11, threads=1), small, large


def test_files_are_measured_on_every_runtime_that_is_installed(
    measured: tuple[Bench, Path, Path],
) -> None:
    found, small, large = measured
    runtimes = list(dict.fromkeys(one.runtime for one in found.timings))
    assert runtimes[0] == "ONNX Runtime"
    assert ("openvino" in found.versions) == ("OpenVINO" in runtimes)
    assert [one.file for one in found.timings] == [str(small), str(large)] * len(runtimes)
    for one in found.timings:
        assert [len(times) for times in one.milliseconds] == [3] * PROCESSES  # rounded up
        assert one.low <= one.median <= one.high
        medians = [np.median(times) for times in one.milliseconds]
        assert (one.low, one.median, one.high) == pytest.approx(interval(medians))
        if one.peak_bytes is not None:
            assert 0 < one.peak_bytes < 1e9
    assert found.verdict(found.timings[0]) == ""
    assert found.ratio(found.timings[0]) == pytest.approx((1, 1, 1))
    assert found.threads == 1
    table = str(replace(found, warnings=()))  # one may name the file
    assert table.count(small.name) == len(runtimes)


def test_the_sparse_path_is_read_from_the_executed_model(
    measured: tuple[Bench, Path, Path],
) -> None:
    pytest.importorskip("openvino")
    found, _, large = measured
    held = [one for one in found.timings if one.runtime.startswith("OpenVINO")]
    assert {one.layers for one in held if one.file == str(large)} == {12}
    assert {one.sparse_layers for one in held} == {0}  # convolutions never are
    (note,) = found.notes
    assert note.startswith("OpenVINO took its sparse path in no layer")
    flags = Machine.here().flags
    assert ("no AMX" in note) == (flags is not None and "amx_int8" not in flags)


def test_sparse_kernels_are_counted_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from secateur.hardware.runtimes import openvino
    from secateur.hardware.runtimes.protocol import EngineOptions

    kernels = iter(("brgemm_avx512_amx_sparse_I8", "brgemm_avx512_amx_I8", "x", "y", "z", "w", "v"))
    monkeypatch.setattr(
        openvino, "_executed", lambda op: ("FullyConnected", next(kernels, "none"), "i8")
    )
    path = convolutions(tmp_path / "model.onnx", 1)
    options = EngineOptions(threads=1, rate=0.5, batch=1)
    engine = openvino.RUNTIME.engines["OpenVINO, sparse on"](path, options)
    assert engine.sparse_layers == 1
    assert engine.layers is not None
    assert engine.layers > 1
    assert engine.precision.endswith("layers in i8")


def test_a_saved_bench_comes_back_and_is_shown_on_the_page(
    measured: tuple[Bench, Path, Path], tmp_path: Path
) -> None:
    found, small, _ = measured
    found.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json") == found
    reports.report().save(tmp_path / "report.json")
    call = ["report", tmp_path / "report.json", "--bench", tmp_path / "bench.json"]
    assert invoke(*call, "-o", tmp_path / "page.html").exit_code == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert small.name in page.text
    assert f"{found.timings[0].median:.3g}" in page.text
    assert "15 rounds in 5 processes" in page.text
    assert "Latency was not measured" not in page.text
    assert "Latency was not measured" in report_page(reports.report())


def mistake(case: str, folder: Path) -> tuple[list[Any], dict[str, Any]]:
    good = convolutions(folder / "good.onnx", 1)
    other = convolutions(folder / "other.onnx", 1, size=5)
    (folder / "junk.onnx").write_bytes(b"junk")
    return {
        "none": ([], {}),
        "rounds": ([good], {"rounds": 9}),
        "threads": ([good], {"threads": 0}),
        "batch": ([good], {"batch": 0}),
        "rate": ([good], {"sparse_rate": 1.0}),
        "twice": ([good, good], {}),
        "kind": ([folder / "model.safetensors"], {}),
        "absent": ([folder / "absent.onnx"], {}),
        "junk": ([folder / "junk.onnx"], {}),
        "inputs": ([good, other], {"rounds": 10}),
    }[case]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("none", "got no files"),
        ("rounds", "rounds is 9, expected at least 10"),
        ("threads", "threads is 0"),
        ("batch", "batch is 0"),
        ("rate", "sparse_rate is 1.0"),
        ("twice", "got a file twice"),
        ("kind", "expected .onnx files"),
        ("absent", "is not there"),
        ("junk", "ONNX Runtime cannot run .*junk.onnx"),
        ("inputs", r"takes float32 \[1, 3, 5, 5\]"),
    ],
)
def test_mistakes_are_told(
    case: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "is_installed", lambda package: package == "onnxruntime")
    files, options = mistake(case, tmp_path)
    with pytest.raises((OptionError, ModelError), match=says):
        bench_function(*files, **options)


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convolutions(tmp_path / "model.onnx", 1)
    monkeypatch.setattr(MODULE, "is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[onnx\]'"):
        bench(path)
    monkeypatch.setattr(MODULE, "is_installed", lambda package: package == "onnxruntime")
    found = bench(path, rounds=10, threads=1)
    (note,) = found.notes
    assert note.startswith("OpenVINO was not measured: pip install '.[openvino]'")


def test_the_command_prints_the_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "is_installed", lambda package: package == "onnxruntime")
    path, json = convolutions(tmp_path / "model.onnx", 1), tmp_path / "bench.json"
    result = invoke("bench", path, "--rounds", 10, "--threads", 1, "--json", json)
    assert result.exit_code == 0, result.output
    assert "10 rounds in 5 processes" in result.stdout
    assert Bench.load(json).files == (str(path),)
    assert_mistake(invoke("bench", path, "--json", json), "exists")
    assert_mistake(invoke("bench", path, "--json", tmp_path / "no" / "b.json"), "no folder")
    assert_mistake(invoke("bench", path, "--rounds", 2), "rounds is 2")
