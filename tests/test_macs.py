"""Multiply-accumulates of everything that multiplies, against PyTorch's own counter."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from inputs import trace
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.network.einsum import einsum_macs
from secateur.network.layers import ACTIVATIONS


class Given(nn.Module):
    """Images (batch, 3, 8, 8) to sequences (batch, 6, 16), and then what is given."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d((2, 3)), nn.LazyLinear(5)
        self.given = forward
        for name, part in parts.items():
            setattr(self, name, part)
        self(torch.zeros(2, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.b(self.a(x).relu()).relu())
        x = self.given(self, x.flatten(2).transpose(1, 2))
        return self.head(x.flatten(1))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))


def cells(net: nn.Module, x: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[0], 16)
    for step in range(3):
        h = net.gru(x[:, step], h)
        h, c = net.lstm(x[:, step], (h, c))
        h = net.rnn(x[:, step], h)
    return h


def learned_queries(net: nn.Module, x: Tensor) -> Tensor:
    keys = F.linear(net.w, net.v)  # of parameters alone, once for all images
    return F.scaled_dot_product_attention(x[:, None], keys[None, None], keys[None, None])


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    x = x * 1
    x[:, :2].relu_()  # traced again, without changes
    x = x @ net.w
    return torch.einsum("btd,bsd->bts", x, F.scaled_dot_product_attention(x, x, x))


NETWORKS = {
    "matmul": Given(lambda net, x: x @ net.w, w=weight(16, 12)),
    "transposed weight": Given(lambda net, x: x @ net.w.t(), w=weight(12, 16)),
    "weight first": Given(lambda net, x: net.w @ x, w=weight(4, 6)),
    "one of a list": Given(lambda net, x: x @ net.w[1], w=weight(3, 16, 16)),
    "einsum": Given(lambda net, x: torch.einsum("btd,de->bte", x, net.w), w=weight(16, 12)),
    "einsum of dots": Given(lambda net, x: torch.einsum("...d,de", x, net.w), w=weight(16, 12)),
    "attention by hand": Given(lambda net, x: (x @ x.mT).softmax(-1) @ x),
    "bmm": Given(lambda net, x: torch.bmm(x, x.transpose(1, 2))),
    "baddbmm": Given(lambda net, x: torch.baddbmm(x @ x.mT, x, x.mT)),
    "addmm": Given(lambda net, x: torch.addmm(net.v, x[:, 0], net.w), w=weight(16, 9), v=weight(9)),
    "tensordot": Given(lambda net, x: torch.tensordot(x, net.w, 1), w=weight(16, 4)),
    "attention": Given(
        lambda net, x: net.m(x, x, x)[0], m=nn.MultiheadAttention(16, 2, 0.0, batch_first=True)
    ),
    "grouped queries": Given(
        lambda net, x: F.scaled_dot_product_attention(x[:, None], x[:, None, :4], x[:, None, :4])
    ),
    "learned queries": Given(learned_queries, w=weight(7, 16), v=weight(16, 16)),
    "transformer": Given(
        lambda net, x: net.m(x), m=nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)
    ),
    "transposed convolution": Given(lambda net, x: net.m(x.mT), m=nn.ConvTranspose1d(16, 8, 3, 2)),
    "grouped transposed": Given(
        lambda net, x: net.m(x.mT), m=nn.ConvTranspose1d(16, 8, 3, 2, groups=4)
    ),
    "cells": Given(cells, gru=nn.GRUCell(16, 16), lstm=nn.LSTMCell(16, 16), rnn=nn.RNNCell(16, 16)),
    "weight norm": Given(
        lambda net, x: net.m(x), m=nn.utils.parametrizations.weight_norm(nn.Linear(16, 12))
    ),
    "weight norm of a convolution": Given(
        lambda net, x: net.m(x.mT), m=nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 12, 3))
    ),
    "in place": Given(in_place, w=weight(16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_what_pytorchs_counter_tells(name) -> None:
    network = NETWORKS[name].eval()
    x = torch.randn(1, 3, 8, 8)
    counter = FlopCounterMode(display=False)
    # As matrix products, and with gradients: else attention is an operation that it does not know.
    with counter, sdpa_kernel(SDPBackend.MATH):
        network(x)
    layers = trace(network, torch.cat([x, x])).layers
    assert 2 * sum(layer.macs for layer in layers) == counter.get_total_flops()


def recurrent(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of projections, which oneDNN does not have
        return Given(lambda net, x: net.m(x)[0], m=RECURRENT[kind])


RECURRENT = {
    "lstm": nn.LSTM(16, 10, 2, batch_first=True, bidirectional=True),
    "projected": nn.LSTM(16, 10, 2, batch_first=True, proj_size=4, bias=False),
    "gru": nn.GRU(16, 10, 3, batch_first=True),
    "rnn": nn.RNN(16, 10, 1, batch_first=True, bidirectional=True, nonlinearity="relu"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", RECURRENT)
def test_every_matrix_of_a_recurrent_layer_is_listed(name) -> None:
    part = RECURRENT[name]
    layers = secateur.inspect(recurrent(name), (3, 8, 8)).layers
    found = {layer.name: layer for layer in layers if layer.name.startswith("m.")}
    matrices = {f"m.{key}": of for key, of in part.named_parameters() if of.dim() == 2}
    assert found.keys() == matrices.keys()
    for key, matrix in matrices.items():
        assert found[key].shape == matrix.shape
        assert found[key].macs == 6 * matrix.numel()  # six steps
        assert found[key].obstacle == "recurrent layer"


def test_products_of_activations_are_one_line_without_weights() -> None:
    def twice(net: nn.Module, x: Tensor) -> Tensor:
        for part in net.parts:
            x = part(x)
        return x

    parts = nn.ModuleList(
        nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True) for _ in range(2)
    )
    network = Given(twice, parts=parts)
    inspection = secateur.inspect(network, (3, 8, 8))
    (line,) = [layer for layer in inspection.layers if layer.name == ACTIVATIONS]
    assert line.macs == 2 * 2 * 6 * 6 * 16
    assert line.weights == 0
    assert any(ACTIVATIONS in row and " - " in row for row in str(inspection).splitlines())
    options = {"sparsity": 0.3, "allocation": "uniform", "method": "magnitude", "progress": False}
    report = secateur.prune(network, torch.randn(300, 3, 8, 8), **options).report
    (dense,) = [layer for layer in report.dense_layers if layer.name == ACTIVATIONS]
    assert (dense.macs, dense.weights, dense.bytes) == (line.macs, 0, 0)
    with pytest.raises(secateur.OptionError, match=r"cannot be pruned \(no weights"):
        secateur.prune(network, torch.randn(300, 3, 8, 8), include=ACTIVATIONS, **options)


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 30),
        ("ij,jk", [(2, 3), (3, 5)], 30),
        ("bij,bjk->bik", [(7, 2, 3), (7, 3, 5)], 210),
        ("...ij,...jk->...ik", [(7, 2, 3), (1, 3, 5)], 210),
        ("... i j , j k", [(4, 7, 2, 3), (3, 5)], 840),
        ("i,i->i", [(5,), (5,)], 0),  # numbers one by one
        ("i,j->ij", [(5,), (5,)], 0),
        ("ij->i", [(5, 6)], 0),
        ("ii->", [(5, 5)], 0),
        ("ij,jk->j", [(2, 3), (3, 5)], 0),  # sums before it multiplies
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], 30 + 70),
        ("i,i->", [(5,), (5,)], 5),
    ],
)
def test_macs_of_einsums(equation, shapes, macs) -> None:
    assert einsum_macs(equation, shapes) == macs
    counter = FlopCounterMode(display=False)
    with counter:
        torch.einsum(equation, *(torch.randn(*shape) for shape in shapes))
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("kind", ["cells", "einsum", "attention by hand", "matmul"])
def test_max_macs_is_true(kind) -> None:
    network = NETWORKS[kind].eval()
    images = torch.randn(300, 3, 8, 8)
    report = secateur.prune(
        network,
        images,
        max_macs=0.85,
        allocation="uniform",
        method="magnitude",
        include=["b", "head"],
        progress=False,
    ).report
    counter = FlopCounterMode(display=False)
    with counter:
        network(images[:1])
    every = counter.get_total_flops() / 2
    saved = sum(layer.macs * layer.sparsity for layer in report.layers)
    assert report.macs_fraction == pytest.approx(1 - saved / every, abs=0.02)
    assert report.macs_fraction <= 0.85
    assert math.isclose(every, sum(one.macs for one in (*report.layers, *report.dense_layers)))


def test_max_macs_below_what_cannot_be_pruned_is_that_share_of_the_rest_with_a_warning() -> None:
    network, images = recurrent("lstm"), torch.randn(300, 3, 8, 8)
    options = {"max_macs": 0.5, "allocation": "uniform", "method": "magnitude", "progress": False}
    with pytest.warns(secateur.SecateurWarning, match="layers that cannot be pruned take 0.6"):
        report = secateur.prune(network, images, **options).report
    assert report.macs_fraction > 0.6
    before = sum(layer.macs for layer in report.layers)
    left = sum(layer.macs * (1 - layer.sparsity) for layer in report.layers)
    assert left / before == pytest.approx(0.5, abs=0.02)
