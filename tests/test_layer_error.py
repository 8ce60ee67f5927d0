"""The error that a report tells of a layer is the layer's error; and what the sums weigh."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs import samples_of, trace
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import secateur
from secateur.core.methods import ADMM, BiasCorrection, LeastSquares, Magnitude
from secateur.core.patterns import Unstructured
from secateur.core.statistics import Statistics, merged
from secateur.frontends.torch.graph import with_parameters
from secateur.pruning.layer_selection import (
    select_layers,
)
from secateur.pruning.walk import walk


class Wide(nn.Module):
    """Two layers and a third; what they hold is far from centred."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Linear(96, 20, bias=bias)
        self.third = nn.Linear(20, 7, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu().flatten(1) + 0.5).relu())


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def wide(request) -> tuple[nn.Module, secateur.network.graph.Graph, Tensor]:
    torch.manual_seed(7)
    network = Wide(request.param).eval().requires_grad_(False)
    images = torch.randn(120, 3, 6, 6) + 0.3
    return network, trace(network, images[:2]), images


METHODS = {
    "magnitude": Magnitude(),
    "bias correction": BiasCorrection(),
    "least squares": LeastSquares(),
    "admm": ADMM(),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("columns", [8192, 50, 13])
@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_a_reported_error_is_the_whole_layers_error(
    wide, name: str, columns: int, inputs: str
) -> None:
    """Against the layer's outputs in the dense network and in the pruned one, by hand."""
    network, graph, images = wide
    layers = select_layers(graph.layers, include="*")
    walked = walk(
        graph,
        samples_of(graph, images),
        layers,
        [layer.weights * 2 // 5 for layer in layers],
        method=METHODS[name],
        pattern=Unstructured(),
        inputs=inputs,
        sampling=secateur.pruning.sampling.Sampling(max_columns=columns),
        chunk=50,
    )
    pruned = with_parameters(network, walked.changes)
    for result in walked.results:
        wanted, got = (outputs_of(of, result.layer.name, images) for of in (network, pruned))
        if inputs == "dense":  # the layer alone on what it gets in the dense network
            alone = with_parameters(
                network,
                {
                    key: value
                    for key, value in walked.changes.items()
                    if key.startswith(result.layer.name)
                },
            )
            got = outputs_of(alone, result.layer.name, images)
        error = (got - wanted).square().mean(0).sum() / wanted.var(0, correction=0).sum()
        assert result.relative_error == pytest.approx(float(error), rel=2e-3)


def outputs_of(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """A layer's outputs, (positions, rows), in float64."""
    found: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda *of: found.append(of[2]))
    network(images)
    hook.remove()
    return found[0].double().movedim(1, -1).reshape(-1, found[0].shape[1])


def test_the_error_of_given_weights_does_not_depend_on_the_blocks(wide) -> None:
    _, graph, images = wide
    (layer,) = select_layers(graph.layers, include="second")
    errors = []
    for columns in (8192, 48, 20, 3):
        walked = walk(
            graph,
            samples_of(graph, images),
            [layer],
            [layer.weights // 3],
            method=Magnitude(),
            pattern=Unstructured(),
            sampling=secateur.pruning.sampling.Sampling(max_columns=columns),
        )
        errors.append(walked.results[0].relative_error)
    assert errors == pytest.approx([errors[0]] * len(errors), rel=1e-4)


def test_outputs_that_do_not_vary_have_an_error_relative_to_their_size() -> None:
    x = torch.ones(1, 30, 4)
    weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    statistics = Statistics()
    statistics.add(x, x @ weight.mT)
    held = statistics.problem(weight)
    assert held.relative_error(0.5 * weight, torch.zeros(1, 1)) == pytest.approx(0.25)


class Weighed(TorchDispatchMode):
    """Follows the bytes of the tensors that are alive, op by op."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.known = {key: of for key, of in self.known.items() if not of[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.known.values()))
        return found


def test_the_sums_weigh_what_is_documented() -> None:
    """6 * cols^2 * 4 bytes for a layer whose folds are kept apart, from the sums to the solve."""
    cols, rows = 1500, 2
    x = torch.randn(1, 16, cols)
    weight = torch.randn(1, rows, cols)
    with Weighed() as weighed:
        folds = [Statistics(), Statistics()]
        for fold, part in zip(folds, x.split(8, 1), strict=True):
            fold.add(part, part[..., :rows])
        problems = [fold.problem(weight, fits_bias=False) for fold in folds]
        whole = merged(folds)
        del folds, fold
        problem = replace(whole.problem(weight), folds=(problems[0], problems[1]))
        del whole, problems
        sums, weighed.peak = weighed.peak, 0
        with torch.no_grad():
            ADMM(steps=3).solve(problem, Unstructured(), rows * cols // 2)
    unit = 4 * cols**2
    assert sums < 6 * unit * 1.1
    assert weighed.peak < 6 * unit * 1.1
