"""Laws of targets: budgets are met, nearly used up, and monotone; mistakes are one sentence."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import trace
from test_allocations import fitted_allocations
from torch import nn

import secateur
from secateur import OptionError, Recipe, Sensitivity
from secateur.pruning.layer_selection import (
    select_layers,
)
from secateur.pruning.targets import (
    CostModel,
    Costs,
    MaxBytes,
    MaxDrop,
    MaxMacs,
    Sparsity,
    choose_target,
)


class Small(nn.Module):
    """Layers of unequal cost: a weight of `early` is multiplied 16 times as often as in `late`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.early = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.late = nn.Conv2d(16, 24, 3, stride=4, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.early(self.stem(x).relu())).relu()
        return self.head(self.late(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Small().eval().requires_grad_(False)
    network.head.weight *= 40  # scores that differ from image to image
    return network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def costs(network, images) -> Costs:
    graph = trace(network, images[:2])
    layers = select_layers(graph.layers)
    return Costs.of(graph.layers, layers, network.state_dict(keep_vars=True))


SIZES = (8 * 16 * 9, 16 * 24 * 9, 24 * 5)


# what a network costs


def test_macs_are_those_of_all_layers_by_hand(costs) -> None:
    stem, early, late, head = 64 * 3 * 8 * 9, 64 * SIZES[0], 4 * SIZES[1], SIZES[2]
    assert costs.sizes == SIZES
    assert costs.macs.dense == stem + early + late + head
    kept = (100, 200, 30)
    left = stem + 64 * 100 + 4 * 200 + 30
    assert costs.macs.share(kept) == pytest.approx(left / (stem + early + late + head))


def test_bytes_are_those_of_a_packed_file_by_hand(costs, network) -> None:
    others = [value for name, value in network.state_dict().items() if name not in PRUNED]
    whole = sum(value.numel() * value.element_size() for value in others)
    assert costs.bytes.dense == whole + 4 * sum(SIZES)
    packed = whole + sum(math.ceil(size / 8) for size in SIZES) + 4 * 330
    assert costs.bytes.share((100, 200, 30)) == pytest.approx(packed / costs.bytes.dense)


PRUNED = ("early.weight", "late.weight", "head.weight")


def test_weights_count_at_their_own_width_and_tied_ones_once(network, images) -> None:
    graph = trace(network, images[:2])
    held = dict(network.half().state_dict(keep_vars=True))
    network.float()
    held = {name: value.detach().half() for name, value in held.items()}
    found = Costs.of(graph.layers, select_layers(graph.layers), held)
    assert found.bytes.cost_per_unit == (2.0, 2.0, 2.0)
    tied = Costs.of(graph.layers, select_layers(graph.layers), held | {"again": held["late.bias"]})
    assert tied.bytes.dense == found.bytes.dense


# budgets


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    fixed=st.floats(0, 500),
    value=st.floats(0.01, 1),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=80)
def test_a_budget_of_a_share_is_met_and_no_weight_more_would_fit(sizes, fixed, value, seed) -> None:
    random = torch.Generator().manual_seed(seed)
    each = tuple((1 + 20 * torch.rand(len(sizes), generator=random)).tolist())
    dense = fixed + sum(size * price for size, price in zip(sizes, each, strict=True))
    model = CostModel(each, fixed, dense)
    known = Costs(tuple(sizes), macs=model, bytes=model)
    for target in (MaxMacs(value), MaxBytes(value)):
        if value * dense < fixed:
            with pytest.raises(OptionError, match="expected at least"):
                target.budget(known)
            continue
        for fitted in fitted_allocations(sizes, seed):
            share = model.share(fitted.kept(target.budget(known)))
            assert share <= value * (1 + 1e-9)
            assert value * dense - share * dense <= sum(each) + 1e-6


@pytest.mark.parametrize("name", secateur.pruning.allocations.ALLOCATIONS)
@pytest.mark.parametrize("target", ["max_macs", "max_bytes"])
def test_the_network_stays_within_its_share_and_a_lower_one_has_more_zeros(
    name, target, network, images
) -> None:
    before = 0.0
    for value in (0.9, 0.6, 0.4):
        report = secateur.prune(
            network, images, method="magnitude", allocation=name, **{target: value}
        ).report
        reached = report.macs_fraction if target == "max_macs" else report.bytes_fraction
        assert value - 0.005 < reached <= value + 1e-9
        assert report.sparsity > before
        assert report.requested["target"] == {"name": target, "value": value}
        before = report.sparsity


def test_macs_are_taken_where_a_weight_costs_many(network, images) -> None:
    """`early` at the price of its MACs: more zeros there than for as many bytes."""
    by_macs = secateur.plan(network, images, max_macs=0.5)
    by_zeros = secateur.plan(network, images, sparsity=by_macs.sparsity)
    assert by_macs.layers[0].sparsity > by_zeros.layers[0].sparsity
    assert by_macs.macs_fraction < by_zeros.macs_fraction


def test_the_allocation_knows_what_weights_cost(network, images) -> None:
    """What counts as a small layer depends on the target: see `Sensitivity.small`."""

    seen = []

    @dataclasses.dataclass(frozen=True)
    class Curious(Sensitivity):
        def fit(self, inputs):
            seen.append(inputs.costs)
            return super().fit(inputs)

    secateur.plan(network, images, allocation=Curious(), max_macs=0.5)
    secateur.plan(network, images, allocation=Curious(), sparsity=0.5)
    assert seen == [(64.0, 4.0, 1.0), None]


def test_levels_relax_the_target(network, images) -> None:
    recipe = Recipe(method=secateur.LeastSquares(), allocation=secateur.Uniform())
    first = secateur.prune(network, images, max_macs=0.6, recipe=recipe).model
    twice = dataclasses.replace(recipe, schedule=(0.2, 0.0))
    second = secateur.prune(network, images, max_macs=0.4, recipe=twice).report
    assert 0.395 < second.macs_fraction <= 0.4
    straight = secateur.prune(network, images, max_macs=0.4, recipe=recipe)
    gradual = secateur.prune(network, images, max_macs=0.4, recipe=twice)
    assert not torch.equal(straight.model.late.weight, gradual.model.late.weight)
    gone = (first.late.weight == 0).sum()
    assert gone < (gradual.model.late.weight == 0).sum()


def test_the_most_that_can_be_asked_for_is_reached(network, images, costs) -> None:
    least = math.ceil(1e4 * costs.macs.fixed / costs.macs.dense) / 1e4
    with pytest.raises(OptionError, match=f"expected at least {least:g}, which the layers that"):
        secateur.prune(network, images, max_macs=least - 0.01)
    report = secateur.prune(network, images, max_macs=least, method="least-squares").report
    assert report.macs_fraction <= least
    assert report.sparsity > 0.99


# mistakes


class Recurrent(nn.Module):
    """Nearly all weights are in what cannot be pruned, most of the rest in the first layer."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = nn.Linear(16, first)
        self.between = nn.Linear(first, 16)
        self.recurrent = nn.LSTM(16, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(self.between(self.first(x)))[0][:, -1]


@pytest.mark.parametrize(("first", "enough"), [(8, False), (512, True)])
def test_more_layers_are_advised_only_where_they_are_enough(first, enough) -> None:
    """And what is advised is not refused in its turn."""
    network = Recurrent(first).eval().requires_grad_(False)
    images = torch.randn(64, 4, 16, generator=torch.Generator().manual_seed(0))
    given = {"max_bytes": 0.5, "method": "magnitude", "allocation": "uniform"}
    with pytest.raises(OptionError, match="expected at least") as told:
        secateur.prune(network, images, **given)
    assert ("prune more layers with include" in str(told.value)) == enough
    if enough:
        report = secateur.prune(network, images, include="*", **given).report
        assert report.bytes_fraction <= 0.5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {},
            "got no target, expected exactly one of sparsity, max_macs, max_bytes, max_drop and "
            "max_latency",
        ),
        ({"sparsity": 0.5, "max_drop": 1}, "got sparsity and max_drop, expected exactly one"),
        ({"sparsity": 1.0}, "sparsity is 1.0, expected the fraction of zeros"),
        ({"max_macs": 0}, r"max_macs is 0, expected a fraction of the dense network's, in \(0, 1]"),
        ({"max_macs": 30}, r"write 0.3 for 30 % \(30 % is 0.3\)"),
        ({"max_bytes": math.nan}, "max_bytes is nan, expected a fraction"),
        ({"max_bytes": "0.3"}, "max_bytes is '0.3', expected a fraction"),
        ({"max_bytes": True}, "max_bytes is True, expected a fraction"),
        ({"max_drop": -1}, r"max_drop is -1, expected points of top-1, in \[0, 100\)"),
        ({"max_drop": 100}, "max_drop is 100, expected points"),
        ({"max_drop": math.inf}, "max_drop is inf, expected points"),
    ],
)
def test_a_mistake_is_one_sentence(given, says) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        choose_target(**given)
    assert "\n" not in str(caught.value)


def test_one_target_is_that_target() -> None:
    assert choose_target(sparsity=0) == Sparsity(0)
    assert choose_target(max_macs=1) == MaxMacs(1)
    assert choose_target(max_bytes=0.2) == MaxBytes(0.2)
    assert choose_target(max_drop=0) == MaxDrop(0)


@pytest.mark.parametrize(("asked", "layers"), [("max_macs", "stay dense"), ("max_bytes", "masks")])
def test_what_cannot_be_met_says_what_can(network, images, asked, layers) -> None:
    with pytest.raises(OptionError, match=f"{asked} is 0.01, expected at least 0.*{layers}"):
        secateur.plan(network, images, **{asked: 0.01})


# the plan


@pytest.mark.parametrize("given", [{"sparsity": 0.7}, {"max_macs": 0.4}, {"max_bytes": 0.4}])
def test_a_plan_is_what_pruning_does(network, images, given) -> None:
    """Where the target is walked to at once; a recipe with a schedule measures again."""
    recipe = Recipe(method=secateur.Magnitude())
    plan = secateur.plan(network, images, recipe=recipe, **given)
    report = secateur.prune(network, images, recipe=recipe, **given).report
    assert not plan.notes
    assert [layer.name for layer in plan.layers] == [layer.name for layer in report.layers]
    zeros = [layer.weights - layer.kept for layer in plan.layers]
    assert zeros == [layer.zeros for layer in report.layers]
    for what in ("sparsity", "macs_fraction", "bytes_fraction"):
        assert getattr(plan, what) == pytest.approx(getattr(report, what))
    dense = sum(layer.dense_macs for layer in plan.layers)
    assert 0 < sum(layer.macs for layer in plan.layers) < dense
    assert plan.loss_increase == pytest.approx(sum(layer.loss_increase for layer in plan.layers))
    assert report.network_sparsity > 0


def test_a_plan_without_curves_expects_nothing_and_needs_them_for_a_drop(network, images) -> None:
    plan = secateur.plan(network, images, sparsity=0.5, allocation="uniform")
    assert plan.loss_increase is None
    assert {layer.loss_increase for layer in plan.layers} == {None}
    assert "expected loss" not in str(plan)
    with pytest.raises(OptionError, match=r"max_drop cannot be planned.*'sensitivity'"):
        secateur.plan(network, images, max_drop=1, allocation="uniform")


def test_a_plan_says_whether_blocks_will_be_trained(network, images) -> None:
    def notes(sparsity, count=48):
        found = secateur.plan(network, images[:count], sparsity=sparsity, allocation="uniform")
        return [note for note in found.notes if "reconstruction" in note]

    assert notes(0.6) == []
    assert [note.split(",")[0] for note in notes(0.8)] == [
        "block reconstruction follows and reduces the loss expected here"
    ]
    assert [note.split(",")[0] for note in notes(0.8, 7)] == ["no block reconstruction: 7 images"]


def test_a_plan_for_a_drop_is_a_guess_and_says_so(network, images) -> None:
    little, much = (secateur.plan(network, images, max_drop=drop) for drop in (1, 8))
    assert 0 < little.sparsity < much.sparsity < 1
    assert "is an estimate" in str(little)


def test_a_plan_visits_layers_for_the_allocation_only(network, images) -> None:
    seen: list[tuple[int, int, str]] = []
    secateur.plan(network, images, max_drop=1, progress=lambda *call: seen.append(call))
    assert seen == [(1, 3, "early"), (2, 3, "late"), (3, 3, "head")]


def test_a_network_whose_state_dict_has_other_names_is_pruned(network, images) -> None:
    class Renaming(Small):
        def state_dict(self, *args, **kwargs):
            held = super().state_dict(*args, **kwargs)
            return {f"module.{name}": value for name, value in held.items()}

    other = Renaming().eval()
    found = [
        secateur.plan(one, images, max_bytes=0.5, allocation="uniform") for one in (other, network)
    ]
    assert found[0].bytes_fraction == pytest.approx(found[1].bytes_fraction)


def test_the_plan_shows_each_layer_and_the_sums(network, images) -> None:
    found = secateur.plan(network, images, max_macs=0.4, recipe=Recipe(schedule=(0.1, 0.0)))
    text = str(found)
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert "16x8x3x3" in rows["early"]
    assert f"{SIZES[0]:,}" in rows["early"]
    assert 0.39 < found.macs_fraction <= 0.4
    assert f"{found.macs_fraction:.1%} of the MACs" in " ".join(text.split())
    assert "expected loss" in text
    assert "prunes to 0.5 first and measures again" in " ".join(text.split())
