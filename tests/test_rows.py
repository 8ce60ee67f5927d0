"""Outputs that have time first, as networks that read text give them: (time, batch, classes)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inputs import trace
from onnx import ModelProto
from onnx_models import Builder
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.evaluation.inference import first_output
from secateur.frontends.openvino.runtime import IR, as_ir
from secateur.network.rows import RowsFirst, images_axis, in_parts
from secateur.network.samples import Samples, as_samples
from secateur.report.model import Report

TIME, CLASSES = 6, 5
QUICK = {"method": "magnitude", "allocation": "uniform", "progress": False}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 2, 4, TIME, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """A convolution, a recurrent layer over the columns, and scores for each of these."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.recurrent = nn.Conv2d(2, 8, 3, padding=1), nn.GRU(32, 8)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu().flatten(1, 2)  # (batch, channels * height, time)
        y, _ = self.recurrent(y.permute(2, 0, 1))
        return self.head(self.hidden(y).relu())


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader().eval().requires_grad_(False)


def as_onnx(net: Reader, *, batch: int | str = "n", fixed: bool = False) -> ModelProto:
    """The same as ONNX.

    Args:
        net: the network.
        batch: of the input.
        fixed: whether shapes within are for one image only.
    """
    build = Builder(2, 4, TIME, batch=batch)
    x = build.node("Relu", build.convolution("input", net.conv, "conv"))
    if fixed:  # (time, 1, features), whatever comes in
        x = build.node("Transpose", x, perm=[3, 0, 1, 2])
        x = build.node("Reshape", x, build.hold(np.array([TIME, 1, 32])))
    else:
        x = build.node("Reshape", x, build.hold(np.array([0, 32, TIME])))
        x = build.node("Transpose", x, perm=[2, 0, 1])
    weights = []
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        gates = getattr(net.recurrent, name).chunk(3)  # ONNX has the update gate first
        weights.append(torch.cat([gates[1], gates[0], gates[2]])[None])
    bias = torch.cat(weights[2:], 1)
    held = [build.hold(of, name) for of, name in zip((*weights[:2], bias), "WRB", strict=True)]
    x = build.node("GRU", x, *held, hidden_size=8, linear_before_reset=1)
    x = build.node("Squeeze", x, build.hold(np.array([1])))
    for name in ("hidden", "head"):
        layer = getattr(net, name)
        x = build.node("MatMul", x, build.hold(layer.weight.mT.contiguous(), f"{name}.weight"))
        x = build.node("Add", x, build.hold(layer.bias, f"{name}.bias"))
        x = build.node("Relu", x) if name == "hidden" else x
    return build.model(x)


FILES = {
    "any number": {},
    "one": {"batch": 1},
    "one, in every shape": {"batch": 1, "fixed": True},
    "four": {"batch": 4},
    "as many as there is time": {"batch": TIME},
}


@pytest.mark.parametrize("count", [1, 2, TIME, 40])
@pytest.mark.parametrize("kind", ["module", *FILES])
def test_outputs_get_a_row_for_each_image(kind, count, images) -> None:
    net = reader()
    want = net(images[:count]).movedim(1, 0)
    model = net if kind == "module" else as_onnx(net, **FILES[kind])
    got = first_output(model, images[:count])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "any number", "one", "one, in every shape"])
def test_the_same_weights_whatever_the_form(kind, images) -> None:
    net = reader()
    model = net if kind == "module" else as_onnx(net, **FILES[kind])
    graph = trace(model, images[:2])
    assert first_output(model, images).shape == (40, TIME, CLASSES)
    result = secateur.prune(model, images, sparsity=0.3, **QUICK)
    assert [layer.name for layer in result.report.layers] == ["hidden", "head"]
    assert result.report.warnings == []
    assert result.report.calibration is not None
    error = result.report.calibration.output_error
    reference = secateur.prune(net, images, sparsity=0.3, **QUICK).report.calibration.output_error
    assert error == pytest.approx(reference, rel=1e-3)
    assert len(graph.outputs) == 1


def test_the_sensitivity_of_layers_is_measured(images) -> None:
    reports = [
        secateur.prune(model, images, sparsity=0.5, progress=False).report
        for model in (reader(), as_onnx(reader()), as_onnx(reader(), batch=1, fixed=True))
    ]
    damages = [[layer.sensitivity.loss_increase[-1] for layer in of.layers] for of in reports]
    assert np.allclose(damages[1:], damages[0], rtol=0.05)
    assert min(damages[0]) > 0


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_an_openvino_file_gives_rows_too(batch, images) -> None:
    pytest.importorskip("openvino")
    net = reader()
    for count in (1, 3, TIME):
        want = net(images[:count]).movedim(1, 0)
        got = IR(as_ir(as_onnx(net, batch=batch)))(as_samples(images[:count]))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_the_command_line_writes_every_file(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path, "tests"])
    np.savez(tmp_path / "images.npz", images=images.numpy())
    (tmp_path / "net.onnx").write_bytes(as_onnx(reader(), batch=1).SerializeToString())
    arguments = ["--data", tmp_path / "images.npz", "--sparsity", 0.5, "--method", "magnitude"]
    for model in (tmp_path / "net.onnx", "test_rows:reader"):
        out = tmp_path / str(model).replace("/", "-")
        command = ["prune", model, *arguments, "-o", out, "--allocation", "uniform", "--onnx"]
        done = CliRunner().invoke(app, [str(of) for of in command])
        assert done.exit_code == 0, (done.output, done.exception)
        assert Report.load(out / "report.json").exports["model.onnx"]["relative_difference"] < 1e-4


def test_the_axis_of_the_images() -> None:
    assert images_axis((1, 7), (3, 7), 3) == 0
    assert images_axis((7, 1, 5), (7, 3, 5), 3) == 1
    assert images_axis((7, 5), (7, 5), 3) is None
    assert images_axis((2, 5), (6, 5), 3) is None
    assert images_axis((1, 1, 5), (3, 3, 5), 3) is None
    assert images_axis((), (), 3) is None


def test_another_number_of_images_is_tried_only_where_the_shape_leaves_it_open() -> None:
    counts = []

    def network(result):
        def run(samples: Samples) -> Tensor:
            counts.append(len(samples))
            return result(samples.only())

        return run

    x = torch.arange(12.0).reshape(3, 4)
    given = as_samples(x)
    assert RowsFirst(network(lambda x: x))(given) is x
    assert counts == [3]
    square = RowsFirst(network(lambda x: x[:, :3]))
    for _ in range(2):  # and then it is known
        assert torch.equal(square(given), x[:, :3])
    turned = RowsFirst(network(lambda x: x[:, :3].T))
    for part in (given, given, given[:2]):
        assert torch.equal(turned(part), part.only()[:, :3])
    assert counts == [3, 3, 1, 3, 3, 1, 3, 2]
    assert RowsFirst(network(lambda x: None))(given) is None
    fixed = lambda x: x.T if len(x) == 3 else x.reshape(7)  # noqa: E731
    assert torch.equal(RowsFirst(network(fixed))(given), x.T)


def test_parts_are_joined_without_their_copies() -> None:
    x = torch.arange(30.0).reshape(5, 6)
    assert torch.equal(in_parts(lambda part: part.only().T, as_samples(x), 2), x)
    assert torch.equal(in_parts(lambda part: part.only().T, as_samples(x), 6), x)
    assert torch.equal(in_parts(lambda part: part.only(), as_samples(x), 6), x)
    no_axis = in_parts(lambda part: part.only().repeat(2, 1)[:3], as_samples(x), 2)
    assert no_axis.shape == (9, 6)
    assert in_parts(lambda part: None, as_samples(x), 2) is None
    assert in_parts(lambda part: part.only().sum(), as_samples(x), 2).shape == ()
