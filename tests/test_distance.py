"""Outputs are compared quantity by quantity, whatever their scales; probabilities as scores."""

import pytest
import torch
from onnx import ModelProto
from onnx_models import Builder
from torch import Tensor, nn

import secateur
from secateur import Sensitivity
from secateur.core.distance import relative_error, value_error
from secateur.core.outputs import is_probabilities
from secateur.evaluation.metrics import compare, kl_divergence

QUICK = {"method": "magnitude", "allocation": Sensitivity(levels=(0.5, 0.9))}


def slow_error(dense: Tensor, found: Tensor) -> float:
    """The largest over the axes of the mean error of its indices, each over its own variance."""
    dense, found = dense.double(), found.double()
    views = [float((found - dense).square().mean() / dense.var(correction=0))]
    for axis in range(1, dense.dim()):
        pairs = zip(dense.unbind(axis), found.unbind(axis), strict=True)
        errors = [float((b - a).square().mean() / a.var(correction=0)) for a, b in pairs]
        views.append(sum(errors) / len(errors))
    return max(views)


def outputs(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator) + torch.randn(shape[1:], generator=generator)
    return dense, dense + 0.3 * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", [(20, 3), (20, 3, 5), (37, 2, 3, 4), (20, 1, 6), (5, 1), (9,)])
def test_each_channel_counts_by_its_own_variance(shape) -> None:
    dense, found = outputs(*shape)
    want = slow_error(dense, found)
    assert value_error([dense], [found]) == pytest.approx(want, rel=1e-9)
    assert value_error(dense.split(4), found.split(4)) == pytest.approx(want, rel=1e-9)
    if len(shape) != 2 or shape[1] == 1:
        assert compare(found, reference=dense).output_error == pytest.approx(want, rel=1e-9)
        assert relative_error(dense.split(8), found.split(8)) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("axis", [1, 2])
def test_no_channel_is_lost_behind_one_of_a_larger_scale(axis) -> None:
    """Boxes in pixels beside scores: as large an error whatever the pixels."""
    dense, _ = outputs(30, 6, 6)
    found = dense.clone()
    found.select(axis, 5).zero_()  # the class branch, dead
    for pixels in (1.0, 1e2, 1e4):
        scale = torch.ones(6).index_fill(0, torch.arange(4), pixels)
        scale = scale if axis == 2 else scale[:, None]
        assert value_error([scale * dense], [scale * found]) > 0.1


def test_a_constant_channel_and_rounding_make_no_error() -> None:
    dense, _ = outputs(30, 4, 6)
    dense[:, 2] = 300.0
    found = dense * (1 + 1e-7)
    assert value_error([dense], [found]) < 1e-6
    dense[:, 2] = 0.0
    assert value_error([dense], [dense]) == 0
    assert value_error([torch.ones(3, 2, 2)], [torch.ones(3, 2, 2)]) == 0


class Detector(nn.Module):
    """Two branches on one body: boxes in pixels, and scores."""

    def __init__(self, pixels: float, axis: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(12, 4, 3, 1, 1), nn.Conv2d(12, 3, 3, 1, 1)
        self.pixels, self.axis = pixels, axis

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        found = [self.pixels * self.boxes(x).flatten(2), self.scores(x).sigmoid().flatten(2)]
        found = torch.cat(found, 1)
        return found if self.axis == 1 else found.transpose(1, 2)


def pictures(count: int = 48, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axis", [1, 2])
def test_the_scale_of_boxes_does_not_decide_how_scores_are_pruned(axis) -> None:
    found = {}
    for pixels in (1.0, 640.0):
        report = secateur.prune(Detector(pixels, axis).eval(), pictures(), sparsity=0.6, **QUICK)
        found[pixels] = {layer.name: layer.sparsity for layer in report.report.layers}
        assert found[pixels]["scores"] < 0.9, found
    assert found[640.0]["scores"] == pytest.approx(found[1.0]["scores"], abs=0.2)


def scores(count: int = 40, classes: int = 5) -> tuple[Tensor, Tensor]:
    dense, found = outputs(count, classes, seed=3)
    return 4 * dense, 4 * found


@pytest.mark.parametrize("ends", ["both", "dense", "pruned", "rounded"])
def test_a_softmax_at_the_end_changes_neither_kl_nor_agreement(ends) -> None:
    dense, found = scores()
    plain = compare(found, reference=dense)
    dense = dense.softmax(1) if ends != "pruned" else dense
    found = found.softmax(1) if ends != "dense" else found
    if ends == "rounded":  # as an INT8 network's are, which need not sum to 1
        found = (found * 2**12).round() / 2**12 + 3e-4
        assert not is_probabilities(found)
    other = compare(found, reference=dense)
    assert other.kl == pytest.approx(plain.kl, rel=5e-2 if ends == "rounded" else 1e-5)
    assert other.agreement == plain.agreement


def test_probabilities_of_nothing_stay_finite() -> None:
    dense = torch.eye(4)
    assert kl_divergence(dense, dense) == 0
    assert 10 < kl_divergence(dense, dense.flip(0)) < 100


def test_damage_sees_the_logarithms_of_probabilities() -> None:
    dense, found = scores()
    want = relative_error(dense.split(9), found.split(9))
    got = relative_error(dense.softmax(1).split(9), found.softmax(1).split(9))
    assert got == pytest.approx(want, rel=1e-5)


def classifier(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(2)
    head = nn.Linear(16, 6)
    nn.init.normal_(head.weight, std=6.0)
    body = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, head, *more).eval()


def as_onnx(net: nn.Sequential) -> ModelProto:
    build = Builder(3, 8, 8)
    x = "input"
    for index, module in enumerate(net):
        if isinstance(module, nn.Conv2d):
            x = build.convolution(x, module, str(index))
        elif isinstance(module, nn.Linear):
            x = build.linear(x, module, str(index))
        else:
            x = build.node({"ReLU": "Relu"}.get(type(module).__name__, type(module).__name__), x)
    return build.model(x)


@pytest.mark.parametrize("file", [False, True])
def test_a_network_with_softmax_at_its_end_gets_the_same_zeros(file) -> None:
    found = []
    for model in (classifier(), classifier(nn.Softmax(1))):
        given = as_onnx(model) if file else model
        report = secateur.prune(given, pictures(), sparsity=0.6, **QUICK).report
        found.append((report, [layer.sparsity for layer in report.layers]))
    (plain, zeros), (other, same) = found
    assert len(set(zeros)) > 1
    assert same == pytest.approx(zeros, abs=2e-3)
    assert other.calibration.kl == pytest.approx(plain.calibration.kl, rel=1e-2)
    assert other.calibration.agreement == plain.calibration.agreement
    for one, two in zip(plain.layers, other.layers, strict=True):
        assert two.sensitivity.loss_increase == pytest.approx(
            one.sensitivity.loss_increase, rel=1e-2
        )
