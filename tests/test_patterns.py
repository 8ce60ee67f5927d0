"""Laws of patterns: every mask is allowed, is the best one, and keeps as much as was asked for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import problem, random_weight
from torch import Tensor

import secateur
from secateur.core.methods import METHODS
from secateur.core.patterns import NM, Block, UnitPattern, Unstructured, choose_pattern
from secateur.errors import OptionError
from secateur.pruning.allocations import Budget
from secateur.pruning.allocations.uniform import FittedUniform
from secateur.pruning.allocations.units import in_blocks, in_layers, kept_in_pattern
from secateur.pruning.recipe import Recipe, choose_recipe

NAMES = ["2:4", "1:4", "4:8", "3:20", "1x4", "4x1", "2x3", "1x16", "16x1"]


def scores_for(pattern: UnitPattern, groups: int, rows: int, cols: int, seed: int) -> Tensor:
    """Random sizes of a matrix of so many units."""
    shape = groups, rows * pattern.unit[0], cols * pattern.unit[1]
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def satisfies(pattern: UnitPattern, mask: Tensor, free: Tensor | None = None) -> bool:
    """Whether a mask is in a pattern; written here once more, in loops."""
    for matrix, there in zip(mask, mask | True if free is None else free, strict=True):
        if isinstance(pattern, NM):
            parts = matrix.reshape(-1, pattern.m)
            if any(int(part.sum()) > pattern.n for part in parts):
                return False
            continue
        for top in range(0, matrix.shape[0], pattern.unit[0]):
            for left in range(0, matrix.shape[1], pattern.unit[1]):
                where = slice(top, top + pattern.unit[0]), slice(left, left + pattern.unit[1])
                kept, could = int(matrix[where].sum()), int(there[where].sum())
                if kept not in (0, could):
                    return False
    return True


@given(
    name=st.sampled_from(NAMES),
    size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    share=st.floats(0, 1),
    zeros=st.floats(0, 0.7),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_every_mask_is_in_the_pattern(
    name: str, size: tuple[int, int, int], share: float, zeros: float, seed: int
) -> None:
    pattern = choose_pattern(name)
    scores = scores_for(pattern, *size, seed)
    kept = round(share * scores.numel())
    mask = pattern.mask(scores, kept)
    assert satisfies(pattern, mask)
    most = scores.numel() if pattern.share is None else round(pattern.share * scores.numel())
    assert int(mask.sum()) == min(kept, most) // pattern.block * pattern.block
    free = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed + 1)) >= zeros
    there = int(free.sum())
    some = pattern.mask(torch.where(free, scores, -1.0), min(kept, there)) & free
    assert satisfies(pattern, some, free)
    most = kept_in_pattern(pattern, free)
    assert min(kept, most) - pattern.block < int(some.sum()) <= min(kept, most)


def test_a_threshold_is_looked_for_in_a_part_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns differ in size: those that tell where it lies have to be all of them."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 128, 4608, generator=generator)
    scores *= torch.rand(4608, generator=generator).mul(6).exp()
    looked_at: list[int] = []
    kth_value = torch.kthvalue

    def watched(values: Tensor, place: int) -> object:
        looked_at.append(len(values))
        return kth_value(values, place)

    monkeypatch.setattr(torch, "kthvalue", watched)
    for kept in (100_000, 200_000, 400_000):
        mask = Unstructured().mask(scores, kept)
        assert int(mask.sum()) == kept
        assert float(scores[mask].min()) > float(scores[~mask].max())
    assert max(looked_at) < scores.numel() / 8


@pytest.mark.parametrize("name", ["2:4", "1:3", "1x2", "2x1", "2x2"])
@pytest.mark.parametrize("kept", [2, 4])
def test_no_allowed_mask_keeps_more(name: str, kept: int) -> None:
    pattern = choose_pattern(name)
    scores = scores_for(pattern, 1, 2 if pattern.unit[0] == 1 else 1, 2, 5)
    best = 0.0
    for chosen in itertools.combinations(range(scores.numel()), kept):
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[list(chosen)] = True
        if satisfies(pattern, mask.view_as(scores)):
            best = max(best, float(scores.flatten()[mask].square().sum()))
    mask = pattern.mask(scores, kept)
    assert float(scores[mask].square().sum()) == pytest.approx(best)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (8, 16), (9, 17), (5, 40)])
def test_the_largest_of_each_group_stay_also_with_ties(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for scores in (torch.rand(2, 6, 3 * m), torch.randint(3, (2, 6, 3 * m), generator=generator)):
        mask = NM(n, m).mask(scores.float(), scores.numel())
        for part, kept in zip(scores.reshape(-1, m), mask.reshape(-1, m), strict=True):
            assert int(kept.sum()) == n
            assert part[kept].min() >= part[~kept].max()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pattern", NAMES)
def test_every_method_prunes_in_the_pattern(name: str, pattern: str) -> None:
    chosen = choose_pattern(pattern)
    rows, cols = chosen.unit[0] * 2, chosen.unit[1] * 3
    held = problem(rows=rows, cols=cols, groups=2, noise=0.2)
    free = torch.rand(held.weight.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    for case in (held, replace(held, weight=held.weight * free, free=free)):
        there = torch.ones_like(free) if case.free is None else case.free
        most = kept_in_pattern(chosen, there)
        kept = most if chosen.share is not None else int(0.6 * most)
        solution = METHODS[name]().solve(case, chosen, kept)
        assert satisfies(chosen, solution.mask, there)
        assert kept - chosen.block < int(solution.mask.sum()) <= kept
        assert not solution.weight[~solution.mask].any()
        assert not solution.weight[~there].any()


@pytest.mark.parametrize("pattern", ["2:4", "1x4", "4x1"])
def test_admm_finds_better_masks_than_magnitudes(pattern: str) -> None:
    chosen = choose_pattern(pattern)
    held = problem(rows=16, cols=24, noise=0.1)
    fit = {"damping": 1e-3, "dampings": (), "max_row_gain": 1.0}
    solution = secateur.ADMM(**fit).solve(held, chosen, held.weight.numel() // 2)
    other = secateur.LeastSquares(damping=1e-3).solve(held, chosen, held.weight.numel() // 2)
    losses = [float(held.loss(of.weight, of.bias).sum()) for of in (solution, other)]
    assert losses[0] < 0.95 * losses[1]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    block=st.sampled_from([1, 2, 4, 16]),
    share=st.floats(0, 1),
    zeros=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_whole_blocks_use_what_a_budget_allows(
    sizes: list[int], block: int, share: float, zeros: bool
) -> None:
    present = [size * block - (zeros and size > 1) for size in sizes]
    allowed = round(share * sum(present))
    kept = in_blocks(FittedUniform(present).kept(Budget(allowed)), present, block, Budget(allowed))
    assert all(count % block == 0 or count == of for count, of in zip(kept, present, strict=True))
    assert allowed - block < sum(kept) <= allowed or kept == present
    costs = [1.0 + number for number in range(len(sizes))]
    budget = Budget(share * sum(a * b for a, b in zip(present, costs, strict=True)), costs)
    kept = in_blocks(FittedUniform(present).kept(budget), present, block, budget)
    spent = sum(a * b for a, b in zip(kept, costs, strict=True))
    assert spent <= budget.allowed * (1 + 1e-9) + 1e-9


class Known(FittedUniform):
    """An allocation that knows what each layer loses."""

    def loss_increase(self, kept) -> list[float]:
        return [float(number % 4 + 1) for number in range(len(kept))]


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    sparsity=st.floats(0, 0.5),
    knows=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_layers_get_a_pattern_until_the_budget_is_met_and_no_more(
    sizes: list[int], sparsity: float, knows: bool
) -> None:
    present, least = [4 * size for size in sizes], [2 * size for size in sizes]
    budget = Budget.of_sparsity(present, sparsity)
    fitted = Known(present) if knows else FittedUniform(present)
    kept = in_layers(fitted, present, least, budget)
    assert all(count in pair for count, *pair in zip(kept, present, least, strict=True))
    assert sum(kept) <= budget.allowed
    for count, there, left in zip(kept, present, least, strict=True):
        if count == left:  # without this one it would not be met
            assert sum(kept) + there - left > budget.allowed


def test_the_layers_that_lose_least_get_the_pattern() -> None:
    kept = in_layers(Known([8, 8, 8, 8]), [8] * 4, [4] * 4, Budget(24))
    assert kept == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("2:4", NM(2, 4)), ("1x16", Block(1, 16)), ("unstructured", Unstructured()), (NM, None)],
)
def test_a_pattern_is_asked_for_by_its_name(name, pattern) -> None:
    if pattern is None:
        with pytest.raises(OptionError, match="call the class"):
            choose_pattern(name)
        return
    assert choose_pattern(name) == choose_recipe("default", pattern=name).pattern == pattern
    assert pattern.name == name


@pytest.mark.parametrize("name", ["4:4", "0:4", "5:4", "0x4", "1x", "2:4:8", "2;4", "structured"])
def test_what_is_no_pattern_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(OptionError, match="expected"):
        choose_pattern(name)


@pytest.mark.parametrize("pattern", [NM(4, 8), Block(4, 1)])
def test_recipes_hold_patterns(tmp_path, pattern) -> None:
    recipe = Recipe(pattern=pattern)
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    assert Recipe.of({"pattern": pattern.name}) == recipe
    with pytest.raises(OptionError, match="no settings"):
        Recipe.of({"pattern": {"name": pattern.name, "m": 4}})


def test_a_pattern_tells_which_layers_it_fits() -> None:
    assert NM(2, 4).obstacle(rows=3, inputs=8) is None
    assert NM(2, 4).obstacle(rows=3, inputs=6) == (
        "6 inputs, no multiple of 4: the pattern 2:4 does not fit"
    )
    assert Block(4, 1).obstacle(rows=8, inputs=3) is None
    assert "6 outputs" in str(Block(4, 1).obstacle(rows=6, inputs=3))


@pytest.mark.parametrize(
    ("pattern", "makes"), [("2:4", True), ("1:2", True), ("2:8", True), ("3:4", False)]
)
def test_zeros_that_sparse_tensor_cores_skip_are_told(pattern: str, makes: bool) -> None:
    chosen = choose_pattern(pattern)
    assert chosen.makes_two_of_four is makes
    if makes:
        mask = chosen.mask(random_weight(1, 5, 16).abs(), 80)
        assert satisfies(NM(2, 4), mask)
