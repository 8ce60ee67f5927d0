"""Networks that move channels about: which can leave, and that they leave nothing behind."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from inputs import samples_of
from test_couplings import HEAD, Net, check_nobody_else_reads, chosen, conv, free, pooled, traced
from torch import Tensor, nn

from secateur.frontends.torch.frontend import TorchFrontend
from secateur.network.couplings import find_couplings


def padded_shortcut(net: nn.Module, x: Tensor) -> Tensor:
    """Option A of ResNets: every second place, and zeros for the new channels."""
    x = F.relu(net.a(x))
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
    return pooled(net, shortcut + net.b(x))


def padded_and_read(net: nn.Module, x: Tensor) -> Tensor:
    return pooled(net, net.b(F.pad(net.a(x), (1, 1, 1, 1, 2, 0), value=0.5)))


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    """GhostNet: a shortcut is added to a part of what was put together."""
    x = net.a(x)
    y = torch.cat([net.b(x), net.c(x)], 1)[:, :8]
    y += x
    return pooled(net, y)


def added_to_a_part(net: nn.Module, x: Tensor) -> Tensor:
    """ReXNet: the first channels alone have a shortcut."""
    x = net.a(x)
    y = net.b(x)
    y[:, :4] += x
    return pooled(net, y)


def selective(net: nn.Module, x: Tensor) -> Tensor:
    """Two paths, of which a softmax chooses for each channel."""
    paths = torch.stack([net.a(x), net.b(x)], 1)
    chosen = net.choose(F.relu(net.c(paths.sum(1).mean((2, 3), keepdim=True))))
    chosen = chosen.view(-1, 2, 6, 1, 1).softmax(1)
    return pooled(net, net.d((paths * chosen).sum(1)))


def normalised_tokens(net: nn.Module, x: Tensor) -> Tensor:
    """LeViT: a BatchNorm over the positions of all images."""
    x = net.a(x.flatten(2).transpose(1, 2))
    x = net.norm(x.flatten(0, 1)).reshape_as(x)
    return net.head(F.hardswish(x).mean(1))


def windows(net: nn.Module, x: Tensor) -> Tensor:
    """Swin: windows of a map that is rolled."""
    x = net.a(x).permute(0, 2, 3, 1).roll((1, 1), (1, 2))
    x = x.view(-1, 2, 3, 2, 3, 6).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 6)
    x = net.b(x).view(-1, 2, 2, 3, 3, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, 6, 8)
    return net.head(x.flip(1).roll(-1, 2).mean((1, 2)))


def unfolded(net: nn.Module, x: Tensor) -> Tensor:
    """MobileViT: pixels of patches beside each other, and back."""
    x = net.a(x)
    batch, chan = x.shape[:2]
    x = x.reshape(batch * chan * 3, 2, 3, 2).transpose(1, 2)
    x = x.reshape(batch, chan, 9, 4).transpose(1, 3).reshape(batch * 4, 9, chan)
    x = net.b(x).view(batch, 4, 9, -1).transpose(1, 3)
    x = x.reshape(batch * 8 * 3, 3, 2, 2).transpose(1, 2).reshape(batch, 8, 6, 6)
    return pooled(net, x)


def chosen_places(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x).flatten(2)[:, :, torch.tensor([[0, 3], [5, 3]])]
    return pooled(net, net.b(x.cumsum(-1)))


def mixed_tokens(net: nn.Module, x: Tensor) -> Tensor:
    """Mixer: layers along the positions, and along the channels."""
    x = net.a(x.flatten(2).transpose(1, 2))
    x = x + net.d(F.gelu(net.c(x.transpose(1, 2)))).transpose(1, 2)
    return net.head(x.mean(1))


def lengths(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    return pooled(net, net.b(x / x.norm(dim=(2, 3), keepdim=True)))


def shuffled_halves(net: nn.Module, x: Tensor) -> Tensor:
    """ShuffleNet: one half passes, the other is computed with, and both are shuffled."""
    x = net.a(x)
    for part in (net.b, net.c):
        kept, other = x.chunk(2, 1)
        x = torch.cat([kept, F.relu(part(other))], 1)
        x = x.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)
    return pooled(net, x)


DISTANCES = (torch.arange(36) - torch.arange(36).unsqueeze(1)).abs()


def looked_up(net: nn.Module, x: Tensor) -> Tensor:
    """Swin: each head has biases of its own, in a table by the distance of two positions."""
    x = net.a(x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)
    bias = net.table.weight[DISTANCES.view(-1)].view(36, 36, 4).permute(2, 0, 1).sigmoid()
    x = (x + bias.unsqueeze(0)).relu().mean(-1)
    return net.head(net.b(x.transpose(1, 2)).mean(1))


def joined_bias(net: nn.Module, x: Tensor) -> Tensor:
    """BEiT: one bias of two vectors that are trained, and one that is not."""
    bias = torch.cat([net.one.bias, net.two.bias])
    return pooled(net, F.relu(F.conv2d(x, net.a.weight, bias)))


def turned(net: nn.Module, x: Tensor) -> Tensor:
    """A scale that is held as a column, and another that is a part of a matrix."""
    scale = net.one.weight.t().unsqueeze(-1) + 1
    return pooled(net, net.a(x) * scale * net.two.weight[1].view(8, 1, 1))


def linears(*sizes: tuple[str, int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(into, out) for name, into, out in sizes}


# A network, how many units may leave, and whether it stays the module that it is.
NETWORKS: dict[str, tuple[Net, int, bool]] = {
    "padded shortcut": (
        Net(padded_shortcut, a=conv(3, 6), b=conv(6, 8, 3, stride=2), head=HEAD),
        8,
        False,
    ),
    "padded and read": (
        Net(padded_and_read, a=conv(3, 6), b=conv(8, 8, 3), head=HEAD),
        6 + 8,
        True,
    ),
    "added in place": (
        Net(in_place, a=conv(3, 8), b=conv(8, 4), c=conv(8, 4), head=HEAD),
        8,
        True,
    ),
    "added to a part": (Net(added_to_a_part, a=conv(3, 4), b=conv(4, 8), head=HEAD), 8, False),
    "selective kernels": (
        Net(
            selective,
            a=conv(3, 6),
            b=conv(3, 6, 3),
            c=conv(6, 4),
            choose=conv(4, 12),
            d=conv(6, 8),
            head=HEAD,
        ),
        6 + 4 + 8,
        False,
    ),
    "normalised tokens": (
        Net(normalised_tokens, a=nn.Linear(3, 8), norm=nn.BatchNorm1d(8), head=HEAD),
        8,
        True,
    ),
    "windows": (Net(windows, a=conv(3, 6), b=nn.Linear(6, 8), head=HEAD), 6 + 8, False),
    "unfolded patches": (
        Net(unfolded, a=conv(3, 6), b=nn.Linear(6, 8), head=HEAD),
        6 + 8,
        False,
    ),
    "chosen places": (Net(chosen_places, a=conv(3, 6), b=conv(6, 8), head=HEAD), 6 + 8, True),
    "mixed tokens": (
        Net(mixed_tokens, **linears(("a", 3, 8), ("c", 36, 5), ("d", 5, 36)), head=HEAD),
        5,
        True,
    ),
    "lengths of vectors": (Net(lengths, a=conv(3, 6), b=conv(6, 8), head=HEAD), 6 + 8, True),
    "shuffled halves": (
        Net(shuffled_halves, a=conv(3, 8), b=conv(4, 4), c=conv(4, 4), head=HEAD),
        8,
        False,
    ),
    "looked up": (
        Net(
            looked_up,
            **linears(("a", 3, 4), ("b", 4, 8)),
            table=nn.Embedding(36, 4),
            head=HEAD,
        ),
        4 + 8,
        False,
    ),
    "joined bias": (
        Net(joined_bias, a=conv(3, 8), one=nn.Linear(1, 3), two=nn.Linear(1, 5), head=HEAD),
        8,
        True,
    ),
    "turned": (
        Net(turned, a=conv(3, 8), one=nn.Linear(8, 1), two=nn.Linear(8, 2), head=HEAD),
        8,
        False,
    ),
}
NAMES = pytest.mark.parametrize("name", NETWORKS)


@NAMES
def test_channels_that_are_moved_about_can_leave(name) -> None:
    module, count, _ = NETWORKS[name]
    graph, _ = traced(module)
    couplings = find_couplings(graph)
    told = [(of.units, of.fixed, of.blocks) for of in couplings]
    assert sum(of.units for of in couplings if of.fixed is None) == count, told


@NAMES
def test_a_channel_that_its_readers_ignore_is_read_by_nobody(name) -> None:
    check_nobody_else_reads(*traced(NETWORKS[name][0]))


@NAMES
def test_the_smaller_network_gives_what_the_masked_one_gives(name) -> None:
    module, _, stays = NETWORKS[name]
    graph, x = traced(module)
    notes: list[str] = []
    for seed in range(3):
        removed = [(of, chosen(of, random.Random(seed), 1)) for of in free(graph)]
        smaller = TorchFrontend.of(module).shrunk(removed, samples_of(graph, x))  # and compares
        notes += smaller.notes
        assert sum(of.numel() for of in smaller.model.parameters()) < sum(
            of.numel() for of in module.parameters()
        )
    assert bool(notes) != stays
