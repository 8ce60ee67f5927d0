"""The benchmark's low rank: the best of its rank, exact at full rank, and within its cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from low_rank import choose_ranks, factored, spectra


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 10, 3, padding=1, groups=10),
        nn.Conv2d(10, 12, 1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 9),
    ).eval()


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def macs(net: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images(1))
    return counter.get_total_flops() / 2


@torch.no_grad()
def test_all_ranks_give_the_same_network() -> None:
    net, x = network(), images()
    found = spectra(net, x)
    assert list(found) == ["0", "3", "7"]
    whole = factored(net, found, {name: len(of.mean) for name, of in found.items()})
    torch.testing.assert_close(whole(x), net(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["0", "3", "7"])
def test_a_rank_loses_what_no_other_layer_of_it_could_keep(name: str) -> None:
    net, x = network(), images()
    before = net[: int(name)](x)
    dense = net[int(name)](before)
    rows = dense.movedim(1, -1).reshape(-1, dense.shape[1]).double()
    values = torch.linalg.svdvals(rows - rows.mean(0)).square()
    found = spectra(net, x)
    for rank in (1, 2, 5):
        smaller = factored(net, found, {name: rank}).get_submodule(name)
        error = (smaller(before) - dense).square().sum()
        expected = values[rank:].sum()
        torch.testing.assert_close(error.double(), expected, rtol=1e-3, atol=1e-4)
        assert float(found[name].lost[rank]) == pytest.approx(
            float(expected / values.sum()), rel=1e-5
        )


@torch.no_grad()
def test_the_cost_is_met_with_both_factors_counted() -> None:
    net, x = network(), images()
    found, dense = spectra(net, x), macs(network())
    fixed = dense - sum(of.dense for of in found.values())
    lost = []
    for share in (0.95, 0.7, 0.4):
        ranks = choose_ranks(found, fixed, share * dense)
        assert macs(factored(net, found, ranks)) <= share * dense
        lost.append(sum(float(found[of].lost[at]) for of, at in ranks.items() if at))
    assert lost[0] <= lost[1] <= lost[2] > lost[0]
    assert set(choose_ranks(found, fixed, dense).values()) == {None}
