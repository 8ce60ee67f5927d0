"""Channels asked for in odd ways: what cannot be done is refused, or the report says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur import OptionError, Recipe


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    ).eval()


def rows(count: int = 48) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "allocation", ["uniform", secateur.Sensitivity(images=8), secateur.NormalizedMagnitude()]
)
def test_an_allocation_that_would_be_ignored_is_refused(allocation: object) -> None:
    with pytest.raises(OptionError, match="would be ignored with pattern='channels'"):
        secateur.prune(
            perceptron(), rows(), max_macs=0.7, pattern="channels", allocation=allocation
        )


def test_the_report_tells_which_settings_of_a_recipe_were_ignored() -> None:
    recipe = Recipe(allocation=secateur.Uniform(), schedule=(0.2, 0.0))
    asked = {"max_macs": 0.7, "pattern": "channels"}
    result = secateur.prune(perceptron(), rows(), recipe=recipe, **asked)
    plan = secateur.plan(perceptron(), rows(), recipe=recipe, **asked)
    for notes in (result.report.notes, plan.notes):
        assert any("allocation (Uniform) is for single weights" in note for note in notes)
        assert any("schedule [0.2, 0.0] is for single weights" in note for note in notes)
    told = " ".join(result.report.summary)
    assert "channels leave each layer" in told
    assert secateur.Uniform.summary not in told
    ordinary = secateur.prune(perceptron(), rows(), recipe=Recipe(), **asked).report
    assert not any("single weights" in note for note in ordinary.notes)


def test_a_search_tells_the_sparsity_that_was_reached() -> None:
    images = rows()
    labels = perceptron()(images).argmax(1)
    report = secateur.prune(
        perceptron(),
        images,
        max_drop=99,
        pattern="channels",
        recipe=Recipe(),
        evaluation=(rows(64)[48:], labels[:16]),
    ).report
    assert report.search is not None
    assert report.search.sparsity == pytest.approx(report.sparsity)
    assert not any("more than" in warning for warning in report.warnings)
    assert len(report.search.tries) == 1
