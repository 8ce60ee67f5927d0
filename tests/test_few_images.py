"""A report says when more calibration images would help, and only then."""

import pytest
import torch
from torch import nn

import secateur
from secateur.data.images import FEW_IMAGES, MAX_IMAGES


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    head = nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), *head).eval()


def told(width: int, count: int) -> list[str]:
    images = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    how = {"method": "magnitude", "allocation": "uniform", "progress": False}
    report = secateur.prune(network(width), images, sparsity=0.3, max_images=None, **how).report
    return [note for note in report.notes if "would keep more accuracy" in note]


@pytest.mark.parametrize("count", [FEW_IMAGES, 63])
def test_layers_with_fewer_samples_than_inputs_are_told(count) -> None:
    (note,) = told(200, count)
    assert note.startswith(f"{count} images give 2 of 2 layers fewer samples than inputs ")
    assert f"(5: {count} for 200)" in note
    assert f"up to {MAX_IMAGES}" in note


@pytest.mark.parametrize(("width", "count"), [(60, 64), (2000, MAX_IMAGES)])
def test_enough_images_are_not_told(width, count) -> None:
    assert told(width, count) == []


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_very_few_images_are_a_warning_already() -> None:
    assert told(200, FEW_IMAGES - 1) == []
