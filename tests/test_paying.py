"""A runtime that is named chooses the pattern and the layers; what the user says wins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import invoke
from torch import nn

import secateur
from secateur.core.patterns import Channels, Unstructured
from secateur.errors import ModelError, OptionError
from secateur.hardware.acceleration import kernels
from secateur.hardware.acceleration.layers import Int8Layer
from secateur.options import Options

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FAST = {"method": "magnitude", "progress": False}
NOTHING = {"pattern": None, "method": None, "allocation": None, "inputs": None}


class Mixed(nn.Module):
    """A 3x3 convolution, a 1x1 convolution and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.point, self.inner, self.head = (
            nn.Conv2d(16, 32, 1),
            nn.Linear(32, 64),
            nn.Linear(64, 8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(self.body(self.stem(x).relu()).relu()).relu().mean((2, 3))
        return self.head(self.inner(x).relu())


@pytest.fixture
def network() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


def options(**asked: object) -> Options:
    return Options.of(**{"recipe": "default", **NOTHING, **asked})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runtime", "target", "pattern"),
    [
        ("torch-int8-sparse", {"sparsity": 0.5}, "1x4"),
        ("torch-cuda-2:4", {}, "2:4"),
        ("tensorrt", {}, "2:4"),
        ("deepsparse", {"sparsity": 0.5}, "unstructured"),
        ("storage", {"max_bytes": 0.5}, "unstructured"),
        ("onnxruntime", {"max_macs": 0.5}, "channels"),
        ("openvino", {"max_latency": 0.5}, "channels"),
        ("onnxruntime", {"sparsity": 0.5}, "unstructured"),
    ],
)
def test_a_runtime_chooses_the_pattern_that_pays_there(runtime, target, pattern) -> None:
    found = options(runtime=runtime, **target)
    assert found.recipe.pattern.name == pattern
    assert runtime in found.runtime_note
    assert ("removed channels do" in found.runtime_note) == (
        runtime == "onnxruntime" and pattern == "unstructured"
    )


def test_what_the_user_gives_wins() -> None:
    found = options(runtime="torch-int8-sparse", sparsity=0.5, pattern="unstructured")
    assert isinstance(found.recipe.pattern, Unstructured)
    assert "what pays there is 1x4" in found.runtime_note
    recipe = secateur.Recipe(pattern=Channels())
    assert isinstance(options(runtime="storage", max_bytes=0.5, recipe=recipe).recipe.pattern,
                      Channels)  # fmt: skip


def test_a_time_is_only_asked_for_where_it_is_measured() -> None:
    with pytest.raises(OptionError, match="with runtime storage, expected runtime=onnxruntime or"):
        options(runtime="storage", max_latency=0.5)


@pytest.mark.skipif(bool(kernels.missing("sparse")), reason="PyTorch has no fbgemm here")
def test_the_accelerated_module_comes_with_the_pruned_one(network, tmp_path: Path) -> None:
    with pytest.warns(secateur.SecateurWarning):
        result = secateur.prune(
            network,
            IMAGES,
            sparsity=0.5,
            runtime="torch-int8-sparse",
            threads=2,
            evaluation=IMAGES,
            **FAST,
        )
    report = result.report
    assert {of.name for of in report.layers} == {"point", "inner", "head"}
    assert any("pattern 1x4, chosen for it" in note for note in report.notes)
    assert any("1 layer left dense" in note and "3x3" in note for note in report.notes)
    assert any(note.startswith("accelerated, evaluated: ") for note in report.notes)
    assert result.acceleration is not None
    assert result.acceleration.report.threads == 2
    for name, layer in result.acceleration.model.named_modules():
        if isinstance(layer, Int8Layer):
            assert not layer.weight[result.model.get_parameter(f"{name}.weight") == 0].any()
    with torch.no_grad():
        assert result.acceleration.model(IMAGES).shape == (40, 8)


def test_layers_that_are_included_are_pruned_all_the_same(network) -> None:
    how = {"sparsity": 0.5, "runtime": "torch-int8-sparse", **FAST}
    plan = secateur.plan(network, IMAGES, **how)
    assert {of.name for of in plan.layers} == {"point", "inner", "head"}
    assert any("1 layer left dense" in note for note in plan.notes)
    plan = secateur.plan(network, IMAGES, include=["body", "point"], **how)
    assert {of.name for of in plan.layers} == {"body", "point"}


def test_where_zeros_bring_nothing_anywhere_that_is_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten()).eval()
    with pytest.raises(ModelError, match="zeros would bring nothing on torch-int8-sparse"):
        secateur.prune(net, IMAGES, sparsity=0.5, runtime="torch-int8-sparse", **FAST)


def test_a_pattern_that_fixes_its_zeros_needs_no_target_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(192, 64),"
        " nn.ReLU(), nn.Linear(64, 64)).eval()\n"
    )
    np.savez(tmp_path / "data.npz", images=IMAGES.numpy())
    call = ["prune", f"{tmp_path}/net.py:net", "--data", f"{tmp_path}/data.npz"]
    done = invoke(*call, "--method", "magnitude", "--pattern", "2:4", "-o", tmp_path / "out")
    assert "50.00%" in done.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    refused = invoke(*call, "--pattern", "1x4", "-o", tmp_path / "more")
    assert refused.exit_code == 2
    assert "got no target" in refused.output


def test_the_command_line_lets_the_user_win(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(192, 64),"
        " nn.ReLU(), nn.Linear(64, 64)).eval()\n"
    )
    np.savez(tmp_path / "data.npz", images=IMAGES.numpy())
    call = ["prune", f"{tmp_path}/net.py:net", "--data", f"{tmp_path}/data.npz", "--dry-run"]
    call += ["--sparsity", "0.5", "--method", "magnitude", "--runtime", "torch-int8-sparse"]
    assert "pattern 1x4, chosen for it" in " ".join(invoke(*call).output.split())
    told = " ".join(invoke(*call, "--pattern", "unstructured").output.split())
    assert "pattern unstructured, as asked for; what pays there is 1x4" in told
