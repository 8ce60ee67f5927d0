"""Devices without float64: sums are held in float32 there, and the result is nearly the same."""

from __future__ import annotations

import pytest
import torch
from inputs import samples_of, trace
from problems import correlated
from torch import nn

import secateur
from secateur.core import precision
from secateur.core.precision import widened, widest_float
from secateur.core.statistics import Statistics
from secateur.evaluation.metrics import kl_divergence
from secateur.network.cuts import network_errors
from secateur.pruning.recalibration import recalibrate


def test_the_format_is_decided_by_the_kind_of_device() -> None:
    assert widest_float(torch.device("cpu")) == widest_float(torch.device("cuda", 1))
    assert widest_float(torch.device("cpu")) == torch.float64
    assert widest_float(torch.device("mps")) == torch.float32


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU as if it had none."""
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", ("cpu",))


def network_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()


def images_of() -> torch.Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 3


def test_sums_are_held_in_float32(without_float64) -> None:
    x = correlated(40, 5).float()
    statistics = Statistics()
    statistics.add(x, x[..., :3])
    (chunk,) = statistics.chunks
    for sums in (*statistics.gram, statistics.cross, chunk.energy, chunk.inputs, chunk.outputs):
        assert sums.dtype == torch.float32
    assert widened(torch.zeros(2, dtype=torch.bool)).dtype == torch.float32
    assert statistics.problem(torch.zeros(1, 3, 5)).gram.dtype == torch.float32


def test_the_result_is_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, network = images_of(), network_of()
    recipe = secateur.Recipe(recalibration="all")
    reports, statistics, errors = [], [], []
    for kinds in ((), ("cpu",)):
        monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", kinds)
        graph = trace(network, images[:2])
        samples = samples_of(graph, images)
        statistics.append(recalibrate(graph, samples, chunk=16).statistics)
        reports.append(secateur.prune(network, images, sparsity=0.5, recipe=recipe).report)
        errors.append(
            network_errors(graph, samples_of(graph, images), [{"7.bias": torch.zeros(5)}], 16)
        )
        scores = network(images).detach()
        assert kl_divergence(scores, scores) == pytest.approx(0, abs=1e-6)
    for one, other in zip(*(of.values() for of in statistics), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(*(of.layers for of in reports), strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=0.05)
        assert abs(one.sparsity - other.sparsity) < 0.02
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_products_are_whole_while_a_network_is_pruned_and_as_they_were_afterwards():
    conv, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, products.allow_tf32
    assert before == (True, False)  # PyTorch's own choice
    seen: set[bool] = set()

    def metric(_: object) -> float:
        seen.update((conv.allow_tf32, products.allow_tf32))
        return 1.0

    images = torch.randn(8, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten()).eval()
    secateur.prune(net, images, sparsity=0.5, metric=metric, method="magnitude")
    assert seen == {False}
    assert (conv.allow_tf32, products.allow_tf32) == before
    with pytest.raises(secateur.OptionError):
        secateur.prune(net, images, sparsity=2.0)
    assert (conv.allow_tf32, products.allow_tf32) == before
