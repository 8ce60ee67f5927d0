"""Products with a parameter are the linear layers that they compute, however it is held."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from inputs import trace
from torch import Tensor, nn

import secateur
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.network.couplings import find_couplings
from secateur.network.samples import Samples
from secateur.pruning.recipe import RECIPES

QUICK = replace(RECIPES["default"], reconstruction=None, schedule=(0.0,))
OPTIONS = {"recipe": QUICK, "allocation": "uniform", "progress": False}
FORMS: dict[str, tuple[bool, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "addmm": (
        True,
        lambda x, w, b: torch.addmm(b, x.view(-1, 16), w).view(*x.shape[:-1], w.shape[1]),
    ),
    "matmul": (True, lambda x, w, b: x @ w + b),
    "einsum, (in, out)": (True, lambda x, w, b: torch.einsum("bti,io->bto", x, w) + b),
    "einsum, (out, in)": (False, lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + b),
    "einsum, weight first": (False, lambda x, w, b: torch.einsum("oi,bti->bto", w, x) + b),
    "matmul, transposed": (False, lambda x, w, b: x @ w.t() + b),
    "linear, transposed": (True, lambda x, w, b: F.linear(x, w.T, b)),
    "transposed twice": (True, lambda x, w, b: x @ w.transpose(0, 1).permute(-1, 0) + b),
    "tensordot": (True, lambda x, w, b: torch.tensordot(x, w, dims=1) + b),
}


class Held(nn.Module):
    """A linear layer whose weight is multiplied with in one of several forms."""

    def __init__(self, form: str, layer: nn.Linear) -> None:
        super().__init__()
        turned, self.call = FORMS[form]
        self.weight = nn.Parameter((layer.weight.mT if turned else layer.weight).detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight, self.bias)


class Network(nn.Module):
    """Three layers on (batch, 5, 16)."""

    def __init__(self, form: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Linear(16, 16), nn.Linear(16, 24)
        self.next, self.last = nn.Linear(24, 16), nn.Linear(16, 4)
        if form is not None:
            self.middle = Held(form, self.middle)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(self.middle(self.first(x).relu()).relu())
        return self.last(x)


def samples() -> Tensor:
    return torch.randn(40, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_product_is_a_layer_with_its_weight_as_it_is_held(form: str) -> None:
    turned, _ = FORMS[form]
    network = Network(form)
    plain, held = (
        next(of for of in trace(net, samples()).layers if of.name == "middle")
        for net in (Network(), network)
    )
    assert held.obstacle is None
    assert held.is_turned == turned
    assert (held.rows, held.columns, held.macs) == (plain.rows, plain.columns, plain.macs)
    geometry, weight = held.calls[0].geometry, network.middle.weight.detach()
    matrix = geometry.matrix(weight)
    assert torch.equal(matrix[0], Network().middle.weight)
    assert torch.equal(geometry.weight(matrix, held.shape), weight)


@pytest.mark.parametrize("form", ["addmm", "linear, transposed"])
def test_the_same_weights_go_as_of_a_linear_layer(form: str, tmp_path: Path) -> None:
    turned, _ = FORMS[form]
    expected = secateur.prune(Network(), samples(), sparsity=0.5, **OPTIONS)
    result = secateur.prune(Network(form), samples(), sparsity=0.5, **OPTIONS)
    weight = result.model.middle.weight.detach()
    held, wanted = (weight.mT if turned else weight), expected.model.middle.weight.detach()
    assert torch.allclose(held, wanted, atol=1e-4)
    row = next(row for row in result.report.layers if row.name == "middle")
    assert row.zeros == int((held == 0).sum()) == 192
    result.save(tmp_path)
    again = secateur.load(Network(form), tmp_path / "model.safetensors")
    assert torch.equal(again(samples()), result.model(samples()))


@pytest.mark.parametrize("form", FORMS)
def test_channels_leave_on_both_sides(form: str) -> None:
    turned, _ = FORMS[form]
    network, few = TorchFrontend.of(Network(form)), Samples({"x": samples()[:2]})
    removed = [(of, [1, 5]) for of in find_couplings(network.trace(few)) if of.fixed is None]
    shrunk = network.shrunk(removed, few)  # raises where it is not what the masked one is
    assert len(removed) == 3
    sizes = tuple(dict(shrunk.model.named_parameters())["middle.weight"].shape)
    assert sizes == ((14, 22) if turned else (22, 14))


class Conv1D(nn.Module):
    """As in GPT-2: sizes are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.nx, self.nf = 16, 24
        self.weight = nn.Parameter(torch.randn(16, 24) / 4)
        self.bias = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def test_a_conv1d_gets_the_sizes_of_its_weight() -> None:
    network = Network()
    network.middle = Conv1D()
    held, few = TorchFrontend.of(network), Samples({"x": samples()[:2]})
    removed = [(of, [1, 5]) for of in find_couplings(held.trace(few)) if of.fixed is None]
    middle = held.shrunk(removed, few).model.middle
    assert (middle.nx, middle.nf) == tuple(middle.weight.shape) == (14, 22)


class Tied(nn.Module):
    """What decodes is the transpose of what encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(24, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(F.linear(self.first(x), self.weight).relu(), self.weight.t()))


def test_a_weight_that_is_used_both_ways_stays_dense() -> None:
    layer = next(of for of in trace(Tied(), samples()).layers if of.parameter == "weight")
    assert layer.obstacle == "weight also used transposed"
    assert len(layer.calls) == 2


class Constant(nn.Module):
    """A fixed matrix, such as that of a Fourier transform, and products that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("fixed", torch.randn(16, 16) / 4)
        self.left = nn.Parameter(torch.randn(5, 5))
        self.scaled = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left @ (self.first(x) @ self.fixed)
        bias = torch.zeros(16)
        x = torch.addmm(bias, x.view(-1, 16), self.scaled, alpha=0.5).view(x.shape)
        return self.last(x)


def test_other_products_stay_dense() -> None:
    reasons = {of.parameter: of.obstacle for of in trace(Constant(), samples()).layers}
    for name in ("fixed", "left", "scaled"):
        assert reasons[name] == "matrix product with a parameter"


class Cross(nn.Module):
    """Queries of one value, keys and values of another: parts of one weight make them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.first(x)
        return self.attention(x, keys, keys, need_weights=False)[0]


def test_the_reason_names_the_weight_that_a_part_is_of() -> None:
    layers = trace(Cross(), samples()).layers
    stuck = [of for of in layers if of.weights and of.obstacle]
    parts = [f"attention.in_proj_weight[{rows}]" for rows in ("0:16", "16:48")]
    assert [of.name for of in stuck] == parts
    assert [of.weights for of in stuck] == [16 * 16, 2 * 16 * 16]
    assert stuck[0].obstacle == f"weight computed on the fly: {parts[0]} is a part"
