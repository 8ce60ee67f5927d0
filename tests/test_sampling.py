"""Which positions are sampled depends on the seed, the layer and the sample; not on the chunks."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import samples_of, trace
from layouts import NETWORKS, TOKENS, Constant
from torch import Tensor, nn

from secateur.core.methods import ADMM, AdamCalibration
from secateur.core.problem import Problem
from secateur.network.graph import Graph
from secateur.pruning.layer_fit import LayerFit
from secateur.pruning.layer_selection import select_layers
from secateur.pruning.sampling import Draw, Sampling
from secateur.pruning.streams import DualStream, LayerChunks

SAMPLES = 60
CHUNKS = (1, 8, 50, SAMPLES)


def draw(samples: int, total: int, seed: int = 0) -> Draw:
    return Draw.of(samples, total, torch.Generator().manual_seed(seed))


@given(samples=st.integers(1, 40), total=st.integers(1, 900), each=st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_places_are_spread_over_each_sample_and_all_when_few(
    samples: int, total: int, each: int
) -> None:
    chosen = draw(samples, total)
    assert int(chosen.counts.sum()) == total
    assert int(chosen.counts.max() - chosen.counts.min()) <= 1
    sample, place = chosen.choose(each)
    for index, count in enumerate(chosen.counts.tolist()):
        found = place[sample == index]
        if count >= each:
            assert torch.equal(found, torch.arange(each))
            continue
        assert len(found) == count
        strata = torch.arange(count, dtype=torch.float64) * each / max(count, 1)
        assert ((found - strata).abs() <= each / max(count, 1) + 1).all()
        assert ((found >= 0) & (found < each)).all()


@given(cuts=st.sets(st.integers(1, 39), max_size=5), total=st.integers(1, 900))
@settings(deadline=None, max_examples=30)
def test_parts_of_the_samples_choose_what_the_whole_chooses(cuts: set[int], total: int) -> None:
    whole = draw(40, total)
    bounds = [0, *sorted(cuts), 40]
    parts = [
        (first, whole.part(first, stop - first).choose(30))
        for first, stop in itertools.pairwise(bounds)
    ]
    together = [(first + sample, place) for first, (sample, place) in parts]
    for one, other in zip(whole.choose(30), zip(*together, strict=True), strict=True):
        assert torch.equal(one, torch.cat(other))


def test_seeds_layers_and_calls_take_different_places() -> None:
    draws = [
        one.choose(1000)[1]
        for seed, layer in ((0, 0), (0, 1), (1, 0))
        for one in Sampling(seed=seed).draws(layer, 10, 300, 300)
    ]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


class Images(nn.Module):
    """Convolutions, one of them strided, one depthwise, and a layer behind a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.third, self.head = nn.Conv2d(8, 8, 1, groups=8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x.unsqueeze(1)).relu()).relu()
        return self.head(self.third(y).mean((2, 3)))


ALL = {**NETWORKS, "constant": Constant, "images": Images}


def inputs(count: int = SAMPLES) -> Tensor:
    return torch.randn(count, TOKENS, 5, generator=torch.Generator().manual_seed(1))


@functools.cache
def graph_of(name: str) -> Graph:
    torch.manual_seed(0)
    return trace(ALL[name]().eval().requires_grad_(False), inputs(2))


@functools.cache
def problems(name: str, chunk: int, *, backwards: bool = False) -> list[Problem]:
    """Each layer's problem, on the dense network, with stored samples."""
    graph, method = graph_of(name), AdamCalibration(base=ADMM(), patches=50)
    streams = DualStream(graph, samples_of(graph, inputs()), chunk=chunk, inputs="dense")
    sampling, found = Sampling(per_column=1, least=200), []
    for index, layer in enumerate(select_layers(graph.layers, include="*")):
        chunks = streams.run_to(layer)
        if backwards:
            chunks = Backwards(chunks)
        fit = LayerFit(graph, chunks, index=index, sampling=sampling, start={})
        found.append(fit.problem(method))
    return found


class Backwards(LayerChunks):
    """The last bundle first."""

    def __init__(self, chunks: LayerChunks) -> None:
        self.__dict__.update(vars(chunks))
        self.bundles = self.bundles[::-1]


def assert_close(one: Problem, other: Problem) -> None:
    """To 1e-6 of the size of what is summed, which is that of the moments about zero."""
    size = {key: float(getattr(one, key).abs().max()) for key in ("input_mean", "output_mean")}
    size["energy"] = float(one.energy.abs().max()) + size["output_mean"] ** 2
    size["gram"] = float(one.gram.abs().max()) + size["input_mean"] ** 2
    size["cross"] = (size["energy"] * size["gram"]) ** 0.5
    for key, of in size.items():
        assert float((getattr(one, key) - getattr(other, key)).abs().max()) <= 1e-6 * of + 1e-9


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("chunk", CHUNKS[:-1])
def test_chunks_of_any_size_give_the_same_positions_and_sums(name: str, chunk: int) -> None:
    for one, other in zip(problems(name, SAMPLES), problems(name, chunk), strict=True):
        assert one.patches is not None
        assert other.patches is not None
        torch.testing.assert_close(one.patches.inputs, other.patches.inputs)
        assert one.samples == other.samples
        assert_close(one, other)
        assert (one.folds is None) == (other.folds is None)
        for a, b in zip(one.folds or (), other.folds or (), strict=True):
            assert a.samples == b.samples > 0
            assert_close(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_as_many_positions_are_sampled_as_were_asked_for(name: str) -> None:
    """Of each call; or all that there are."""
    layers = select_layers(graph_of(name).layers, include="*")
    for layer, problem in zip(layers, problems(name, 8), strict=True):
        calls = len(layer.calls)
        assert problem.samples in (200 * calls, SAMPLES * calls, 3 * SAMPLES * calls)


@pytest.mark.parametrize("name", ["recurrent", "constant", "images"])
def test_the_order_of_chunks_does_not_change_a_byte(name: str) -> None:
    pairs = zip(problems(name, 8), problems(name, 8, backwards=True), strict=True)
    for one, other in pairs:
        for a, b in zip((one, *(one.folds or ())), (other, *(other.folds or ())), strict=True):
            for key in ("gram", "cross", "energy", "variance", "input_mean", "output_mean"):
                assert torch.equal(getattr(a, key), getattr(b, key))
        assert one.patches is not None
        assert other.patches is not None
        assert torch.equal(one.patches.inputs, other.patches.inputs)
