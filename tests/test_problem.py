"""Laws of the sums: streaming, centring, loss; and patterns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import correlated, problem, random_weight

from secateur.core import patterns
from secateur.core.patterns import Unstructured
from secateur.core.statistics import ChunkSums, Statistics


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
    for name in ("gram", "cross", "energy", "variance", "input_mean", "output_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name))
    assert one.samples == many.samples == 60


@pytest.mark.parametrize(("samples", "groups"), [(60, 1), (60, 2), (3, 1)])
def test_products_with_outputs_follow_from_the_weights_that_made_them(
    samples: int, groups: int
) -> None:
    x, weight = correlated(samples, 5, groups=groups), random_weight(groups, 3, 5)
    y = x @ weight.mT + 2.0
    summed, derived = ChunkSums.of(x, y), ChunkSums.of(x, y, weight=weight)
    assert summed is not None
    assert derived is not None
    torch.testing.assert_close(derived.cross, summed.cross)
    wide, many = correlated(1200, 1100), random_weight(1, 3, 1100)  # more than one stripe
    of_wide = ChunkSums.of(wide, wide @ many.mT), ChunkSums.of(wide, wide @ many.mT, weight=many)
    torch.testing.assert_close(*(of.cross for of in of_wide if of is not None))
    other = ChunkSums.of(x, y, weight=2 * weight)
    assert other is not None
    assert torch.allclose(other.cross, summed.cross) == (samples < 5)  # too few: they are summed


@given(order=st.permutations(range(6)), shared=st.integers(0, 6))
@settings(deadline=None, max_examples=25)
def test_the_order_and_the_sharing_out_of_chunks_do_not_change_a_byte(
    order: list[int], shared: int
) -> None:
    """Chunks computed by two, and added as they come."""
    x, weight = correlated(61, 5).float() + 100, random_weight(1, 3, 5).float()
    chunks = list(zip(x.split(11, 1), (x @ weight.mT).split(11, 1), strict=True))
    one, other = Statistics(), Statistics()
    for number, (inputs, outputs) in enumerate(chunks):
        one.include(number, ChunkSums.of(inputs, outputs))
    mine, theirs = order[:shared], order[shared:]
    computed = {number: ChunkSums.of(*chunks[number]) for number in [*theirs, *mine]}
    for number in order:
        other.include(number, computed[number])
    for key in ("gram", "cross", "energy", "variance", "input_mean", "output_mean"):
        first, second = (getattr(of.problem(weight), key) for of in (one, other))
        assert torch.equal(first, second)


def test_a_missing_chunk_is_no_sum_and_none_counts_twice() -> None:
    x = correlated(20, 4)
    statistics = Statistics()
    statistics.include(0, ChunkSums.of(x, x))
    statistics.include(2, ChunkSums.of(x, x))
    with pytest.raises(ValueError, match="chunk 1 is missing"):
        statistics.problem(random_weight(1, 4, 4))
    statistics.include(1, ChunkSums.of(x[:, :0], x[:, :0]))
    assert statistics.problem(random_weight(1, 4, 4)).samples == 40
    with pytest.raises(ValueError, match="chunk 1 is there already"):
        statistics.include(1, None)


@pytest.mark.parametrize("columns", [300, 512, 1100])
def test_a_gram_matrix_is_whole_and_symmetric_to_the_last_bit(columns: int) -> None:
    x = correlated(400, columns).float()
    statistics = Statistics()
    for part in x.split(70, 1):
        statistics.add(part, part[..., :2])
    for fits_bias in (True, False):
        gram = statistics.problem(torch.zeros(1, 2, columns), fits_bias=fits_bias).gram
        assert torch.equal(gram, gram.mT)
        centred = x.double() - x.double().mean(1, keepdim=True) * fits_bias
        torch.testing.assert_close(gram.double(), centred.mT @ centred / 400, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fits_bias", [True, False])
def test_a_problem_of_reproducing_weights_is_that_of_their_outputs(fits_bias: bool) -> None:
    x, weight, start = correlated(50, 4), random_weight(1, 3, 4), random_weight(1, 3, 4, seed=9)
    mine, theirs = Statistics(), Statistics()
    mine.add(x, correlated(50, 3, seed=7))
    theirs.add(x, x @ weight.mT)
    found = mine.problem(start, fits_bias=fits_bias).reproducing(weight, start=start)
    wanted = theirs.problem(start, fits_bias=fits_bias)
    for name in ("weight", "gram", "cross", "energy", "input_mean", "output_mean"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    assert float(found.loss(weight).sum()) == pytest.approx(0, abs=1e-9)


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


@pytest.mark.parametrize("order", ["random", "rising", "by column", "few values", "equal"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.97])
def test_many_scores_are_divided_where_all_of_them_sorted_would_be(
    order: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sample that is looked at first shows of them."""
    monkeypatch.setattr(patterns, "_SAMPLE", 100)
    random = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(1))
    scores = {
        "random": random,
        "rising": torch.arange(2000.0).view(1, 40, 50),
        "by column": random * torch.arange(50.0),
        "few values": (3 * random).round(),
        "equal": torch.ones(1, 40, 50),
    }[order]
    kept = round(2000 * share)
    mask = Unstructured().mask(scores, kept)
    assert int(mask.sum()) == kept
    assert scores[mask].min() >= scores[~mask].max()
