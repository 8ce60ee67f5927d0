"""BatchNorm statistics of other images: taken, used, and put back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs import samples_of, trace
from torch import Tensor, nn

import secateur
from secateur.errors import OptionError
from secateur.evaluation.metrics import compare
from secateur.network.graph import Norm, alone
from secateur.pruning.recalibration import Recalibration, recalibrate
from secateur.pruning.recipe import RECIPES


def network() -> nn.Sequential:
    torch.manual_seed(4)
    found = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()
    generator = torch.Generator().manual_seed(9)
    for norm in norms(found):
        norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
        if norm.affine:
            norm.weight.data.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
            norm.bias.data.copy_(torch.randn(norm.bias.shape, generator=generator))
    return found


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def images(count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 3 * torch.randn(count, 3, 14, 14, generator=generator) + 100.0


def in_training_mode(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What each BatchNorm gives when it takes the statistics of the batch."""
    seen: list[Tensor] = []
    for norm in norms(model):
        norm.train()
        norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(x)
    return seen


def test_statistics_are_those_of_a_batch_in_training_mode() -> None:
    model, x = network(), images()
    traced = trace(model, x[:2])
    graph = recalibrate(traced, samples_of(traced, x), chunk=7).graph
    values = {graph.inputs[0]: x}
    names = {**graph.parameters, **values}
    for index, op in enumerate(graph.ops):
        names[op.name] = graph.run(index, names)
    wanted = in_training_mode(network(), x)
    assert len(graph.norms) == len(wanted) == 3
    for norm, output in zip(graph.norms, wanted, strict=True):
        found = names[graph.ops[norm.op].name]
        found = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(found, output, rtol=1e-3, atol=1e-3)


def test_a_dead_channel_is_not_blown_up() -> None:
    model, x = network(), images()
    model[0].weight.data[2] = 0.0
    graph = trace(model, x[:2])
    found = recalibrate(graph, samples_of(graph, x), chunk=16).statistics
    assert found["1.running_var"][2] == pytest.approx(float(model[1].running_var[2]) / 100)
    assert found["1.running_mean"][2] == 0.0


def test_own_statistics_come_back_and_changes_stay() -> None:
    own = trace(network(), images(2))
    statistics = {"1.running_mean": torch.full((6,), 5.0)}
    change = {"1.running_mean": torch.full((6,), 5.5), "6.bias": torch.ones(8)}
    found = Recalibration(own, statistics).unfold(change)
    torch.testing.assert_close(found["1.running_mean"], own.parameters["1.running_mean"] + 0.5)
    assert torch.equal(found["6.bias"], torch.ones(8))


def test_a_layer_is_fitted_to_the_adapted_inputs_and_the_network_keeps_its_statistics() -> None:
    """Against PyTorch: prune a network with other statistics, and put its own back."""
    model, x = network(), images()
    other = network()
    for norm in norms(other):
        norm.momentum, norm.training = None, True
        norm.reset_running_stats()
    with torch.no_grad():
        other(x)
    for norm in norms(other):  # PyTorch keeps the unbiased variance
        norm.eval()
    for norm, values in zip(norms(other), (12 * 12, 5 * 5, 5 * 5), strict=True):
        norm.running_var.mul_(1 - 1 / (values * len(x)))
    recipe = replace(RECIPES["default"], recalibration="all")
    found = secateur.prune(model, x, sparsity=0.5, recipe=recipe, progress=False)
    wanted = secateur.prune(other, x, sparsity=0.5, progress=False)
    for name, value in wanted.model.state_dict().items():
        here = found.model.state_dict()[name]
        if name.endswith(("running_var", "num_batches_tracked")):
            assert torch.equal(here, model.state_dict()[name])
        elif name.endswith("running_mean"):
            moved = value - other.state_dict()[name]
            torch.testing.assert_close(here - model.state_dict()[name], moved, rtol=0, atol=0.02)
        else:
            torch.testing.assert_close(here, value, rtol=0.02, atol=0.02)
    assert any("3 BatchNorms" in note for note in found.report.notes)


def test_only_synthetic_images_adapt_a_network_unless_asked() -> None:
    preprocess = secateur.Preprocess(size=14)
    settings = {"sparsity": 0.4, "allocation": "uniform", "progress": False}
    fractals = {"data": "fractal:100", "preprocess": preprocess}
    adapted = secateur.prune(network(), **fractals, **settings)
    plain = secateur.prune(
        network(), recipe=replace(RECIPES["default"], recalibration="none"), **fractals, **settings
    )
    real = secateur.prune(network(), images(), **settings)
    assert any("BatchNorms" in note for note in adapted.report.notes)
    assert not any("BatchNorms" in note for note in [*plain.report.notes, *real.report.notes])
    assert not torch.equal(adapted.model[6].weight, plain.model[6].weight)


def test_the_report_compares_the_networks_as_they_are() -> None:
    result = secateur.prune(
        network(),
        images(),
        sparsity=0.5,
        recipe=replace(RECIPES["default"], recalibration="all"),
        allocation="uniform",
        progress=False,
    )
    with torch.no_grad():
        found = compare(result.model(images()), reference=network()(images()))
    assert result.report.calibration.kl == pytest.approx(found.kl, rel=1e-3)


def test_a_network_without_batch_norms_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    graph = trace(model, images(2))
    assert recalibrate(graph, samples_of(graph, images()), chunk=8).graph is graph


def test_statistics_that_two_norms_share_stay() -> None:
    tensors = {name: torch.zeros(1) for name in "abcd"}
    shared = [Norm(0, "x", "a", "b"), Norm(1, "y", "a", "c"), Norm(2, "z", "c2", "d")]
    assert alone(shared, tensors) == []
    assert alone([Norm(0, "x", "a", "b")], tensors) == [Norm(0, "x", "a", "b")]


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(OptionError, match="recalibration is 'always', expected"):
        replace(RECIPES["default"], recalibration="always")
