"""Extra formats that cannot be made: told before the pruning, or the other files are kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
import secateur.pruning.run
from secateur.cli.app import app
from secateur.report.model import Report

if importlib.util.find_spec("nncf") is None or importlib.util.find_spec("openvino") is None:
    pytest.skip("nncf or openvino is not installed", allow_module_level=True)

QUICK = {"method": "magnitude", "allocation": "uniform", "progress": False}


class Net(nn.Sequential):
    """Two convolutions and a linear layer."""

    def __init__(self, **how) -> None:
        torch.manual_seed(0)
        super().__init__(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, **how), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        )


class NoneFirst(Net):
    """Gives nothing first."""

    def forward(self, x: Tensor) -> tuple[None, Tensor]:
        return None, super().forward(x)


def circular() -> nn.Module:
    return Net(padding_mode="circular")


def half() -> nn.Module:
    return Net().half()


def images() -> Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def walks(monkeypatch) -> list[int]:
    """How often a network was pruned."""
    found, walk = [], secateur.pruning.run.walk

    def counted(*arguments, **more):
        found.append(1)
        return walk(*arguments, **more)

    monkeypatch.setattr(secateur.pruning.run, "walk", counted)
    return found


def prune(model: str, out: Path, *more: str):
    arguments = ["prune", f"test_formats:{model}", "--data", "test_formats:images"]
    arguments += ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "uniform"]
    return CliRunner().invoke(app, [*arguments, "-o", str(out), *more])


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])


@pytest.mark.parametrize(
    ("model", "option", "says"),
    [
        ("circular", "--openvino", "OpenVINO cannot convert the network"),
        ("half", "--openvino", "float16, expected float32"),
        ("half", "--int8", "float16, expected float32"),
    ],
)
def test_what_cannot_be_made_is_told_before_the_pruning(
    model, option, says, walks, tmp_path
) -> None:
    done = prune(model, tmp_path / "out", option)
    assert done.exit_code == 2, (done.output, done.exception)
    assert says in done.stderr
    assert walks == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_as_the_first_output_is_no_obstacle(tmp_path) -> None:
    done = prune("NoneFirst", tmp_path / "out", "--onnx")
    assert done.exit_code == 0, (done.output, done.exception)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_python_tries_int8_first_too(walks) -> None:
    with pytest.raises(secateur.ModelError, match="float16, expected float32"):
        secateur.prune(half(), images(), sparsity=0.5, quantize="int8", **QUICK)
    assert walks == []


def refuses(*_, **__):
    raise secateur.ModelError("not this one")


def test_formats_that_fail_after_the_pruning_leave_the_others(walks, tmp_path, monkeypatch) -> None:
    """They were fine with the dense network."""
    monkeypatch.setattr("secateur.cli.commands.prune.rehearse", lambda *_, **__: None)
    monkeypatch.setattr("secateur.api.rehearse", lambda *_, **__: None)
    monkeypatch.setattr("secateur.low_precision.in_int8", refuses)
    monkeypatch.setattr("secateur.export.files.write_ir", refuses)
    out = tmp_path / "out"
    done = prune("Net", out, "--onnx", "--int8", "--openvino")
    assert done.exit_code == 2, (done.output, done.exception)
    assert len(walks) == 1
    names = ("model-int8.onnx", "openvino/model.xml", "openvino/model-int8.xml")
    (last,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert last.startswith("secateur: error: model-int8.onnx was not written: not this one; ")
    assert last.endswith(f"the pruned network and the other files are in {out}")
    assert all(f"{name} was not written: not this one" in last for name in names)
    kept = ["model.onnx", "model.safetensors", "report.html", "report.json"]
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == kept
    assert all(str(out / name) in done.stdout for name in kept)
    report = Report.load(out / "report.json")
    assert all(any(name in told for told in report.warnings) for name in names)
    zeros = sum(layer.zeros for layer in report.layers)
    assert {name: of["zeros"] for name, of in report.exports.items()} == {
        "model.safetensors": zeros,
        "model.onnx": zeros,
    }


def test_python_returns_the_pruned_network_without_int8(monkeypatch) -> None:
    monkeypatch.setattr("secateur.api.rehearse", lambda *_, **__: None)
    monkeypatch.setattr("secateur.low_precision.in_int8", refuses)
    with pytest.warns(secateur.SecateurWarning, match="no INT8 network was made: not this one"):
        result = secateur.prune(Net(), images(), sparsity=0.5, quantize="int8", **QUICK)
    assert result.quantized is None
    assert result.missing == {"int8": "not this one"}
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)


def test_the_first_file_has_to_be_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("secateur.result.save_safetensors", refuses)
    done = prune("Net", tmp_path / "out")
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []
