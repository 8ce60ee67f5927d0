"""BatchNorms folded into the layers before them, and changes put back."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from inputs import trace
from onnx_models import as_onnx, network, stored
from torch import Tensor, nn

import secateur
from secateur.export.files import save_onnx
from secateur.frontends.torch.graph import with_parameters
from secateur.network.folding import fold
from secateur.network.graph import Graph
from secateur.network.stream import Stream
from secateur.pruning.recipe import RECIPES


class Normed(nn.Module):
    """Layers with BatchNorms behind them, of every kind that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, bias=False)
        self.plain_norm = nn.BatchNorm2d(8)
        self.biased = nn.Conv2d(8, 8, 3, padding=1)
        self.biased_norm = nn.BatchNorm2d(8, affine=False)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.grouped_norm = nn.BatchNorm2d(12, eps=1e-3)
        self.hidden = nn.Linear(12, 16)
        self.hidden_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, 5) of images (batch, 3, 16, 16)."""
        x = torch.relu(self.plain_norm(self.plain(x)))
        x = torch.relu(self.biased_norm(self.biased(x))) + x
        x = torch.relu(self.grouped_norm(self.grouped(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden_norm(self.hidden(x))))


FOLDED = ["plain", "biased", "grouped", "hidden"]


def trained(network: nn.Module) -> nn.Module:
    """A network whose BatchNorms do something, some with negative slopes."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return network.eval()


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(graph: Graph, x: Tensor, changes: dict[str, Tensor] | None = None) -> Tensor:
    stream = Stream(graph, {**graph.parameters, **(changes or {})}, {graph.inputs[0]: x})
    stream.advance(len(graph.ops))
    return stream.values[graph.outputs[0]]


def test_the_folded_network_is_the_same_function_with_fewer_operations() -> None:
    graph = trace(trained(Normed()), images(2))
    folding = fold(graph)
    assert [of.weight for of in folding.folds] == [f"{name}.weight" for name in FOLDED]
    assert not folding.graph.norms
    assert len(graph.norms) == 4
    torch.testing.assert_close(outputs(folding.graph, images()), outputs(graph, images()))
    for original, layer in zip(graph.layers, folding.graph.layers, strict=True):
        for field in ("name", "parameter", "kind", "shape", "output", "macs", "protected"):
            assert getattr(layer, field) == getattr(original, field)
        assert layer.bn_scale is None
        assert layer.bias is not None
        assert layer.bias.sign == 1


def test_changes_of_the_folded_network_are_changes_of_the_module() -> None:
    module = trained(Normed())
    folding = fold(trace(module, images(2)))
    generator = torch.Generator().manual_seed(2)
    changes = {}
    for layer in folding.graph.layers:
        assert layer.bias is not None
        for name in (str(layer.parameter), layer.bias.name):
            value = folding.graph.parameters[name]
            noise = torch.randn(value.shape, generator=generator)
            kept = torch.rand(value.shape, generator=generator) < 0.5 if value.dim() > 1 else 1.0
            changes[name] = (value + 0.1 * noise) * kept + 0.0
    wanted = outputs(folding.graph, images(), changes)
    before = outputs(folding.graph, images())
    found = folding.unfold(changes)
    with torch.no_grad():
        got = with_parameters(module, found)(images())
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - before).abs().max() > 0.1
    for layer in folding.graph.layers:
        zeros = changes[str(layer.parameter)] == 0
        assert torch.equal(found[str(layer.parameter)] == 0, zeros)
        assert not found[str(layer.parameter)][zeros].signbit().any()


def test_what_was_not_changed_comes_back_to_the_last_bit() -> None:
    folding = fold(trace(trained(Normed()), images(2)))
    changes = dict(folding.graph.parameters)
    changes = {of.weight: changes[of.weight].clone() for of in folding.folds}
    changes["plain.weight"][0, 0] = 0
    found = folding.unfold(changes)
    original = folding.original.parameters
    assert torch.equal(found["plain.weight"][1:], original["plain.weight"][1:])
    assert not found["plain.weight"][0, 0].any()
    for name in FOLDED[1:]:
        assert torch.equal(found[f"{name}.weight"], original[f"{name}.weight"])


class ReadTwice(Normed):
    """The output of a convolution is read by its BatchNorm and by something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, 5) of images (batch, 3, 16, 16)."""
        raw = self.plain(x)
        x = torch.relu(self.plain_norm(raw)) + raw
        x = torch.relu(self.biased_norm(self.biased(x)))
        x = torch.relu(self.grouped_norm(self.grouped(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden_norm(self.hidden(x))))


class Twice(Normed):
    """A convolution with its BatchNorm is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, 5) of images (batch, 3, 16, 16)."""
        x = torch.relu(self.plain_norm(self.plain(x)))
        for _ in range(2):
            x = torch.relu(self.biased_norm(self.biased(x)))
        x = torch.relu(self.grouped_norm(self.grouped(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden_norm(self.hidden(x))))


def flat() -> nn.Module:
    """A channel is switched off: there is no way back from its weights times 0."""
    network = trained(Normed())
    with torch.no_grad():
        network.grouped_norm.weight[3] = 0  # type: ignore[index, union-attr]
    return network


@pytest.mark.parametrize(
    ("network", "left"),
    [(trained(ReadTwice()), "plain"), (trained(Twice()), "biased"), (flat(), "grouped")],
    ids=["read twice", "used twice", "scale of 0"],
)
def test_a_layer_that_cannot_be_folded_stays_and_is_pruned(network: nn.Module, left: str) -> None:
    graph = trace(network, images(2))
    folding = fold(graph)
    folded = [of.weight for of in folding.folds]
    assert folded == [f"{name}.weight" for name in FOLDED if name != left]
    torch.testing.assert_close(outputs(folding.graph, images()), outputs(graph, images()))
    result = secateur.prune(network, images(), sparsity=0.5, include="*", progress=False)
    assert (result.model.get_submodule(left).weight == 0).sum() > 0  # type: ignore[union-attr]
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)


class RawToo(Normed):
    """What a convolution gives is an output, and its BatchNorm reads it as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Scores (batch, 5), and the first layer's outputs."""
        raw = self.plain(x)
        x = torch.relu(self.plain_norm(raw))
        x = torch.relu(self.biased_norm(self.biased(x)))
        x = torch.relu(self.grouped_norm(self.grouped(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden_norm(self.hidden(x)))), raw


def test_a_layer_that_gives_an_output_is_fitted_to_that() -> None:
    folding = fold(trace(trained(RawToo()), images(2)))
    (plain, *_) = folding.graph.layers
    assert plain.name == "plain"
    assert plain.bn_scale is None
    assert plain.bias is None


def test_weights_too_small_to_be_folded_are_pruned_all_the_same() -> None:
    network = trained(Normed())
    with torch.no_grad():
        network.biased.weight[:4] *= 1e-30
        network.biased_norm.running_var[:4] = 1e30  # a scale of 1e-15
    result = secateur.prune(network, images(), sparsity=0.5, include="biased", progress=False)
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)
    assert (result.model.biased.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_outputs_that_are_switched_off_stay_so_when_blocks_are_trained() -> None:
    network = trained(Normed())
    with torch.no_grad():
        for norm in (network.plain_norm, network.grouped_norm):
            norm.weight[:3] = 1e-8
    recipe = replace(
        RECIPES["tuned"], reconstruction=secateur.BlockReconstruction(layers=2, steps=20)
    )
    result = secateur.prune(
        network, images(), sparsity=0.8, include="*", recipe=recipe, progress=False
    )
    for name, value in result.model.state_dict().items():
        assert value.abs().max() < 100, name
    folding = fold(trace(network, images(2)))
    assert {of.offset for of in folding.folds} >= {"plain_norm.bias", "grouped_norm.bias"}


def test_a_module_without_operations_has_no_layer() -> None:
    with pytest.raises(secateur.ModelError, match="no layer to prune"):
        secateur.prune(nn.Identity(), images(), sparsity=0.5, progress=False)


class Positions(nn.Module):
    """A BatchNorm behind a linear layer that normalises positions, not the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)
        self.norm = nn.BatchNorm1d(48)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, 5) of images (batch, 3, 16, 16)."""
        return self.head(torch.relu(self.norm(self.mix(x.flatten(1, 2)))).mean(1))


def test_a_norm_of_positions_is_no_norm_of_the_outputs() -> None:
    network = trained(Positions())
    graph = trace(network, images(2))
    folding = fold(graph)
    assert not folding.folds
    assert graph.layers[0].bn_scale is None
    result = secateur.prune(network, images(), sparsity=0.5, include="*", progress=False)
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)


def test_the_folded_numbers_are_those_of_the_exported_file(tmp_path: Path) -> None:
    """Rounded as NumPy rounds, not as PyTorch does: of 512 slopes some differ."""
    body = [nn.Conv2d(3, 512, 1, bias=False), nn.BatchNorm2d(512, eps=1e-3)]
    network = trained(nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    save_onnx(network, tmp_path / "model.onnx", images(2), [])
    in_file = stored(onnx.load(tmp_path / "model.onnx"))
    folding = fold(trace(network, images(2)))
    (stem,) = folding.folds
    found = folding.graph.parameters
    for name, value in in_file.items():
        mine = found[stem.weight if name == stem.weight else stem.bias]
        if value.shape == mine.shape:
            assert torch.equal(value, mine), name
    assert {value.shape for value in in_file.values()} >= {found[stem.weight].shape, (512,)}


def test_an_onnx_file_with_normalisations_is_folded_as_the_module_is() -> None:
    x = images()[..., :11, :11]
    original, file = trace(network(), x[:2]), trace(as_onnx(network()), x[:2])
    module, onnx_file = fold(original), fold(file)
    assert [of.weight for of in onnx_file.folds] == ["stem.weight", "last.weight"]
    for mine, other in zip(onnx_file.folds, module.folds, strict=True):
        assert (mine.weight, mine.bias_parameter) == (other.weight, other.bias_parameter)
        assert torch.equal(mine.bn_scale, other.bn_scale)
        for name, there in ((mine.weight, other.weight), (mine.bias, other.bias)):
            assert torch.equal(onnx_file.graph.parameters[name], module.graph.parameters[there])
    for mine, other in zip(onnx_file.graph.layers, module.graph.layers, strict=True):
        for field in ("name", "parameter", "shape", "output", "macs", "bn_scale"):
            assert getattr(mine, field) == getattr(other, field), field
        assert mine.bias is not None
        assert mine.bias.sign == 1
        assert mine.affine == (mine.parameter, mine.bias.name)
    assert len(onnx_file.graph.ops) == len(file.ops) - 2
    torch.testing.assert_close(outputs(onnx_file.graph, x), outputs(file, x))


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_a_module_and_its_onnx_file_are_pruned_alike_to_the_last_zero(
    tmp_path: Path, sparsity: float
) -> None:
    network = trained(Normed())
    save_onnx(network, tmp_path / "model.onnx", images(2), [])
    ways = (network, tmp_path / "model.onnx")
    module, file = (
        secateur.prune(way, images(), sparsity=sparsity, include="*", progress=False).model
        for way in ways
    )
    in_file = stored(file)
    for name in [*FOLDED, "head"]:
        weight = module.get_submodule(name).weight
        if (there := in_file.get(f"{name}.weight")) is None:  # the exporter transposes Gemm's
            continue
        assert torch.equal(weight == 0, there == 0), name
