"""Multiply-accumulates of everything that multiplies in ONNX files, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper
from onnx_models import Builder

import secateur
from secateur.network.layers import ACTIVATIONS

STEPS, WIDTH = 6, 8


class Sequences(Builder):
    """Takes (batch, steps, width)."""

    def __init__(self) -> None:
        super().__init__(STEPS, WIDTH)
        self.generator = torch.Generator().manual_seed(0)

    def weight(self, name: str, *sizes: int) -> str:
        return self.hold(torch.randn(*sizes, generator=self.generator) / 4, name)

    def recurrent(self, kind: str, gates: int, directions: int, hidden: int) -> str:
        x = self.node("Transpose", "input", perm=[1, 0, 2])
        held = self.weight("w", directions, gates * hidden, WIDTH)
        again = self.weight("r", directions, gates * hidden, hidden)
        both = {"direction": "bidirectional"} if directions == 2 else {}
        y = self.node(kind, x, held, again, hidden_size=hidden, **both)
        return self.node("Transpose", y, perm=[2, 0, 1, 3])


def of(*counts: tuple[str, int]) -> dict[str, int]:
    return dict(counts)


def attention_by_hand(build: Sequences) -> str:
    turned = build.node("Transpose", "input", perm=[0, 2, 1])
    scores = build.node("Softmax", build.node("MatMul", "input", turned))
    return build.node("MatMul", scores, "input")


def fused_attention(build: Sequences) -> str:
    held = build.weight("w", WIDTH, 3 * WIDTH), build.hold(np.zeros(3 * WIDTH, np.float32), "b")
    return build.node("Attention", "input", *held, num_heads=2, domain="com.microsoft")


def transposed(build: Sequences) -> str:
    x = build.node("Transpose", "input", perm=[0, 2, 1])
    return build.node("ConvTranspose", x, build.weight("w", WIDTH, 5, 3), strides=[2])


NETWORKS = {
    "lstm": (
        lambda build: build.recurrent("LSTM", 4, 1, 5),
        of(("w", STEPS * 20 * WIDTH), ("r", STEPS * 20 * 5)),
    ),
    "gru, both ways": (
        lambda build: build.recurrent("GRU", 3, 2, 5),
        of(("w", STEPS * 2 * 15 * WIDTH), ("r", STEPS * 2 * 15 * 5)),
    ),
    "rnn": (
        lambda build: build.recurrent("RNN", 1, 1, 5),
        of(("w", STEPS * 5 * WIDTH), ("r", STEPS * 5 * 5)),
    ),
    "einsum": (
        lambda build: build.node(
            "Einsum", "input", build.weight("w", WIDTH, 7), equation="btd,de->bte"
        ),
        of(("w", STEPS * WIDTH * 7)),
    ),
    "einsum of activations": (
        lambda build: build.node("Einsum", "input", "input", equation="btd,bsd->bts"),
        of((ACTIVATIONS, STEPS * STEPS * WIDTH)),
    ),
    "attention by hand": (attention_by_hand, of((ACTIVATIONS, 2 * STEPS * STEPS * WIDTH))),
    "fused attention": (
        fused_attention,
        of(("w", STEPS * WIDTH * 3 * WIDTH + 2 * STEPS * STEPS * WIDTH)),
    ),
    "transposed convolution": (transposed, of(("w", STEPS * WIDTH * 5 * 3))),
    "weights first": (
        lambda build: build.node("MatMul", build.weight("w", 2, 4, STEPS), "input"),
        of(("w", 2 * 4 * STEPS * WIDTH)),
    ),
}


def model_of(name: str) -> ModelProto:
    """Something prunable behind it, so that there is a budget."""
    build = Sequences()
    x = NETWORKS[name][0](build)
    domains = [helper.make_opsetid("com.microsoft", 1)] if "fused" in name else []
    return build.model(build.node("Relu", x), domains=domains)


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_counted_by_hand(name) -> None:
    layers = secateur.inspect(model_of(name), (STEPS, WIDTH)).layers
    assert {layer.name: layer.macs for layer in layers} == NETWORKS[name][1]
    assert all(layer.obstacle for layer in layers)


def test_max_macs_is_true() -> None:
    """What a recurrent layer multiplies is part of the sum."""
    build = Sequences()
    x = build.node("MatMul", "input", build.weight("first", WIDTH, WIDTH))
    x = build.node("MatMul", build.node("Relu", x), build.weight("second", WIDTH, 64))
    x = build.node("MatMul", build.node("Relu", x), build.weight("third", 64, WIDTH))
    turned = build.node("Transpose", x, perm=[1, 0, 2])
    held = build.weight("w", 1, 5, WIDTH), build.weight("r", 1, 5, 5)
    y = build.node("RNN", turned, *held, hidden_size=5)
    model = build.model(build.node("Transpose", y, perm=[2, 0, 1, 3]))
    images = torch.randn(40, STEPS, WIDTH, generator=build.generator)
    quick = {"method": "magnitude", "allocation": "uniform", "progress": False}
    report = secateur.prune(model, images, max_macs=0.6, **quick).report
    dense = {layer.name: layer.macs for layer in report.dense_layers}
    assert dense == {"first": STEPS * 64, "w": STEPS * 40, "r": STEPS * 25}
    left = sum(layer.macs * (1 - layer.sparsity) for layer in report.layers) + sum(dense.values())
    total = sum(layer.macs for layer in report.layers) + sum(dense.values())
    assert report.macs_fraction == pytest.approx(left / total)
    assert left / total == pytest.approx(0.6, abs=0.01)
