"""Times of layers against widths: shapes, turns, interpolation, tables, and real runtimes."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import trace
from torch import Tensor, nn

from secateur import MissingExtraError, ModelError, OptionError
from secateur.hardware import layer_times as module
from secateur.hardware.latency import median_interval
from secateur.hardware.layer_cells import layer_share
from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.layer_shapes import layer_shapes
from secateur.hardware.layer_times import LayerRow, LayerTimes
from secateur.hardware.layer_worker import LEAST_ROUNDS, SMALL, measure


class Net(nn.Module):
    """Convolutions of every kind, each once or twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 3, stride=2, output_padding=1, padding=1)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = self.up(F.relu(self.grouped(self.depth(x))))
        x = self.again(x) + 1
        return self.head(self.twice(x).mean((2, 3)))


def conv(inputs: int, outputs: int, **more: object) -> LayerShape:
    shape = LayerShape(
        kind="conv",
        inputs=inputs,
        outputs=outputs,
        size=(8, 8),
        kernel=(3, 3),
        stride=(1, 1),
        dilation=(1, 1),
        pads=((1, 1), (1, 1)),
    )
    return replace(shape, **more)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture(scope="module")
def graph(net: nn.Module):
    return trace(net, torch.zeros(2, 3, 16, 16))


# shapes


def test_every_layer_has_the_shape_that_its_module_says(graph) -> None:
    shapes, obstacles = layer_shapes(graph)
    assert obstacles == {}
    held = list(shapes.values())
    assert [one.kind for one in held] == ["conv"] * 3 + ["transposed"] + ["conv"] * 2 + ["linear"]
    stem, depth, grouped, up, again, twice, head = held
    assert (stem.inputs, stem.outputs, stem.size, stem.stride) == (3, 16, (16, 16), (2, 2))
    assert (stem.norm, stem.activation) == (True, "relu6")
    assert depth.depthwise
    assert not grouped.depthwise
    assert (grouped.groups, grouped.activation) == (4, "relu")
    assert (up.size, up.extra) == ((8, 8), (1, 1))
    assert again == twice  # they share a row
    assert (head.inputs, head.outputs, head.size) == (16, 10, (1,))


def test_an_activation_that_others_read_around_does_not_belong_to_the_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return F.relu(x) + x

    shapes, _ = layer_shapes(trace(Two().eval(), torch.zeros(2, 3, 4, 4)))
    assert [one.activation for one in shapes.values()] == [""]


def test_widths_are_shares_in_steps_that_end_with_the_full_one() -> None:
    shares = (0.25, 0.5, 0.75, 1.0)
    assert conv(3, 100).widths(shares, 8) == ((3,), (24, 48, 72, 100))
    assert conv(16, 8).widths(shares, 8) == ((8, 16), (8,))
    assert conv(40, 40).widths(shares, 1) == ((10, 20, 30, 40),) * 2
    depthwise = conv(48, 96, groups=48)
    assert depthwise.widths(shares, 8) == ((48,), (24, 48, 72, 96))
    assert depthwise.at(48, 24).groups == 12
    grouped = conv(24, 48, groups=6)
    assert grouped.widths(shares, 4) == ((12, 24), (12, 24, 36, 48))


@pytest.mark.parametrize("shape", [conv(24, 48), conv(24, 48, groups=6), conv(48, 48, groups=48)])
def test_all_widths_are_possible(shape: LayerShape) -> None:
    for inputs, outputs in itertools.product(*shape.widths((0.3, 0.6, 1.0), 4)):
        one = shape.at(inputs, outputs)
        layer = nn.Conv2d(one.inputs, one.outputs, 3, groups=one.groups)
        assert layer.weight.shape == one.weight


# turns


class Clock:
    """Time that passes only where something is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeCell:
    """Takes as many seconds as a function says; making it takes half a second."""

    def __init__(self, shape: LayerShape, clock: Clock, cost: Callable[[LayerShape], float]):
        clock.now += 0.5
        self.clock, self.cost, self.times = clock, cost(shape), list[float]()

    def run(self) -> None:
        self.clock.now += self.cost
        self.times.append(self.cost if self.times else 9.0)  # the first run is slow

    def seconds(self) -> list[float]:
        return self.times


def by_macs(shape: LayerShape) -> float:
    return 1e-4 * shape.inputs * shape.outputs / shape.groups


def fake(shapes, counts, seconds: float, cost=by_macs):
    clock = Clock()
    result = measure(
        shapes,
        counts,
        lambda shape: FakeCell(shape, clock, cost),
        shares=(0.5, 1.0),
        step=8,
        seconds=seconds,
        whole=FakeCell(conv(8, 8), clock, lambda shape: 1.0),
        clock=clock,
    )
    return result, clock


def test_each_cell_has_the_time_of_its_widths_without_the_first_run() -> None:
    result, _ = fake([conv(16, 32), conv(8, 16)], [1, 3], 100)
    for row, shape in zip(result.rows, (conv(16, 32), conv(8, 16)), strict=True):
        assert (row.inputs, row.outputs) == shape.widths((0.5, 1.0), 8)
        for place, inputs in enumerate(row.inputs):
            for other, outputs in enumerate(row.outputs):
                expected = by_macs(shape.at(inputs, outputs))
                assert set(row.seconds[place][other]) == {expected}
                assert len(row.seconds[place][other]) == result.rounds
    assert result.whole == [1.0] * result.rounds


def test_no_round_begins_after_the_deadline() -> None:
    result, clock = fake([conv(16, 32)], [1], 60)
    assert result.elapsed == pytest.approx(clock.now - 100 - 0.5)  # the whole was made before
    one_round = 1.0 + sum(by_macs(conv(a, b)) for a in (8, 16) for b in (16, 32))
    assert 60 <= result.elapsed < 60 + one_round
    assert result.rounds > LEAST_ROUNDS


def test_enough_rounds_for_an_interval_are_run_whatever_the_deadline_is() -> None:
    result, _ = fake([conv(16, 32)], [1], 0.1)
    assert result.rounds == LEAST_ROUNDS - 1  # the first does not count
    assert result.elapsed > 0.1  # and that it took longer is told


def test_layers_of_little_time_stay_at_full_width_and_it_is_said() -> None:
    shapes = [conv(64, 64), conv(8, 16), conv(16, 16)]
    cheap = by_macs(shapes[1]) / sum(map(by_macs, shapes))
    assert cheap > SMALL
    result, _ = fake([*shapes, conv(8, 8, size=(1, 1))], [1, 1, 1, 1], 1000, tenth_of_pixels)
    assert [bool(row.skipped) for row in result.rows] == [False, False, False, True]
    assert result.rows[3].skipped == "under 1% of all layers' time"
    many, _ = fake([*shapes, conv(8, 8, size=(1, 1))], [1, 1, 1, 500], 1000, tenth_of_pixels)
    assert not many.rows[3].skipped  # each takes little, all of them do not


def tenth_of_pixels(shape: LayerShape) -> float:
    return by_macs(shape) * math.prod(shape.size) / 64


def test_the_costliest_layers_are_prepared_first_where_time_is_short() -> None:
    shapes = [conv(16, 16), conv(64, 64), conv(32, 32)]
    result, _ = fake(shapes, [1, 1, 1], 14)
    assert [row.skipped for row in result.rows] == ["no time left to prepare it", "", ""]


def test_a_layers_share_of_runs_is_right_whatever_one_run_took() -> None:
    times = [3.0] * 40
    times[0], times[21] = 50.0, 500.0  # a first run, and one that was interrupted
    parts = [1.0] * 40
    parts[0], parts[21] = 40.0, 2.0
    assert layer_share(times, np.cumsum(parts).tolist()) == pytest.approx(1 / 3)
    assert layer_share([4.0], [1.0]) == 0.25


def test_the_interval_of_the_median_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for count in (6, 25):
        draws = (median_interval(rng.exponential(size=count)) for _ in range(3000))
        held = np.mean([low <= math.log(2) <= high for low, _, high in draws])
        assert 0.945 < held < 0.985
    assert median_interval([1.0, 3.0, 2.0]) == (1.0, 2.0, 3.0)


# interpolation


def row(
    inputs=(8, 16), outputs=(8, 16, 32), error=0.0, shape: LayerShape | None = None, **more
) -> LayerRow:
    """Of a layer that takes inputs * outputs + 8 seconds."""
    seconds = tuple(tuple(float(a * b + 8) for b in outputs) for a in inputs)
    return LayerRow(
        shape=shape or conv(inputs[-1], outputs[-1]),
        ops=("a", "b"),
        inputs=inputs,
        outputs=outputs,
        seconds=seconds,
        low=tuple(tuple(of - error for of in line) for line in seconds),
        high=tuple(tuple(of + error for of in line) for line in seconds),
        rounds=9,
        **more,
    )


def test_times_are_bilinear_between_those_measured() -> None:
    for inputs, outputs in itertools.product(range(8, 17), range(8, 33)):
        assert row().of(inputs, outputs) == pytest.approx(inputs * outputs + 8)
    assert row(error=0.5).error(12, 20) == pytest.approx(0.5)


def test_times_are_never_below_zero() -> None:
    falling = replace(row(inputs=(16,), outputs=(16, 32)), seconds=((1.0, 9.0),))
    assert falling.of(16, 15) == pytest.approx(0.5)
    assert falling.of(16, 8) == 0
    assert falling.of(16, 32) == 9


def test_what_has_one_width_is_in_proportion_to_its_macs() -> None:
    full = row(inputs=(16,), outputs=(32,), skipped="under 1%")
    assert full.of(8, 8) == pytest.approx(full.full / 8)


def test_depthwise_layers_go_by_their_outputs() -> None:
    shape = conv(32, 32, groups=32)
    one = row(inputs=(32,), outputs=(8, 16, 32), shape=shape)
    assert one.of(32, 16) == one.of(16, 16) == one.seconds[0][1]


def test_widths_that_cost_as_much_as_a_larger_one_are_not_worth_stopping_at() -> None:
    stairs = replace(
        row(inputs=(8, 16), outputs=(8, 16, 24, 32)),
        low=((0, 0, 0, 0), (0.9, 0.95, 1.9, 2.1)),
        high=((5, 5, 5, 5), (1.1, 1.15, 2.0, 2.3)),
    )
    assert stairs.steps("outputs") == (16, 24, 32)  # 8 takes as long as 16 as far as one can tell
    assert stairs.steps("inputs") == (16,)


def test_widths_out_of_range_are_a_mistake() -> None:
    with pytest.raises(OptionError, match="a has 32 outputs, got 33, expected 0 to 32"):
        row().of(8, 33)


def times(*rows: LayerRow, whole: float | None = None) -> LayerTimes:
    return LayerTimes(
        runtime="onnxruntime",
        threads=1,
        step=8,
        rows=rows,
        whole=whole,
        rounds=9,
        asked=60,
        elapsed=61,
        unmeasured={"x": "its shapes are not known"},
    )


def test_the_rest_is_what_the_whole_takes_beyond_all_layers() -> None:
    one, two = row(), replace(row(outputs=(32,)), ops=("c",), skipped="under 1% of it")
    held = times(one, two, whole=1e3)
    assert held.total == pytest.approx(2 * one.full + two.full)
    assert held.rest == pytest.approx(1e3 - held.total)
    assert times(one).rest is None
    assert held.of("b", 8, 8) == held.of("a", 8, 8) == one.of(8, 8)
    assert held.error("c", 16, 32) == 0
    assert held.steps("a", "inputs") == (8, 16)
    with pytest.raises(OptionError, match="time of x was not measured: its shapes"):
        held.of("x", 1, 1)


def test_the_table_and_the_plain_data_hold_every_row() -> None:
    held = times(row(), replace(row(), ops=("c",), skipped="under 1% of it"), whole=1e3)
    text = str(held.to_table())
    assert text.count("3x3 conv, 8x8") == 2
    assert "under 1% of it" in text
    said = held.conditions()
    assert "9 rounds in 61 s of 60 s" in said
    assert "1 layer at full width only" in said
    assert held.to_dict()["rows"][0]["outputs"] == [8, 16, 32]


# the real thing


def files(net: nn.Module, runtime: str, folder) -> str:
    images = torch.zeros(2, 3, 16, 16)
    path = folder / ("net.pt2" if runtime == "torch" else "net.onnx")
    if runtime == "torch":
        torch.export.save(torch.export.export(net, (images,)), path)
    else:
        onnx = pytest.importorskip("onnx")
        onnx.save(importlib.import_module("secateur.frontends").open(net).to_onnx(images), path)
    return str(path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_a_network_is_measured_in_every_runtime(net, graph, runtime: str, tmp_path) -> None:
    if runtime != "torch":
        pytest.importorskip("onnx")
        pytest.importorskip(runtime)
    heard: list[tuple[int, int, str]] = []
    found = LayerTimes.measure(
        graph,
        runtime=runtime,
        network=files(net, runtime, tmp_path),
        seconds=0.2,
        shares=(0.5, 1.0),
        on_layer=lambda *of: heard.append(of),
    )
    shapes, _ = layer_shapes(graph)
    assert {op for one in found.rows for op in one.ops} == set(shapes)
    assert sum(len(one.ops) for one in found.rows) == 7
    assert [len(one.ops) for one in found.rows if one.ops[0].endswith("conv2d_3")] == [2]
    assert found.rounds >= 6
    assert found.whole is not None
    assert found.whole > 0
    for one in found.rows:
        assert np.shape(one.seconds) == (len(one.inputs), len(one.outputs))
        assert (np.array(one.low) <= one.seconds).all()
        assert (np.array(one.high) >= one.seconds).all()
        assert one.of(one.shape.inputs, one.shape.outputs) == one.full >= 0
    assert found.total > 0
    assert {total for _, total, _ in heard} == {1}
    assert "rounds" in {what for _, _, what in heard}


def test_the_process_of_another_runtime_does_not_load_pytorch() -> None:
    check = "import sys, secateur.hardware.layer_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtime": "onxruntime"}, "did you mean onnxruntime"),
        ({"step": 0}, "step is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": -1.0}, "seconds is -1"),
        ({"shares": (0.5, 1.5)}, "expected fractions"),
    ],
)
def test_mistakes_are_told(graph, options: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        LayerTimes.measure(graph, **{"runtime": "torch", **options})


def test_what_cannot_be_measured_is_told(graph, monkeypatch, tmp_path) -> None:
    flat = trace(nn.Flatten(), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        LayerTimes.measure(flat, runtime="torch")
    with pytest.raises(ModelError, match="cannot be measured on ONNX Runtime"):
        LayerTimes.measure(graph, runtime="onnxruntime", network=tmp_path / "absent.onnx")
    monkeypatch.setattr(module, "is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match="measuring on ONNX Runtime"):
        LayerTimes.measure(graph, runtime="onnxruntime")
