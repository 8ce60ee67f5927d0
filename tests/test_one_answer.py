"""Where every image gets the same answer, agreement means nothing: that is told."""

import re
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from onnx_models import Builder
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur import Recipe
from secateur.cli.app import app
from secateur.core.distance import relative_error, value_error
from secateur.core.outputs import has_one_answer

TOLD = "gives the same answer for all {} {}, so that agreement tells nothing"
QUICK = {"recipe": Recipe(method=secateur.Magnitude(), allocation=secateur.Uniform())}


def regression(shift: float = 300.0) -> nn.Sequential:
    """Two quantities, the second far above the first."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))
    nn.init.constant_(net[2].bias, 0.0)
    with torch.no_grad():
        net[2].bias[1] += shift
    return net.eval()


def as_onnx(net: nn.Sequential) -> ModelProto:
    build = Builder(12)
    x = build.node("Relu", build.linear("input", net[0], "0"))
    return build.model(build.linear(x, net[2], "2"))


def rows(count: int = 80, seed: int = 1) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def told(call) -> str:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return "\n".join(str(of.message) for of in found)


@pytest.mark.parametrize("form", [lambda net: net, as_onnx], ids=["module", "onnx"])
def test_a_report_says_that_agreement_tells_nothing(form) -> None:
    def prune(shift: float, **more: object) -> None:
        secateur.prune(form(regression(shift)), rows(), sparsity=0.5, **QUICK, **more)

    calibration = TOLD.format(80, "calibration images")
    assert calibration in told(lambda: prune(300.0))
    assert "same answer" not in told(lambda: prune(0.0))
    by_others = told(lambda: prune(300.0, evaluation=rows(20, 2)))
    assert TOLD.format(20, "evaluation images") in by_others
    assert calibration not in by_others  # once
    labelled = (rows(20, 2), torch.ones(20, dtype=torch.long))
    assert "same answer" not in told(lambda: prune(300.0, evaluation=labelled))


@pytest.mark.parametrize("form", [lambda net: net, as_onnx], ids=["module", "onnx"])
def test_a_drop_of_answers_that_are_all_the_same_is_refused(form) -> None:
    net = form(regression())
    said = re.escape("the same answer for all 20 images that it is judged on, expected several")
    with pytest.raises(secateur.OptionError, match=said):
        secateur.prune(net, rows(), max_drop=1, **QUICK)
    with pytest.raises(secateur.OptionError, match=said):
        secateur.prune(net, rows(), max_drop=1, evaluation=rows(20, 2), **QUICK)


def test_evaluate_says_so_too_but_not_of_few_images_nor_with_labels() -> None:
    net = regression()

    def evaluate(count: int, *labels: Tensor) -> str:
        return told(lambda: secateur.evaluate(net, rows(count), *labels, reference=net))

    assert TOLD.format(16, "images") in evaluate(16)
    assert "same answer" not in evaluate(15)
    assert "same answer" not in evaluate(16, torch.ones(16, dtype=torch.long))


def test_the_damage_to_such_outputs_is_that_of_each_quantity() -> None:
    dense = regression()(rows()).detach()
    found = dense.clone()
    found[:, 0] = found[:, 0].mean()
    assert has_one_answer(dense)
    for scale in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 100.0])):
        error = relative_error((scale * dense).split(9), (scale * found).split(9))
        assert error == pytest.approx(value_error([dense], [found]), rel=1e-3)
        assert error >= 0.5 - 1e-3  # one of two is lost


def test_the_command_says_so(tmp_path) -> None:
    onnx.save(as_onnx(regression()), tmp_path / "net.onnx")
    np.savez(tmp_path / "images.npz", images=rows(20).numpy())
    file, data = str(tmp_path / "net.onnx"), str(tmp_path / "images.npz")
    command = ["evaluate", file, "--against", file, "--eval", data]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert TOLD.format(20, "images") in " ".join(result.stderr.split())
