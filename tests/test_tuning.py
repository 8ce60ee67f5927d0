"""Block tuning: where a network is cut, what is trained, and what stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import ModelError
from secateur.evaluate import predict
from secateur.frontends.torch_export import trace
from secateur.recipe import RECIPES, Recipe
from secateur.tuning import BlockTuning, _blocks, _cuts

BRIEF = BlockTuning(steps=100, batch=16, rate=0.03)


class Residual(nn.Module):
    """Two convolutions beside a skip path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(self.norm(self.a(x)).relu())).relu()


class Network(nn.Module):
    """A stem, three residual blocks, and a head that needs the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(*(Residual(8) for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.blocks(self.stem(x).relu())
        return self.head(x.mean((2, 3)).reshape(count, 8))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(1)
    found = Network().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for block in found.blocks:
        for tensor in (block.norm.weight, block.norm.bias, block.norm.running_mean):
            tensor.copy_(torch.rand(8, generator=generator) + 0.2)
    return found


def images(count: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=12, mode="bilinear")


def pruned(network: nn.Module, tuning: BlockTuning | None, **settings) -> secateur.PruneResult:
    recipe = replace(RECIPES["default"], tuning=tuning, levels=(0.0,))
    how = {"recipe": recipe, "allocation": "uniform", "progress": False, **settings}
    return secateur.prune(network, images(96), sparsity=0.75, **how)


def test_a_residual_block_is_a_block_and_its_pieces_make_the_network(network) -> None:
    x = images(6)
    graph = trace(network, x[:2])
    layers = [layer for layer in graph.layers if layer.protected is None]
    blocks = list(_blocks(graph, x, layers, 2))
    assert [[layer.name for layer in block.layers] for block in blocks] == [
        ["blocks.0.a", "blocks.0.b"],
        ["blocks.1.a", "blocks.1.b"],
        ["blocks.2.a", "blocks.2.b"],
        ["head"],
    ]
    for block in blocks:
        x = block.run(graph.parameters, x, chunk=4)
    torch.testing.assert_close(x, network(images(6)))


def test_a_cut_carries_all_that_is_read_later(network) -> None:
    graph = trace(network, images(2))
    sizes, cuts = _cuts(graph, images(2))
    stops = [stop for stop, _ in cuts]
    assert len(sizes) >= 1  # the number of images
    adds = [
        index for index, node in enumerate(graph.nodes) if str(node.target).startswith("aten.add")
    ]
    assert all(index + 1 in stops for index in adds)
    skipped = [
        index
        for index, node in enumerate(graph.nodes)
        if graph.module_of(index).endswith((".a", ".norm", ".b"))
    ]
    assert skipped
    assert not any(index + 1 in stops for index in skipped)  # the skip path is read after them


def test_tuning_brings_the_network_closer_and_keeps_the_zeros(network) -> None:
    plain, tuned = pruned(network, None), pruned(network, BRIEF)
    dense = predict(network, images(200, seed=8))  # images that were not seen
    errors = [
        float((predict(result.model, images(200, seed=8)) - dense).square().mean())
        for result in (plain, tuned)
    ]
    assert errors[1] < 0.97 * errors[0]
    before, after = plain.model.state_dict(), tuned.model.state_dict()
    for layer in plain.report.layers:
        name = f"{layer.name}.weight"
        assert torch.equal(before[name] == 0, after[name] == 0)
    assert torch.equal(after["stem.weight"], network.state_dict()["stem.weight"])
    assert any("blocks tuned" in note for note in tuned.report.notes)


def test_the_report_measures_the_tuned_network(network) -> None:
    result = pruned(network, BRIEF)
    dense = predict(network, images(96))
    found = secateur.evaluate(result.model, images(96), reference=network)
    assert dense.shape == (96, 5)
    assert result.report.calibration.kl == pytest.approx(found.kl, rel=1e-4)


def test_a_seed_gives_the_same_bytes(network) -> None:
    first, second = (pruned(network, BRIEF, seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_block_that_gets_worse_stays_as_it_was_fitted(network) -> None:
    wild = replace(BRIEF, rate=50.0, steps=5)
    plain, tuned = pruned(network, None), pruned(network, wild)
    assert any("0 of 4 blocks tuned" in note for note in tuned.report.notes)
    before, after = plain.model.state_dict(), tuned.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_progress_counts_every_layer_once_more(network) -> None:
    seen = []
    pruned(network, BRIEF, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 15))
    assert {total for _, total, _ in seen} == {14}


def test_blocks_are_tuned_at_every_level(network) -> None:
    seen = []
    recipe = replace(RECIPES["tuned"], tuning=replace(BRIEF, steps=5))
    pruned(network, None, recipe=recipe, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 29))
    assert {total for _, total, _ in seen} == {28}


def test_an_onnx_model_is_refused(tmp_path, network) -> None:
    pytest.importorskip("onnxruntime")
    from secateur.export import save_onnx

    save_onnx(network, tmp_path / "net.onnx", images(2), [])
    with pytest.raises(ModelError, match="block tuning needs gradients"):
        secateur.prune(
            tmp_path / "net.onnx", images(40), sparsity=0.5, recipe="tuned", progress=False
        )


def test_a_recipe_file_holds_it(tmp_path) -> None:
    recipe = Recipe(tuning=BlockTuning(steps=7))
    recipe.save(tmp_path / "mine.toml")
    assert Recipe.load(tmp_path / "mine.toml") == recipe
    assert "[tuning]" in (tmp_path / "mine.toml").read_text()
