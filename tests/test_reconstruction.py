"""Block reconstruction: where a network is cut, what is trained, and what stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs import samples_of, trace
from torch import Tensor, nn

import secateur
from secateur import frontends
from secateur.errors import DataError, ModelError
from secateur.evaluation.inference import predict
from secateur.network.cuts import blocks, find_cuts
from secateur.network.ops import Add
from secateur.network.samples import Samples
from secateur.pruning import reconstruction
from secateur.pruning.recipe import RECIPES, Recipe
from secateur.pruning.reconstruction import BlockReconstruction

BRIEF = BlockReconstruction(layers=2, steps=100, batch=16, rate=0.03)


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


def pruned(
    network: nn.Module, training: BlockReconstruction | None, **settings
) -> secateur.PruneResult:
    recipe = replace(RECIPES["default"], reconstruction=training, schedule=(0.0,))
    how = {"recipe": recipe, "allocation": "uniform", "progress": False, **settings}
    return secateur.prune(network, images(96), sparsity=0.75, **how)


def test_a_residual_block_is_a_block_and_its_pieces_make_the_network(network) -> None:
    x = images(6)
    graph = trace(network, x[:2])
    layers = [layer for layer in graph.layers if layer.protected is None]
    found = list(blocks(graph, samples_of(graph, x), layers, 2))
    assert [[layer.name for layer in block.layers] for block in found] == [
        ["blocks.0.a", "blocks.0.b"],
        ["blocks.1.a", "blocks.1.b"],
        ["blocks.2.a", "blocks.2.b"],
        ["head"],
    ]
    values = samples_of(graph, x)
    for block in found:
        values = block.run(graph.parameters, values, chunk=4)
    torch.testing.assert_close(values.only(), network(images(6)))


def test_a_cut_carries_all_that_is_read_later(network) -> None:
    graph = trace(network, images(2))
    cuts = find_cuts(graph, samples_of(graph, images(3)))
    stops = list(cuts.shapes)
    assert len(cuts.sizes) >= 1  # the number of images
    adds = [index for index, op in enumerate(graph.ops) if isinstance(op, Add)]
    assert all(index + 1 in stops for index in adds)
    skipped = [
        index for index, op in enumerate(graph.ops) if op.label.endswith((".a", ".norm", ".b"))
    ]
    assert skipped
    assert not any(index + 1 in stops for index in skipped)  # the skip path is read after them


class Encoder(nn.Module):
    """Attention that reads a mask, twice; and as many values for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, None].bool()
        for value, linear in zip(self.values, self.linears, strict=True):
            looked_up = nn.functional.scaled_dot_product_attention(x, x, value(x), mask)
            x = linear(x + looked_up).relu()
        return x


def padded(count: int) -> Samples:
    """Sequences of 3 to 6 positions; what is in the padding is large."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(6) < torch.randint(3, 7, (count, 1), generator=generator)
    x = torch.randn(count, 6, 8, generator=generator)
    x = torch.where(mask.unsqueeze(-1), x, 100.0)
    return Samples({"x": x, "attention_mask": mask.long()})


def test_a_mask_that_every_attention_reads_is_carried_from_block_to_block() -> None:
    network, samples = Encoder().eval(), padded(7)
    graph = frontends.open(network).trace(samples[:2])
    values = samples.named(graph.inputs)
    layers = [layer for layer in graph.layers if layer.calls]
    found = list(blocks(graph, values, layers, 2))
    assert [[layer.name for layer in block.layers] for block in found] == [
        ["values.0", "linears.0"],
        ["values.1", "linears.1"],
    ]
    assert len(found[0].carried) == 1  # the mask, or what attention makes of it
    assert not found[1].carried
    for block in found:
        values = block.run(graph.parameters, values, chunk=4)
    torch.testing.assert_close(values.only().relu(), network(**samples.tensors))


def test_padding_is_no_part_of_what_a_block_should_give() -> None:
    samples = padded(7)
    goal = reconstruction.Goal(Samples({"x": samples.tensors["x"]}), samples.mask)
    real = samples.tensors["x"][samples.tensors["attention_mask"] != 0]
    assert float(goal.variances()["x"]) == pytest.approx(float(real.var(correction=0)))
    noisy = samples.tensors["x"] + samples.tensors["attention_mask"].unsqueeze(-1)
    noisy = torch.where(samples.tensors["attention_mask"].unsqueeze(-1) != 0, noisy, 0.0)
    expected = 1 / float(real.var(correction=0))  # the padding's error of 100 is not seen
    assert goal.error(Samples({"x": noisy})) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def plain(network: Network) -> secateur.PruneResult:
    return pruned(network, None)


@pytest.fixture(scope="module")
def result(network: Network) -> secateur.PruneResult:
    return pruned(network, BRIEF)


def test_training_brings_the_network_closer_and_keeps_the_zeros(network, plain, result) -> None:
    held_back = images(96)[BRIEF.held_back - 1 :: BRIEF.held_back]
    dense = predict(network, held_back)
    errors = [
        float((predict(of.model, held_back) - dense).square().mean()) for of in (plain, result)
    ]
    assert errors[1] < errors[0]
    before, after = plain.model.state_dict(), result.model.state_dict()
    for layer in plain.report.layers:
        name = f"{layer.name}.weight"
        assert torch.equal(before[name] == 0, after[name] == 0)
    assert torch.equal(after["stem.weight"], network.state_dict()["stem.weight"])
    assert any("blocks trained" in note for note in result.report.notes)


def test_the_report_measures_the_trained_network(network, result) -> None:
    dense = predict(network, images(96))
    found = secateur.evaluate(result.model, images(96), reference=network)
    assert dense.shape == (96, 5)
    assert result.report.calibration.kl == pytest.approx(found.kl, rel=1e-4)


def test_a_seed_gives_the_same_bytes(network) -> None:
    first, second = (pruned(network, BRIEF, seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_block_that_gets_worse_stays_as_it_was_fitted(network, plain) -> None:
    after_training = pruned(network, replace(BRIEF, rate=50.0, steps=5))
    assert any("left as they were fitted" in note for note in after_training.report.notes)
    before, after = plain.model.state_dict(), after_training.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_steps_that_are_too_large_are_taken_smaller(network) -> None:
    *_, steady = trained(network, BRIEF)
    *_, wild = trained(network, replace(BRIEF, rate=2.0))
    assert {block.rate for block in steady.blocks} == {BRIEF.rate}  # which cost nothing more
    rates = [block.rate for block in wild.blocks]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 2.0
    assert wild.blocks[0].kept
    assert "larger steps made a block worse" in wild.note()
    assert "larger steps" not in steady.note()


def test_a_fifth_of_the_steps_tells_their_size(network, monkeypatch) -> None:
    steps = list[tuple[int, float]]()
    train = BlockReconstruction.train
    monkeypatch.setattr(
        BlockReconstruction,
        "train",
        lambda self, *args: steps.append((self.steps, self.rate)) or train(self, *args),
    )
    trained(network, replace(BRIEF, rate=2.0))
    asked = [rate for count, rate in steps if count == BRIEF.steps]
    tried = [rate for count, rate in steps if count == BRIEF.steps // 5]
    assert tried == [2.0 / 4**at for at in range(len(tried))]
    assert asked[0] in (tried[-1], 2.0 / 16)
    assert len(tried) + len(asked) == len(steps)


def test_steps_become_a_sixteenth_at_least(network, monkeypatch) -> None:
    monkeypatch.setattr(reconstruction.Goal, "error", lambda goal, outputs: 1.0)
    *_, result = trained(network, replace(BRIEF, steps=1))
    assert {block.rate for block in result.blocks} == {BRIEF.rate / 16}


def test_progress_counts_every_layer_once_more(network) -> None:
    seen = []
    pruned(network, BRIEF, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 15))
    assert {total for _, total, _ in seen} == {14}


def test_blocks_are_trained_at_every_level(network) -> None:
    seen = []
    recipe = replace(RECIPES["tuned"], reconstruction=replace(BRIEF, steps=5))
    pruned(network, None, recipe=recipe, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 29))
    assert {total for _, total, _ in seen} == {28}


@pytest.mark.parametrize(("start", "trained"), [(0.75, 1), (0.65, 2), (0.85, 0)])
def test_training_follows_the_walks_that_are_hard(network, start: float, trained: int) -> None:
    seen = []
    recipe = replace(
        RECIPES["tuned"], reconstruction=replace(BRIEF, steps=5), reconstruction_from=start
    )
    how = {"recipe": recipe, "allocation": "uniform", "sparsity": 0.8}
    secateur.prune(network, images(96), **how, progress=lambda *step: seen.append(step))
    visits = 7 * (2 + trained)
    assert [done for done, _, _ in seen] == list(range(1, visits + 1))
    assert {total for _, total, _ in seen} == {visits}


def test_blocks_are_as_long_as_three_quarters_of_the_network_at_most(network) -> None:
    *_, result = trained(network, replace(BRIEF, layers=100, steps=1))
    assert [len(block.layers) for block in result.blocks] == [6, 1]


def output_error(graph, changes: dict[str, Tensor], x: Tensor) -> float:
    """Mean squared error of the network's outputs over their variance."""
    found = []
    for of in ({}, changes):
        values = {graph.inputs[0]: x, **graph.parameters, **of}
        for index, op in enumerate(graph.ops):
            values[op.name] = graph.run(index, values)
        found.append(values[graph.outputs[0]])
    return float((found[1] - found[0]).square().mean() / found[0].var(correction=0))


def trained(network: nn.Module, settings: BlockReconstruction):
    """A network's graph, its weights as they were fitted, and what training makes of them."""
    x = images(64)
    graph = trace(network, x[:2])
    layers = [layer for layer in graph.layers if layer.protected is None]
    state = pruned(network, None).model.state_dict()
    changes = {str(layer.parameter): state[f"{layer.name}.weight"] for layer in layers}
    return (
        graph,
        x,
        changes,
        *settings.reconstruct(graph, samples_of(graph, x), layers, changes, chunk=16),
    )


def test_the_network_is_judged_on_images_held_back(network) -> None:
    graph, x, changes, found, result = trained(network, BRIEF)
    assert result.kept
    assert result.before == pytest.approx(output_error(graph, changes, x[7::8]), rel=1e-3)
    assert result.after == pytest.approx(output_error(graph, found, x[7::8]), rel=1e-3)
    assert result.after < result.before


def test_a_network_that_gets_worse_stays_as_it_was_fitted(network, monkeypatch) -> None:
    answers = iter([1.0, 0.5, 0.5, *[1.0, 0.5] * 3])  # a trial, then each block is better
    monkeypatch.setattr(reconstruction.Goal, "error", lambda goal, outputs: next(answers))
    monkeypatch.setattr(reconstruction, "network_errors", lambda *_: [1.0, 2.0, 2.0, 2.0, 2.0])
    _, _, changes, found, result = trained(network, BRIEF)
    assert [block.kept for block in result.blocks] == 4 * [False]
    assert not result.kept
    assert found.keys() == changes.keys()
    assert all(torch.equal(found[name], changes[name]) for name in changes)
    assert "left as they were fitted" in result.note()


def test_the_network_is_taken_as_it_was_when_it_was_best(network, monkeypatch) -> None:
    answers = iter([1.0, 0.5, 0.5, *[1.0, 0.5] * 3])
    monkeypatch.setattr(reconstruction.Goal, "error", lambda goal, outputs: next(answers))
    monkeypatch.setattr(reconstruction, "network_errors", lambda *_: [1.0, 1.2, 0.5, 0.7, 0.6])
    _, _, changes, found, result = trained(network, BRIEF)
    assert [block.kept for block in result.blocks] == [True, True, False, False]
    assert (result.before, result.after) == (1.0, 0.5)
    assert result.note().startswith("2 of 4 blocks trained (1 before, 0.5 after")
    weights = {name: found[name] for name in changes}
    same = {name for name in changes if torch.equal(weights[name], changes[name])}
    assert same == {"blocks.2.a.weight", "blocks.2.b.weight", "head.weight"}


def test_easy_targets_are_not_trained_for(network) -> None:
    recipe = replace(
        RECIPES["default"], reconstruction=BRIEF, schedule=(0.0,), reconstruction_from=0.7
    )
    found = [
        secateur.prune(network, images(96), recipe=recipe, progress=False, **target).report
        for target in ({"sparsity": 0.69}, {"sparsity": 0.7}, {"max_bytes": 0.9})
    ]
    trained = [any("blocks trained" in note for note in report.notes) for report in found]
    assert trained == [False, True, False]


def test_magnitude_pruning_changes_no_weight_that_stays(network) -> None:
    how = {"method": "magnitude", "allocation": "uniform", "progress": False}
    result = secateur.prune(network, images(40), sparsity=0.8, **how)
    (note,) = [note for note in result.report.notes if "reconstruction" in note]
    assert note.startswith(
        "no block reconstruction: magnitude pruning leaves the weights that stay"
    )
    dense = network.state_dict()
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, torch.where(value == 0, 0, dense[name]))


def test_an_onnx_model_is_not_trained_and_the_report_says_so(tmp_path, network) -> None:
    pytest.importorskip("onnxruntime")
    from secateur.export.files import save_onnx

    save_onnx(network, tmp_path / "net.onnx", images(2), [])
    how = {"allocation": "uniform", "progress": False}
    for recipe, sparsity, told in (("tuned", 0.5, 1), ("default", 0.8, 1), ("default", 0.5, 0)):
        result = secateur.prune(
            tmp_path / "net.onnx", images(40), sparsity=sparsity, recipe=recipe, **how
        )
        notes = [note for note in result.report.notes if "no block reconstruction" in note]
        assert len(notes) == told
        assert all("ONNX Runtime gives no gradients" in note for note in notes)


def test_with_too_few_images_to_hold_one_back_nothing_is_trained_and_the_report_says_so(
    network,
) -> None:
    recipe = replace(RECIPES["default"], reconstruction=BRIEF)
    with pytest.warns(secateur.SecateurWarning, match="only 7 calibration images"):
        result = secateur.prune(network, images(7), sparsity=0.8, recipe=recipe, progress=False)
    (note,) = [note for note in result.report.notes if "reconstruction" in note]
    assert "no block reconstruction: 7 images, expected at least 8" in note
    graph = trace(network, images(2))
    with pytest.raises(DataError, match="7 images to train blocks on, expected at least 8"):
        BRIEF.reconstruct(graph, samples_of(graph, images(7)), graph.layers, {}, chunk=4)


def test_training_an_onnx_graph_is_refused(tmp_path, network) -> None:
    pytest.importorskip("onnxruntime")
    from secateur.export.files import save_onnx
    from secateur.frontends.onnx import read

    save_onnx(network, tmp_path / "net.onnx", images(2), [])
    graph = trace(read(tmp_path / "net.onnx"), images(2))
    with pytest.raises(ModelError, match="block reconstruction needs gradients"):
        BRIEF.reconstruct(graph, samples_of(graph, images(4)), graph.layers, {}, chunk=4)


def test_a_recipe_file_holds_it(tmp_path) -> None:
    recipe = Recipe(reconstruction=BlockReconstruction(steps=7))
    recipe.save(tmp_path / "mine.toml")
    assert Recipe.load(tmp_path / "mine.toml") == recipe
    assert "[reconstruction]" in (tmp_path / "mine.toml").read_text()
