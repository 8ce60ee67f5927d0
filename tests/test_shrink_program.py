"""Networks that hold sizes as numbers, without some channels: their traced programs."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from inputs import samples_of, trace
from test_couplings import Net, chosen, conv, free, pooled, traced
from torch import Tensor, nn

import secateur
from secateur import ModelError
from secateur.frontends import protocol
from secateur.frontends.torch.exported_programs import is_program
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.network.couplings import find_couplings


def tokens(net: nn.Module, x: Tensor, attend: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    x = net.embed(x.flatten(2).transpose(1, 2))
    return net.head((x + attend(net, net.norm(x))).mean(1))


def joined_heads(net: nn.Module, x: Tensor) -> Tensor:
    def attend(net: nn.Module, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = net.qkv(x).reshape(batch, count, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return net.out(y.transpose(1, 2).reshape(batch, count, width))

    return tokens(net, x, attend)


def chunked(net: nn.Module, x: Tensor) -> Tensor:
    def attend(net: nn.Module, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        parts = net.qkv(x).chunk(3, -1)
        q, k, v = (part.view(batch, count, 2, 4).transpose(1, 2) for part in parts)
        y = ((q @ k.transpose(-1, -2)) * 4**-0.5).softmax(-1) @ v
        return net.out(y.transpose(1, 2).reshape(batch, count, width))

    return tokens(net, x, attend)


def ghost(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    return pooled(net, torch.cat([x, net.b(x)], 1)[:, :9])


def c2f(net: nn.Module, x: Tensor) -> Tensor:
    parts = list(net.a(x).chunk(2, 1))
    parts.append(net.b(parts[-1]).relu() + parts[-1])
    return pooled(net, net.c(torch.cat(parts, 1)))


def gated(net: nn.Module, x: Tensor) -> Tensor:
    gate, up = net.up(x.flatten(2).transpose(1, 2)).chunk(2, -1)
    return net.head(net.down(F.silu(gate) * up).mean(1))


def one_place(net: nn.Module, x: Tensor) -> Tensor:
    """Half of the channels scaled by one of the others, and sizes as numbers."""
    x = net.a(x)
    x = x.view(-1, 6, 36) * x[:, 5].view(-1, 1, 36).sigmoid()
    return pooled(net, x.unflatten(-1, (6, 6)))


def attention(function: Callable[[nn.Module, Tensor], Tensor]) -> Net:
    linears = {"embed": (3, 8), "qkv": (8, 24), "out": (8, 8), "head": (8, 2)}
    parts = {name: nn.Linear(*sizes) for name, sizes in linears.items()}
    return Net(function, norm=nn.LayerNorm(8), **parts)


# A network, and how many units of it may leave.
NETWORKS: dict[str, tuple[Net, int]] = {
    "joined heads": (attention(joined_heads), 8 + 8),
    "chunked": (attention(chunked), 8 + 8),
    "ghost": (Net(ghost, a=conv(3, 6), b=conv(6, 6, groups=6), head=nn.Linear(9, 2)), 6),
    "c2f": (Net(c2f, a=conv(3, 8), b=conv(4, 4), c=conv(12, 8), head=nn.Linear(8, 2)), 8 + 8),
    "gated": (Net(gated, up=nn.Linear(3, 14), down=nn.Linear(7, 8), head=nn.Linear(8, 2)), 7 + 8),
    "one place": (Net(one_place, a=conv(3, 6), head=nn.Linear(6, 2)), 5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_in_forward_are_mended(name) -> None:
    module, count = NETWORKS[name]
    graph, x = traced(module)
    assert sum(coupling.units for coupling in free(graph)) == count
    removed = [(coupling, chosen(coupling, random.Random(0), 1)) for coupling in free(graph)]
    before = copy.deepcopy(module.state_dict())
    smaller = TorchFrontend.of(module).shrunk(removed, samples_of(graph, x))  # and compares
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())
    held = smaller.model.state_dict()
    assert held.keys() == before.keys()
    assert sum(of.numel() for of in held.values()) < sum(of.numel() for of in before.values())
    if name not in ("gated", "c2f"):  # these take parts by their share
        check_program(smaller, x)


def check_program(smaller: TorchFrontend, x: Tensor) -> None:
    """A program says that it is one, takes any batch, trains, is copied and traced again."""
    assert "traced program" in " ".join(smaller.notes)
    model: Any = copy.deepcopy(smaller.model)
    assert torch.allclose(model(torch.cat([x, x]))[3:], smaller.model(x), atol=1e-5)
    model.train().requires_grad_(True)(x).sum().backward()
    assert find_couplings(trace(smaller.model, x))


def test_what_is_computed_with_a_number_of_channels_is_kept() -> None:
    module = Net(lambda net, x: pooled(net, net.a(x)) * net.a.out_channels, a=conv(3, 6))
    module.head = nn.Linear(6, 2)
    graph, x = traced(module)
    removed = [(coupling, [0]) for coupling in free(graph)]
    smaller = TorchFrontend.of(module).shrunk(removed, samples_of(graph, x))
    assert "differs by" in " ".join(smaller.notes)


def test_a_smaller_network_that_gives_something_else_is_refused(monkeypatch) -> None:
    module, _ = NETWORKS["one place"]
    graph, x = traced(module)
    removed = [(coupling, [0]) for coupling in free(graph)]
    monkeypatch.setattr(protocol, "_difference", lambda found, expected: float("nan"))
    with pytest.raises(ModelError, match="differs by"):
        TorchFrontend.of(module).shrunk(removed, samples_of(graph, x))


def test_parts_that_lie_in_one_value_keep_one_size() -> None:
    module = Net(pooled_attention, m=nn.MultiheadAttention(8, 2, batch_first=True), **END)
    (coupling,) = [of for of in free(traced(module)[0]) if of.blocks]
    assert [len(block) for block in coupling.blocks] == [4] * 4  # of values, of queries and keys


END = {"embed": nn.Linear(3, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 2)}


def pooled_attention(net: nn.Module, x: Tensor) -> Tensor:
    return tokens(net, x, lambda net, y: net.m(y, y, y, need_weights=False)[0])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, of its own specs
def test_a_network_that_became_a_program_is_saved_as_one(tmp_path: Path) -> None:
    module, _ = NETWORKS["one place"]
    x = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    result = secateur.prune(
        module.eval(), x, pattern="channels", max_macs=0.9, recipe=secateur.Recipe()
    )
    assert "traced program" in " ".join(result.report.notes)
    result.save(tmp_path / "out")
    torch.save(result.model, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    again = pickle.loads(pickle.dumps(copy.deepcopy(whole)))
    assert pickle.loads(pickle.dumps(copy.deepcopy(whole).train())).training
    for twin in (whole, again):
        assert torch.equal(twin(x), result.model(x))
        assert twin.state_dict().keys() == result.model.state_dict().keys()
        assert not twin.training
        assert is_program(twin)
    read = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert torch.allclose(read(x), result.model(x), atol=1e-5)
    assert secateur.evaluate(tmp_path / "out" / "model.pt2", x, reference=result.model).agreement
