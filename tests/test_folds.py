"""Damping is chosen on images held back: which position belongs to which image, and the choice."""

from __future__ import annotations

import functools
import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import samples_of, trace
from layouts import NETWORKS, TOKENS, Constant
from problems import correlated, random_weight
from torch import Tensor, nn

import secateur
from secateur.core.damping import choose_damping
from secateur.core.methods import (
    ADMM,
    AdamCalibration,
    LeastSquares,
    admm,
    needs_folds,
    without_folds,
)
from secateur.core.patterns import Unstructured
from secateur.core.problem import Patches, Problem
from secateur.core.statistics import Statistics, merged
from secateur.network.cuts import find_cuts
from secateur.network.graph import Graph
from secateur.network.sample_layout import find_layouts
from secateur.pruning.layer_fit import LayerFit
from secateur.pruning.layer_selection import (
    select_layers,
)
from secateur.pruning.sampling import Sampling
from secateur.pruning.streams import DualStream
from secateur.pruning.walk import walk

pytestmark = pytest.mark.filterwarnings("ignore:only .* calibration image")


@functools.cache
def graph_of(name: str) -> Graph:
    torch.manual_seed(0)
    return trace(NETWORKS[name]().eval().requires_grad_(False), inputs_of(2))


def inputs_of(count: int) -> Tensor:
    return torch.randn(count, TOKENS, 5, generator=torch.Generator().manual_seed(1))


def problems_of(graph, images: Tensor, chunk: int, sampling: Sampling) -> list[Problem]:
    """Each layer's problem, on the dense network, in float32."""
    streams = DualStream(graph, samples_of(graph, images), chunk=chunk, inputs="dense")
    found = []
    for index, layer in enumerate(select_layers(graph.layers, include="*")):
        fit = LayerFit(graph, streams.run_to(layer), index=index, sampling=sampling, start={})
        found.append(fit.problem(ADMM()))
    return found


def difference(one: Problem, other: Problem) -> float:
    """The largest difference of two problems' sums, relative to their size."""
    pairs = ((getattr(of, name) for of in (one, other)) for name in ("gram", "cross", "energy"))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("count", "chunk"), [(6, 6), (7, 3), (5, 1)])
@pytest.mark.parametrize("least", [8192, 20])
def test_an_image_is_seen_by_one_half_only(name: str, count: int, chunk: int, least: int) -> None:
    """Changing an image changes the sums of one half and leaves the other's alone."""
    graph, images = graph_of(name), inputs_of(count)
    sampling = Sampling(per_column=1, least=least)
    before = problems_of(graph, images, chunk, sampling)
    members = [[0, 0] for _ in before]
    for image in range(count):
        changed = images.clone()
        changed[image] = 2 * changed[image] + 1
        for layer, (one, other) in enumerate(
            zip(before, problems_of(graph, changed, chunk, sampling), strict=True)
        ):
            assert one.folds is not None
            assert other.folds is not None
            moved = [difference(*of) > 1e-4 for of in zip(one.folds, other.folds, strict=True)]
            assert sum(moved) == 1
            members[layer][moved.index(True)] += 1
    assert all(abs(first - second) <= 1 for first, second in members)


@pytest.mark.parametrize("name", NETWORKS)
def test_halves_add_up_to_the_whole(name: str) -> None:
    images = inputs_of(6)
    for whole in problems_of(graph_of(name), images, 4, Sampling()):
        assert whole.folds is not None
        assert sum(half.samples for half in whole.folds) == whole.samples
        shares = [half.samples / whole.samples for half in whole.folds]
        mean = sum(s * half.input_mean for s, half in zip(shares, whole.folds, strict=True))
        torch.testing.assert_close(mean, whole.input_mean, rtol=1e-5, atol=1e-5)


def test_layouts_do_not_depend_on_the_images_number() -> None:
    images = inputs_of(12)
    for name, inner in {
        "attention": {"attention.in_proj_weight": 1, "attention.out_proj": 1, "head": 1},
        "attention, batch first": {"embed": TOKENS, "attention.out_proj": 1, "head": TOKENS},
        "windows": {"embed": TOKENS, "inside": TOKENS, "head": 3},
        "frames": {"conv": 3, "head": 1},
    }.items():
        graph = graph_of(name)
        layouts = find_layouts(graph, samples_of(graph, images))
        found = {of.name: layouts[of.calls[0].op].inner for of in graph.layers if of.calls}
        assert {layer: found[layer] for layer in inner} == inner


class Swapped(nn.Module):
    """The same two layers on (samples, tokens, channels) or on (tokens, samples, channels)."""

    def __init__(self, time_major: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 24), nn.Linear(24, 16)
        self.time_major = time_major

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.time_major else x
        y = self.second(self.first(x).relu())
        return y.transpose(0, 1) if self.time_major else y


def test_the_order_of_axes_does_not_matter_to_the_result() -> None:
    """Tokens of an image are near copies: halves of positions would tell nothing of new images."""
    torch.manual_seed(2)
    images = torch.randn(10, 1, 5) + 0.05 * torch.randn(10, TOKENS, 5)
    one, other = Swapped(False).eval(), Swapped(True).eval()
    other.load_state_dict(one.state_dict())
    reports = [
        secateur.prune(of, images, sparsity=0.6, include="*", progress=False).report
        for of in (one, other)
    ]
    for a, b in zip(*(report.layers for report in reports), strict=True):
        assert a.damping == b.damping
        assert a.relative_error == pytest.approx(b.relative_error, rel=0.02)


class Mixed(nn.Module):
    """Attention over the wrong axis: each position depends on all images."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def walked(graph: Graph, images: Tensor, method=None, chunk: int = 4):
    layers = select_layers(graph.layers, include="*")
    kept = [layer.weights // 2 for layer in layers]
    return walk(
        graph,
        samples_of(graph, images),
        layers,
        kept,
        method=method or ADMM(),
        pattern=Unstructured(),
        chunk=chunk,
    )


def test_positions_that_mix_images_have_no_folds_and_say_so() -> None:
    torch.manual_seed(3)
    result = walked(trace(Mixed().eval(), inputs_of(2)), inputs_of(8)).results[-1]
    assert result.damping == 0.3
    assert any("cannot be told apart by image" in note for note in result.notes)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_image_and_copies_of_one_have_no_folds_and_say_so(name: str) -> None:
    image = inputs_of(1)
    for images, note in ((image, "there is one image"), (image.repeat(4, 1, 1), "are the same")):
        for result in walked(graph_of(name), images).results:
            assert any(note in of for of in result.notes)
            assert result.damping >= 0.3


def test_two_images_of_which_there_are_copies_have_halves() -> None:
    images = inputs_of(2)[[0, 0, 0, 1, 0]]
    graph = graph_of("attention")
    assert all(
        of.inner is not None for of in find_layouts(graph, samples_of(graph, images)).values()
    )
    for held in problems_of(graph, images, 2, Sampling()):
        assert held.folds is not None


def test_stored_samples_stay_when_there_are_no_folds() -> None:
    method = AdamCalibration(base=ADMM(), iterations=1)
    for count, chunk in ((1, 1), (1, 4), (2, 1), (3, 2)):
        results = walked(graph_of("attention"), inputs_of(count), method, chunk).results
        assert len(results) == 4


def test_a_sample_without_sums_is_kept_when_statistics_are_merged() -> None:
    x, y = correlated(20, 4), correlated(20, 3)
    for first in (True, False):
        empty, full = Statistics(), Statistics()
        empty.store(x, y)
        full.add(x, y)
        whole = merged([empty, full] if first else [full, empty])
        assert whole.samples == 20
        assert len(whole.stored) == 1


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_layers_on_constants_are_pruned_on_these_counted_once(inputs: str) -> None:
    torch.manual_seed(4)
    network, images = Constant().eval(), inputs_of(10)
    report = secateur.prune(
        network, images, sparsity=0.4, include="*", inputs=inputs, progress=False
    ).report
    layers = {layer.name: layer for layer in report.layers}
    assert [layers[name].samples for name in ("table", "deep", "query")] == [TOKENS, TOKENS, 7]
    assert layers["key"].samples == 10 * TOKENS
    for name in ("table", "deep", "query"):
        assert any("does not depend on the images" in note for note in layers[name].notes)
    assert report.sparsity == pytest.approx(0.4, abs=0.01)


def test_the_chunks_do_not_matter_to_a_layer_on_a_constant() -> None:
    torch.manual_seed(4)
    graph, images = trace(Constant().eval(), inputs_of(2)), inputs_of(10)
    one, other = (walked(graph, images, LeastSquares(), chunk) for chunk in (10, 3))
    for name in ("table.weight", "deep.weight", "query.weight"):
        torch.testing.assert_close(one.changes[name], other.changes[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [ADMM(), ADMM(dampings=()), AdamCalibration(base=ADMM(), patches=8), LeastSquares()],
    ids=["chooses", "does not choose", "of a base", "has none"],
)
def test_a_problem_whose_folds_were_used_is_solved_in_the_same_way(method) -> None:
    held, _ = problem_with_folds(200, 0.5, 0)
    held = replace(held, patches=Patches(correlated(8, 12).float(), correlated(8, 5).float()))
    pattern, kept = Unstructured(), held.weight.numel() // 2
    alone = without_folds(method, held, pattern, kept)
    assert alone.folds is None or not needs_folds(method)
    found, other = (method.solve(of, pattern, kept) for of in (alone, held))
    assert torch.equal(found.weight, other.weight)
    assert found.damping == other.damping
    assert found.notes == other.notes


def test_a_layer_is_solved_when_its_folds_are_gone(monkeypatch) -> None:
    """They take as much memory as the splitting."""
    grams: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    choose, mask = admm.choose_damping, ADMM._mask

    def choosing(problem, *arguments):
        grams.extend(weakref.ref(fold.gram) for fold in problem.folds)
        return choose(problem, *arguments)

    def masking(self, *arguments):
        alive.append(any(gram() is not None for gram in grams))
        return mask(self, *arguments)

    monkeypatch.setattr(admm, "choose_damping", choosing)
    monkeypatch.setattr(ADMM, "_mask", masking)
    graph, images = graph_of("attention"), inputs_of(12)
    walked(graph, images, ADMM(), 4)
    assert len(grams) == 2 * len(alive) > 0
    assert not any(alive)


def problem_with_folds(
    samples: int, noise: float, seed: int
) -> tuple[Problem, list[tuple[Tensor, Tensor]]]:
    """A problem with folds in float32, and the samples of each."""
    weight = random_weight(1, 5, 12)
    parts = []
    for half in range(2):
        x = correlated(samples, 12, seed=seed + 10 * half)
        disturbed = x + noise * correlated(samples, 12, seed=seed + 10 * half + 1)
        parts.append((disturbed.float(), (x @ weight.mT).float()))
    sums = [Statistics() for _ in parts]
    for statistics, (x, y) in zip(sums, parts, strict=True):
        statistics.add(x, y)
    problems = [statistics.problem(weight.float()) for statistics in sums]
    whole = merged(sums).problem(weight.float())
    return Problem(**{**vars(whole), "folds": tuple(problems)}), parts


def held_out_error(parts: list[tuple[Tensor, Tensor]], mask: Tensor, damping: float) -> float:
    """Fits to either half by NumPy in float64, judged on the other half's samples."""
    dense, total = random_weight(1, 5, 12)[0].numpy(), 0.0
    for fitted, judged in (parts, parts[::-1]):
        x, y = (of[0].double().numpy() for of in fitted)
        centred, wanted = x - x.mean(0), y - y.mean(0)
        gram, cross = centred.T @ centred / len(x), wanted.T @ centred / len(x)
        amount = damping * np.trace(gram) / 12
        other_x, other_y = (of[0].double().numpy() for of in judged)
        for row, kept in enumerate(mask[0].numpy()):
            left = gram[np.ix_(kept, kept)] + amount * np.eye(kept.sum())
            found = np.linalg.solve(left, cross[row, kept] + amount * dense[row, kept])
            error = other_y[:, row] - y[:, row].mean() - (other_x - x.mean(0))[:, kept] @ found
            total += np.square(error).mean()
    return total


@pytest.mark.parametrize("samples", [16, 40, 400])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_damping_chosen_errs_least_on_the_other_half(samples: int, noise: float) -> None:
    candidates = (0.001, 0.01, 0.1, 1.0, 10.0)
    for seed in range(3):
        held, parts = problem_with_folds(samples, noise, seed)
        mask = Unstructured().mask(held.weight.abs(), 30)
        errors = {of: held_out_error(parts, mask, of) for of in candidates}
        falling = [10.0]  # from the strongest down while the error falls
        for stronger, weaker in itertools.pairwise(sorted(candidates, reverse=True)):
            if errors[weaker] >= errors[stronger]:
                break
            falling.append(weaker)
        chosen = choose_damping(held, mask, candidates)
        assert errors[chosen] <= errors[falling[-1]] * 1.01


def test_few_samples_are_damped_more_than_many() -> None:
    mask = Unstructured().mask(random_weight(1, 5, 12).abs(), 30)
    chosen = [
        choose_damping(problem_with_folds(samples, 0.5, 0)[0], mask, (0.001, 0.01, 0.1, 1.0, 10.0))
        for samples in (10, 1000)
    ]
    assert chosen[0] > chosen[1]


def test_a_damping_needs_halves_to_be_chosen_on() -> None:
    held, _ = problem_with_folds(20, 0.1, 0)
    whole = Problem(**{**vars(held), "folds": None})
    with pytest.raises(ValueError, match="does not hold its folds"):
        choose_damping(whole, torch.ones(1, 5, 12, dtype=torch.bool), (0.1, 1.0))


def test_the_default_method_says_where_samples_are_few() -> None:
    network = nn.Sequential(nn.Linear(40, 6)).eval()
    images = torch.randn(12, 40, generator=torch.Generator().manual_seed(5))
    (layer,) = secateur.prune(
        network, images, sparsity=0.5, include="*", progress=False
    ).report.layers
    assert any(note.startswith("12 samples for 40 columns: damping") for note in layer.notes)


def test_blocks_are_cut_alike_for_two_images_and_for_many() -> None:
    """Two tokens first are no two images, also where there are no three to tell."""
    torch.manual_seed(6)
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Turned(), nn.Linear(6, 4)).eval()
    images = torch.randn(7, 2, 5)
    graph = trace(network, images[:2])
    few, many = (find_cuts(graph, samples_of(graph, of)) for of in (images[:2], images))
    assert few.shapes == many.shapes


class Turned(nn.Module):
    """Tokens first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)
