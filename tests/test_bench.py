"""Measured latency: the intervals, the turns, what is said of them, and real files."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
from test_cli import assert_mistake, invoke
from test_page import Page

from secateur import Bench, MissingExtraError, ModelError, OptionError, bench
from secateur import bench as bench_function
from secateur.bench import NO_DIFFERENCE, Timing, measure, median_interval, verdict
from secateur.page import report_page
from secateur.runtimes import Machine

onnx = pytest.importorskip("onnx")
MODULE = __import__("sys").modules["secateur.bench"]


def timing(low: float, median: float, high: float, file: str = "a.onnx") -> Timing:
    return Timing(
        file=file,
        runtime="OpenVINO",
        milliseconds=(low, median, high),
        median=median,
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


@pytest.mark.parametrize("count", [6, 7, 20, 101])
def test_the_ranks_enclose_the_median_with_the_confidence_and_no_others_do(count: int) -> None:
    low, middle, high = median_interval(list(reversed(range(count))))
    assert middle == (count - 1) / 2
    assert low + high == count - 1

    def missed(
        rank: int,
    ) -> Fraction:  # P(fewer than `rank` of `count` are below the median), twice
        return Fraction(2 * sum(math.comb(count, k) for k in range(rank)), 2**count)

    assert missed(int(low) + 1) <= Fraction(5, 100) < missed(int(low) + 2)


def test_too_few_runs_have_no_interval() -> None:
    with pytest.raises(OptionError, match="got 5 runs"):
        median_interval([1.0] * 5)


def test_overlapping_intervals_are_no_measurable_difference() -> None:
    assert verdict(timing(1, 2, 3), timing(3, 4, 5)) == NO_DIFFERENCE
    assert verdict(timing(3, 4, 5), timing(1, 2, 3)) == NO_DIFFERENCE
    assert verdict(timing(1, 2, 9), timing(3, 4, 5)) == NO_DIFFERENCE
    assert NO_DIFFERENCE == "no measurable difference"


def test_a_ratio_has_the_extremes_of_both_intervals() -> None:
    slow, fast = timing(3.0, 4.0, 6.0), timing(1.0, 2.0, 2.5)
    assert verdict(slow, fast) == "2.00 times as fast (1.20 to 6.00)"
    assert verdict(fast, slow) == "2.00 times as slow (1.20 to 6.00)"


def test_files_of_the_same_name_are_told_apart() -> None:
    found = reports.bench(timing(1, 2, 3, "a/m.onnx"), timing(1, 2, 3, "b/m.onnx"))
    assert [found.label(one) for one in found.timings] == ["a/m.onnx", "b/m.onnx"]
    other = reports.bench(timing(1, 2, 3, "a/m.onnx"), timing(1, 2, 3, "b/n.onnx"))
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
    ((first, *_),) = measure([lambda: next(calls)], 6)
    assert next(calls) > 100
    assert first < 0.1


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    small = convolutions(folder / "small.onnx", 1)
    large = convolutions(folder / "large.onnx", 12, size=8)
    return bench(small, large, rounds=8, threads=1), small, large


def test_files_are_measured_on_every_runtime_that_is_installed(
    measured: tuple[Bench, Path, Path],
) -> None:
    found, small, large = measured
    runtimes = list(dict.fromkeys(one.runtime for one in found.timings))
    assert runtimes[0] == "ONNX Runtime"
    assert ("openvino" in found.versions) == ("OpenVINO" in runtimes)
    assert [one.file for one in found.timings] == [str(small), str(large)] * len(runtimes)
    for one in found.timings:
        assert len(one.milliseconds) == 8
        assert one.low <= one.median <= one.high
        assert sorted(one.milliseconds)[0] == one.low  # ranks 1 and 8 of 8
        if one.peak_bytes is not None:
            assert 0 < one.peak_bytes < 1e9
    assert found.verdict(found.timings[0]) == ""
    assert found.threads == 1
    assert str(found).count(str(small.name)) == len(runtimes)


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
    from secateur import engines

    kernels = iter(("brgemm_avx512_amx_sparse_I8", "brgemm_avx512_amx_I8", "x", "y", "z", "w", "v"))
    monkeypatch.setattr(
        engines, "_executed", lambda op: ("FullyConnected", next(kernels, "none"), "i8")
    )
    path = convolutions(tmp_path / "model.onnx", 1)
    engine = engines.start(path, engines.OPENVINO_SPARSE, 1, 0.5, 1)
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
    assert "8 rounds" in page.text
    assert "No latency was measured" not in page.text
    assert "No latency was measured" in report_page(reports.report())


def mistake(case: str, folder: Path) -> tuple[list[Any], dict[str, Any]]:
    good = convolutions(folder / "good.onnx", 1)
    other = convolutions(folder / "other.onnx", 1, size=5)
    (folder / "junk.onnx").write_bytes(b"junk")
    return {
        "none": ([], {}),
        "rounds": ([good], {"rounds": 5}),
        "threads": ([good], {"threads": 0}),
        "batch": ([good], {"batch": 0}),
        "rate": ([good], {"sparse_rate": 1.0}),
        "twice": ([good, good], {}),
        "kind": ([folder / "model.safetensors"], {}),
        "absent": ([folder / "absent.onnx"], {}),
        "junk": ([folder / "junk.onnx"], {}),
        "inputs": ([good, other], {"rounds": 6}),
    }[case]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("none", "got no files"),
        ("rounds", "rounds is 5, expected at least 6"),
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
    monkeypatch.setattr(MODULE, "_installed", lambda package: package == "onnxruntime")
    files, options = mistake(case, tmp_path)
    with pytest.raises((OptionError, ModelError), match=says):
        bench_function(*files, **options)


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convolutions(tmp_path / "model.onnx", 1)
    monkeypatch.setattr(MODULE, "_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[onnx\]'"):
        bench(path)
    monkeypatch.setattr(MODULE, "_installed", lambda package: package == "onnxruntime")
    found = bench(path, rounds=6, threads=1)
    (note,) = found.notes
    assert note.startswith("OpenVINO was not measured: pip install '.[openvino]'")


def test_the_command_prints_the_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_installed", lambda package: package == "onnxruntime")
    path, json = convolutions(tmp_path / "model.onnx", 1), tmp_path / "bench.json"
    result = invoke("bench", path, "--rounds", 6, "--threads", 1, "--json", json)
    assert result.exit_code == 0, result.output
    assert "6 rounds" in result.stdout
    assert Bench.load(json).files == (str(path),)
    assert_mistake(invoke("bench", path, "--json", json), "exists")
    assert_mistake(invoke("bench", path, "--json", tmp_path / "no" / "b.json"), "no folder")
    assert_mistake(invoke("bench", path, "--rounds", 2), "rounds is 2")
