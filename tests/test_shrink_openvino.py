"""OpenVINO models without some channels: what is given for them is what masked ones give."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from inputs import samples_of, trace
from onnx_models import as_onnx, network
from test_carrying import NETWORKS as MOVING
from test_couplings import NETWORKS, chosen, free, traced
from torch import Tensor

import secateur
from secateur import frontends
from secateur.evaluation.inference import predict
from secateur.frontends.openvino.runtime import as_ir
from secateur.network.couplings import gone

pytest.importorskip("openvino")


def check_shrunk(model: Any, x: Tensor, seed: int = 0) -> Any:
    """A model without some of its units; the front-end compares it with the masked one."""
    network, graph = frontends.open(model), trace(model, x)
    removed = [(coupling, chosen(coupling, random.Random(seed), 1)) for coupling in free(graph)]
    assert removed
    smaller = network.shrunk(removed, samples_of(graph, x)).model
    found, whole = (frontends.open(of).tensors() for of in (smaller, model))
    for name, axes in gone(removed).items():
        assert found[name].numel() < whole[name].numel() or not axes
    return smaller


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_a_network_made_by_hand_shrinks(batch) -> None:
    x = torch.randn(3, 3, 11, 11)
    smaller = check_shrunk(as_ir(as_onnx(network(), batch=batch)), x)
    free = smaller.inputs[0].get_partial_shape()[0].is_dynamic
    assert free == (batch == "n")


@pytest.mark.parametrize("name", ["squeeze and excite", "shuffled", "attention", "u-net"])
def test_converted_networks_shrink(name) -> None:
    module, _ = NETWORKS[name]
    _, x = traced(module)
    check_shrunk(as_ir(frontends.open(module).to_onnx(x)), x)


@pytest.mark.parametrize("name", ["padded shortcut", "added in place", "looked up", "windows"])
def test_converted_networks_that_move_channels_about_shrink(name) -> None:
    module, *_ = MOVING[name]
    _, x = traced(module)
    check_shrunk(as_ir(frontends.open(module).to_onnx(x)), x, 1)


def test_an_ir_loses_the_channels_of_the_onnx_file() -> None:
    x = torch.randn(40, 3, 11, 11, generator=torch.Generator().manual_seed(1))
    recipe = secateur.Recipe(pattern=secateur.Channels(multiple=1))
    model = as_onnx(network())
    want, got = (secateur.prune(of, x, max_macs=0.7, recipe=recipe) for of in (model, as_ir(model)))
    torch.testing.assert_close(predict(got.model, x), predict(want.model, x), rtol=1e-4, atol=1e-5)
    ours, theirs = ([of.left for of in result.report.channels] for result in (got, want))
    assert ours == theirs
