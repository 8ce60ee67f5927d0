"""Networks that are no plain chain with one output are pruned, trained and judged all the same."""

from dataclasses import replace

import pytest
import torch
from inputs import samples_of, trace
from torch import Tensor, nn

import secateur
from secateur.network.cuts import blocks, find_cuts, network_errors
from secateur.pruning.layer_selection import (
    select_layers,
)
from secateur.pruning.recipe import RECIPES
from secateur.pruning.reconstruction import BlockReconstruction

BRIEF = replace(RECIPES["default"], reconstruction=BlockReconstruction(layers=2, steps=5))


class Trunk(nn.Module):
    """Four convolutions with BatchNorms: (batch, 3, 8, 8) to (batch, 8, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(wide, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
                for wide in (3, 8, 8, 8)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Views(Trunk):
    """Views a map, which values in channels-last do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.layers(x), 2)
        return self.head(x.view(x.size(0), -1))


class SequenceFirst(Trunk):
    """Returns (time, batch, classes), as networks that read text do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).permute(3, 0, 1, 2).flatten(2)).log_softmax(2)


class ScalarFirst(Views):
    """Returns a loss before the scores."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = super().forward(x)
        return {"loss": scores.square().mean(), "scores": scores}


class Ensemble(nn.Module):
    """Two networks whose scores are stacked: two rows, whatever the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Views(), Views()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), self.b(x)]).mean(0)


class TwoHeads(Trunk):
    """Two outputs from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 10))
        self.second = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(x).flatten(1)
        return self.first(x), self.second(x)


class Detached(Views):
    """No gradient reaches its first layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = Trunk()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.before(x).detach()[:, :3])


ODD = (Views, SequenceFirst, ScalarFirst, Ensemble, TwoHeads, Detached)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    network = kind().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.running_mean.uniform_(-0.2, 0.2)
    return network


def images(count: int = 70) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_they_are_pruned_and_trained(kind, monkeypatch) -> None:
    chunk = 20 * 3 * 8 * 8  # chunks of 20, 20, 20, 10 images
    monkeypatch.setattr("secateur.network.samples._CHUNK_VALUES", chunk)
    network = made(kind)
    result = secateur.prune(network, images(), sparsity=0.8, recipe=BRIEF, progress=False)
    assert result.report.sparsity == pytest.approx(0.8, abs=1e-3)
    assert any("blocks trained" in note for note in result.report.notes)
    assert result.report.calibration is not None
    assert not any("first output" in one for one in result.report.warnings)
    noted = any("judged by output" in note for note in result.report.notes)
    assert noted == (kind is ScalarFirst)


@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_each_pruned_layer_is_in_a_block_with_its_batch_norm(kind) -> None:
    graph = trace(made(kind), images(2))
    layers = select_layers(graph.layers)
    numbers = {op.name: index for index, op in enumerate(graph.ops)}
    found = (
        []
        if kind is SequenceFirst
        else list(blocks(graph, samples_of(graph, images(3)), layers, 2))
    )
    for block in found:
        for layer in block.layers:
            assert block.first <= layer.calls[0].op <= numbers[layer.calls[0].output] < block.stop
    if kind not in (SequenceFirst, ScalarFirst):
        names = [layer.name for block in found for layer in block.layers]
        assert sorted(names) == sorted(layer.name for layer in layers)


def test_a_block_of_a_plain_chain_ends_behind_the_activation() -> None:
    graph = trace(made(Views), images(2))
    first, *_ = blocks(graph, samples_of(graph, images(3)), select_layers(graph.layers), 2)
    assert graph.ops[first.stop - 1].operation == "relu.default"
    assert [layer.name for layer in first.layers] == ["layers.1.0", "layers.2.0"]


def test_two_rows_are_no_cut_where_they_are_not_two_images() -> None:
    graph = trace(made(Ensemble), images(2))
    (stack,) = [i for i, op in enumerate(graph.ops) if op.operation == "stack.default"]
    assert stack + 1 not in find_cuts(graph, samples_of(graph, images(3))).shapes
    assert stack + 2 in find_cuts(graph, samples_of(graph, images(3))).shapes


def test_all_outputs_count_in_the_networks_error() -> None:
    network = made(TwoHeads)
    graph = trace(network, images(2))
    x = images(30)
    for head in ("first", "second"):
        name = f"{head}.2.weight"
        changes = {name: graph.parameters[name] * 0.5}
        (error,) = network_errors(graph, samples_of(graph, x), [changes], chunk=8)
        twin = made(TwoHeads)
        twin.get_submodule(f"{head}.2").weight *= 0.5
        dense, other = network(x), twin(x)
        expected = [
            float((b - a).square().mean() / a.var(correction=0))
            for a, b in zip(dense, other, strict=True)
        ]
        assert min(expected) == 0 < max(expected)
        assert error == pytest.approx(sum(expected) / 2, rel=1e-3)


def test_a_module_that_views_its_values_is_evaluated() -> None:
    network = made(Views)
    labels = network(images()).argmax(1)
    assert secateur.evaluate(network, images(), labels).top1 == 100


def test_a_model_that_fails_fails_with_its_own_reason() -> None:
    with pytest.raises(
        secateur.ModelError, match=r"the model fails on images of shape \(3, 9, 9\)"
    ):
        secateur.evaluate(made(Trunk2), torch.zeros(2, 3, 9, 9), torch.zeros(2).long())


class Trunk2(Views):
    """Takes images of 8 x 8 only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 8:
            raise RuntimeError("wrong size")
        return super().forward(x)


def test_inference_mode_changes_nothing() -> None:
    network = made(Views)
    options = {"sparsity": 0.8, "recipe": BRIEF, "allocation": "uniform", "progress": False}
    plain = secateur.prune(network, images(), **options)
    with torch.inference_mode():
        inside = secateur.prune(network, images(), **options)
    assert any("blocks trained (" in note for note in plain.report.notes)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(inside.model.state_dict()[name], value)


def test_a_sweep_tells_which_remark_belongs_to_which_sparsity() -> None:
    sweep = secateur.sweep(
        made(Views), images(), sparsities=[0.4, 0.8], recipe=BRIEF, allocation="uniform",
        progress=False,
    )  # fmt: skip
    told = [note for note in sweep.notes if note.startswith("at ")]
    assert told
    assert all(note.startswith("at 0.8: ") for note in told)


def test_half_precision_is_judged_as_it_is_returned() -> None:
    network = made(Views).to(torch.bfloat16)
    result = secateur.prune(network, images(), sparsity=0.4, allocation="uniform", progress=False)
    found = secateur.evaluate(result.model, images(), reference=network)
    assert result.model.head.weight.dtype == torch.bfloat16
    assert result.report.calibration.agreement == pytest.approx(found.agreement, abs=2)
