"""On a GPU: the results of the CPU, to rounding. CI has no GPU and runs none of this."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur import frontends
from secateur.core.patterns import Channels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for width in (3, 16, 16, 16):
        layers += [nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 144, 10)).eval()


CASES: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "80 %, blocks trained": {"sparsity": 0.8},
    "2:4": {"pattern": "2:4"},
    "channels": {"max_macs": 0.6, "recipe": secateur.Recipe(pattern=Channels())},
    "the paper's": {"sparsity": 0.5, "recipe": "paper"},
    "under a cap": {"sparsity": 0.5, "memory": "20 MB"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_what_the_cpu_gives(case: str) -> None:
    here = secateur.prune(network(), IMAGES, **CASES[case])
    there = secateur.prune(network(), IMAGES, device="cuda", **CASES[case])
    assert there.report.sparsity == pytest.approx(here.report.sparsity, abs=1e-3)
    assert any("not in TF32" in note for note in there.report.notes)
    with torch.no_grad():
        wanted, got, dense = here.model(IMAGES), there.model.cpu()(IMAGES), network()(IMAGES)
    lost = (wanted - dense).square().mean()
    assert (got - dense).square().mean() == pytest.approx(lost, rel=0.05)


def test_a_module_on_a_gpu_stays_there() -> None:
    result = secateur.prune(network().cuda(), IMAGES, sparsity=0.5)
    assert {of.device.type for of in frontends.open(result.model).tensors().values()} == {"cuda"}
    found = secateur.evaluate(result.model, IMAGES, reference=network().cuda())
    assert found.agreement is not None
