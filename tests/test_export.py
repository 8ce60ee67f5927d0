"""Written files hold every zero that the report counts, layer by layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import secateur
from secateur.export.files import rehearse, save_model, save_onnx, save_safetensors
from secateur.frontends.onnx import read

NAMES = ["0.weight", "3.weight", "6.weight"]


class NotInOnnx(nn.Module):
    """With an operation that the exporter does not know, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.layer(x))


def test_what_cannot_be_written_as_onnx_is_named(tmp_path) -> None:
    with pytest.raises(secateur.ModelError, match="bessel_j0") as told:
        save_onnx(NotInOnnx().eval(), tmp_path / "net.onnx", torch.randn(4, 4), [])
    assert "\n" not in str(told.value)
    assert "\x1b" not in str(told.value)


def network() -> nn.Module:
    """Two convolutions, one with a normalisation behind it, and a linear layer; half are zeros."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 16, 5)),
    )
    with torch.no_grad():
        for name in NAMES:
            weight = net.get_parameter(name)
            weight.mul_(weight.abs() > weight.abs().median())
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def zeros(net: nn.Module) -> int:
    return sum(int((net.get_parameter(name) == 0).sum()) for name in NAMES)


def test_each_file_has_as_many_zeros_as_the_network(images, tmp_path) -> None:
    net = network()
    found = save_safetensors(net, tmp_path / "net.safetensors", NAMES)
    assert found["zeros"] == zeros(net)
    assert save_onnx(net, tmp_path / "net.onnx", images, NAMES)["zeros"] == zeros(net)
    model = read(tmp_path / "net.onnx")
    names = [of.name for of in model.graph.initializer if len(of.dims) > 1]
    assert save_model(model, tmp_path / "b.onnx", images, names)["zeros"] == zeros(net)


def test_tied_weights_are_looked_for_by_each_name(tmp_path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    with torch.no_grad():
        net[0].weight[:2] = 0
    for name in ("0.weight", "2.weight"):
        assert save_safetensors(net, tmp_path / "net.safetensors", [name])["zeros"] == 8


def test_half_precision_is_read_back_too(tmp_path) -> None:
    net = network()
    for kind in (torch.float16, torch.bfloat16):
        found = save_safetensors(net.to(kind), tmp_path / "net.safetensors", NAMES)
        assert found["zeros"] == zeros(net)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_lost_in_safetensors_is_an_error_that_names_the_layer(
    name, tmp_path, monkeypatch
) -> None:
    real = safetensors.torch.save_model

    def careless(module: nn.Module, path: str, **more) -> None:
        with torch.no_grad():
            weight = module.get_parameter(name)
            weight[weight == 0] = 1e-9
        real(module, path, **more)

    monkeypatch.setattr(safetensors.torch, "save_model", careless)
    with pytest.raises(secateur.ModelError, match=rf"lost .* zeros of the layer {name}"):
        save_safetensors(network(), tmp_path / "net.safetensors", NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_elsewhere_do_not_make_up_for_zeros_lost(name, images, tmp_path, monkeypatch) -> None:
    """The file has more zeros in all than the network, and less in one layer."""
    real = torch.onnx.export

    def careless(module, arguments, path: str, **more) -> None:
        real(module, arguments, path, **more)
        model = onnx.load(path)
        for held in model.graph.initializer:
            array = onnx.numpy_helper.to_array(held).copy()
            if held.name == name:
                array[array == 0] = 1e-9
                held.CopyFrom(onnx.numpy_helper.from_array(array, name))
        spare = onnx.numpy_helper.from_array(np.zeros(10_000, np.float32), "spare")
        model.graph.initializer.append(spare)
        onnx.save(model, path)

    monkeypatch.setattr(torch.onnx, "export", careless)
    with pytest.raises(secateur.ModelError, match=rf"lost .* zeros of the layer {name}"):
        save_onnx(network(), tmp_path / "net.onnx", images, NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_int8_and_openvino_of_another_precision_give_advice_that_can_be_followed(dtype) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    images = torch.randn(4, 1, 8, 8)
    for given, what in (({"int8": True}, "INT8"), ({"openvino": True}, "OpenVINO")):
        with pytest.raises(secateur.ModelError, match=rf"expected float32 for {what}.*net\.float"):
            rehearse(network.to(dtype), images, **given)
        rehearse(network.float(), images, **given)
