"""Layers of given widths in ONNX Runtime and OpenVINO, timed by the runtimes' own profiles.

A layer measured alone as a file of one node would mislead. Both runtimes compute convolutions in
blocks of channels: around a lone one they rearrange its input and its output, which may take four
times as long as the layer (a depthwise 3x3 of 96 channels on 112x112, stride 2, in OpenVINO: 0.4 of
3.0 ms, on an AMD EPYC with AVX-512). Inside of a network they do not. So only the layer's own nodes
count, with what is fused into them.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.runtimes.onnx_runtime import session_options
from secateur.hardware.runtimes.openvino import settings

_OPSET, _IR_VERSION = 17, 8
_BLOCKS = 8  # of runs in OpenVINO, each with a share of its own
_REARRANGES = ("Reorder", "Parameter", "Result", "Input", "Output")  # nodes around the layer
_NUMBERS = 0.1 * np.random.default_rng(0).standard_normal(4099).astype(np.float32)


class Cell(Protocol):
    """A layer that can be run again and again."""

    def run(self) -> Any:
        """Runs it once, and remembers how long it took."""
        ...

    def seconds(self) -> list[float]:
        """The time of each run, in order; asked for once, after the last."""
        ...


def clock_for(threads: int) -> Callable[[], float]:
    """Seconds of this process, or of the wall where several threads share the work.

    One thread takes as long as it computes; what the wall shows besides is that another process had
    its core.
    """
    return time.process_time if threads == 1 else time.perf_counter


class Timed:
    """A function whose runs are timed from outside."""

    def __init__(self, function: Callable[[], Any], clock: Callable[[], float]) -> None:
        self.function = function
        self.clock = clock
        self.times: list[float] = []

    def run(self) -> None:
        """Runs it once, and remembers how long it took."""
        begin = self.clock()
        self.function()
        self.times.append(self.clock() - begin)

    def seconds(self) -> list[float]:
        """The time of each run."""
        return self.times


class _Arguments(msgspec.Struct):
    op_name: str = ""


class _Event(msgspec.Struct):
    """What is needed of an event of ONNX Runtime's profile, which says ten times as much."""

    cat: str
    name: str
    dur: int = 0
    args: _Arguments = msgspec.field(default_factory=_Arguments)


class OnnxRuntimeCell:
    """A layer in ONNX Runtime: its profile has the time of each node in each run, in whole us."""

    def __init__(self, shape: LayerShape, threads: int, folder: Path) -> None:
        import onnxruntime

        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"cell{id(self)}")
        self.session = onnxruntime.InferenceSession(
            onnx_model(shape), options, providers=["CPUExecutionProvider"]
        )
        self.feed = {"input": example(shape)}

    def run(self) -> None:
        """Runs it once."""
        self.session.run(None, self.feed)

    def seconds(self) -> list[float]:
        """The sum over the layer's nodes, by run."""
        path = Path(self.session.end_profiling())
        events = msgspec.json.decode(path.read_bytes(), type=list[_Event])
        path.unlink()
        nodes: dict[str, list[float]] = {}
        for event in events:
            if event.cat == "Node" and not event.args.op_name.startswith(_REARRANGES):
                nodes.setdefault(event.name, []).append(event.dur * 1e-6)
        return [sum(of) for of in zip(*nodes.values(), strict=True)]


class OpenVinoCell:
    """A layer in OpenVINO, which tells the mean time of each node over all runs so far.

    From this follows the layer's share of the whole run's time, in blocks of runs; the median
    share counts, so that a run that was interrupted spoils its block only.
    """

    def __init__(self, shape: LayerShape, threads: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import openvino

        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(onnx_model(shape)), "CPU", {**settings(threads), "PERF_COUNT": True}
        )
        self.request = compiled.create_infer_request()
        self.feed = {"input": example(shape)}
        self.clock = clock_for(threads)
        self.times: list[float] = []
        self.nodes: list[float] = []  # the layer's nodes in all runs so far together

    def run(self) -> None:
        """Runs it once."""
        begin = self.clock()
        self.request.infer(self.feed)
        self.times.append(self.clock() - begin)
        profile = self.request.get_profiling_info()
        mean = sum(
            of.real_time.total_seconds() for of in profile if of.node_type not in _REARRANGES
        )
        self.nodes.append(mean * len(self.times))

    def seconds(self) -> list[float]:
        """The time of each run, times the layer's share of it."""
        share = layer_share(self.times, self.nodes)
        return [share * seconds for seconds in self.times]


def layer_share(times: list[float], nodes: list[float]) -> float:
    """The layer's share of the time of a run.

    Args:
        times: seconds of each run.
        nodes: seconds of the layer's nodes in the runs up to each, this one included.

    Returns:
        In [0, 1]: the median over blocks of runs. The first block, with the first run, counts only
        where there is no other.
    """
    count = min(_BLOCKS, len(times))
    ends = [len(times) * number // count for number in range(count + 1)]
    blocks = list(itertools.pairwise(ends))
    before = [0.0, *nodes]
    shares = [(before[end] - before[start]) / sum(times[start:end]) for start, end in blocks]
    return min(1.0, max(0.0, statistics.median(shares[1:] or shares)))


def example(shape: LayerShape) -> np.ndarray:
    """Normal numbers as its input."""
    return np.resize(_NUMBERS, shape.input)


def onnx_model(shape: LayerShape) -> bytes:
    """An ONNX model of one layer with random weights, its bias and activation."""
    from onnx import helper, numpy_helper

    weight = np.resize(_NUMBERS, shape.weight)  # times do not depend on which numbers they are
    joined = shape.kind == "linear" and len(shape.size) == 1  # a Gemm, which has a bias
    weight = weight if shape.kind != "linear" or joined else np.ascontiguousarray(weight.T)
    arrays = {"weight": weight}
    if shape.bias:
        arrays["bias"] = np.zeros(shape.outputs, np.float32)
    nodes = [_layer_node(shape, joined)]
    if shape.bias and shape.kind == "linear" and not joined:
        nodes.append(helper.make_node("Add", ["layer", "bias"], ["sum"]))
    nodes += _activation_nodes(shape, nodes[-1].output[0], arrays)
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", 1, shape.input)],
        [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return model.SerializeToString()


def _layer_node(shape: LayerShape, joined: bool) -> Any:
    from onnx import helper

    reads = ["input", "weight", *["bias"] * (shape.bias and (shape.kind != "linear" or joined))]
    if shape.kind == "linear":
        if joined:
            return helper.make_node("Gemm", reads, ["layer"], transB=1)
        return helper.make_node("MatMul", reads, ["layer"])
    more: dict[str, Any] = {
        "kernel_shape": shape.kernel,
        "strides": shape.stride,
        "dilations": shape.dilation,
        "pads": [pad[side] for side in (0, 1) for pad in shape.pads],
        "group": shape.groups,
    }
    if shape.kind == "conv":
        return helper.make_node("Conv", reads, ["layer"], **more)
    return helper.make_node(
        "ConvTranspose", reads, ["layer"], **more, output_padding=list(shape.extra)
    )


def _activation_nodes(shape: LayerShape, value: str, arrays: dict[str, np.ndarray]) -> list[Any]:
    from onnx import helper

    if shape.activation == "relu":
        return [helper.make_node("Relu", [value], ["active"])]
    if shape.activation == "relu6":
        arrays |= {"least": np.array(0, np.float32), "most": np.array(6, np.float32)}
        return [helper.make_node("Clip", [value, "least", "most"], ["active"])]
    return []
