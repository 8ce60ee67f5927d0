"""Which runtimes can leave a layer's zeros out: each condition, and what is looked up here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import invoke
from torch import nn

import secateur
from secateur.core.patterns import choose_pattern
from secateur.hardware.bench_worker import example
from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.machine import Machine, read_cpu
from secateur.hardware.requirements import (
    NO_SPEED_UP,
    requirements,
    speed_up_expected,
    survey,
)
from secateur.hardware.runtimes import BY_KEY, RUNTIMES, deepsparse
from secateur.hardware.runtimes.openvino import SPARSE_RATE
from secateur.hardware.runtimes.protocol import EngineOptions
from secateur.hardware.runtimes.pytorch import TORCH_SIZES
from secateur.report.inspection import Inspection

# a layer that each runtime can make use of
FIT = {
    "OpenVINO, CPU": LayerFacts(kind="linear", shape=(128, 64), dtype="int8", sparsity=0.8),
    "PyTorch, CUDA": LayerFacts(
        kind="linear", shape=(64, 128), dtype="float16", sparsity=0.5, two_of_four=True
    ),
    "PyTorch, INT8 on x86": LayerFacts(kind="linear", shape=(8, 8), sparsity=0.7, zero_blocks=0.7),
    "DeepSparse": LayerFacts(kind="conv", shape=(8, 8, 3, 3), sparsity=0.8),
    "TensorRT": LayerFacts(kind="conv", shape=(8, 8, 3, 3), sparsity=0.5, two_of_four=True),
    "XNNPACK (LiteRT)": LayerFacts(kind="conv", shape=(8, 8, 1, 1), sparsity=0.7),
}
# what takes that away, and what is then said
LACKS = [
    ("OpenVINO, CPU", {"kind": "conv", "shape": (128, 64, 1, 1)}, "only linear layers"),
    ("OpenVINO, CPU", {"shape": (128, 96)}, "128x96: both sizes have to be divisible by 64"),
    ("OpenVINO, CPU", {"shape": (100, 64)}, "divisible by 64"),
    ("OpenVINO, CPU", {"dtype": "float32"}, "float32 weights: only INT8"),
    ("PyTorch, CUDA", {"kind": "conv", "shape": (64, 128, 3, 3)}, "3x3 convolution: only linear"),
    ("PyTorch, CUDA", {"shape": (64, 96)}, "multiples of 32 and 64"),
    ("PyTorch, CUDA", {"dtype": "float64"}, "float64 weights"),
    ("PyTorch, CUDA", {"two_of_four": False}, "only the 2:4 pattern"),
    ("PyTorch, INT8 on x86", {"zero_blocks": 0.4}, "40.0% of the 1x4 blocks are zero: half"),
    ("PyTorch, INT8 on x86", {"kind": "conv", "shape": (8, 8, 3, 3)}, "3x3 convolution: only"),
    ("DeepSparse", {"groups": 2}, "2 groups"),
    ("DeepSparse", {"dtype": "int8"}, "int8 weights: only float32"),
    ("TensorRT", {"two_of_four": False}, "only the 2:4 pattern"),
    ("TensorRT", {"groups": 8}, "8 groups"),
    ("TensorRT", {"kind": "conv_transpose2d"}, "conv_transpose2d: only conv and linear"),
    ("XNNPACK (LiteRT)", {"sparsity": 0.6}, "60.0% zeros: two thirds are needed"),
    ("XNNPACK (LiteRT)", {"shape": (8, 8, 3, 3)}, "3x3 convolution: only 1x1"),
    ("XNNPACK (LiteRT)", {"groups": 2}, "of 2 groups: only 1x1"),
    ("XNNPACK (LiteRT)", {"dtype": "int8"}, "int8 weights: only float"),
]
FAST = Machine(
    cpu="a fast one",
    flags=frozenset({"amx_int8"}),
    versions=dict.fromkeys(
        ("openvino", "torch", "tensorrt", "xnnpack", "onnxruntime", "deepsparse"), "1"
    ),
    quantized=frozenset({"fbgemm"}),
    settings={"openvino": frozenset({SPARSE_RATE})},
    cuda=(9, 0),
)


def obstacles(runtime: str, layer: LayerFacts) -> tuple[str, ...]:
    (found,) = [of.obstacles for of in requirements(layer) if of.runtime == runtime]
    return found


@pytest.mark.parametrize("runtime", FIT)
def test_a_layer_that_fits_has_no_obstacle(runtime: str) -> None:
    assert obstacles(runtime, FIT[runtime]) == ()


@pytest.mark.parametrize(("runtime", "change", "says"), LACKS)
def test_each_condition_alone_is_an_obstacle(
    runtime: str, change: dict[str, Any], says: str
) -> None:
    found = obstacles(runtime, replace(FIT[runtime], **change))
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize("layer", FIT.values())
def test_onnx_runtime_never_gains(layer: LayerFacts) -> None:
    assert "disk only" in obstacles("ONNX Runtime", layer)[0]


@pytest.mark.parametrize(
    ("runtime", "change", "says"),
    [
        ("OpenVINO, CPU", {"flags": frozenset({"avx2"})}, "this CPU has no AMX"),
        ("OpenVINO, CPU", {"flags": None}, "does not tell whether this CPU has AMX"),
        (
            "OpenVINO, CPU",
            {"settings": {"openvino": frozenset({"OTHER"})}},
            "no setting CPU_SPARSE",
        ),
        ("OpenVINO, CPU", {"versions": {}}, "not installed"),
        ("PyTorch, CUDA", {"cuda": None}, "no CUDA GPU"),
        ("PyTorch, CUDA", {"cuda": (7, 5)}, "capability 7.5, 8.0 needed"),
        ("PyTorch, INT8 on x86", {"quantized": frozenset()}, "no fbgemm engine"),
        ("DeepSparse", {"versions": {}}, "name the Python of an environment"),
        ("TensorRT", {"cuda": (7, 5)}, "capability 7.5, 8.0 needed"),
        ("TensorRT", {"versions": {}}, "not installed"),
        ("XNNPACK (LiteRT)", {"versions": {}}, "not installed"),
    ],
)
def test_what_the_machine_lacks_is_told(runtime: str, change: dict[str, Any], says: str) -> None:
    layers = [requirements(FIT[runtime])]
    before = {of.name: of for of in survey(layers, FAST)}[runtime]
    assert before.met
    assert before.reason == "1 of 1 layer fits: measure"
    after = {of.name: of for of in survey(layers, replace(FAST, **change))}[runtime]
    assert not after.met
    assert after.reason.startswith(f"{NO_SPEED_UP}: ")
    assert after.reason.endswith(" (1 of 1 layer would fit)")
    assert says in after.reason


def test_where_no_requirement_is_met_no_speed_up_is_expected() -> None:
    plain = LayerFacts(kind="conv", shape=(8, 8, 3, 3), sparsity=0.9, two_of_four=False)
    versions = {name: of for name, of in FAST.versions.items() if name != "deepsparse"}
    found = survey([requirements(plain)], replace(FAST, versions=versions))
    assert not speed_up_expected(found)
    assert all(of.reason.startswith(NO_SPEED_UP) for of in found)
    assert speed_up_expected(survey([requirements(FIT["TensorRT"])], FAST))


def test_the_machine_is_looked_at_and_not_guessed() -> None:
    found = Machine.here()
    assert found.versions["torch"] == metadata.version("torch")
    assert (found.cuda is not None) == torch.cuda.is_available()
    if Path("/proc/cpuinfo").exists():
        assert found.flags == read_cpu(Path("/proc/cpuinfo"))[1]
    if "openvino" in found.versions:
        assert SPARSE_RATE in found.settings["openvino"]


def test_the_cpu_is_read_as_linux_lists_it(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert read_cpu(path) == ("", None)
    path.write_text("processor\t: 0\nmodel name\t: A CPU: fast\nflags\t\t: fpu amx_int8\n\n")
    assert read_cpu(path) == ("A CPU: fast", frozenset({"fpu", "amx_int8"}))
    path.write_text("processor\t: 0\nCPU architecture: 8\n")
    assert read_cpu(path) == ("", None)


def test_the_sizes_are_those_that_the_installed_pytorch_asks_for() -> None:
    held = torch.sparse.SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS
    asked = {str(of).removeprefix("torch."): of for of in held}
    assert set(asked) == set(TORCH_SIZES)
    for name, dtype in asked.items():
        assert (held[dtype].sparse_min_rows, held[dtype].sparse_min_cols) == TORCH_SIZES[name]


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_pattern_is_counted_along_the_inputs(kind: str) -> None:
    layer = nn.Linear(64, 32) if kind == "linear" else nn.Conv2d(8, 32, 3)
    head = [] if kind == "linear" else [nn.Flatten()]
    network = nn.Sequential(layer, *head)
    (found,) = trace(network, kind).layers
    with torch.no_grad():
        weight = layer.weight.movedim(1, -1).clone()
        weight[..., ::2] = 0
        weight = weight.movedim(-1, 1)
    assert LayerFacts.of(found, weight, pruned=True).two_of_four
    assert LayerFacts.of(found, weight, pruned=True).sparsity == 0.5
    weight[3, 0], weight[3, 1] = 1.0, 0.0  # two zeros all the same
    assert LayerFacts.of(found, weight, pruned=True).two_of_four
    weight[3, 2] = 1.0
    assert LayerFacts.of(found, weight, pruned=True).two_of_four is False
    assert LayerFacts.of(found, weight, pruned=False).two_of_four is None


def trace(network: nn.Module, kind: str) -> Any:
    from inputs import trace

    shape = (2, 64) if kind == "linear" else (2, 8, 5, 5)
    return trace(network.eval(), torch.zeros(shape))


def test_inspect_and_reports_hold_the_requirements() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()).eval()
    shown: Inspection = secateur.inspect(network, (64,))
    assert [of.name for of in shown.runtimes] == [of.name for of in RUNTIMES]
    (of_torch,) = [of for of in shown.requirements[0] if of.runtime == "PyTorch, CUDA"]
    assert of_torch.obstacles == ("zeros anywhere: only the 2:4 pattern",)  # as this makes them
    report = secateur.prune(network, torch.randn(40, 64), sparsity=0.5, include="*").report
    assert [of.name for of in report.runtimes] == [of.name for of in RUNTIMES]
    says = {of.runtime: of.obstacles for of in report.layers[0].requirements}
    assert says["OpenVINO, CPU"] == ("float32 weights: only INT8 ones",)
    assert any("2:4" in text for text in says["PyTorch, CUDA"])


def test_inspect_says_first_what_zeros_are_good_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)).eval()
    monkeypatch.setattr(Machine, "here", lambda: replace(FAST, versions={}))
    shown = secateur.inspect(network, (3, 9, 9))
    assert str(shown).startswith("On this machine no runtime is expected to get faster with zeros;")
    assert "TensorRT" not in str(shown)
    monkeypatch.setattr(Machine, "here", lambda: FAST)
    first = str(secateur.inspect(network, (3, 9, 9))).splitlines()[0]
    assert "may make faster: DeepSparse (any zeros), XNNPACK (LiteRT) (from two thirds" in first


def test_users_can_name_every_runtime_and_see_what_pays_there() -> None:
    found = {of.key: of for of in secateur.runtimes().runtimes}
    patterns = {key: of.pattern for key, of in found.items()}
    assert patterns == {
        "onnxruntime": "channels",
        "openvino": "channels",
        "torch": "channels",
        "torch-int8-sparse": "1x4",
        "torch-cuda-2:4": "2:4",
        "tensorrt": "2:4",
        "deepsparse": "unstructured",
        "openvino-amx": "unstructured",
        "xnnpack-arm": "unstructured",
        "storage": "unstructured",
    }
    assert found["torch"].obstacle == found["storage"].obstacle == ""
    assert "on Arm" in found["xnnpack-arm"].obstacle
    assert all(of.prepared and of.feature and of.precision for of in found.values())
    assert all(str(choose_pattern(of)) for of in patterns.values())


def test_the_command_lists_them() -> None:
    assert "torch-int8-sparse" in invoke("runtimes").output
    listed = json.loads(invoke("runtimes", "--json").output)["runtimes"]
    assert [of["key"] for of in listed] == [of.key for of in secateur.runtimes().runtimes]


def test_what_fits_is_told_of_a_layer_that_is_not_pruned_yet() -> None:
    linear = LayerFacts(kind="linear", shape=(128, 64))
    grouped = LayerFacts(kind="conv", shape=(8, 2, 3, 3), groups=4)
    assert BY_KEY["torch-int8-sparse"].fits(linear) is None
    assert BY_KEY["openvino-amx"].fits(linear) is None
    assert BY_KEY["torch-int8-sparse"].fits(grouped) is not None
    assert BY_KEY["tensorrt"].fits(grouped) == "4 groups: only convolutions of one group"
    assert BY_KEY["storage"].fits(grouped) is None


FAKE = """
import sys, types
class Engine:
    def run(self, values):
        self.shapes = [of.shape for of in values]
def compile_model(path, batch_size, num_cores, input_shapes):
    if "broken" in path:
        raise RuntimeError("no such operation")
    print("a banner")
    return Engine()
module = types.ModuleType("deepsparse")
module.compile_model = compile_model
sys.modules["deepsparse"] = module
import runpy
runpy.run_path(sys.argv[-1], run_name="__main__")
"""


def test_deepsparse_runs_in_an_environment_of_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    onnx = pytest.importorskip("onnx")
    build = onnx.helper
    value = [build.make_tensor_value_info(name, 1, ["n", 3]) for name in ("x", "y")]
    graph = build.make_graph([build.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    for name in ("net.onnx", "broken.onnx"):
        onnx.save(build.make_model(graph), tmp_path / name)
    (tmp_path / "fake.py").write_text(FAKE)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/fake.py "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv(deepsparse.PYTHON, str(script))
    options = EngineOptions(threads=1, rate=1.0, batch=2)
    engine = deepsparse.RUNTIME.engines["DeepSparse"](tmp_path / "net.onnx", options)
    assert [(of.name, of.shape, of.dtype) for of in engine.inputs] == [("x", (2, 3), "float32")]
    for _ in range(2):
        engine.run(example(engine.inputs, 0))
    with pytest.raises(secateur.ModelError, match="no such operation"):
        deepsparse.RUNTIME.engines["DeepSparse"](tmp_path / "broken.onnx", options)


def test_deepsparse_is_not_there_unless_users_say_where(monkeypatch: Any) -> None:
    monkeypatch.delenv(deepsparse.PYTHON, raising=False)
    assert deepsparse.RUNTIME.found is not None
    assert not deepsparse.RUNTIME.found()
    monkeypatch.setenv(deepsparse.PYTHON, sys.executable)
    has = any(of.metadata["Name"] == "deepsparse" for of in metadata.distributions())
    assert deepsparse.RUNTIME.found() == has
    monkeypatch.setenv(deepsparse.PYTHON, "/no/such/python")
    assert not deepsparse.RUNTIME.found()
