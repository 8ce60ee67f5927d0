"""Weights that are computed in each run: masks and norms of weights, with the way out of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import onnx
import pytest
import torch
from onnx_models import Builder
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import secateur
from secateur.pruning.layer_selection import (
    select_layers,
)


def masked(part: nn.Module) -> nn.Module:
    return prune.l1_unstructured(part, "weight", 0.6)


def masked_twice(part: nn.Module) -> nn.Module:
    return prune.random_unstructured(masked(part), "weight", 0.3)


def old_weight_norm(part: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that it is old
        return nn.utils.weight_norm(part)


def nothing_left(part: nn.Module) -> None:
    parametrize.remove_parametrizations(part, "weight")


WAYS: dict[str, tuple[Callable, str, Callable]] = {
    "mask": (masked, "prune.remove", lambda part: prune.remove(part, "weight")),
    "masks": (masked_twice, "prune.remove", lambda part: prune.remove(part, "weight")),
    "weight norm": (
        parametrizations.weight_norm,
        "parametrize.remove_parametrizations",
        nothing_left,
    ),
    "spectral norm": (
        parametrizations.spectral_norm,
        "parametrize.remove_parametrizations",
        nothing_left,
    ),
    "old weight norm": (old_weight_norm, "remove_weight_norm", nn.utils.remove_weight_norm),
    "old spectral norm": (
        nn.utils.spectral_norm,
        "remove_spectral_norm",
        nn.utils.remove_spectral_norm,
    ),
}


def network_of(wrap: Callable) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), wrap(nn.Conv2d(8, 16, 3)), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(*body, *head).eval()


def pruned(network: nn.Module, **options: object) -> secateur.Report:
    images = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    options = {"sparsity": 0.5, "method": "magnitude", "allocation": "uniform", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", secateur.SecateurWarning)
        return secateur.prune(network, images, **options).report


@pytest.mark.parametrize("name", WAYS)
def test_the_reason_names_the_call_that_helps_and_it_does(name) -> None:
    wrap, call, undo = WAYS[name]
    network = network_of(wrap)
    report = pruned(network)
    (layer,) = (of for of in report.dense_layers if of.name == "2")
    says = f"weight computed on the fly: call torch.nn.utils.{call}(layer, 'weight') first"
    assert layer.reason == says
    assert any(says in of and "of the weights stay dense" in of for of in report.warnings)
    undo(network[2])
    report = pruned(network)
    assert "2" in [of.name for of in report.layers]
    assert not any("stay dense" in of for of in report.warnings)


def test_where_nothing_else_is_left_the_way_out_is_not_include() -> None:
    network = nn.Sequential(masked(nn.Linear(8, 64)), nn.ReLU(), nn.Linear(64, 2)).eval()
    with pytest.raises(secateur.ModelError) as told:
        secateur.prune(network, torch.randn(48, 8), sparsity=0.5)
    assert "include=" not in str(told.value)
    assert "prune.remove(layer, 'weight') first" in str(told.value)
    assert "do what is said of these layers" in str(told.value)


def test_include_is_not_advised_where_most_weights_cannot_be_pruned() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 64, 2), nn.Flatten())
    layers = secateur.inspect(network, (3, 4, 4)).layers
    with pytest.raises(secateur.ModelError, match="99% of the weights are in layers that cannot"):
        select_layers(layers)
    assert [of.name for of in select_layers(layers, include="0")] == ["0"]


@pytest.mark.parametrize("kind", ["Conv", "MatMul"])
def test_a_norm_that_an_export_has_not_folded_is_told(kind) -> None:
    """g * v / |v|, as weight norm is exported without folding."""
    build = Builder(3, 8, 8) if kind == "Conv" else Builder(8)
    shape = (16, 3, 3, 3) if kind == "Conv" else (8, 16)
    axes = list(range(1, len(shape)))
    direction = build.constant(torch.randn(shape))
    length = build.constant(
        torch.rand(16, *[1 for _ in axes]) if kind == "Conv" else torch.ones(16)
    )
    norm = build.node("ReduceL2", direction, axes=axes, keepdims=1)
    weight = build.node("Mul", build.node("Div", direction, norm), length)
    model = build.model(build.node(kind, "input", weight))
    assert isinstance(model, onnx.ModelProto)
    (layer,) = secateur.inspect(model).layers
    assert layer.obstacle is not None
    assert "before the export" in layer.obstacle
    assert layer.macs > 0
