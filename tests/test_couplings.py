"""What goes together when a network gets narrower: no reader is forgotten, none is made up."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from inputs import samples_of, trace
from torch import Tensor, nn

from secateur import ModelError
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.frontends.torch.shrink import shrink
from secateur.network.carrying import _HANDLERS
from secateur.network.couplings import Coupling, find_couplings, masked
from secateur.network.graph import Graph


class Net(nn.Module):
    """Parts, and a function of them and the input."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(into: int, out: int, size: int = 1, **more: int) -> nn.Module:
    return nn.Conv2d(into, out, size, padding=size // 2, **more)


def pooled(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(x.mean((2, 3)))


def chain(net: nn.Module, x: Tensor) -> Tensor:
    return pooled(net, net.b(F.relu(net.norm(net.a(x)))))


def residual(net: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(net.stem(x))
    x = x + net.b(F.relu(net.a(x)))
    return pooled(net, x + net.d(F.relu(net.c(x))))


def dense(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x)
    x = torch.cat([x, net.a(F.relu(x))], 1)
    x = torch.cat([x, net.b(F.relu(net.norm(x)))], 1)
    return pooled(net, x)


def unet(net: nn.Module, x: Tensor) -> Tensor:
    first = F.relu(net.a(x))
    deep = F.relu(net.b(F.max_pool2d(first, 2)))
    up = F.interpolate(net.up(deep), scale_factor=1.0, mode="nearest")
    return net.c(torch.cat([first, up], 1))


def squeeze_excite(net: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(net.depthwise(F.relu(net.expand(x))))
    gate = net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))).sigmoid()
    return pooled(net, net.project(x * gate))


def flattened(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(F.relu(net.a(x)).flatten(1))


def shuffled(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return pooled(net, net.b(x))


def swiglu(net: nn.Module, x: Tensor) -> Tensor:
    x = x.flatten(2).transpose(1, 2)
    return net.head(net.down(F.silu(net.gate(x)) * net.up(x)).mean(1))


def attention(net: nn.Module, x: Tensor, *, fused: bool = True) -> Tensor:
    x = net.embed(x.flatten(2).transpose(1, 2))
    y = net.norm(x)
    batch, tokens, _ = y.shape
    q, k, v = (part(y).view(batch, tokens, 2, -1).transpose(1, 2) for part in (net.q, net.k, net.v))
    if fused:
        y = F.scaled_dot_product_attention(q, k, v)
    else:
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    x = x + net.out(y.transpose(1, 2).flatten(2))
    return net.head(x.mean(1))


def explicit(net: nn.Module, x: Tensor) -> Tensor:
    return attention(net, x, fused=False)


def linears(*sizes: tuple[str, int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(into, out) for name, into, out in sizes}


ATTENTION = {
    **linears(
        ("embed", 3, 8), ("q", 8, 8), ("k", 8, 8), ("v", 8, 8), ("out", 8, 8), ("head", 8, 2)
    ),
    "norm": nn.LayerNorm(8),
}
HEAD = nn.Linear(8, 2)
# A network, and how many channels of it may leave.
NETWORKS: dict[str, tuple[Net, int]] = {
    "chain": (Net(chain, a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 8), head=HEAD), 6 + 8),
    "prelu": (Net(chain, a=conv(3, 6), norm=nn.PReLU(6), b=conv(6, 8), head=HEAD), 6 + 8),
    "group norm": (
        Net(chain, a=conv(3, 6), norm=nn.GroupNorm(2, 6), b=conv(6, 8), head=HEAD),
        2 + 8,
    ),
    "instance norm": (
        Net(chain, a=conv(3, 6), norm=nn.InstanceNorm2d(6, affine=True), b=conv(6, 8), head=HEAD),
        6 + 8,
    ),
    "one group": (Net(chain, a=conv(3, 6), norm=nn.GroupNorm(1, 6), b=conv(6, 8), head=HEAD), 8),
    "transposed groups": (
        Net(
            chain,
            a=conv(3, 6),
            norm=nn.ReLU(),
            b=nn.ConvTranspose2d(6, 8, 2, 2, groups=2),
            head=HEAD,
        ),
        3 + 4,
    ),
    "residual": (
        Net(
            residual,
            stem=conv(3, 8),
            **{name: conv(*of) for name, of in {"a": (8, 5), "b": (5, 8), "c": (8, 4)}.items()},
            d=conv(4, 8),
            head=HEAD,
        ),
        8 + 5 + 4,
    ),
    "dense": (
        Net(dense, stem=conv(3, 3), a=conv(3, 2), norm=nn.BatchNorm2d(5), b=conv(5, 3), head=HEAD),
        3 + 2 + 3,
    ),
    "u-net": (
        Net(
            unet,
            a=conv(3, 4),
            b=conv(4, 6),
            up=nn.ConvTranspose2d(6, 5, 2, 2),
            c=conv(9, 2),
        ),
        4 + 6 + 5,
    ),
    "squeeze and excite": (
        Net(
            squeeze_excite,
            expand=conv(3, 6),
            depthwise=conv(6, 6, 3, groups=6),
            down=conv(6, 2),
            up=conv(2, 6),
            project=conv(6, 8),
            head=HEAD,
        ),
        6 + 2 + 8,
    ),
    "groups": (
        Net(chain, a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 8, groups=2), head=HEAD),
        3 + 4,
    ),
    "flattened": (Net(flattened, a=conv(3, 4), head=nn.Linear(4 * 36, 2)), 4),
    "shuffled": (Net(shuffled, a=conv(3, 8), b=conv(8, 8), head=HEAD), 4 + 8),
    "swiglu": (Net(swiglu, **linears(("gate", 3, 7), ("up", 3, 7), ("down", 7, 8)), head=HEAD), 15),
    "attention": (Net(attention, **ATTENTION), 8 + 8),
    "attention in single steps": (Net(explicit, **ATTENTION), 8 + 8),
}
NAMES = pytest.mark.parametrize("name", NETWORKS)


def traced(module: nn.Module) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 3, 6, 6)
    return trace(module.eval().requires_grad_(False), x), x


def output(graph: Graph, x: Tensor) -> Tensor:
    values = dict(graph.parameters) | {graph.inputs[0]: x}
    for index, op in enumerate(graph.ops):
        values[op.name] = graph.run(index, values)
    return values[graph.outputs[0]]


def free(graph: Graph) -> list[Coupling]:
    """What can leave; whole heads apart, for which see `test_attention.py`."""
    return [of for of in find_couplings(graph) if of.fixed is None and not of.whole]


def overwritten(graph: Graph, coupling: Coupling, unit: int, role: str, value: float) -> Graph:
    """The same network with a unit's slices in one role set to a number."""
    changed: dict[str, Tensor] = {}
    for part in coupling.of(role):
        weight = changed.get(part.parameter, graph.parameters[part.parameter].clone())
        weight.index_fill_(part.axis, torch.tensor(part.indices[unit], dtype=torch.long), value)
        changed[part.parameter] = weight
    return graph.changed(changed)


def check_nobody_else_reads(graph: Graph, x: Tensor) -> None:
    for coupling in free(graph):
        for unit in {0, coupling.units - 1}:
            if not coupling.of("columns"):  # queries and keys, which are multiplied
                continue
            cut = overwritten(graph, coupling, unit, "columns", 0.0)
            other = overwritten(cut, coupling, unit, "rows", 0.7)
            other = overwritten(other, coupling, unit, "entries", 0.9)
            assert torch.allclose(output(cut, x), output(other, x), rtol=1e-4, atol=1e-5)


@NAMES
def test_a_channel_that_its_readers_ignore_is_read_by_nobody(name) -> None:
    check_nobody_else_reads(*traced(NETWORKS[name][0]))


@NAMES
def test_every_channel_that_can_leave_is_found(name) -> None:
    graph, _ = traced(NETWORKS[name][0])
    assert sum(coupling.units for coupling in free(graph)) == NETWORKS[name][1]


@NAMES
def test_each_slice_of_a_parameter_belongs_to_one_unit(name) -> None:
    graph, _ = traced(NETWORKS[name][0])
    seen: set[tuple[str, int, int]] = set()
    for coupling in free(graph):
        for part in coupling.slices:
            for index in (index for unit in part.indices for index in unit):
                key = part.parameter, part.axis, index
                assert key not in seen
                seen.add(key)


@pytest.mark.parametrize("name", ["attention", "attention in single steps"])
def test_heads_are_blocks(name) -> None:
    graph, _ = traced(NETWORKS[name][0])
    blocks = [coupling.blocks for coupling in free(graph) if coupling.blocks]
    assert blocks
    for found in blocks:
        assert len({len(block) for block in found}) == 1
        assert sorted(unit for block in found for unit in block) == list(range(8))


def test_queries_and_keys_leave_together() -> None:
    graph, x = traced(NETWORKS["attention in single steps"][0])
    (coupling,) = [one for one in free(graph) if not one.of("columns")]
    assert {part.parameter for part in coupling.of("rows")} == {"q.weight", "k.weight"}
    cut = overwritten(overwritten(graph, coupling, 3, "rows", 0.0), coupling, 3, "entries", 0.0)
    (keys,) = [part for part in coupling.of("rows") if part.parameter == "k.weight"]
    weight = graph.parameters["k.weight"].clone()
    weight[list(keys.indices[3])] = 0.7
    assert torch.allclose(output(cut, x), output(cut.changed({"k.weight": weight}), x))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("attention", "LayerNorm"),
        ("one group", "GroupNorm"),
        ("chain", "output"),
    ],
)
def test_what_cannot_leave_has_a_reason(name, why) -> None:
    graph, _ = traced(NETWORKS[name][0])
    reasons = [coupling.fixed for coupling in find_couplings(graph) if coupling.fixed]
    assert any(why in reason for reason in reasons)


def test_a_transposed_convolution_that_makes_several_channels_of_each_keeps_them() -> None:
    up = nn.ConvTranspose2d(4, 8, 2, 2, groups=4)
    graph, _ = traced(Net(chain, a=conv(3, 4), norm=nn.ReLU(), b=up, head=HEAD))
    assert free(graph) == []
    assert any("several channels" in (coupling.fixed or "") for coupling in find_couplings(graph))


def test_channels_of_computed_weights_stay_and_are_told_by_what_makes_them() -> None:
    first = nn.utils.parametrizations.weight_norm(conv(3, 6))
    graph, _ = traced(Net(chain, a=first, norm=nn.ReLU(), b=conv(6, 8), head=HEAD))
    assert [coupling.units for coupling in free(graph)] == [8]
    assert all(coupling.of("rows") for coupling in find_couplings(graph))


class Random(nn.Module):
    """A network of random operations on values of one size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        widths, self.steps, self.parts = [3], list[tuple[str, int, int]](), nn.ModuleList()
        for _ in range(choose.randint(4, 9)):
            kind = choose.choice(["conv", "conv", "grouped", "depthwise", "norm", "add", "cat"])
            one, other = choose.randrange(len(widths)), choose.randrange(len(widths))
            width = widths[one]
            if kind == "grouped" and width % 2:
                kind = "conv"
            if kind == "add" and widths[other] != width:
                kind = "cat"
            made = {"conv": choose.choice([4, 6]), "grouped": 8, "cat": width + widths[other]}
            out = made.get(kind, width)
            self.parts.append(
                {
                    "conv": lambda a=width, b=out: nn.Conv2d(a, b, 1),
                    "grouped": lambda a=width, b=out: nn.Conv2d(a, b, 1, groups=2),
                    "depthwise": lambda a=width: nn.Conv2d(a, a, 3, padding=1, groups=a),
                    "norm": lambda a=width: nn.BatchNorm2d(a),
                }.get(kind, nn.Identity)()
            )
            self.steps.append((kind, one, other))
            widths.append(out)
        read = {one for _, one, _ in self.steps}
        read |= {other for kind, _, other in self.steps if kind in ("add", "cat")}
        self.last = [number for number in range(len(widths)) if number not in read]
        self.head = nn.Linear(sum(widths[number] for number in self.last), 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (kind, one, other), part in zip(self.steps, self.parts, strict=True):
            if kind == "add":
                value = values[one] + values[other]
            elif kind == "cat":
                value = torch.cat([values[one], values[other]], 1)
            else:
                value = part(values[one])
            values.append(F.relu(value))
        return self.head(torch.cat([values[number] for number in self.last], 1).mean((2, 3)))


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_keep_the_laws(seed) -> None:
    torch.manual_seed(seed)
    graph, x = traced(Random(seed))
    check_nobody_else_reads(graph, x)


# channels taken out


def chosen(coupling: Coupling, choose: random.Random, least: int = 0) -> list[int]:
    """Some units, as many of each block and at least so many, but not all of a share."""
    blocks = coupling.blocks or (tuple(range(coupling.units)),)
    while True:
        count = choose.randint(least, len(blocks[0]) - 1)
        units = [unit for block in blocks for unit in choose.sample(block, count)]
        if not any(share <= {*units} for share in coupling.shares):
            return units


def check_shrunk(module: nn.Module, seed: int) -> int:
    """A module without some channels against itself with their readers zero; the weights gone.

    With every fifth seed it is traced again, with its new sizes.
    """
    graph, x = traced(module)
    choose = random.Random(seed)
    removed = [(coupling, chosen(coupling, choose)) for coupling in free(graph)]
    expected = graph.changed(masked(graph.parameters, removed))
    before = copy.deepcopy(module.state_dict())
    smaller = shrink(module, removed)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.allclose(smaller(x), output(expected, x), rtol=1e-4, atol=1e-5)
    assert seed % 5 or find_couplings(trace(smaller, x))
    return sum(of.numel() for of in module.parameters()) - sum(
        of.numel() for of in smaller.parameters()
    )


@NAMES
def test_a_shrunk_module_is_the_masked_one(name) -> None:
    assert any([check_shrunk(NETWORKS[name][0], seed) > 0 for seed in range(3)])


@pytest.mark.parametrize("seed", range(25))
def test_shrunk_random_networks_are_the_masked_ones(seed) -> None:
    torch.manual_seed(seed)
    check_shrunk(Random(seed), seed)


def test_a_shrunk_module_tells_its_sizes_and_can_be_trained(tmp_path) -> None:
    module = NETWORKS["squeeze and excite"][0]
    graph, x = traced(module)
    smaller = shrink(module, [(coupling, [0]) for coupling in free(graph)]).requires_grad_(True)
    assert (smaller.depthwise.groups, smaller.depthwise.in_channels) == (5, 5)
    assert (smaller.expand.out_channels, smaller.project.in_channels) == (5, 5)
    assert smaller.head.in_features == 7
    smaller.train()(x).sum().backward()
    assert smaller.expand.weight.grad.shape == (5, 3, 1, 1)
    torch.save(smaller.state_dict(), tmp_path / "net.pt")
    assert pickle.loads(pickle.dumps(copy.deepcopy(smaller).state_dict())).keys()


def test_a_front_end_takes_channels_out() -> None:
    module = NETWORKS["residual"][0]
    graph, x = traced(module)
    removed = [(coupling, [0]) for coupling in free(graph)]
    smaller = TorchFrontend.of(module).shrunk(removed, samples_of(graph, x))
    assert len(smaller.model.a.weight) == 4
    assert len(module.a.weight) == 5
    assert not smaller.notes


def test_tied_parameters_stay_tied() -> None:
    module = Net(chain, a=conv(3, 6), norm=nn.PReLU(6), b=conv(6, 8), head=nn.Linear(8, 2))
    module.twin = module.norm
    graph, x = traced(module)
    smaller = shrink(module, [(coupling, [1]) for coupling in free(graph)])
    assert smaller.twin.weight is smaller.norm.weight
    assert len(smaller.norm.weight) == 5
    assert smaller(x).shape == (3, 2)


def test_blocks_lose_as_many_and_fixed_channels_stay() -> None:
    module = NETWORKS["attention"][0]
    graph, _ = traced(module)
    (heads, *_) = [coupling for coupling in free(graph) if coupling.blocks]
    with pytest.raises(ModelError, match="as many of each"):
        shrink(module, [(heads, [0])])
    (fixed, *_) = [coupling for coupling in find_couplings(graph) if coupling.fixed]
    with pytest.raises(ModelError, match="cannot leave"):
        shrink(module, [(fixed, [0])])


def test_one_channel_of_each_layer_stays() -> None:
    module = Net(grown, a=conv(3, 2), b=conv(2, 6), head=nn.Linear(6, 2))
    graph, _ = traced(module)
    (coupling,) = free(graph)
    assert set(coupling.shares) == {frozenset({0, 1})}
    assert shrink(module, [(coupling, [1, 2, 3])]).b.weight.shape[:2] == (3, 1)
    with pytest.raises(ModelError, match=r"no channel of a\.weight would be left"):
        shrink(module, [(coupling, [0, 1])])


def grown(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    return pooled(net, F.pad(x, (0, 0, 0, 0, 0, 4)) + net.b(x))


def test_the_documentation_tells_of_every_operation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "channels.md").read_text(encoding="utf-8")
    operations = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    told = {name for cell in operations for name in re.findall(r"`(\w+)`", cell)}
    assert told == {kind.__name__ for kind in _HANDLERS}
