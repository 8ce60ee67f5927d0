"""Which runtimes can leave a layer's zeros out: each condition, and what is looked up here."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.machine import Machine, read_cpu
from secateur.hardware.requirements import (
    NO_SPEED_UP,
    requirements,
    speed_up_expected,
    survey,
)
from secateur.hardware.runtimes import RUNTIMES
from secateur.hardware.runtimes.openvino import SPARSE_RATE
from secateur.hardware.runtimes.pytorch import TORCH_SIZES
from secateur.report.inspection import Inspection

# a layer that each runtime can make use of
FIT = {
    "OpenVINO, CPU": LayerFacts(kind="linear", shape=(128, 64), dtype="int8", sparsity=0.8),
    "PyTorch, CUDA": LayerFacts(
        kind="linear", shape=(64, 128), dtype="float16", sparsity=0.5, two_of_four=True
    ),
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
    versions={"openvino": "1", "torch": "1", "tensorrt": "1", "xnnpack": "1", "onnxruntime": "1"},
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
    found = survey([requirements(plain)], FAST)
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
    assert "may make faster: XNNPACK (LiteRT) (from two thirds zeros on)." in first
