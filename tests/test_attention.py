"""Attentions get narrower: fewer heads, and fewer dimensions of each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from attentions import DEPTH, HEADS, Net, networks
from inputs import samples_of, trace
from torch import Tensor

from secateur import ModelError, frontends
from secateur.frontends.protocol import Frontend, check_same
from secateur.network.couplings import Coupling, Removed, find_couplings, masked, rescaled
from secateur.network.graph import Graph
from secateur.pruning.channels.costs import macs_cost
from secateur.pruning.channels.space import find_space
from secateur.pruning.sampling import Sampling

NETWORKS = networks()
GROUPED = ("grouped", "repeated", "expanded")
X = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def attention_of(graph: Graph) -> list[Coupling]:
    """The couplings of the attention that can leave."""
    free = [of for of in find_couplings(graph) if of.fixed is None]
    return [of for of in free if of.blocks or of.whole]


def heads(couplings: Iterable[Coupling]) -> Removed:
    return [(of, [1]) for of in couplings if of.whole]


def dimensions(couplings: Iterable[Coupling]) -> Removed:
    """One of each block, another in each."""
    return [
        (of, [block[at % len(block)] for at, block in enumerate(of.blocks)])
        for of in couplings
        if not of.whole
    ]


@functools.cache
def traced(name: str) -> Graph:
    return trace(NETWORKS[name], X)


def smaller(model: Frontend, removed: Removed) -> Frontend:
    """Without some units: the front-end compares it with the masked one."""
    assert removed
    return model.shrunk(removed, samples_of(traced("separate"), X))


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_attentions_are_the_masked_ones(name: str) -> None:
    model, found = frontends.open(NETWORKS[name]), attention_of(traced(name))
    left = smaller(model, [*heads(found), *dimensions(found)]).tensors()
    assert sum(of.numel() for of in left.values()) < sum(
        of.numel() for of in model.tensors().values()
    )


EXPORTED = ("separate", "stacked", "normalised", "grouped", "expanded", "module")


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_attentions_shrink(name: str) -> None:
    model = frontends.open(NETWORKS[name]).to_onnx(X)
    found = attention_of(trace(model, X))
    smaller(frontends.open(model), [*heads(found), *dimensions(found)])


@pytest.mark.parametrize("name", NETWORKS)
def test_what_of_an_attention_can_leave(name: str) -> None:
    """Heads always, values' dimensions unless they share a value with what stays."""
    found = attention_of(traced(name))
    expected = {2 if name in GROUPED else HEADS}
    assert {of.units for of in found if of.whole} == expected
    met = [of.query_keys for of in found if of.query_keys is not None]
    assert bool(met) == (name not in ("rotary", "normalised"))
    assert all(of.linear for of in met)
    assert all({len(block) for block in of.blocks} == {DEPTH} for of in found if not of.whole)


@pytest.mark.parametrize(
    ("name", "why"),
    [("rotary", "computed with the output of cos"), ("normalised", "parts of one value")],
)
def test_dimensions_that_stay_have_a_reason(name: str, why: str) -> None:
    reasons = [of.fixed or "" for of in find_couplings(traced(name)) if of.blocks]
    assert any(why in reason for reason in reasons)


@pytest.mark.parametrize("name", ["separate", "chunked", "grouped"])
def test_a_module_that_takes_sizes_from_values_stays_one(name: str) -> None:
    found = attention_of(traced(name))
    assert not smaller(frontends.open(NETWORKS[name]), dimensions(found)).notes


def test_queries_make_up_for_the_root_of_their_number() -> None:
    """With one over its own root a module that divides by the root gives the same as before."""
    net = NETWORKS["separate"]
    graph = traced("separate")
    (coupling,) = [of for of in attention_of(graph) if of.query_keys]
    removed = dimensions([coupling])
    changed = rescaled(graph.parameters, removed)
    assert {*changed} == {"q.weight", "q.bias"}
    assert torch.allclose(changed["q.weight"], net.q.weight * (3 / 4) ** 0.5)  # type: ignore[union-attr, operator]
    assert not rescaled(traced("scaled").parameters, removed_of("scaled"))


def removed_of(name: str) -> Removed:
    return dimensions(attention_of(traced(name)))


def test_queries_that_are_left_alone_would_be_found_out() -> None:
    """The comparison of the smaller network with the masked one sees a wrong factor."""
    net = NETWORKS["separate"]
    graph, model = traced("separate"), frontends.open(net)
    removed = removed_of("separate")
    ignoring = model.edited(masked(graph.parameters, removed))
    right = model.shrunk(removed, samples_of(graph, X))
    wrong = right.edited({"q.weight": right.tensors()["q.weight"] * (4 / 3) ** 0.5})
    check_same(right, ignoring, samples_of(graph, X))
    with pytest.raises(ModelError, match="differs by"):
        check_same(wrong, ignoring, samples_of(graph, X))


def test_what_is_read_and_multiplied_as_well_stays() -> None:
    """Where keys are the values too, the columns that read values do not make up for keys."""

    def shared(net: Net, x: Tensor) -> Tensor:
        q, k = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (net.q, net.k))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, k)
        return net.out(y.transpose(1, 2).flatten(2))

    parts = {name: torch.nn.Linear(12, 12) for name in ("q", "k", "out")}
    found = find_couplings(trace(Net(shared, **parts).eval(), X))
    reasons = [of.fixed or "" for of in found if of.query_keys]
    assert reasons == ["read by a layer and multiplied with keys"]


def units_of(found: Sequence[Coupling]) -> set[tuple[str, int, int]]:
    return {
        (part.parameter, part.axis, at)
        for of in found
        for part in of.slices
        for indices in part.indices
        for at in indices
    }


@pytest.mark.parametrize("name", ["stacked", "chunked", "expanded"])
def test_costs_are_those_of_the_smaller_network(name: str) -> None:
    """With heads that leave and dimensions that leave all heads."""
    graph, model = traced(name), frontends.open(NETWORKS[name])
    layers = [of for of in graph.layers if of.parameter is not None]
    space = find_space(find_couplings(graph), layers, sampling=Sampling())
    removed = [*heads(attention_of(graph)), *dimensions(attention_of(graph))]
    counts = np.array([units_gone(of.coupling, removed) for of in space.removable])
    cost = macs_cost(layers, space.removable)
    left = trace(smaller(model, removed).model, X).layers
    assert cost.at(counts) == pytest.approx(sum(of.macs for of in left if of.parameter))
    none = np.zeros(len(counts), dtype=np.int64)
    for number, step in enumerate(np.diag(counts)):
        rest = counts - step
        saved = cost.savings(rest, counts)[number]
        assert saved == pytest.approx(cost.at(rest) - cost.at(counts))
        assert cost.savings(none, step)[number] == pytest.approx(cost.dense - cost.at(step))


def units_gone(coupling: Coupling, removed: Removed) -> int:
    return sum(len(units) for other, units in removed if other.slices == coupling.slices)


@pytest.mark.parametrize("name", ["stacked", "chunked", "module", "expanded"])
def test_heads_hold_what_their_dimensions_hold(name: str) -> None:
    found = attention_of(traced(name))
    whole = [of for of in found if of.whole]
    assert units_of(whole) == units_of([of for of in found if not of.whole])
    for one, other in itertools.combinations(whole, 2):
        assert not units_of([one]) & units_of([other])
