"""Laws of the sums: streaming, centring, loss; and patterns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import correlated, problem, random_weight

from secateur.core.patterns import Unstructured
from secateur.core.problem import Statistics


@given(cuts=st.lists(st.integers(1, 59), max_size=4, unique=True), groups=st.integers(1, 2))
@settings(deadline=None, max_examples=25)
def test_streaming_equals_one_shot_for_any_split(cuts: list[int], groups: int) -> None:
    x = correlated(60, 5, groups=groups)
    weight = random_weight(groups, 3, 5)
    y = x @ weight.mT + 2.0
    whole, parts = Statistics(), Statistics()
    whole.add(x, y)
    bounds = [0, *sorted(cuts), 60]
    for start, stop in itertools.pairwise(bounds):
        parts.add(x[:, start:stop], y[:, start:stop])
    one, many = whole.problem(weight), parts.problem(weight)
    for name in ("gram", "cross", "energy", "input_mean", "output_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name))
    assert one.samples == many.samples == 60


@pytest.mark.parametrize("fits_bias", [True, False])
def test_the_loss_is_the_mean_squared_error(fits_bias: bool) -> None:
    x, weight = correlated(50, 4), random_weight(1, 3, 4)
    y = x @ weight.mT - 1.0
    statistics = Statistics()
    statistics.add(x, y)
    held = statistics.problem(weight, fits_bias=fits_bias)
    other = random_weight(1, 3, 4, seed=9)
    bias = held.bias(other)
    expected = (y - x @ other.mT - bias.unsqueeze(1)).square().mean(1)
    torch.testing.assert_close(held.loss(other, bias), expected)
    unchanged = (y - x @ other.mT).square().mean(1)
    torch.testing.assert_close(held.loss(other), unchanged)


def test_centring_equals_a_column_of_ones() -> None:
    x, weight = correlated(300, 4), random_weight(1, 3, 4)
    y = (x + 0.3 * correlated(300, 4, seed=7)) @ weight.mT + 5.0
    statistics = Statistics()
    statistics.add(x, y)
    held = statistics.problem(weight)
    fitted = torch.linalg.solve(held.gram, held.cross.mT).mT
    ones = np.column_stack([x[0].numpy(), np.ones(300)])
    expected = np.linalg.lstsq(ones, y[0].numpy(), rcond=None)[0].T
    np.testing.assert_allclose(fitted[0].numpy(), expected[:, :4], atol=1e-8)
    np.testing.assert_allclose(held.bias(fitted)[0].numpy(), expected[:, 4], atol=1e-8)


def test_centring_keeps_its_digits_far_from_zero() -> None:
    x = (correlated(500, 4) + 10_000.0).float()
    statistics = Statistics()
    for block in x.split(100, dim=1):
        statistics.add(block, block[..., :2])
    gram = statistics.problem(torch.zeros(1, 2, 4)).gram[0]
    expected = np.cov(x[0].double().numpy().T, bias=True)
    np.testing.assert_allclose(gram.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_scale_and_present_bias_enter_the_problem() -> None:
    x, weight = correlated(50, 4), random_weight(1, 3, 4)
    present, scale = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[2.0, 0.5, 1.0]])
    y = x @ weight.mT + present.unsqueeze(1)
    statistics = Statistics()
    statistics.add(x, y)
    held = statistics.problem(weight, scale=scale.double(), bias=present)
    torch.testing.assert_close(held.weight, weight * scale.double().unsqueeze(-1))
    torch.testing.assert_close(held.bias(held.weight), torch.zeros(1, 3).double())
    assert held.relative_error(held.weight) < 1e-12


def test_relative_error_is_one_for_the_best_constant() -> None:
    held = problem()
    nothing = torch.zeros_like(held.weight)
    assert held.relative_error(nothing, held.bias(nothing)) == pytest.approx(1.0)


@given(kept=st.integers(0, 24), levels=st.integers(1, 5), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_unstructured_keeps_the_largest_also_with_ties(kept: int, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (2, 3, 4), generator=generator).float()
    mask = Unstructured().mask(scores, kept)
    assert int(mask.sum()) == kept
    if 0 < kept < 24:
        assert scores[mask].min() >= scores[~mask].max()
