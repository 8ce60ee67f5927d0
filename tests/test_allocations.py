"""Laws of allocations: budgets are met, and what is measured is what matters."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import samples_of, trace
from problems import random_weight
from torch import nn

import secateur
from secateur.core.methods import ADMM
from secateur.core.patterns import NM, Block, Unstructured
from secateur.pruning.allocations import (
    ALLOCATIONS,
    AllocationInputs,
    Budget,
    Curve,
    NormalizedMagnitude,
    Sensitivity,
    Uniform,
    total_kept,
)
from secateur.pruning.allocations.normalized_magnitude import FittedMagnitude
from secateur.pruning.allocations.sensitivity import (
    FittedSensitivity,
    completed,
    enough_to_judge,
)
from secateur.pruning.allocations.uniform import FittedUniform
from secateur.pruning.judged import Judged
from secateur.pruning.layer_fit import Survey


def fitted_allocations(sizes: list[int], seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(1, 1, size, generator=generator) for size in sizes]
    levels = (0.3, 0.6, 0.9)
    curves = [
        Curve(levels, tuple(torch.rand(3, generator=generator).cumsum(0).tolist())) for _ in sizes
    ]
    return [FittedUniform(sizes), FittedMagnitude(weights), FittedSensitivity(sizes, curves)]


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    sparsity=st.floats(0, 0.999),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_every_division_hits_the_sparsity_exactly(
    sizes: list[int], sparsity: float, seed: int
) -> None:
    for fitted in fitted_allocations(sizes, seed):
        kept = fitted.kept(Budget.of_sparsity(sizes, sparsity))
        assert sum(kept) == sum(sizes) - round(sum(sizes) * sparsity)
        assert all(0 <= count <= size for count, size in zip(kept, sizes, strict=True))


@given(
    sizes=st.lists(st.integers(1, 300), min_size=2, max_size=6),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_every_division_stays_within_a_budget_of_unequal_costs_and_uses_it(
    sizes: list[int], share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = (1 + 20 * torch.rand(len(sizes), generator=generator)).tolist()
    total = sum(size * cost for size, cost in zip(sizes, costs, strict=True))
    for fitted in fitted_allocations(sizes, seed):
        kept = fitted.kept(Budget(share * total, costs))
        spent = sum(count * cost for count, cost in zip(kept, costs, strict=True))
        assert spent <= share * total * (1 + 1e-9)
        assert share * total - spent <= sum(costs)  # a weight a layer, for rounding


def test_uniform_is_within_one_weight_of_uniform() -> None:
    sizes = [10, 101, 7, 33]
    for count, size in zip(
        FittedUniform(sizes).kept(Budget.of_sparsity(sizes, 0.37)), sizes, strict=True
    ):
        assert abs(count - 0.63 * size) <= 1


def test_normalized_magnitude_follows_its_definition_and_ignores_scale() -> None:
    weights = [random_weight(1, 4, 5), random_weight(2, 3, 5, seed=8)]
    budget = Budget.of_sparsity([weight.numel() for weight in weights], 0.6)
    scores = [w.abs().numpy().ravel() / np.linalg.norm(w.numpy()) for w in weights]
    threshold = np.sort(np.concatenate(scores))[::-1][total_kept(50, 0.6) - 1]
    expected = [int((score >= threshold).sum()) for score in scores]
    assert FittedMagnitude(weights).kept(budget) == expected
    assert FittedMagnitude([100 * weights[0], weights[1]]).kept(budget) == expected


def test_sensitivity_minimises_the_sum_of_convex_curves() -> None:
    sizes = [6, 9, 5]
    levels = tuple(np.arange(1, 10) / 10)
    curves = [Curve(levels, tuple(a * np.exp(b * np.array(levels)))) for a, b in COEFFICIENTS]
    fitted = FittedSensitivity(sizes, curves)
    for left in range(1, 20):
        kept = fitted.kept(Budget(left))
        best = min(
            (sum(fitted.loss_increase(counts)), counts)
            for counts in itertools.product(*(range(size + 1) for size in sizes))
            if sum(counts) == left
        )
        assert sum(fitted.loss_increase(kept)) == pytest.approx(best[0], rel=1e-6)


COEFFICIENTS = [(0.01, 4.0), (0.002, 6.0), (0.05, 3.0)]


class Lopsided(nn.Module):
    """Three layers of which the second hardly touches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.idle = nn.Conv2d(8, 8, 3, padding=1)
        self.busy = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = 0.01 * self.idle(x) + self.busy(x)
        return self.head(x.relu().mean((2, 3)))


@pytest.fixture(scope="module")
def lopsided() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    return Lopsided().eval(), torch.randn(40, 3, 8, 8)


def inputs_of(network: nn.Module, images: torch.Tensor, **changes) -> AllocationInputs:
    graph = trace(network, images[:2])
    return AllocationInputs(
        graph=graph, samples=samples_of(graph, images), layers=graph.layers[1:], chunk=16, **changes
    )


def test_sensitivity_sees_which_layer_matters(lopsided) -> None:
    network, images = lopsided
    told: list[str] = []
    fitted = Sensitivity().fit(inputs_of(network, images, on_layer=told.append))
    assert told == ["idle", "busy", "head"]
    idle, busy, _ = fitted.curves
    for curve in fitted.curves:
        assert list(curve.loss_increase) == sorted(curve.loss_increase)
    assert all(i < 0.01 * b for i, b in zip(idle.loss_increase, busy.loss_increase, strict=True))
    sizes = [576, 576, 40]
    kept = fitted.kept(Budget.of_sparsity(sizes, 0.5))
    assert kept[0] < 0.1 * sizes[0] < 0.8 * sizes[1] < kept[1]


def test_a_measured_damage_is_what_a_network_so_pruned_does(lopsided) -> None:
    """The curve's point against a network pruned in one layer and run as a whole."""
    network, images = lopsided
    method = secateur.Magnitude()
    sensitivity = Sensitivity(levels=(0.6,), images=10, method=method)
    busy = sensitivity.fit(inputs_of(network, images)).curves[1]
    alone = secateur.prune(network, images, sparsity=0.6, method=method, include="busy").model
    judged = images[torch.linspace(0, 39, 10).round().long()]
    with torch.no_grad():
        wanted, found = (
            run(judged) - run(judged).mean(1, keepdim=True) for run in (network, alone)
        )
    expected = float((found - wanted).square().mean() / wanted.var(correction=0))
    assert busy.loss_increase[0] == pytest.approx(expected, rel=1e-4)
    assert busy.measured


def test_a_second_look_takes_damage_from_the_first(lopsided) -> None:
    network, images = lopsided
    sensitivity = Sensitivity(method=secateur.Magnitude())
    first = sensitivity.fit(inputs_of(network, images))
    dense = {f"{name}.weight": getattr(network, name).weight for name in ("idle", "busy", "head")}
    again = sensitivity.fit(inputs_of(network, images, weights=dense, previous=first))
    for one, other in zip(first.curves, again.curves, strict=True):
        assert other.loss_increase == pytest.approx(one.loss_increase, rel=1e-6)
        assert not other.measured
    half = secateur.prune(network, images, sparsity=0.5, method="least-squares", include="busy")
    pruned = {**dense, "busy.weight": half.model.busy.weight}
    later = sensitivity.fit(inputs_of(network, images, weights=pruned, previous=first))
    assert later.curves[1].loss_increase[0] < 0.9 * first.curves[1].loss_increase[0]
    assert later.curves[0].loss_increase == pytest.approx(first.curves[0].loss_increase, rel=1e-6)


def test_a_level_that_is_not_run_lies_between_those_that_are(lopsided, monkeypatch) -> None:
    network, images = lopsided
    loss, runs = Judged.loss, list[int]()
    counted = lambda self, *args: runs.append(1) or loss(self, *args)  # noqa: E731
    monkeypatch.setattr(Judged, "loss", counted)
    run = Sensitivity(estimated=()).fit(inputs_of(network, images))
    all_levels, runs[:] = len(runs), []
    some = Sensitivity(estimated=(0.75,)).fit(inputs_of(network, images))
    assert 4 * len(runs) == 3 * all_levels
    for one, other in zip(run.curves, some.curves, strict=True):
        assert [other.loss_increase[at] for at in (0, 2, 3)] == pytest.approx(
            [one.loss_increase[at] for at in (0, 2, 3)], rel=1e-6
        )
        assert other.loss_increase[1] == pytest.approx(one.loss_increase[1], rel=0.4)
        assert other.loss_increase[0] < other.loss_increase[1] < other.loss_increase[2]


def test_layers_are_fitted_to_some_samples_evenly_spread(lopsided) -> None:
    network, images = lopsided
    judged = torch.linspace(0, len(images) - 1, 4).round().long().tolist()
    others = [at for at in range(len(images)) if at not in judged]
    used = [*judged, *(others[at * len(others) // 9] for at in range(9))]
    spoilt = torch.full_like(images, torch.nan)
    spoilt[used] = images[used]
    some = Sensitivity(images=4, fitted=9)
    assert (
        some.fit(inputs_of(network, spoilt)).errors == some.fit(inputs_of(network, images)).errors
    )
    with pytest.raises(secateur.NumericalError):
        Sensitivity(images=4, fitted=10).fit(inputs_of(network, spoilt))


def test_small_layers_are_not_run_and_say_so(lopsided) -> None:
    network, images = lopsided
    few = Sensitivity(small=0.1).fit(inputs_of(network, images)).curves
    assert [curve.measured for curve in few] == [True, True, False]
    dear = inputs_of(network, images, costs=[1.0, 1.0, 1000.0])
    assert [c.measured for c in Sensitivity(small=0.1).fit(dear).curves] == [False, False, True]
    assert all(loss > 0 for loss in few[2].loss_increase)


@pytest.mark.parametrize(("width", "expected"), [(512, 9), (128, 17), (64, 66)])
def test_fewer_samples_are_run_where_an_output_says_much(width: int, expected: int) -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.last(self.first(x)), dim=1)

    images = torch.randn(66, 8)
    graph = trace(Embeds().eval(), images[:2])
    assert len(enough_to_judge(graph, samples_of(graph, images))) == expected
    scores = trace(nn.Sequential(nn.Linear(8, width)).eval(), images[:2])
    assert len(enough_to_judge(scores, samples_of(scores, images))) == expected
    assert len(enough_to_judge(scores, samples_of(scores, images), least=20)) == max(expected, 22)


@pytest.mark.parametrize(
    ("kept", "looked_at"),
    [(60, [50, 25]), (50, [50, 25]), (49, [25, 10]), (20, [10, 3]), (2, [10, 3])],
)
def test_a_survey_looks_at_the_next_levels_below_what_a_layer_keeps(
    kept: int, looked_at: list[int]
) -> None:
    survey = Survey(method=ADMM(), kept=[[90, 1], [50, 25, 10, 3]])
    assert [survey.kept[1][at] for at in survey.near(1, kept)] == looked_at
    assert list(survey.near(0, kept)) == [0, 1]


def test_errors_at_levels_that_were_not_looked_at_follow_the_nearest_that_was() -> None:
    dense = [0.01, 0.1, 0.4, 0.8]
    assert completed([0.02, 0.3, None, None], dense) == pytest.approx([0.02, 0.3, 1.2, 2.4])
    assert completed([None, None, 0.2, 0.6], dense) == pytest.approx([0.005, 0.05, 0.2, 0.6])
    assert completed(dense, dense) == pytest.approx(dense)


def test_outputs_that_are_no_scores_are_judged_by_squared_error() -> None:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    images = torch.randn(12, 3, 8, 8)
    curve = Sensitivity(levels=(0.5, 0.999)).fit(inputs_of(network, images)).curves[0]
    assert 0 < curve.loss_increase[0] < curve.loss_increase[1] < 1.5


def test_the_report_tells_the_curves(lopsided, tmp_path) -> None:
    network, images = lopsided
    report = secateur.prune(network, images, sparsity=0.5).report
    assert report.requested["recipe"]["allocation"]["name"] == "sensitivity"
    curve = report.layers[0].sensitivity
    assert curve is not None
    assert len(curve.loss_increase) == 4
    report.save(tmp_path / "report.json")
    assert secateur.Report.load(tmp_path / "report.json") == report
    plain = secateur.prune(network, images, sparsity=0.5, allocation=NormalizedMagnitude()).report
    assert plain.layers[0].sensitivity is None
    assert secateur.prune(network, images, sparsity=0.5, allocation=Uniform()).report.sparsity == (
        pytest.approx(0.5, abs=1e-3)
    )


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_every_allocation_is_repeatable_and_works_with_one_image(name, lopsided) -> None:
    network, images = lopsided
    inputs = inputs_of(network, images[:1])
    budget = Budget.of_sparsity([576, 576, 40], 0.7)
    first = ALLOCATIONS[name]().fit(inputs).kept(budget)
    assert first == ALLOCATIONS[name]().fit(inputs).kept(budget)
    assert sum(first) == total_kept(1192, 0.7)


@dataclass(frozen=True)
class Smallest:
    """A pattern that keeps what is worth least."""

    def mask(self, scores: torch.Tensor, kept: int) -> torch.Tensor:
        return Unstructured().mask(scores.max() - scores, kept)


def test_blocks_are_measured_where_their_loss_begins(lopsided) -> None:
    network, images = lopsided
    found = Sensitivity(block_levels=(0.2, 0.6), levels=(0.4, 0.9))
    for pattern, levels in ((Unstructured(), (0.4, 0.9)), (Block(1, 4), (0.2, 0.6))):
        fitted = found.fit(inputs_of(network, images, pattern=pattern))
        assert {curve.sparsities for curve in fitted.curves} == {levels}
    (level,) = {
        curve.sparsities for curve in found.fit(inputs_of(network, images, pattern=NM(2, 4))).curves
    }
    assert level == (0.5,)


def test_sensitivity_measures_the_pattern_that_is_asked_for(lopsided) -> None:
    network, images = lopsided
    for method in (secateur.Magnitude(), secateur.LeastSquares()):
        sensitivity = Sensitivity(method=method)
        one, other = (
            sensitivity.fit(inputs_of(network, images, pattern=pattern))
            for pattern in (Unstructured(), Smallest())
        )
        assert other.errors[1][0] > 1.5 * one.errors[1][0]
        assert other.curves[1].loss_increase[0] > 1.5 * one.curves[1].loss_increase[0]
    recipe = secateur.Recipe(method=secateur.Magnitude(), pattern=Smallest())
    report = secateur.prune(network, images, sparsity=0.5, recipe=recipe).report
    usual = secateur.prune(network, images, sparsity=0.5, method="magnitude").report
    assert (
        report.layers[1].sensitivity.loss_increase[0]
        > 1.5 * usual.layers[1].sensitivity.loss_increase[0]
    )
