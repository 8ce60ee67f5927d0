"""Networks that have zeros: none is filled, all count, and what is asked for is met or told."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_allocations import fitted_allocations
from torch import Tensor, nn

import secateur
from secateur import frontends
from secateur.core.methods import ADMM, METHODS, AdamCalibration
from secateur.pruning.allocations import ALLOCATIONS, Budget
from secateur.pruning.allocations.uniform import FittedUniform
from secateur.pruning.reconstruction import BlockReconstruction

pytestmark = pytest.mark.filterwarnings(
    "ignore:only .* calibration image", "ignore:.*held-back calibration images cannot tell"
)


def network_with(share: float) -> nn.Sequential:
    """A BatchNorm that is folded, one that is not alone, a linear layer; `share` of zeros each."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    for norm in (made[1], made[4]):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
    for index, layer in enumerate((made[3], made[6], made[9])):
        count = int(min(1.0, share * (0.5 + 0.5 * index)) * layer.weight.numel())
        order = layer.weight.detach().abs().flatten().argsort()
        layer.weight.data.view(-1)[order[:count]] = 0.0
    return made.requires_grad_(False)


IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
PRUNED = ("3.weight", "6.weight", "9.weight")


def weights_of(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[name].flatten() for name in PRUNED])


def pruned(network: nn.Module, **options) -> secateur.PruneResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", secateur.SecateurWarning)
        return secateur.prune(network, IMAGES, progress=False, **options)


def check(network: nn.Module, result: secateur.PruneResult, asked: float | None) -> None:
    before, after = (weights_of(of.state_dict()) for of in (network, result.model))
    assert not after[before == 0].any()
    had, has = (int((of == 0).sum()) for of in (before, after))
    told = [of for of in result.report.warnings if "of the weights of the pruned layers" in of]
    if asked is not None:
        assert has == max(had, round(asked * len(after)))
        assert bool(told) == (had > round(asked * len(after)))
    assert any("zero in the network given" in note for note in result.report.notes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("asked", [0.3, 0.7])
def test_no_method_fills_a_zero(method: str, asked: float) -> None:
    brief = {"adam-calibration": AdamCalibration(iterations=1), "admm": ADMM(steps=12)}
    network = network_with(0.6)
    for inputs, adaptation in (("pruned", "none"), ("dense", "all")):
        recipe = secateur.Recipe(recalibration=adaptation, allocation=ALLOCATIONS["uniform"]())
        chosen = brief.get(method, method)
        result = pruned(network, sparsity=asked, recipe=recipe, method=chosen, inputs=inputs)
        check(network, result, asked)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("asked", [0.3, 0.6, 0.8])
def test_every_allocation_counts_the_zeros_that_are_there(allocation: str, asked: float) -> None:
    network = network_with(0.6)
    result = pruned(network, sparsity=asked, method="least-squares", allocation=allocation)
    check(network, result, asked)


@pytest.mark.parametrize("target", ["max_macs", "max_bytes", "max_drop"])
@pytest.mark.parametrize("value", [0.5, 0.9])
def test_every_target_counts_the_zeros_that_are_there(target: str, value: float) -> None:
    network = network_with(0.6)
    amount = 20 * value if target == "max_drop" else value
    result = pruned(network, **{target: amount}, recipe="paper", method="least-squares")
    check(network, result, None)
    if target != "max_drop":
        assert getattr(result.report, f"{target[4:]}_fraction") <= value


def test_levels_and_reconstruction_fill_no_zero() -> None:
    network = network_with(0.6)
    recipe = secateur.Recipe(
        schedule=(0.1, 0.0), reconstruction=BlockReconstruction(steps=5, batch=8)
    )
    check(network, pruned(network, sparsity=0.75, recipe=recipe), 0.75)


def test_column_blocks_and_alignment_fill_no_zero() -> None:
    network = network_with(0.6)
    result = pruned(network, sparsity=0.7, max_columns=20, method="least-squares")
    check(network, result, 0.7)
    recipe = secateur.Recipe(alignment=secateur.ChannelAlignment())
    check(network, pruned(network, sparsity=0.7, recipe=recipe), 0.7)


def test_onnx_files_keep_their_zeros_too() -> None:
    onnx = pytest.importorskip("onnx")
    model = frontends.open(network_with(0.6)).to_onnx(IMAGES)
    result = pruned(model, sparsity=0.3, method="least-squares")
    arrays = [
        {of.name: onnx.numpy_helper.to_array(of) for of in one.graph.initializer}
        for one in (model, result.model)
    ]
    checked = 0
    for name, before in arrays[0].items():
        if before.ndim > 1:
            checked += 1
            assert not arrays[1][name][before == 0].any()
    assert checked == 4
    assert any("zero in the network given" in of for of in result.report.warnings)


def test_a_layer_of_zeros_is_left_as_it_is() -> None:
    """A head of zeros, as networks have that are to be trained further."""
    network = network_with(0.0)
    network[9].weight.data.zero_()
    for asked, allocation in zip((0.2, 0.5, 0.8), ALLOCATIONS, strict=True):
        result = pruned(network, sparsity=asked, allocation=allocation, method="least-squares")
        check(network, result, asked)


def test_a_method_that_fills_zeros_is_held_back() -> None:
    class Filling(secateur.LeastSquares):
        def solve(self, problem, pattern, kept):
            found = super().solve(problem, pattern, kept)
            weight = torch.where(found.mask, found.weight, 1e-9)
            return dataclasses.replace(found, weight=weight)

    network = network_with(0.6)
    result = pruned(network, sparsity=0.7, method=Filling())
    before, after = (weights_of(of.state_dict()) for of in (network, result.model))
    assert not after[before == 0].any()
    assert any(
        "of the weights of the pruned layers are zero" in of for of in result.report.warnings
    )


def test_the_plan_tells_of_zeros_too() -> None:
    network = network_with(0.6)
    plan = secateur.plan(network, IMAGES, sparsity=0.3, allocation="uniform")
    before = weights_of(network.state_dict())
    assert plan.sparsity == pytest.approx(float((before == 0).float().mean()))
    assert any("zero in the network given" in note for note in plan.notes)


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    sparsity=st.floats(0, 0.999),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_allocations_keep_no_weight_that_is_not_there(
    sizes: list[int], sparsity: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    present = [int(torch.randint(size + 1, (), generator=generator)) for size in sizes]
    budget = Budget.of_sparsity(sizes, sparsity)
    uniform = FittedUniform(sizes, present=present)
    for fitted in (uniform, *fitted_allocations(present, seed)[1:]):
        kept = fitted.kept(budget)
        assert all(0 <= count <= there for count, there in zip(kept, present, strict=True))
        assert sum(kept) == min(round(budget.allowed), sum(present))
    shares = [
        count / size
        for count, size, there in zip(uniform.kept(budget), sizes, present, strict=True)
        if count < there
    ]
    assert not shares or max(shares) - min(shares) <= 2 / min(sizes)
