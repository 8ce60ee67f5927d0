"""The front-end and the walk: what is found, what each layer is fitted to, what is left alone."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from inputs import samples_of, trace
from torch import nn

import secateur
from secateur.core.methods import LeastSquares
from secateur.core.patterns import Unstructured
from secateur.frontends.torch.graph import with_parameters
from secateur.network.layers import BiasParameter
from secateur.network.stream import Stream
from secateur.pruning.layer_fit import Survey
from secateur.pruning.layer_selection import (
    select_layers,
)
from secateur.pruning.sampling import Sampling
from secateur.pruning.walk import walk


class Zoo(nn.Module):
    """What networks do: functional layers, attention, in-place adds, weights of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.free = nn.Parameter(torch.randn(8, 8))
        self.twice = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(F.pad(x, (1, 0, 0, 1)))), inplace=True)
        y = self.depthwise(x)
        y += self.normed(y)
        tokens = self.up(y).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = F.linear(tokens, self.free).transpose(1, 2)
        tokens = self.twice(F.relu(self.twice(tokens)))
        return self.head(tokens.mean(2)).view(x.shape[0], -1)


@pytest.fixture(scope="module")
def zoo() -> nn.Module:
    torch.manual_seed(0)
    return Zoo().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 11, 11, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(zoo, images):
    return trace(zoo, images[:2])


def test_layers_are_found_with_what_can_be_done_with_them(graph) -> None:
    found = {layer.name: layer for layer in graph.layers}
    assert list(found) == [
        "stem",
        "depthwise",
        "normed",
        "up",
        "attention.in_proj_weight",
        "(products of activations)",
        "attention.out_proj",
        "free",
        "twice",
        "head",
    ]
    assert found["stem"].protected == "first layer"
    assert found["depthwise"].protected == "depthwise"
    assert found["normed"].obstacle == (
        "weight computed on the fly: "
        "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
    )
    assert found["up"].obstacle == "transposed convolution"
    assert found["stem"].bias == BiasParameter("norm.running_mean", -1)
    assert found["head"].bias == BiasParameter("head.bias", 1)
    assert found["free"].bias is None
    assert len(found["twice"].calls) == 2
    assert found["stem"].macs == 12 * 12 * found["stem"].weights
    assert found["up"].macs == 6 * 6 * found["up"].weights
    assert found["head"].macs == found["head"].weights


class Decoder(nn.Module):
    """Ends like a detector that decodes boxes with the fixed kernel 0..15, and in a binary head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.dfl = nn.Conv2d(16, 1, 1, bias=False)
        self.dfl.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)
        self.wide, self.narrow = nn.Linear(512, 1), nn.Linear(63, 1)
        self.edge = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.body(self.stem(x)))
        flat = y.flatten(1)[:, :512]
        heads = self.wide(flat), self.narrow(flat[:, :63]), self.edge(flat[:, :64])
        return torch.cat([self.dfl(y.softmax(1)).flatten(1), *heads], 1)


def test_tiny_layers_of_one_output_stay_dense_unless_asked_for() -> None:
    model, images = Decoder().eval(), torch.randn(40, 3, 8, 8)
    report = secateur.prune(model, images, sparsity=0.5, method="magnitude").report
    assert [layer.name for layer in report.layers] == ["body", "wide", "edge"]
    reasons = {layer.name: layer.reason for layer in report.dense_layers}
    assert reasons["dfl"] == "tiny, one output of 16 weights"
    assert reasons["narrow"] == "tiny, one output of 63 weights"
    assert "no: tiny, one" in str(secateur.inspect(model, (3, 8, 8)))
    layers = trace(model, images[:2]).layers
    assert [layer.name for layer in select_layers(layers, include="dfl")] == ["dfl"]


def test_running_the_graph_is_running_the_module(zoo, graph, images) -> None:
    stream = Stream(graph, graph.parameters, {graph.inputs[0]: images})
    stream.advance(len(graph.ops))
    torch.testing.assert_close(stream.values[graph.outputs[0]], zoo(images))
    assert set(stream.values) == set(graph.outputs)  # everything else was dropped


def _walk(graph, images, layers, **options):
    weights = [layer.weights for layer in layers]
    kept = options.pop("kept", [count // 2 for count in weights])
    method = options.pop("method", LeastSquares(damping=1e-4))
    return walk(
        graph,
        samples_of(graph, images),
        layers,
        kept,
        method=method,
        pattern=Unstructured(),
        **options,
    )


def test_the_pruned_stream_is_the_pruned_network(zoo, graph, images) -> None:
    walked = _walk(graph, images, select_layers(graph.layers), chunk=7)
    pruned = with_parameters(zoo, walked.changes)
    torch.testing.assert_close(walked.pruned, pruned(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(walked.dense, zoo(images), rtol=1e-4, atol=1e-4)


def test_keeping_every_weight_changes_nothing(graph, images) -> None:
    layers = select_layers(graph.layers, include="*")
    walked = _walk(graph, images, layers, kept=[layer.weights for layer in layers])
    torch.testing.assert_close(walked.pruned, walked.dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_a_layer_is_fitted_to_the_inputs_asked_for(inputs: str) -> None:
    """Against least squares by hand on the inputs that the second layer gets."""
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).requires_grad_(False)
    x = torch.randn(8192, 6) + 1
    result = secateur.prune(
        network,
        x,
        sparsity=0.5,
        method=LeastSquares(damping=1e-6),
        inputs=inputs,
        include="*",
        max_images=None,
    )
    hidden = (network if inputs == "dense" else result.model)[:2](x)
    fitted = result.model[2]
    design = torch.cat([hidden, torch.ones(8192, 1)], 1).double()
    for row in range(4):
        support = torch.cat([fitted.weight[row] != 0, torch.tensor([True])])
        solution = torch.linalg.lstsq(design[:, support], network(x)[:, row].double()).solution
        found = torch.cat([fitted.weight[row], fitted.bias[row : row + 1]])[support]
        torch.testing.assert_close(found.double(), solution, rtol=2e-2, atol=2e-3)


def test_the_walk_makes_good_what_earlier_layers_lost(zoo, graph, images) -> None:
    layers = select_layers(graph.layers)
    errors = {}
    for inputs in ("pruned", "dense"):
        walked = _walk(graph, images, layers, inputs=inputs)
        pruned = with_parameters(zoo, walked.changes)
        errors[inputs] = float((pruned(images) - zoo(images)).square().mean())
    assert errors["pruned"] < errors["dense"]


def test_wide_layers_are_fitted_in_blocks_and_say_so() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 20)).requires_grad_(False)
    x = torch.randn(400, 3, 4, 4)
    options = {"sparsity": 0.5, "include": "*", "method": LeastSquares()}
    whole = secateur.prune(network, x, **options)
    blocks = secateur.prune(network, x, max_columns=13, **options)
    plain = secateur.prune(network, x, **options | {"method": "magnitude"})
    assert blocks.report.layers[0].notes == ("48 columns fitted in 4 blocks",)
    assert blocks.report.sparsity == whole.report.sparsity == 0.5
    assert torch.equal(blocks.model[1].weight == 0, whole.model[1].weight == 0)
    error = {
        name: float((result.model(x) - network(x)).square().mean())
        for name, result in {"whole": whole, "blocks": blocks, "plain": plain}.items()
    }
    assert error["whole"] <= error["blocks"] < error["plain"]


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_a_survey_finds_the_errors_from_the_new_weights_on(graph, images, inputs) -> None:
    """Those of another walk that starts from what this one has made of the layers."""
    layers = select_layers(graph.layers)
    levels = [[count // 3, count // 5] for count in (layer.weights for layer in layers)]
    method = LeastSquares(damping=0.3, tolerance=1e-2, iterations=30)
    options = {"inputs": inputs}
    plain = _walk(graph, images, layers, **options)
    walked = _walk(graph, images, layers, survey=Survey(method, levels), **options)
    assert all(torch.equal(plain.changes[name], of) for name, of in walked.changes.items())
    alike = len(layers) if inputs == "dense" else 1  # later ones get other inputs
    for at in range(2):
        kept = [of[at] for of in levels]
        again = _walk(
            graph, images, layers, kept=kept, method=method, start=walked.changes, **options
        )
        found = [of.level_errors[at] for of in walked.results[:alike]]
        expected = [of.relative_error for of in again.results[:alike]]
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "levels"), [(90, [0, 1]), (60, [0, 1]), (40, [1, 2]), (15, [2, 3]), (1, [2, 3])]
)
def test_a_survey_looks_at_the_levels_that_a_layer_may_come_to_next(kept, levels) -> None:
    survey = Survey(LeastSquares(), [[50, 25, 10, 3], [50]])
    assert [*survey.near(0, kept)] == levels
    assert [*survey.near(1, kept)] == [0]


def test_levels_far_from_a_layer_are_not_looked_at(graph, images) -> None:
    layers = select_layers(graph.layers)
    levels = [[round(of.weights * share) for share in (0.7, 0.3, 0.1)] for of in layers]
    walked = _walk(graph, images, layers, survey=Survey(LeastSquares(), levels))
    for number, found in enumerate(walked.results):
        near = Survey(LeastSquares(), levels).near(number, found.kept)
        assert [at for at, of in enumerate(found.level_errors) if of is not None] == [*near]


def test_a_bias_goes_into_the_batch_norm_only_where_it_is_the_only_reader() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.b(self.norm(self.a(x))))

    x = torch.randn(40, 3, 6, 6)
    result = secateur.prune(Shared(), x, sparsity=0.5, include="*")
    assert all(
        layer.notes == ("no place for a bias: none fitted",) for layer in result.report.layers
    )
    assert torch.equal(result.model.norm.running_mean, torch.zeros(4))


def test_tied_modules_are_one_layer_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.b, self.a = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.a.weight = self.b.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(self.first(x)).relu())

    result = secateur.prune(Tied(), torch.randn(60, 6), sparsity=0.5)
    (layer,) = result.report.layers
    assert "weight used 2 times: one fit for all" in layer.notes
    assert result.model.a.weight is result.model.b.weight
    assert int((result.model.a.weight == 0).sum()) == 18


def test_a_weight_with_another_reader_stays_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.first(x)) + self.tied.weight.sum()

    found = {layer.name: layer for layer in secateur.inspect(Tied(), (6,)).layers}
    assert found["tied"].obstacle == "weight also used by sum.default"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_solved_in_float32_and_cast_back(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(dtype)
    result = secateur.prune(network, torch.randn(40, 3, 8, 8), sparsity=0.5)
    assert {tensor.dtype for tensor in result.model.state_dict().values()} == {dtype}
    assert result.report.sparsity == 0.5
    assert {tensor.dtype for tensor in network.state_dict().values()} == {dtype}


def test_the_old_weight_norm_can_be_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    network = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    result = secateur.prune(network, torch.randn(40, 3, 8, 8), sparsity=0.5)
    assert result.report.dense_layers[0].reason == (
        "weight computed on the fly: call torch.nn.utils.remove_weight_norm(layer, 'weight') first"
    )


def test_the_input_is_untouched_and_a_seed_gives_the_same_bytes(images) -> None:
    torch.manual_seed(5)
    network = Zoo().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    results = [secateur.prune(network, images, sparsity=0.6, seed=3) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    one, two = (result.model.state_dict() for result in results)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_values_that_overflow_name_the_layer(images) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        network[0].weight.fill_(1e30)
    with pytest.raises(secateur.NumericalError, match="layer 1"):
        secateur.prune(network, images * 1e15, sparsity=0.5)


def test_what_cannot_be_exported_names_the_reason_and_the_way_out(images) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y if y.sum() > 0 else -y

    class Fixed(Branch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).reshape(2, -1)

    class Random(Branch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + torch.randn_like(x[:, :1, :-2, :-2])

    with pytest.raises(secateur.ModelError, match=r"branches on values.*use torch\.where"):
        secateur.prune(Branch(), images, sparsity=0.5)
    with pytest.raises(secateur.ModelError, match=r"batch size is fixed.*x\.shape\[0\]"):
        secateur.prune(Fixed(), images, sparsity=0.5)
    with pytest.raises(secateur.ModelError, match="random or depends on state"):
        secateur.prune(Random(), images, sparsity=0.5)
    with pytest.raises(secateur.ModelError, match="check the input's shape"):
        secateur.prune(Branch(), images[:, :2], sparsity=0.5)


def test_progress_reports_every_layer(zoo, images) -> None:
    seen: list[tuple[int, int, str]] = []
    report = secateur.prune(
        zoo, images, sparsity=0.5, progress=lambda *call: seen.append(call)
    ).report
    names = [layer.name for layer in report.layers]
    assert [name for _, _, name in seen] == 2 * names  # once measured, once solved
    total = 2 * len(names)
    assert [(done, of) for done, of, _ in seen] == [(i, total) for i in range(1, total + 1)]


def test_samples_follow_the_columns() -> None:
    sampling = Sampling(per_column=16, least=100, max_columns=50)
    assert [sampling.count(cols) for cols in (3, 20, 1000)] == [100, 320, 800]


def test_three_dimensional_convolutions_are_pruned_too() -> None:
    torch.manual_seed(6)
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 2, padding=1))
    x = torch.randn(40, 2, 5, 6, 5)
    result = secateur.prune(network, x, sparsity=0.5)
    assert [layer.name for layer in result.report.layers] == ["2"]
    assert int((result.model[2].weight == 0).sum()) == 64
