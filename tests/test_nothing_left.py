"""Layers of which nothing is left, and images that are all alike, are told."""

import warnings

import pytest
import torch
from onnx import ModelProto
from onnx_models import Builder
from torch import Tensor, nn

import secateur
from secateur import Recipe

UNIFORM = Recipe(method=secateur.Magnitude(), allocation=secateur.Uniform())


def network() -> nn.Sequential:
    """Its middle has weights that are small against their outputs' part in all."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    nn.init.normal_(net[5].weight, std=1.0)
    return net.eval()


def as_onnx(net: nn.Sequential) -> ModelProto:
    build = Builder(3, 6, 6)
    x = build.node("Relu", build.convolution("input", net[0], "0"))
    x = build.node("Relu", build.convolution(x, net[2], "2"))
    return build.model(build.linear(build.node("Flatten", x), net[5], "5"))


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def told(model: object, data: Tensor, **more: object) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"sparsity": 0.5, "recipe": UNIFORM, **more}
        return secateur.prune(model, data, **options).report.warnings


FORMS = pytest.mark.parametrize("form", [lambda net: net, as_onnx], ids=["module", "onnx"])


@FORMS
def test_layers_with_nothing_left_are_named_in_one_warning(form) -> None:
    gone = lambda **more: [  # noqa: E731
        of for of in told(form(network()), images(), **more) if "no weight left" in of
    ]
    assert gone() == []
    (one,) = gone(sparsity=0.9999, include="2")
    assert "1 of 1 layer has no weight left or has lost 99% or more of what it computes" in one
    assert "(2)" in one
    (both,) = gone(sparsity=0.9999, include=["0", "2"])
    assert "2 of 2 layers" in both
    assert "(0, 2)" in both


def test_a_layer_without_weights_in_the_network_given_is_not_told() -> None:
    net = network()
    nn.init.zeros_(net[2].weight)
    assert not any("no weight left" in of for of in told(net, images()))


@FORMS
@pytest.mark.parametrize("different", [1, 3, 31])
def test_copies_of_a_few_images_are_told(form, different) -> None:
    data = images(different).repeat(100 // different + 1, 1, 1, 1)
    (one,) = [of for of in told(form(network()), data) if "different" in of]
    assert f"the {len(data)} calibration images are copies of only {different}," in one


def test_blank_images_are_told_and_others_are_not() -> None:
    net, plain = network(), images(40)[:, :, :1, :1].expand(-1, -1, 6, 6)
    assert any("copies of only 1," in of for of in told(net, torch.zeros(40, 3, 6, 6)))
    assert any("40 of 40 calibration images are blank" in of for of in told(net, plain))
    assert not any("blank" in of or "different" in of for of in told(net, images()))
    half = torch.cat([plain, images(40)])
    assert not any("blank" in of for of in told(net, half))


def test_rows_of_one_number_are_not_blank() -> None:
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert not any("blank" in of for of in told(net, torch.randn(40, 1)))
