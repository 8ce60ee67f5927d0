"""Queries and keys of fewer dimensions: the logits are matched as well as they can be."""

from __future__ import annotations

import functools

import pytest
import torch
from attentions import DEPTH, networks
from inputs import samples_of, trace
from torch import Tensor

import secateur
from secateur.network.couplings import find_couplings
from secateur.network.graph import Graph
from secateur.network.sample_layout import find_layouts
from secateur.pruning.channels.curves import ChannelSensitivity, ChannelStudy
from secateur.pruning.channels.logits import Mixing
from secateur.pruning.channels.space import ChannelSpace, find_space
from secateur.pruning.sampling import Sampling

NETWORKS = networks()
X = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(2))
NAMES = ("separate", "stacked", "grouped")


@functools.cache
def studied(name: str) -> tuple[Graph, ChannelSpace, ChannelStudy]:
    """A network, what can leave it, and what is known of that; from all positions of all images."""
    graph = trace(NETWORKS[name], X)
    layers = [of for of in graph.layers if of.parameter is not None]
    sampling = Sampling()
    space = find_space(find_couplings(graph), layers, sampling=sampling)
    samples = samples_of(graph, X)
    study = ChannelSensitivity(images=1).study(
        graph,
        samples,
        space,
        sampling=sampling,
        layouts=find_layouts(graph, samples),
        chunk=40,
    )
    return graph, space, study


def mixing_of(name: str) -> tuple[Graph, Mixing]:
    graph, _, study = studied(name)
    (mixing,) = study.mixings.values()
    return graph, mixing


def made(name: str, changes: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of each head of a network with other parameters: (positions, dims) each."""
    net = NETWORKS[name]
    parameters = {**net.state_dict(), **changes}
    with torch.no_grad():
        x = net.norm(net.embed(X.flatten(2).transpose(1, 2))).flatten(0, 1).double()

    def part(layer: str) -> Tensor:
        weight, bias = (parameters[f"{layer}.{of}"].double() for of in ("weight", "bias"))
        return (x @ weight.mT + bias).unflatten(1, (-1, DEPTH)).transpose(0, 1)

    if name == "stacked":
        q, k, _ = part("qkv").chunk(3)
    else:
        q, k = part("q"), part("k").repeat_interleave(2 if name == "grouped" else 1, 0)
    return list(zip(q, k, strict=True))


def logit_loss(name: str, changes: dict[str, Tensor]) -> float:
    """Mean squared error over pairs of all positions, apart from what is the same for a query."""
    total = 0.0
    for (q, k), (new_q, new_k) in zip(made(name, {}), made(name, changes), strict=True):
        error = q @ k.mT - new_q @ new_k.mT
        total += float((error - error.mean(1, keepdim=True)).square().mean())
    return total


@pytest.mark.parametrize("name", NAMES)
def test_with_all_dimensions_the_logits_are_the_same(name: str) -> None:
    graph, mixing = mixing_of(name)
    assert logit_loss(name, mixing.changes(graph.parameters, left=DEPTH)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_fewer_dimensions_lose_less_than_any_that_are_taken_out(name: str) -> None:
    graph, mixing = mixing_of(name)
    losses = [
        logit_loss(name, mixing.changes(graph.parameters, left=left)) for left in range(DEPTH + 1)
    ]
    assert losses == sorted(losses, reverse=True)
    met = mixing.coupling.query_keys
    assert met is not None
    for place in range(DEPTH):
        changed: dict[str, Tensor] = {}
        for part in (*met.queries, *met.keys):
            new = changed.get(part.parameter, graph.parameters[part.parameter]).clone()
            new[[at for head in mixing.heads for at in part.indices[head[place]]]] = 0
            changed[part.parameter] = new
        assert losses[DEPTH - 1] < 0.9 * logit_loss(name, changed)


@pytest.mark.parametrize("name", ["chunked", "module"])
def test_attentions_are_pruned(name: str) -> None:
    result = secateur.prune(
        NETWORKS[name],
        X,
        pattern=secateur.Channels(multiple=1),
        max_macs=0.7,
        recipe=secateur.Recipe(),
        progress=False,
    )
    assert result.report.macs_fraction <= 0.7
    names = [of.name for of in result.report.channels if of.left < of.channels]
    assert any("queries and keys" in of or "dimensions of heads" in of for of in names)
    dense = NETWORKS[name](X)
    error = (result.model(X) - dense).square().mean() / dense.var(0).mean()
    assert error < 0.3
