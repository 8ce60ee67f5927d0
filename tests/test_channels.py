"""Channels that leave: chosen by elimination, within a cost, and the network becomes smaller."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import trace
from problems import problem
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur
from secateur import ModelError, OptionError, timing
from secateur.core.group_elimination import Reader, elimination_order
from secateur.core.methods import ADMM
from secateur.core.patterns import Channels, KeptColumns
from secateur.core.problem import Problem
from secateur.frontends import open as open_model
from secateur.frontends.torch.checkpoints import MARK, SHRUNK
from secateur.hardware import compare_latency
from secateur.network.couplings import find_couplings
from secateur.network.samples import Samples
from secateur.pruning.allocations import Curve
from secateur.pruning.channels.allocation import allocate, most_removed
from secateur.pruning.channels.costs import TimeCost, layer_widths, macs_cost, weights_cost
from secateur.pruning.channels.curves import ChannelSensitivity
from secateur.pruning.channels.space import ChannelSpace, find_space
from secateur.pruning.sampling import Sampling
from secateur.render.page import sweep_page
from secateur.timing import best_share, next_share


def loss_without(held: Problem, gone: Tensor, damping: float) -> float:
    """Damped loss of the best weights without some columns, relative to the outputs' variance."""
    kept = torch.ones(held.columns, dtype=torch.bool)
    kept[gone] = False
    total = 0.0
    for group in range(len(held.gram)):
        gram = held.gram[group].clone()
        amount = damping * float(gram.diagonal().mean())
        gram += amount * torch.eye(len(gram), dtype=gram.dtype)
        cross = held.cross[group] + amount * held.weight[group]
        part = gram[kept][:, kept]
        best = torch.linalg.solve(part, cross[:, kept].mT).mT
        total -= float((best * cross[:, kept]).sum())
    return total / float(held.variance.sum())


def greedy(held: list[Problem], columns: list[Tensor], damping: float) -> list[int]:
    """Units in the order of elimination, each loss computed anew."""
    units, order = len(columns[0]), list[int]()
    while len(order) < units:
        left = [unit for unit in range(units) if unit not in order]
        losses = {
            unit: sum(
                loss_without(of, at[[*order, unit]].flatten(), damping)
                for of, at in zip(held, columns, strict=True)
            )
            for unit in left
        }
        order.append(min(left, key=losses.__getitem__))
    return order


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_elimination_takes_what_costs_least(taps: int, groups: int) -> None:
    held = problem(rows=5, cols=4 * taps, groups=groups, noise=0.3)
    columns = torch.arange(4 * taps).view(taps, 4).T
    found = elimination_order([Reader(problem=held, columns=columns)], damping=0.1)
    assert found == greedy([held], [columns], 0.1)


def test_elimination_goes_on_where_units_lack_columns() -> None:
    held = [problem(rows=rows, cols=14, seed=rows, noise=0.3) for rows in (3, 5)]
    columns = [torch.arange(12).view(6, 2), torch.arange(12).flip(0).view(6, 2)]
    readers = [Reader(problem=of, columns=at.clone()) for of, at in zip(held, columns, strict=True)]
    for unit in (0, 2, 5):  # the second reader has one column of each of these
        readers[1].columns[unit, 1] = -1
        columns[1][unit, 1] = columns[1][unit, 0]
    assert elimination_order(readers, damping=0.1) == greedy(held, columns, 0.1)


def test_elimination_adds_up_the_readers() -> None:
    held = [problem(rows=rows, cols=5, seed=rows) for rows in (3, 6)]
    columns = [torch.arange(5).view(5, 1), torch.tensor([[4], [2], [0], [1], [3]])]
    readers = [Reader(problem=of, columns=at) for of, at in zip(held, columns, strict=True)]
    assert elimination_order(readers, damping=0.1) == greedy(held, columns, 0.1)


def test_elimination_without_columns_that_are_out_already() -> None:
    held = problem(rows=4, cols=6)
    columns = torch.arange(4).view(4, 1)
    absent = torch.tensor([4, 5])
    found = elimination_order([Reader(problem=held, columns=columns, absent=absent)], damping=0.1)
    everything = [*columns.flatten().tolist()]
    best = min(
        everything,
        key=lambda unit: loss_without(held, torch.tensor([4, 5, unit]), 0.1),
    )
    assert found[0] == best


def test_a_column_that_is_out_already_is_as_one_that_a_unit_lacks() -> None:
    held, columns = problem(rows=4, cols=12), torch.arange(12).view(6, 2)
    size = torch.ones(12, dtype=torch.float64)
    size[8] = 100  # so that its unit is the last to go
    held = replace(held, weight=held.weight * size, cross=held.cross * size)
    without = torch.where(columns == 9, -1, columns)
    orders = [
        elimination_order([Reader(problem=held, columns=of, absent=torch.tensor([9]))], damping=0.1)
        for of in (columns, without)
    ]
    assert orders[0] == orders[1]


def test_blocks_lose_as_many() -> None:
    held = problem(rows=4, cols=6)
    size = torch.tensor([1.0, 1, 1, 100, 100, 100], dtype=torch.float64)  # one block costs little
    held = replace(held, weight=held.weight * size, cross=held.cross * size)
    blocks = [(0, 1, 2), (3, 4, 5)]
    order = elimination_order(
        [Reader(problem=held, columns=torch.arange(6).view(6, 1))], damping=0.1, blocks=blocks
    )
    for count in (2, 4, 6):
        assert len({*order[:count]} & {0, 1, 2}) == count // 2


@pytest.mark.parametrize("blocks", [(), [(0, 1, 2), (3, 4, 5)]])
def test_the_last_unit_of_a_share_goes_last(blocks: list[tuple[int, ...]]) -> None:
    held = problem(rows=4, cols=6)
    size = torch.tensor([0.01, 0.01, 1, 1, 1, 1], dtype=torch.float64)  # these two cost least
    held = replace(held, weight=held.weight * size, cross=held.cross * size)
    order = elimination_order(
        [Reader(problem=held, columns=torch.arange(6).view(6, 1))],
        damping=0.1,
        blocks=blocks,
        shares=[frozenset({0, 1})],
    )
    assert sorted(order) == [*range(6)]
    assert not {0, 1} <= {*order[:4]}


def test_a_unit_may_have_fewer_columns_than_others() -> None:
    held = problem(rows=4, cols=5)
    columns = torch.tensor([[0, 1], [2, -1], [3, 4]])
    found = elimination_order([Reader(problem=held, columns=columns)], damping=0.1)
    alone = {unit: loss_without(held, columns[unit][columns[unit] >= 0], 0.1) for unit in range(3)}
    assert found[0] == min(alone, key=alone.__getitem__)
    assert sorted(found) == [0, 1, 2]


def test_a_fit_keeps_the_columns_that_were_chosen() -> None:
    held = problem(rows=4, cols=6, noise=0.2)
    kept = torch.tensor([True, False, True, True, False, True])
    solved = ADMM(dampings=()).solve(held, KeptColumns(kept), held.present)
    assert torch.equal((solved.weight != 0).any(1)[0], kept)


FREE = Channels(multiple=1)


class Small(nn.Module):
    """A stem, a residual block with a depthwise convolution, a concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.expand = nn.Conv2d(12, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project = nn.Conv2d(24, 12, 1)
        self.branch = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.project(F.relu(self.depthwise(F.relu(self.expand(x)))))
        return self.head(torch.cat([x, F.relu(self.branch(x))], 1).mean((2, 3)))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = Small().eval()
    net.norm.running_mean.uniform_(-0.5, 0.5)
    net.norm.running_var.uniform_(0.5, 2)
    return net


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def space_of(net: nn.Module) -> ChannelSpace:
    graph = trace(net, images(2))
    layers = [of for of in graph.layers if of.obstacle is None and of.protected is None]
    return find_space(find_couplings(graph), layers, sampling=Sampling())


def test_costs_are_those_of_the_smaller_network() -> None:
    net = small()
    graph = trace(net, images(2))
    space = space_of(net)
    cost = macs_cost(graph.layers, space.removable)
    counts = [of.units // 3 for of in space.removable]
    removed = [
        (of.coupling, list(range(count))) for of, count in zip(space.removable, counts, strict=True)
    ]
    smaller = open_model(net).shrunk(removed, two())
    left = trace(smaller.model, images(2))
    assert cost.dense == sum(of.macs for of in graph.layers)
    assert cost.at(np.array(counts)) == pytest.approx(sum(of.macs for of in left.layers))
    steps = np.ones(len(counts), dtype=np.int64)
    saved = cost.savings(np.array(counts), steps)
    for number, step in enumerate(np.eye(len(counts), dtype=np.int64)):
        expected = cost.at(np.array(counts)) - cost.at(np.array(counts) + step)
        assert saved[number] == pytest.approx(expected)


def two() -> Samples:
    return Samples({"images": images(2)})


def test_an_allocation_meets_the_cost_and_takes_the_cheapest() -> None:
    net = small()
    graph, space = trace(net, images(2)), space_of(net)
    cost = weights_cost(graph.layers, space.removable)
    flat = Curve((0.5, 0.9), (1e-6, 1e-5))
    steep = Curve((0.5, 0.9), (1.0, 10.0))
    curves = [steep] * (len(space.removable) - 1) + [flat]
    removed = allocate(space.removable, curves, cost, 0.9 * cost.dense)
    assert cost.at(np.array(removed)) <= 0.9 * cost.dense
    assert removed[-1] == max(removed)
    most = most_removed(space.removable)
    everything = allocate(space.removable, curves, cost, 0.0)
    assert everything == most.tolist()
    assert all(gone < of.units for of, gone in zip(space.removable, everything, strict=True))


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_what_is_left_is_a_multiple(multiple: int) -> None:
    space = space_of(small())
    curves = [Curve((0.5,), (0.1,))] * len(space.removable)
    cost = weights_cost(trace(small(), images(2)).layers, space.removable)
    for share in (0.9, 0.5, 0.2):
        removed = allocate(space.removable, curves, cost, share * cost.dense, multiple=multiple)
        for of, gone in zip(space.removable, removed, strict=True):
            assert not gone or of.units <= multiple or (of.units - gone) % multiple == 0


@pytest.mark.parametrize("target", ["max_macs", "max_bytes", "sparsity"])
def test_a_network_becomes_smaller(target: str) -> None:
    net = small()
    before = copy.deepcopy(net.state_dict())
    value = 0.3 if target == "sparsity" else 0.7
    result = secateur.prune(
        net, images(), pattern=FREE, recipe=secateur.Recipe(), **{target: value}
    )
    report, after = result.report, result.model
    assert all(torch.equal(of, before[name]) for name, of in net.state_dict().items())
    assert after.stem.out_channels < 12 or after.expand.out_channels < 24
    assert after(images(2)).shape == (2, 5)
    share = {"max_macs": report.macs_fraction, "max_bytes": report.bytes_fraction}
    assert share.get(target, 1 - report.sparsity) <= (0.7 + 1e-9)
    assert share.get(target, 1 - report.sparsity) > 0.5
    widths = {of.name: (of.channels, of.left) for of in report.channels if of.reason is None}
    assert widths["expand"] == (24, after.expand.out_channels)
    assert [of.reason for of in report.channels if of.reason] == ["the network's output"]
    assert "channels" in str(report)
    total = sum(of.numel() for of in after.parameters())
    assert total < sum(of.numel() for of in net.parameters())


def test_more_channels_leave_with_a_harder_target_and_the_outputs_move_away() -> None:
    net, few = small(), images(16)
    errors = []
    for macs in (0.9, 0.6, 0.3):
        result = secateur.prune(
            net, images(), pattern=FREE, max_macs=macs, recipe=secateur.Recipe()
        )
        with torch.no_grad():
            dense, pruned = net(few), result.model(few)
        errors.append(float((pruned - dense).square().mean() / dense.var()))
        assert result.report.macs_fraction <= macs
    assert all(a < b for a, b in itertools.pairwise(errors))
    assert errors[0] < 0.05


def test_layers_that_are_excluded_stay_as_they_are() -> None:
    net = small()
    result = secateur.prune(
        net,
        images(),
        pattern=FREE,
        max_macs=0.8,
        recipe=secateur.Recipe(),
        exclude="branch",
    )
    assert result.model.branch.out_channels == 8
    reasons = {of.name: of.reason for of in result.report.channels}
    assert reasons["branch"] == "branch is excluded"


def test_layers_whose_channels_may_leave_can_be_named() -> None:
    result = secateur.prune(
        small(),
        images(),
        pattern=FREE,
        max_macs=0.9,
        recipe=secateur.Recipe(),
        include="branch",
    )
    assert result.model.branch.out_channels < 8
    assert result.model.expand.out_channels == 24


def test_what_cannot_be_met_is_refused_before_the_work() -> None:
    with pytest.raises(OptionError, match="expected at least 0"):
        secateur.prune(small(), images(), pattern=FREE, max_macs=0.01)
    with pytest.raises(OptionError, match="expected at most 0"):
        secateur.prune(small(), images(), pattern=FREE, sparsity=0.999)


def test_a_network_without_channels_that_could_leave() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Conv2d(4, 4, 1)).eval()
    with pytest.raises(OptionError, match="no channel of the network can leave"):
        secateur.prune(net, images(), pattern=FREE, max_macs=0.9)


def test_a_plan_tells_the_channels() -> None:
    plan = secateur.plan(small(), images(), pattern=FREE, max_macs=0.7)
    assert plan.macs_fraction <= 0.7
    assert {of.name for of in plan.channels} >= {"expand", "branch"}
    assert "gone, in whole channels" in str(plan)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, other = (
        secateur.prune(
            small(), images(), pattern=FREE, max_macs=0.6, recipe=secateur.Recipe(), seed=3
        ).model.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(of, other[name]) for name, of in one.items())


def test_a_drop_is_searched() -> None:
    result = secateur.prune(
        small(), images(), pattern=FREE, max_drop=20.0, recipe=secateur.Recipe()
    )
    assert result.report.search is not None
    assert result.report.search.drop <= 20
    assert "zeros" not in result.report.searched
    assert "zeros, %" not in str(result.report)
    assert result.report.sparsity > 0.05


def test_the_pattern_can_be_saved_in_a_recipe(tmp_path) -> None:
    recipe = secateur.Recipe(pattern=Channels(multiple=4))
    recipe.save(tmp_path / "recipe.toml")
    assert secateur.Recipe.load(tmp_path / "recipe.toml") == recipe


def test_a_saved_network_is_loaded_into_a_fresh_module(tmp_path: Path) -> None:
    result = secateur.prune(small(), images(), pattern=FREE, max_macs=0.6, recipe=secateur.Recipe())
    result.save(tmp_path / "out")
    network = small(seed=5)
    loaded = secateur.load(network, tmp_path / "out" / "model.safetensors")
    assert torch.equal(loaded(images(4)), result.model(images(4)))
    assert network.expand.out_channels == 24  # as it was given
    loaded.train()(images(4)).sum().backward()
    torch.export.export(loaded.eval(), (images(2),))
    assert torch.equal(pickle.loads(pickle.dumps(loaded))(images(2)), loaded(images(2)))


def test_only_a_file_that_says_so_makes_a_network_smaller(tmp_path: Path) -> None:
    result = secateur.prune(small(), images(), pattern=FREE, max_macs=0.6, recipe=secateur.Recipe())
    save_file(result.model.state_dict(), tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="does not fit the model"):
        secateur.load(small(), tmp_path / "other.safetensors")
    wide = {
        name: of.repeat_interleave(2, 0) for name, of in small().state_dict().items() if of.dim()
    }
    save_file(wide, tmp_path / "wide.safetensors", {MARK: SHRUNK})
    with pytest.raises(ModelError, match="or fewer channels"):
        secateur.load(small(), tmp_path / "wide.safetensors")


def test_the_time_of_a_network_is_that_of_its_layers_at_their_widths() -> None:
    graph, space = trace(small(), images(2)), space_of(small())
    cost = TimeCost(
        fixed=5.0,
        layers=layer_widths(graph, space.removable),
        seconds=lambda op, inputs, outputs: float(inputs * outputs),
    )
    dense = {(3, 12), (12, 24), (24, 24), (24, 12), (12, 8), (20, 5)}
    assert {(of.inputs, of.outputs) for of in cost.layers} == dense
    assert cost.dense == 5 + sum(a * b for a, b in dense)
    counts = np.array([of.units // 4 for of in space.removable])
    (depthwise,) = (of for of in cost.layers if (of.inputs, of.outputs) == (24, 24))
    assert depthwise.at(counts) == (18, 18)  # which has one width
    saved = cost.savings(counts, np.ones_like(counts))
    for number, step in enumerate(np.eye(len(counts), dtype=np.int64)):
        assert saved[number] == pytest.approx(cost.at(counts) - cost.at(counts + step))


def test_widths_are_found_by_measuring_the_whole_network() -> None:
    """Whatever the whole network takes besides its layers, a few tries meet the target."""
    for fixed, factor in ((0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.0, 1.3), (0.2, 1.3)):
        tried = [(0.7, fixed + factor * 0.7)]
        while len(tried) < 4 and not 0.68 <= tried[-1][1] <= 0.7:
            share = next_share(tried, 0.69)
            tried.append((share, fixed + factor * share))
        assert 0.68 <= dict(tried)[best_share(tried, 0.7)] <= 0.7


def test_the_best_try_takes_most_of_what_is_allowed() -> None:
    assert best_share([(0.7, 0.8), (0.5, 0.6), (0.6, 0.69)], 0.7) == 0.6
    assert best_share([(0.7, 0.8), (0.5, 0.75)], 0.7) == 0.5


def test_a_latency_needs_a_runtime_and_removes_channels() -> None:
    with pytest.raises(OptionError, match="without a runtime"):
        secateur.prune(small(), images(), max_latency=0.7)
    with pytest.raises(OptionError, match="expected pattern='channels'"):
        secateur.prune(
            small(), images(), max_latency=0.7, runtime="onnxruntime", pattern="unstructured"
        )


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")  # a busy machine may miss it
def test_a_network_is_pruned_to_a_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real runtime, measured for a moment: nothing is asserted about the speed."""
    monkeypatch.setattr(timing, "_SECONDS", 1.0)
    monkeypatch.setattr(timing, "_WHOLE_SECONDS", 0.5)
    monkeypatch.setattr(timing, "_LAST_SECONDS", 0.5)
    monkeypatch.setattr(compare_latency, "PROCESSES", 2)
    net = wide()
    result = secateur.prune(
        net, images(), max_latency=0.8, runtime="onnxruntime", recipe=secateur.Recipe()
    )
    latency = result.report.latency
    assert latency is not None
    assert latency.low <= latency.ratio <= latency.high
    assert 1 <= latency.tries <= 4
    assert result.report.macs_fraction < 1
    assert "of the dense network's time on onnxruntime" in result.report.result


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)
    ).eval()


def test_by_default_what_is_left_is_a_multiple_of_eight() -> None:
    result = secateur.prune(
        wide(), images(), pattern="channels", max_macs=0.5, recipe=secateur.Recipe()
    )
    left = [of.left for of in result.report.channels if of.reason is None]
    assert all(of % 8 == 0 for of in left)
    assert min(left) < 64


def test_a_sweep_tells_of_removed_weights_not_of_zeros() -> None:
    found = secateur.sweep(
        small(), images(), sparsities=[0.1, 0.3], pattern=FREE, recipe=secateur.Recipe()
    )
    assert found.table().columns[0].heading == "removed"
    page = sweep_page(found)
    assert "weights removed in pruned layers" in page
    assert "zeros" not in page.split("<body")[1].split('aria-labelledby="data"')[0]


def test_a_sweep_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelSensitivity, "study", None)  # it would be called, and fail
    with pytest.raises(OptionError, match=r"sparsity is 0\.99"):
        secateur.sweep(small(), images(), sparsities=[0.1, 0.99], pattern=FREE)
