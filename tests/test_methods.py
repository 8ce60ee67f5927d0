"""One conformance suite that every method must pass, and what single methods promise."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from problems import problem, slow_masked_fit
from torch import nn

import secateur
from secateur.core.damping import damping_for
from secateur.core.methods import (
    ADMM,
    METHODS,
    AdamCalibration,
    BiasCorrection,
    LeastSquares,
    Magnitude,
    WeightCorrection,
    stages,
    stored_patches,
)
from secateur.core.normal_equations import NormalEquations
from secateur.core.patterns import PATTERNS
from secateur.core.problem import Problem

LAYERS = {
    "linear": lambda bias: nn.Linear(8, 6, bias=bias),
    "conv": lambda bias: nn.Conv2d(8, 6, 3, padding=1, bias=bias),
    "strided": lambda bias: nn.Conv2d(8, 6, 3, stride=2, bias=bias),
    "dilated": lambda bias: nn.Conv2d(8, 6, 3, dilation=2, padding="same", bias=bias),
    "grouped": lambda bias: nn.Conv2d(8, 6, 3, groups=2, bias=bias),
    "depthwise": lambda bias: nn.Conv2d(8, 8, 3, groups=8, bias=bias),
    "1x1": lambda bias: nn.Conv2d(8, 6, 1, bias=bias),
    "conv1d": lambda bias: nn.Conv1d(8, 6, 3, padding=1, bias=bias),
}
BRIEF = AdamCalibration(iterations=2, learning_rate=1e-3, bias_learning_rate=1e-3)
FITTING = {"least-squares": LeastSquares, "admm": partial(ADMM, max_row_gain=1.0)}
FITTING_ONLY = ADMM(damping=1e-2, dampings=(), max_row_gain=1.0)  # the smallest squared error


class OneLayer(nn.Module):
    """A layer of any kind, with or without a BatchNorm behind it."""

    def __init__(self, kind: str, bias: bool, norm: bool) -> None:
        super().__init__()
        self.kind = kind
        self.layer = LAYERS[kind](bias)
        out = self.layer.weight.shape[0]
        self.norm = {"linear": nn.BatchNorm1d, "conv1d": nn.BatchNorm1d}.get(kind, nn.BatchNorm2d)(
            out
        )
        generator = torch.Generator().manual_seed(5)
        for tensor in (self.norm.weight.data, self.norm.bias.data, self.norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        self.use_norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return self.norm(y) if self.use_norm else y


def images_for(kind: str) -> torch.Tensor:
    shape = {"linear": (400, 8), "conv1d": (60, 8, 9)}.get(kind, (60, 8, 7, 7))
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator) + 1.0


BIAS_AND_NORM = list(itertools.product((True, False), (True, False)))
CASES = [("conv", *both) for both in BIAS_AND_NORM] + [
    (kind, *both)
    for kind in LAYERS
    if kind != "conv"
    for both in ((True, False), (False, True))  # as networks have them
]


@pytest.mark.parametrize(("kind", "bias", "norm"), CASES)
def test_every_method_prunes_every_kind_of_layer(kind: str, bias: bool, norm: bool) -> None:
    torch.manual_seed(11)
    network, images = OneLayer(kind, bias, norm).eval(), images_for(kind)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.requires_grad_(False)
    dense = network(images)
    losses = {}
    for name in METHODS:
        method = {"adam-calibration": BRIEF, "admm": FITTING_ONLY}.get(name, name)
        result = secateur.prune(
            network,
            images,
            sparsity=0.5,
            method=method,
            allocation="uniform",  # there is one layer
            include="*",
        )
        weight = result.model.layer.weight
        assert int((weight == 0).sum()) == round(0.5 * weight.numel())
        assert result.model.state_dict().keys() == before.keys()
        losses[name] = float((result.model(images) - dense).square().mean())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert losses["least-squares"] < losses["magnitude"]
    assert losses["bias-correction"] <= losses["magnitude"] * (1 + 1e-6)
    assert losses["adam-calibration"] < losses["magnitude"]
    assert losses["admm"] <= 1.02 * losses["least-squares"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kept", [0, 1, 7, 23, 24])
def test_exactly_kept_weights_stay(name: str, kept: int) -> None:
    solution = METHODS[name]().solve(problem(), PATTERNS["unstructured"](), kept)
    assert int(solution.mask.sum()) == kept
    assert int(solution.weight.count_nonzero()) == kept
    assert not solution.weight[~solution.mask].any()


@pytest.mark.parametrize("name", METHODS)
def test_a_full_mask_returns_the_dense_weights(name: str) -> None:
    held = problem()
    solution = METHODS[name]().solve(held, PATTERNS["unstructured"](), held.weight.numel())
    torch.testing.assert_close(solution.weight, held.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_gradient_vanishes_on_the_support(name: str, noise: float) -> None:
    held = problem(rows=5, cols=12, groups=2, noise=noise)
    method = FITTING[name](tolerance=1e-10)
    solution = method.solve(held, PATTERNS["unstructured"](), 50)
    amount = solution.damping * held.gram.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
    pull = amount * (solution.weight - held.weight)
    gradient = solution.weight @ held.gram - held.cross + pull
    assert gradient[solution.mask].abs().max() < 1e-6 * held.cross.abs().max()
    assert gradient[~solution.mask].abs().max() > 1e-3 * held.cross.abs().max()


@pytest.mark.parametrize("name", FITTING)
def test_the_fit_equals_a_slow_reference(name: str) -> None:
    held = problem(rows=5, cols=9, groups=2, noise=0.2)
    solution = FITTING[name](tolerance=1e-10).solve(held, PATTERNS["unstructured"](), 40)
    expected = slow_masked_fit(held, solution.mask, solution.damping)
    torch.testing.assert_close(solution.weight, torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_no_method_beats_brute_force(seed: int) -> None:
    held = problem(rows=1, cols=8, noise=0.2, seed=seed)
    best = min(_masked_loss(held, support) for support in itertools.combinations(range(8), 4))
    for name, method in METHODS.items():
        solution = method().solve(held, PATTERNS["unstructured"](), 4)
        loss = float(held.loss(solution.weight, solution.bias).sum())
        assert loss >= best - 1e-9, name
    admm = ADMM(damping=1e-6, max_row_gain=1.0).solve(held, PATTERNS["unstructured"](), 4)
    magnitude = Magnitude().solve(held, PATTERNS["unstructured"](), 4)
    assert _loss(held, admm) <= _loss(held, magnitude)


def _masked_loss(held: Problem, support: tuple[int, ...]) -> float:
    mask = torch.zeros(1, 1, 8, dtype=torch.bool)
    mask[..., list(support)] = True
    weight = torch.from_numpy(slow_masked_fit(held, mask, 0.0))
    return float(held.loss(weight, held.bias(weight)).sum())


def _loss(held: Problem, solution: secateur.core.problem.Solution) -> float:
    return float(held.loss(solution.weight, solution.bias).sum())


@pytest.mark.parametrize("rows", [16, 40])
def test_admm_chooses_better_masks_than_magnitude(rows: int) -> None:
    held = problem(rows=rows, cols=48, samples=2000, seed=4)
    kept = held.weight.numel() // 4
    admm = FITTING_ONLY.solve(held, PATTERNS["unstructured"](), kept)
    fitted = LeastSquares().solve(held, PATTERNS["unstructured"](), kept)
    assert _loss(held, admm) < 0.9 * _loss(held, fitted)


def test_damping_grows_when_samples_are_few_and_says_so() -> None:
    few, many = problem(cols=30, samples=10), problem(cols=30, samples=4000)
    assert damping_for(many, 0.01) == (0.01, ())
    damping, notes = damping_for(few, 0.01)
    assert damping == pytest.approx(0.1 * 30 / 10)
    assert notes == ("10 samples for 30 columns: damping raised to 0.3",)
    assert ADMM().solve(few, PATTERNS["unstructured"](), 60).notes == notes


def test_strong_damping_keeps_the_dense_weights() -> None:
    held = problem(noise=0.5)
    solution = LeastSquares(damping=1e6).solve(held, PATTERNS["unstructured"](), 12)
    assert torch.allclose(solution.weight, held.weight * solution.mask, atol=1e-4)


def test_magnitude_leaves_weights_and_bias_alone() -> None:
    held = problem(noise=0.5)
    solution = Magnitude().solve(held, PATTERNS["unstructured"](), 12)
    assert torch.equal(solution.weight, held.weight * solution.mask)
    assert solution.bias is None
    smallest_kept = held.weight[solution.mask].abs().min()
    assert held.weight[~solution.mask].abs().max() <= smallest_kept


def test_admm_gives_outputs_their_spread_back() -> None:
    """Rows as fitted, times one factor each: the deviation of the dense outputs over their own."""
    held = problem(rows=5, cols=30, groups=2, noise=0.4)
    pattern = PATTERNS["unstructured"]()
    fitted = ADMM(max_row_gain=1.0).solve(held, pattern, 90)
    solution = ADMM(max_row_gain=9.0).solve(held, pattern, 90)
    assert held.patches is not None
    x, y = held.patches.inputs, held.patches.outputs
    outputs = x @ solution.weight.mT + solution.bias.unsqueeze(1)
    factor = y.std(1) / (x @ fitted.weight.mT).std(1)
    assert factor.min() > 1.02
    torch.testing.assert_close(outputs.std(1), y.std(1))
    torch.testing.assert_close(outputs.mean(1), y.mean(1))
    torch.testing.assert_close(solution.weight, fitted.weight * factor.unsqueeze(-1))
    bounded = ADMM(max_row_gain=1.01).solve(held, pattern, 90)
    torch.testing.assert_close(bounded.weight, fitted.weight * 1.01)


def test_rows_without_weights_have_no_spread_to_give_back() -> None:
    held = problem()
    assert torch.equal(held.std_ratio(torch.zeros_like(held.weight)), torch.ones(1, 4).double())


def test_weight_correction_gives_rows_their_spread_back() -> None:
    """Against the formula row by row in NumPy."""
    held = problem(rows=5, cols=30, groups=2)
    solution = WeightCorrection().solve(held, PATTERNS["unstructured"](), 120)
    for row in itertools.product(range(2), range(5)):
        dense, mask = held.weight[row].numpy(), solution.mask[row].numpy()
        sparse = dense * mask
        scaled = sparse * (dense.std() / (sparse.std() + 1e-9))
        expected = (scaled + dense.mean() - scaled.mean()) * mask
        torch.testing.assert_close(solution.weight[row], torch.from_numpy(expected))


def test_bias_correction_gives_outputs_their_mean_back() -> None:
    held = problem(rows=5, cols=30, noise=0.3)
    solution = BiasCorrection().solve(held, PATTERNS["unstructured"](), 60)
    assert held.patches is not None
    assert solution.bias is not None
    outputs = held.patches.inputs @ solution.weight.mT + solution.bias.unsqueeze(1)
    torch.testing.assert_close(outputs.mean(1), held.patches.outputs.mean(1))
    assert torch.equal(solution.weight, held.weight * solution.mask)


def test_methods_build_on_each_other_and_remember_the_steps() -> None:
    held = problem(rows=5, cols=12)
    method = AdamCalibration(base=BiasCorrection(base=WeightCorrection()), iterations=1)
    assert [type(part) for part in stages(method)] == [
        Magnitude,
        WeightCorrection,
        BiasCorrection,
        AdamCalibration,
    ]
    solution = method.solve(held, PATTERNS["unstructured"](), 30)
    steps = list(solution.stages())
    assert len(steps) == 4
    alone = WeightCorrection().solve(held, PATTERNS["unstructured"](), 30)
    assert torch.equal(steps[1].weight, alone.weight)
    assert steps[0].bias is steps[1].bias is None
    assert torch.equal(steps[1].weight, steps[2].weight)
    assert steps[3] is solution
    assert stored_patches(WeightCorrection(base=method)) == method.patches


def test_adam_comes_close_to_least_squares_given_time() -> None:
    held = problem(rows=5, cols=12, noise=0.2)
    pattern = PATTERNS["unstructured"]()
    best = LeastSquares(damping=1e-9).solve(held, pattern, 30)
    start = Magnitude().solve(held, pattern, 30)
    default = AdamCalibration().solve(held, pattern, 30)
    longer = AdamCalibration(
        learning_rate=1e-2, bias_learning_rate=1e-2, iterations=50, batch=200
    ).solve(held, pattern, 30)
    assert _loss(held, best) <= 1.001 * _loss(held, longer)  # it is damped a little
    assert _loss(held, longer) < 1.02 * _loss(held, best)
    assert _loss(held, longer) < _loss(held, default) < _loss(held, start)


def test_one_adam_step_is_the_first_step_of_adam() -> None:
    """Adam's first step is the learning rate against the sign of the gradient."""
    held = problem(rows=5, cols=12, noise=0.2)
    method = AdamCalibration(iterations=1, batches=1, batch=200)
    solution = method.solve(held, PATTERNS["unstructured"](), 30)
    gradient = (held.weight * solution.mask) @ held.gram - held.cross
    mean = held.bias(held.weight * solution.mask)  # what the bias should be; it starts at zero
    gradient -= mean.unsqueeze(-1) * held.input_mean.unsqueeze(-2)
    moved = solution.weight - held.weight * solution.mask
    assert torch.allclose(moved[solution.mask], -1e-5 * gradient.sign()[solution.mask], rtol=1e-3)
    assert torch.allclose(solution.bias, 1e-4 * mean.sign(), rtol=1e-3)


def test_adam_leaves_the_bias_where_it_has_no_place() -> None:
    held = problem(rows=5, cols=12, noise=0.2, fits_bias=False)
    solution = AdamCalibration(iterations=1).solve(held, PATTERNS["unstructured"](), 30)
    assert solution.bias is not None
    assert not solution.bias.any()


def test_adam_needs_patches_and_says_so() -> None:
    held = dataclasses.replace(problem(), patches=None)
    with pytest.raises(secateur.OptionError, match="holds no patches"):
        AdamCalibration().solve(held, PATTERNS["unstructured"](), 12)
    with pytest.raises(secateur.OptionError, match="batch is 0"):
        AdamCalibration(batch=0)


def test_an_indefinite_gram_matrix_escalates_then_raises() -> None:
    gram = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    gram[0, 0, 1] = gram[0, 1, 0] = 3.0  # eigenvalue -2
    system = NormalEquations(gram, torch.zeros(1, 1, 3).double(), torch.ones(1, 1, 3).double())
    _, shift = system.factor(0.1)
    assert shift == pytest.approx(10.0)
    system.gram[0, 0, 1] = system.gram[0, 1, 0] = 1e9
    with pytest.raises(secateur.NumericalError, match="not positive definite even with damping"):
        system.factor(0.1)


@pytest.mark.parametrize("rows", [2, 3, 40])
@pytest.mark.parametrize("groups", [1, 2])
def test_many_rows_and_few_are_solved_alike(rows: int, groups: int) -> None:
    system = NormalEquations.of(problem(rows=rows, cols=6, groups=groups), 0.1)
    solve, shift = system.solver(0.1, rows)
    solved = solve(system.cross)
    assert shift == 0.1
    product = solved @ system.gram + shift * solved
    torch.testing.assert_close(product, system.cross)


def test_conjugate_gradients_that_do_not_converge_are_noted() -> None:
    held = problem(rows=3, cols=40, samples=100)
    solution = LeastSquares(damping=1e-9, tolerance=1e-12, iterations=2).solve(
        held, PATTERNS["unstructured"](), 60
    )
    assert solution.notes == ("3 rows not converged in 2 iterations",)


@pytest.mark.parametrize("groups", [1, 3])
def test_rows_that_keep_the_same_columns_are_fitted_at_once(groups: int) -> None:
    held = problem(rows=5, cols=30, groups=groups)
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(groups, 1, 30, generator=generator).lt(0.6).expand(held.weight.shape)
    system = NormalEquations.of(held, 1e-3)
    start = torch.zeros_like(held.weight)
    weight, notes = system.fit(start, mask, tolerance=1e-6, iterations=0)
    assert notes == ()
    other = mask.clone()
    other[0, 0, mask[0, 0].nonzero()[0]] = False  # a column less in one row
    _, notes = system.fit(start, other, tolerance=1e-6, iterations=0)
    assert notes == (f"{5 * groups} rows not converged in 0 iterations",)
    slow, _ = system.fit(start, other, tolerance=1e-6, iterations=200)
    torch.testing.assert_close(weight[:, 1:], slow[:, 1:], rtol=1e-4, atol=1e-5)
    assert not weight[~mask].any()


def test_a_fit_that_is_there_already_changes_nothing() -> None:
    held = problem(rows=5, cols=30)
    mask = torch.ones_like(held.weight, dtype=torch.bool)
    system = NormalEquations.of(held, 0.01)
    weight, _ = system.fit(held.weight, mask, tolerance=1e-4, iterations=200)
    again, notes = system.fit(weight, mask, tolerance=1e-4, iterations=0)
    torch.testing.assert_close(again, weight, rtol=1e-6, atol=0)
    assert notes == ()


def test_no_columns_left_are_no_weights() -> None:
    held = problem(rows=5, cols=30)
    none = torch.zeros_like(held.weight, dtype=torch.bool)
    weight, notes = NormalEquations.of(held, 0.01).fit(
        held.weight, none, tolerance=1e-4, iterations=9
    )
    assert not weight.any()
    assert notes == ()


def test_a_row_is_fitted_as_it_would_be_alone() -> None:
    """Rows that have converged are left out of the work on the others."""
    held = problem(rows=12, cols=20)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(held.weight.shape, generator=generator) < torch.linspace(0, 1, 12)[:, None]
    settings = {"tolerance": 1e-6, "iterations": 40}
    weight, _ = NormalEquations.of(held, 0.01).fit(held.weight, mask, **settings)
    for row in range(12):
        only = slice(row, row + 1)
        alone, _ = NormalEquations.of(held.rows(only), 0.01).fit(
            held.weight[:, only], mask[:, only], **settings
        )
        torch.testing.assert_close(weight[:, only], alone, rtol=1e-6, atol=1e-7)
    assert not weight[~mask].any()
