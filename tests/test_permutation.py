"""Channels in another order: the network stays the same, and the pattern keeps no less."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from dataclasses import replace
from typing import Any

import onnx_models
import pytest
import torch
from inputs import samples_of
from test_couplings import NETWORKS, Random, output, traced
from test_pattern_networks import IMAGES, Mixed, is_in, mixed
from torch import Tensor, nn

import secateur
from secateur.core.column_order import OrderProblem, find_order
from secateur.core.patterns import NM, Block, choose_pattern
from secateur.frontends.openvino.runtime import as_ir, ir_weights
from secateur.network.couplings import find_couplings
from secateur.network.graph import Graph
from secateur.pruning import permutation
from secateur.pruning.layer_selection import in_pattern
from secateur.pruning.permutation import ChannelPermutation, blocks_of_units, saliencies
from secateur.pruning.recipe import RECIPES, Recipe

EVERY = ChannelPermutation(least_gain=0.0, blocks=True)
ORDERED = {"recipe": Recipe(permutation=EVERY), "progress": False}


def layers_in(graph: Graph, pattern: str) -> list:
    every = in_pattern(graph.layers, choose_pattern(pattern))
    return [layer for layer in every if layer.obstacle is None]


def changes(graph: Graph, x: Tensor, pattern: str) -> dict[str, Tensor]:
    samples = samples_of(graph, x)
    layers = layers_in(graph, pattern)
    found = EVERY.permute(graph, samples, layers, choose_pattern(pattern), chunk=2)
    return dict(found.changes)


def kept(graph: Graph, x: Tensor, pattern: str) -> float:
    """The saliency that a pattern keeps in all layers, layer by layer with half of the weights."""
    layers, total = layers_in(graph, pattern), 0.0
    for saliency in saliencies(graph, samples_of(graph, x), layers, 2).values():
        mask = choose_pattern(pattern).mask(saliency.sqrt(), saliency.numel() // 2)
        total += float(saliency[mask].sum())
    return total


def check_laws(graph: Graph, x: Tensor, pattern: str) -> bool:
    """Same outputs, no less kept; whether anything changed."""
    changed = changes(graph, x, pattern)
    other = graph.changed(changed)
    torch.testing.assert_close(output(other, x), output(graph, x), rtol=1e-4, atol=1e-5)
    assert kept(other, x, pattern) >= kept(graph, x, pattern) * (1 - 1e-5)
    for name, new in changed.items():
        assert torch.equal(new.flatten().sort().values, graph.parameters[name].flatten().sort()[0])
    return bool(changed)


@pytest.fixture(autouse=True)
def _unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws hold without the comparison of outputs that would take a wrong order back."""
    monkeypatch.setattr(permutation, "_is_same", lambda *_: True)


def seeded(name: str, seed: int = 0) -> nn.Module:
    """One of NETWORKS, whose weights differ from process to process, with the same ones always."""
    net, generator = copy.deepcopy(NETWORKS[name][0]), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return net


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "1x2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_the_same_and_keep_no_less(name, pattern) -> None:
    torch.manual_seed(0)
    graph, x = traced(seeded(name))
    check_laws(graph, x, pattern)


def test_random_networks_give_the_same_and_keep_no_less() -> None:
    changed = 0
    for seed in range(12):
        torch.manual_seed(seed)
        graph, x = traced(Random(seed))
        changed += check_laws(graph, x, "1:2")
    assert changed > 1, changed


def problem(pattern: NM | Block, columns: int, seed: int = 0, alike: int = 1) -> OrderProblem:
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(6, columns, generator=generator) ** 3
    members = pattern.unit[1]
    sums = saliency.view(6, -1, members).sum(-1).flatten()
    return OrderProblem(
        pattern=pattern,
        saliency=saliency,
        threshold=sums.median().expand(6),
        blocks=torch.arange(columns).view(-1, members),
        alike=torch.arange(columns) % alike,
    )


PATTERNS = [NM(1, 2), NM(2, 4), NM(1, 4), NM(3, 4), Block(1, 2), Block(1, 4)]


@pytest.mark.parametrize("alike", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_no_exchange_is_left_that_would_keep_more(pattern, alike) -> None:
    columns = problem(pattern, 16, alike=alike)
    order = find_order(columns)
    assert sorted(map(int, order)) == list(range(16))
    assert torch.equal(columns.alike[order], columns.alike)
    best = columns.kept(order)
    assert best > columns.kept(torch.arange(16)) * 1.01
    for one, other in itertools.combinations(range(16), 2):
        if (one - other) % alike == 0:
            swapped = order.clone()
            swapped[[one, other]] = order[[other, one]]
            assert columns.kept(swapped) <= best * (1 + 1e-5)


@pytest.mark.parametrize("pattern", [NM(1, 2), NM(2, 3), Block(1, 3)], ids=lambda of: of.name)
def test_an_order_is_never_better_than_the_best_and_often_as_good(pattern) -> None:
    good = 0
    for seed in range(4):
        columns = problem(pattern, 6, seed)
        best = max(columns.kept(torch.tensor(of)) for of in itertools.permutations(range(6)))
        found = columns.kept(find_order(columns))
        assert found <= best * (1 + 1e-6)
        good += found > best * 0.99
    assert good >= 2


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([[0], [1], [2], [3]], [[0, 1], [2, 3]]),
        ([[0, 4], [1, 5], [2, 6], [3, 7]], [[0, 1], [2, 3]]),  # two taps
        ([[2], [0], [3], [1]], [[0, 2], [1, 3]]),  # behind a shuffle
        ([[4], [5], [6], [7]], [[0, 1], [2, 3]]),  # behind others
        ([[1], [2], [3], [4]], None),  # blocks that hold others too
        ([[0, 1], [2, 3], [4, 5], [6, 7]], None),  # blocks that hold one unit
        ([[0, 4], [1, 6], [2, 5], [3, 7]], None),  # other blocks at each tap
        ([[0], [1], [2], [-1]], None),
        ([[0], [1], [2]], None),
        ([[0], [1]], None),
    ],
)
def test_the_units_of_a_block(columns, expected) -> None:
    found = blocks_of_units(torch.tensor(columns), 2)
    assert (found is None) == (expected is None)
    assert found is None or found.tolist() == expected


def test_channels_of_heads_stay_in_their_heads() -> None:
    torch.manual_seed(0)
    graph, x = traced(seeded("attention", seed=1))
    new = changes(graph, x, "1:2")
    old = graph.parameters["out.weight"]
    moved = [
        [*map(lambda of: torch.equal(of, column), old.T)].index(True)
        for column in new["out.weight"].T
    ]
    assert moved != list(range(8))
    assert [of // 4 for of in moved] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_rows_are_thinned_out_and_a_gain_that_is_too_small_changes_nothing() -> None:
    torch.manual_seed(0)
    graph, x = traced(mixed())
    layers, samples = layers_in(graph, "2:4"), samples_of(graph, x)
    some = ChannelPermutation(rows=8).permute(graph, samples, layers, NM(2, 4), chunk=2)
    assert some.changes
    choosy = ChannelPermutation(least_gain=0.99)
    assert not choosy.permute(graph, samples, layers, NM(2, 4), chunk=2).changes


def test_channels_stay_where_the_pattern_removes_nothing(monkeypatch) -> None:
    """Sums in another order differ in their last digits, which is no gain."""
    monkeypatch.setattr(permutation, "find_order", lambda of: torch.randperm(of.saliency.shape[1]))
    for seed in range(10):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        net[2].weight.data *= torch.where(torch.rand(32, 32, 3, 3) < 0.5, 1.0, 1e-6)
        graph, x = traced(net)
        layers, samples = layers_in(graph, "1x4"), samples_of(graph, x)
        found = EVERY.permute(graph, samples, layers, Block(1, 4), chunk=2, zeros=0.0)
        assert not found.changes


@pytest.mark.parametrize("pattern", ["unstructured", "channels", "4x1", "4x4"])
def test_other_patterns_are_not_affected(pattern) -> None:
    graph, x = traced(mixed())
    assert not changes(graph, x, pattern)
    if pattern in ("unstructured", "4x1"):
        settings = {"pattern": pattern, "sparsity": 0.5, "progress": False}
        one = secateur.prune(mixed(), IMAGES, recipe=Recipe(), **settings)
        other = secateur.prune(mixed(), IMAGES, recipe=Recipe(permutation=EVERY), **settings)
        both = zip(one.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)
        assert one.report.notes == other.report.notes


def test_what_saliencies_are() -> None:
    torch.manual_seed(0)
    net = mixed()
    graph, x = traced(net)
    layers = {layer.name: layer for layer in graph.layers}
    found = saliencies(graph, samples_of(graph, x), [layers["grouped"], layers["head"]], 2)
    hidden = torch.relu(net.norm(net.stem(x)))
    squares = hidden.square().mean((0, 2, 3)).view(2, 1, 4, 1, 1)
    expected = net.grouped.weight.square().view(2, 8, 4, 3, 3) * squares
    expected = expected.movedim(2, -1).flatten(2)
    read = expected > 0  # some channels give nothing
    assert bool(read.any())
    assert not found["grouped.weight"][~read].any()
    ratio = found["grouped.weight"][read] / expected[read]
    assert 2**-0.126 < ratio.min() <= ratio.max() < 2**0.126
    assert found["head.weight"].shape == (1, 8, 16)


def test_padding_is_left_out_of_saliencies() -> None:
    graph, _ = traced(mixed())
    value, mask = torch.randn(2, 3, 16), torch.tensor([[1, 1, 0], [1, 0, 0]]) != 0
    found = permutation._squares(graph.layers[-1], value, mask)
    torch.testing.assert_close(found, value[mask].square().mean(0))


@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
def test_pruned_layers_are_in_the_pattern_in_their_new_order(pattern) -> None:
    target = {} if pattern == "2:4" else {"sparsity": 0.5}
    dense = mixed()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    result = secateur.prune(dense, IMAGES, pattern=pattern, **target, **ORDERED)
    assert all(torch.equal(before[name], of) for name, of in dense.state_dict().items())
    assert any("were put in an order" in note for note in result.report.notes)
    weights = dict(result.model.named_parameters())
    for layer in result.report.layers:
        if layer.zeros:
            weight = weights[f"{layer.name}.weight"]
            groups = 2 if layer.name == "grouped" else 1
            there = torch.ones_like(weight)
            assert is_in(choose_pattern(pattern), weight, groups, there), layer.name
    again = secateur.prune(dense, IMAGES, pattern=pattern, **target, **ORDERED)
    pairs = zip(result.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_all_that_is_pruned_is_judged_against_the_dense_network() -> None:
    """With nothing to prune but one small layer the network gives nearly the same."""
    dense = mixed()
    result = secateur.prune(
        dense, IMAGES, pattern="3:4", sparsity=0.02, method="magnitude", **ORDERED
    )
    assert any("were put in an order" in note for note in result.report.notes)
    error = (result.model(IMAGES) - dense(IMAGES)).std() / dense(IMAGES).std()
    assert error < 0.5
    assert not torch.equal(result.model.grouped.weight, dense.grouped.weight)


def test_steps_of_a_recipe_can_be_made_from_each_other() -> None:
    recipe = replace(
        RECIPES["paper"],
        permutation=EVERY,
        schedule=(0.0,),
        method=secateur.BiasCorrection(base=secateur.WeightCorrection()),
    )
    result = secateur.prune(Mixed().eval(), IMAGES, pattern="2:4", recipe=recipe, progress=False)
    assert len({frozenset(step) for step in result.steps.values()}) == 1
    last = [*result.steps.values()][-1]
    state = result.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in last.items())


def test_the_network_keeps_its_order_where_it_would_give_something_else(monkeypatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    graph, x = traced(mixed())
    assert changes(graph, x, "2:4")
    right = permutation.reordered
    monkeypatch.setattr(
        permutation, "reordered", lambda *of: {**right(*of), "norm.weight": torch.randn(8)}
    )
    layers = layers_in(graph, "2:4")
    found = EVERY.permute(graph, samples_of(graph, x), layers, NM(2, 4), chunk=2)
    assert not found.changes
    assert "kept their order" in found.notes[0]


def test_fixed_channels_and_whole_heads_are_not_moved() -> None:
    for module, _ in NETWORKS.values():
        graph, _x = traced(module)
        for coupling in find_couplings(graph):
            if coupling.fixed or coupling.whole:
                assert not permutation.can_be_reordered(coupling, graph)


def test_front_ends_choose_the_same_order() -> None:
    network = onnx_models.folded(onnx_models.network())
    file = onnx_models.as_onnx(network)
    images = torch.randn(48, 3, 11, 11, generator=torch.Generator().manual_seed(2))
    options = {"pattern": "1:2", **ORDERED}
    module = secateur.prune(network, images, **options)
    assert any("were put in an order" in note for note in module.report.notes)
    weights = module.model.state_dict()
    wanted = {key: of.flatten() for key, of in weights.items() if of.dim() > 1}
    stored = onnx_models.stored(secateur.prune(file, images, **options).model)
    for key, of in wanted.items():
        torch.testing.assert_close(stored[key].flatten(), of, rtol=1e-3, atol=1e-4)
    if importlib.util.find_spec("openvino"):
        ir = ir_weights(secateur.prune(as_ir(file), images, **options).model)
        masks = [of.ravel() != 0 for of in ir.values()]
        assert all(
            (a == (b != 0).numpy()).all() for a, b in zip(masks, wanted.values(), strict=True)
        )


def test_a_recipe_turns_it_on_and_off(tmp_path) -> None:
    recipe = Recipe(permutation=ChannelPermutation(rows=7))
    recipe.save(tmp_path / "mine.toml")
    assert Recipe.load(tmp_path / "mine.toml") == recipe
    assert Recipe().permutation is None
    assert "permutation" not in Recipe().settings()


def test_the_default_recipe_says_so_where_it_changed_the_order() -> None:
    def told(net: nn.Module, images: Tensor, **options: Any) -> tuple[bool, bool]:
        options = {"pattern": "2:4", "progress": False, **options}
        report = secateur.prune(net, images, **options).report
        noted = any("were put in an order" in note for note in report.notes)
        return noted, ChannelPermutation.summary in report.summary

    assert told(mixed(), IMAGES) == (True, True)
    assert told(mixed(), IMAGES, pattern="1x4", sparsity=0.5) == (False, False)
    torch.manual_seed(0)
    alone = nn.Linear(16, 8).eval().requires_grad_(False)  # its inputs are the network's
    assert told(alone, torch.randn(200, 16), include="weight") == (False, False)
