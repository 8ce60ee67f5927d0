"""How long each layer of a network takes on a runtime, against its widths: measured here.

Time against width is no line: runtimes compute channels in blocks. With AVX-512 (an AMD EPYC, 128
channels on the other side, widths 8 to 128 by 4) ONNX Runtime 1.32 takes as long for 20 channels as
for 32, and for 8 as for 16: stairs of 16 at 1x1, 3x3 and depthwise convolutions, in inputs and in
outputs. OpenVINO 2026.4 in bfloat16 has stairs of about 16 in outputs, less sharp, and hardly any
in the inputs of a 1x1 convolution. So 16 is the better step there. Other processors were not
measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from secateur.errors import MissingExtraError, ModelError, OptionError
from secateur.hardware.bench import is_installed
from secateur.hardware.latency import median_interval
from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.layer_shapes import layer_shapes
from secateur.hardware.layer_worker import ENGINES, RowTimes
from secateur.network.graph import Graph
from secateur.support.choices import did_you_mean
from secateur.support.progress import OnLayer
from secateur.support.serialization import to_plain
from secateur.support.subprocesses import watch_program
from secateur.support.tables import Column, Table
from secateur.support.wording import counted

SHARES = (0.25, 0.5, 0.75, 1.0)
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}  # that install the runtimes
PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx")}

Axis = Literal["inputs", "outputs"]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """The times of layers of one shape.

    Attributes:
        shape: at full width.
        ops: names of the operations that have it.
        inputs, outputs: the widths it was measured at, rising; the last is the full one. Depthwise
            convolutions have one width, that of the outputs.
        seconds: medians, in [inputs][outputs].
        low, high: ends of their 95 % intervals.
        rounds: numbers in each median.
        skipped: why it was measured at full width only; empty = it was at all. Its time at other
            widths is in proportion to its multiply-accumulates.
    """

    shape: LayerShape
    ops: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]
    rounds: int
    skipped: str = ""

    @property
    def full(self) -> float:
        """Seconds at full width."""
        return self.seconds[-1][-1]

    def of(self, inputs: int, outputs: int) -> float:
        """Seconds at any widths: bilinear between those measured, and never below zero.

        Below the smallest width it goes on as between the two smallest; where only the full one
        was measured, in proportion to the width.
        """
        self._check(inputs, outputs)
        places = self._places(inputs, outputs)
        return max(0.0, sum(share * self.seconds[i][o] for i, o, share in places))

    def error(self, inputs: int, outputs: int) -> float:
        """Half of the 95 % interval at any widths, in seconds: of `of` as far as rounds differ.

        It does not hold what interpolation is off by.
        """
        self._check(inputs, outputs)
        places = self._places(inputs, outputs)
        return sum(abs(share) * (self.high[i][o] - self.low[i][o]) / 2 for i, o, share in places)

    def steps(self, axis: Axis) -> tuple[int, ...]:
        """The widths worth stopping at, of those measured; the other axis has its full width.

        A width is worth it where the next larger one takes longer by more than the intervals, so
        that nothing larger comes at the same price.
        """
        along = axis == "outputs"
        widths = self.outputs if along else self.inputs
        low = self.low[-1] if along else [line[-1] for line in self.low]
        high = self.high[-1] if along else [line[-1] for line in self.high]
        worth = [
            width for width, one, next_ in zip(widths, high, low[1:], strict=False) if one < next_
        ]
        return (*worth, widths[-1])

    def _places(self, inputs: int, outputs: int) -> list[tuple[int, int, float]]:
        depthwise = self.shape.depthwise
        across = [(0, 1.0)] if depthwise else _between(self.inputs, inputs)
        along = _between(self.outputs, outputs)
        return [(i, o, share * more) for i, share in across for o, more in along]

    def _check(self, inputs: int, outputs: int) -> None:
        given = {"inputs": (inputs, self.shape.inputs), "outputs": (outputs, self.shape.outputs)}
        for name, (width, full) in given.items():
            if not 0 <= width <= full:
                raise OptionError(
                    f"{self.ops[0]} has {full} {name}, got {width}, expected 0 to {full}"
                )


def _between(widths: Sequence[int], width: int) -> list[tuple[int, float]]:
    """Which measured widths a width lies between, and the share of each, which add up to 1.

    Below the smallest, shares may be negative; of one width alone it is the share of that.
    """
    if len(widths) == 1:
        return [(0, width / widths[0])]
    upper = next(
        place
        for place in range(1, len(widths))
        if width <= widths[place] or place == len(widths) - 1
    )
    low, high = widths[upper - 1], widths[upper]
    share = (width - low) / (high - low)
    return [(upper - 1, 1 - share), (upper, share)]


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """The times of a network's layers on a runtime, each layer by itself.

    Attributes:
        runtime: "onnxruntime", "openvino" or "torch".
        threads: that it used.
        step: that the widths are multiples of.
        rows: by shape, in the order of the network.
        whole: seconds of the whole dense network, measured in the same rounds; None = not measured.
        whole_low, whole_high: its 95 % interval.
        rounds: how many count.
        asked, elapsed: seconds that it was to take, and took.
        unmeasured: why layers are in no row, by the name of the operation.
    """

    runtime: str
    threads: int
    step: int
    rows: tuple[LayerRow, ...]
    whole: float | None = None
    whole_low: float | None = None
    whole_high: float | None = None
    rounds: int
    asked: float
    elapsed: float
    unmeasured: Mapping[str, str]

    @classmethod
    def measure(
        cls,
        graph: Graph,
        *,
        runtime: str,
        network: str | Path | None = None,
        step: int = 8,
        seconds: float = 60,
        threads: int = 1,
        shares: Sequence[float] = SHARES,
        on_layer: OnLayer | None = None,
    ) -> LayerTimes:
        """Measures the layers of a network on random numbers, one image at a time.

        In a process of its own, all layers and widths taking turns. What is measured is the layer
        with its bias and a ReLU-like activation, in PyTorch with its BatchNorm as well.

        Args:
            graph: the network.
            runtime: "onnxruntime", "openvino" or "torch" (eager, channels last).
            network: the same network as a file that the runtime runs, to time the whole: .onnx,
                for "torch" .pt2. None = the whole is not timed.
            step: that widths are multiples of.
            seconds: to take; no round begins later. It takes longer where seven rounds do: fewer
                tell no 95 % interval.
            threads: of the runtime.
            shares: of the full widths to measure at, in (0, 1]; 1 is always there.
            on_layer: called with (seconds so far, seconds to take, what is done).

        Raises:
            OptionError: a setting is out of range.
            MissingExtraError: the runtime is not installed.
            ModelError: no layer can be measured, or the runtime fails.

        Memory: the weights of every shape about six times, in the other process.
        """
        _check(runtime, step, seconds, threads, shares)
        shapes, unmeasured = layer_shapes(graph)
        if not shapes:
            raise ModelError(
                "the network has no convolution or linear layer whose time can be measured, "
                "expected one: ask for max_macs in place of max_latency"
            )
        by_shape: dict[LayerShape, list[str]] = {}
        for name, shape in shapes.items():
            by_shape.setdefault(shape, []).append(name)
        options = {
            "runtime": runtime,
            "shapes": [to_plain(shape) for shape in by_shape],
            "counts": [len(names) for names in by_shape.values()],
            "threads": threads,
            "network": None if network is None else str(network),
            "inputs": [_sizes(graph, name) for name in graph.inputs],
            "shares": sorted({*shares, 1.0}),
            "step": step,
            "seconds": seconds,
        }
        result = _in_worker(options, on_layer)
        whole = median_interval(result["whole"]) if result["whole"] else (None,) * 3
        pairs = zip(by_shape.items(), result["rows"], strict=True)
        return cls(
            runtime=runtime,
            threads=threads,
            step=step,
            rows=tuple(_row(shape, names, RowTimes(**row)) for (shape, names), row in pairs),
            whole_low=whole[0],
            whole=whole[1],
            whole_high=whole[2],
            rounds=result["rounds"],
            asked=seconds,
            elapsed=result["elapsed"],
            unmeasured=unmeasured,
        )

    def of(self, op: str, inputs: int, outputs: int) -> float:
        """Seconds of a layer at any widths: see `LayerRow.of`."""
        return self.row(op).of(inputs, outputs)

    def error(self, op: str, inputs: int, outputs: int) -> float:
        """Half of its 95 % interval, in seconds: see `LayerRow.error`."""
        return self.row(op).error(inputs, outputs)

    def steps(self, op: str, axis: Axis) -> tuple[int, ...]:
        """The widths of a layer that are worth stopping at: see `LayerRow.steps`."""
        return self.row(op).steps(axis)

    def row(self, op: str) -> LayerRow:
        """The row of a layer, by the name of its operation.

        Raises:
            OptionError: it has none.
        """
        if op not in self._by_op:
            why = self.unmeasured.get(op, "there is no such layer")
            raise OptionError(f"the time of {op} was not measured: {why}")
        return self._by_op[op]

    @cached_property
    def _by_op(self) -> dict[str, LayerRow]:
        return {op: row for row in self.rows for op in row.ops}

    @property
    def total(self) -> float:
        """Seconds of all layers at full width."""
        return sum(len(row.ops) * row.full for row in self.rows)

    @property
    def rest(self) -> float | None:
        """What the whole network takes beyond its layers; None where it was not measured.

        Additions, pooling, activations that are not fused, and the call. It can be negative: layers
        that run one after the other may find their inputs nearer than by themselves.
        """
        return None if self.whole is None else self.whole - self.total

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return to_plain(self)

    def to_table(self) -> Table:
        """A row for each shape: what it takes at full width and at the smallest, and the widths."""
        rows = tuple(
            (
                row.shape.text,
                len(row.ops),
                f"{row.shape.inputs} to {row.shape.outputs}",
                1e3 * row.full,
                1e3 * (row.high[-1][-1] - row.low[-1][-1]) / 2,
                100 * len(row.ops) * row.full / self.total,
                row.skipped or ", ".join(map(str, row.outputs)),
                None if row.skipped else 1e3 * row.seconds[0][0],
            )
            for row in self.rows
        )
        return Table(name="layer times", columns=_COLUMNS, rows=rows, note=self.conditions())

    def conditions(self) -> str:
        """How it was measured, and what came of it, in one line."""
        scaled = sum(len(row.ops) for row in self.rows if row.skipped)
        parts = [
            f"{ENGINES[self.runtime]}, threads: {self.threads}; {counted(self.rounds, 'round')} in "
            f"{self.elapsed:.0f} s of {self.asked:.0f} s; layers together {1e3 * self.total:.3g} ms"
        ]
        if self.whole is not None and self.rest is not None:
            parts.append(
                f"the whole network {1e3 * self.whole:.3g} ms, of which {1e3 * self.rest:.2g} ms "
                "are not its layers'"
            )
        if scaled:
            parts.append(
                f"{counted(scaled, 'layer')} at full width only, else in proportion to their MACs"
            )
        if self.unmeasured:
            parts.append(f"{counted(len(self.unmeasured), 'layer')} not measured")
        return "; ".join(parts)


_COLUMNS = (
    Column("layer"),
    Column("times", "{}"),
    Column("channels"),
    Column("time", "{:.3f}", unit="ms"),
    Column("+-", "{:.3f}", unit="ms"),
    Column("share", "{:.1f}", unit="%"),
    Column("output widths"),
    Column("at the smallest", "{:.3f}", unit="ms"),
)


def _check(runtime: str, step: int, seconds: float, threads: int, shares: Sequence[float]) -> None:
    if runtime not in ENGINES:
        raise OptionError(
            f"runtime is {runtime!r}, expected one of {', '.join(ENGINES)}"
            f"{did_you_mean(runtime, ENGINES)}"
        )
    for name, value in (("step", step), ("threads", threads)):
        if value < 1:
            raise OptionError(f"{name} is {value}, expected at least 1")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise OptionError(f"seconds is {seconds}, expected a time above 0, such as 60")
    if not all(0 < share <= 1 for share in shares):
        raise OptionError(f"shares are {tuple(shares)}, expected fractions in (0, 1]")
    for package in PACKAGES.get(runtime, ()):
        if not is_installed(package):
            raise MissingExtraError(package, EXTRAS[runtime], f"measuring on {ENGINES[runtime]}")


def _in_worker(options: Mapping[str, Any], on_layer: OnLayer | None) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []

    def heard(line: bytes) -> None:
        lines.append(json.loads(line))
        if on_layer is not None and "what" in lines[-1]:
            elapsed, seconds = lines[-1]["elapsed"], options["seconds"]
            on_layer(int(min(elapsed, seconds)), math.ceil(seconds), lines[-1]["what"])

    program = Path(__file__).with_name("layer_worker.py")
    done = watch_program(program, content=json.dumps(options).encode(), on_line=heard)
    if done.returncode != 0 or not lines or "result" not in lines[-1]:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[-1][:300] if said else f"status {done.returncode}"
        raise ModelError(
            f"the layers' times cannot be measured on {ENGINES[options['runtime']]} ({why}), "
            "expected layers that it runs: ask for max_macs in place of max_latency"
        )
    return lines[-1]["result"]


def _sizes(graph: Graph, name: str) -> list[int]:
    """The sizes of an input of one sample; none where they are not known."""
    shape = graph.shapes.get(name)
    return [] if shape is None else list(shape.sizes)


def _row(shape: LayerShape, names: Sequence[str], times: RowTimes) -> LayerRow:
    ends = [[median_interval(samples) for samples in line] for line in times.seconds]
    low, seconds, high = (
        tuple(tuple(cell[place] for cell in line) for line in ends) for place in range(3)
    )
    return LayerRow(
        shape=shape,
        ops=tuple(names),
        inputs=tuple(times.inputs),
        outputs=tuple(times.outputs),
        seconds=seconds,
        low=low,
        high=high,
        rounds=min(len(samples) for line in times.seconds for samples in line),
        skipped=times.skipped,
    )
