"""Networks pruned in a pattern: every layer is in it, targets are met, front-ends agree."""

from __future__ import annotations

import importlib.util

import onnx_models
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.core.methods import METHODS
from secateur.core.patterns import NM, UnitPattern, choose_pattern
from secateur.frontends.openvino.runtime import as_ir, ir_weights
from secateur.pruning.recipe import Recipe

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = {"recipe": Recipe(), "progress": False}  # in one walk, to be quick


class Mixed(nn.Module):
    """Convolutions that patterns fit, one of two groups, one that they do not, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.odd = nn.Conv2d(16, 6, 1)
        self.back = nn.Conv2d(6, 16, 1)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.grouped(x))
        x = torch.relu(self.back(torch.relu(self.odd(x))))
        return self.head(x.mean((2, 3)))


def mixed(zeros: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    network = Mixed().eval()
    for number, parameter in enumerate(network.parameters()):
        generator = torch.Generator().manual_seed(number)
        if parameter.dim() > 1:
            parameter.data *= torch.rand(parameter.shape, generator=generator) >= zeros
    return network


def is_in(pattern: UnitPattern, weight: Tensor, groups: int, dense: Tensor) -> bool:
    """Whether a weight is in a pattern along input channels, tap by tap; in loops."""
    kept, there = (of.flatten(2) if of.dim() > 2 else of.unsqueeze(2) for of in (weight, dense))
    rows, cols = pattern.unit
    for group in torch.arange(len(weight)).chunk(groups):
        for top in range(0, len(group), rows):
            for left in range(0, kept.shape[1], cols):
                some = group[top : top + rows]
                for tap in range(kept.shape[2]):
                    count = int((kept[some, left : left + cols, tap] != 0).sum())
                    could = int((there[some, left : left + cols, tap] != 0).sum())
                    if count > pattern.n if isinstance(pattern, NM) else count not in (0, could):
                        return False
    return True


def check(result: secateur.PruneResult, dense: nn.Module, pattern: UnitPattern) -> None:
    weights, before = dict(result.model.named_parameters()), dict(dense.named_parameters())
    for layer in result.report.layers:
        name = f"{layer.name}.weight"
        assert not weights[name][before[name] == 0].any()
        if layer.zeros > int((before[name] == 0).sum()):
            groups = 2 if layer.name == "grouped" else 1
            assert is_in(pattern, weights[name], groups, before[name]), layer.name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["2:4", "1x4", "4x1"])
def test_every_pruned_layer_is_in_the_pattern(method: str, name: str) -> None:
    target = {} if ":" in name else {"sparsity": 0.5}
    dense = mixed()
    result = secateur.prune(dense, IMAGES, pattern=name, method=method, **target, **QUICK)
    check(result, dense, choose_pattern(name))
    assert result.report.sparsity == 0.5
    reasons = {layer.name: layer.reason for layer in result.report.dense_layers}
    if name == "2:4":
        assert reasons["back"] == "6 inputs, no multiple of 4: the pattern 2:4 does not fit"
        assert "odd" not in reasons


@pytest.mark.parametrize("name", ["2:4", "1x4"])
def test_zeros_of_the_dense_network_stay_and_count(name: str) -> None:
    dense = mixed(zeros=0.3)
    target = {} if name == "2:4" else {"sparsity": 0.6}
    result = secateur.prune(dense, IMAGES, pattern=name, **target, **QUICK)
    check(result, dense, choose_pattern(name))
    if name == "1x4":
        assert 0.6 <= result.report.sparsity < 0.61
    else:
        for layer in result.report.layers:
            assert layer.sparsity >= 0.5


@pytest.mark.parametrize("allocation", ["sensitivity", "normalized-magnitude"])
def test_an_allocation_chooses_the_layers_that_get_the_pattern(allocation: str) -> None:
    dense = mixed()
    result = secateur.prune(
        dense, IMAGES, pattern="2:4", sparsity=0.2, allocation=allocation, **QUICK
    )
    check(result, dense, NM(2, 4))
    shares = [layer.sparsity for layer in result.report.layers]
    assert set(shares) == {0.0, 0.5}
    assert result.report.sparsity >= 0.2
    assert any("stayed dense" in note for note in result.report.notes)
    plan = secateur.plan(dense, IMAGES, pattern="2:4", sparsity=0.2, allocation=allocation, **QUICK)
    assert [layer.sparsity for layer in plan.layers] == shares


@pytest.mark.parametrize("target", [{"max_macs": 0.8}, {"max_bytes": 0.85}])
@pytest.mark.parametrize("name", ["2:4", "1x4"])
def test_shares_of_the_cost_are_kept_to(name: str, target: dict[str, float]) -> None:
    dense = mixed()
    result = secateur.prune(dense, IMAGES, pattern=name, **target, **QUICK)
    check(result, dense, choose_pattern(name))
    left = result.report.macs_fraction, result.report.bytes_fraction
    assert left["max_bytes" in target] <= next(iter(target.values()))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity is 0.6, expected at most 0.5"),
        ({"pattern": "2:4", "max_macs": 0.1}, "max_macs is 0.1, expected at least 0."),
        ({"pattern": "2:4", "max_bytes": 0.1}, "which the pattern 2:4 leads to in every layer"),
        ({"pattern": "2:4", "max_latency": 0.5, "runtime": "torch"}, "do not make a network fas"),
        ({"pattern": "2:4", "sparsity": 0.2, "allocation": "uniform"}, "allocation 'uniform'"),
        ({"pattern": "1x4"}, "got no target"),
        ({"pattern": "1x32", "sparsity": 0.5}, "expected one that fits a layer"),
        ({"pattern": "2:4", "include": "back"}, "the pattern 2:4 does not fit"),
    ],
)
def test_what_a_pattern_cannot_do_is_one_sentence(options, says: str) -> None:
    with pytest.raises(secateur.OptionError, match=says):
        secateur.prune(mixed(), IMAGES, **options, **QUICK)


@pytest.mark.parametrize("asked", ["max_macs", "max_bytes"])
def test_what_a_pattern_is_said_to_reach_is_not_refused(asked: str) -> None:
    for value in (0.001, 0.05, 0.3, 0.5):
        with pytest.raises(secateur.OptionError, match="expected at least") as told:
            secateur.plan(mixed(), IMAGES, pattern="2:4", **{asked: value}, **QUICK)
        least = float(str(told.value).split("expected at least ")[1].split(",")[0])
        assert secateur.plan(mixed(), IMAGES, pattern="2:4", **{asked: least}, **QUICK).layers


def test_steps_on_the_way_to_a_target_that_dense_layers_exceed_are_no_harder() -> None:
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3)
    )
    recipe = Recipe(method=secateur.Magnitude(), schedule=(0.2, 0.1, 0.0))
    given = {"pattern": "4x1", "include": "4", "progress": False, "recipe": recipe}
    macs = {of.name: of.macs for of in secateur.inspect(dense, (3, 8, 8), pattern="4x1").layers}
    stuck = macs["2"] / sum(macs.values())
    with pytest.warns(secateur.SecateurWarning, match="layers that cannot be pruned take"):
        report = secateur.prune(dense, IMAGES, max_macs=stuck - 0.01, **given).report
    assert report.layers[0].sparsity == pytest.approx(1 - (stuck - 0.01), abs=0.05)


@pytest.mark.parametrize(("pattern", "more"), [("2:6", "name protected layers"), ("1x5", "")])
def test_where_a_pattern_fits_no_layer_another_is_advised(pattern: str, more: str) -> None:
    dense = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    given = {} if ":" in pattern else {"sparsity": 0.5}
    with pytest.raises(secateur.SecateurError, match="ask for another") as told:
        secateur.prune(dense, torch.randn(40, 12), pattern=pattern, **given, **QUICK)
    assert more in str(told.value)


def test_a_wide_layer_in_blocks_of_columns_cuts_no_unit() -> None:
    dense = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    rows = torch.randn(80, 96, generator=torch.Generator().manual_seed(1))
    for name in ("2:4", "1x16", "4x1"):
        target = {} if ":" in name else {"sparsity": 0.5}
        result = secateur.prune(
            dense, rows, pattern=name, max_columns=38, include="*", **target, **QUICK
        )
        check(result, dense, choose_pattern(name))
        assert result.report.sparsity == 0.5
        assert "96 columns fitted in 3 blocks" in result.report.layers[0].notes


@pytest.mark.parametrize("name", ["2:4", "1x4"])
def test_a_module_and_its_file_get_the_same_masks(name: str) -> None:
    network = onnx_models.folded(onnx_models.network())
    file = onnx_models.as_onnx(network)
    images = torch.randn(48, 3, 11, 11, generator=torch.Generator().manual_seed(2))
    options = {"pattern": name, "allocation": "uniform", "sparsity": 0.5, **QUICK}
    module = secateur.prune(network, images, **options)
    weights = module.model.state_dict()
    assert 0.5 <= module.report.sparsity < 0.51  # half of 127 blocks
    wanted = {key: of.flatten() != 0 for key, of in weights.items() if of.dim() > 1}
    stored = onnx_models.stored(secateur.prune(file, images, **options).model)
    assert all(torch.equal(stored[key].flatten() != 0, of) for key, of in wanted.items())
    if importlib.util.find_spec("openvino"):
        ir = ir_weights(secateur.prune(as_ir(file), images, **options).model)
        masks = [of.ravel() != 0 for of in ir.values()]
        assert all((a == b.numpy()).all() for a, b in zip(masks, wanted.values(), strict=True))


def test_blocks_are_trained_with_the_pattern_kept() -> None:
    dense = mixed()
    recipe = Recipe(reconstruction=secateur.BlockReconstruction(steps=3))
    result = secateur.prune(dense, IMAGES, pattern="2:4", recipe=recipe, progress=False)
    assert any("trained" in note for note in result.report.notes)
    check(result, dense, NM(2, 4))


def test_inspect_tells_which_layers_a_pattern_fits() -> None:
    found = secateur.inspect(mixed(), (3, 8, 8), pattern="2:4")
    reasons = {layer.name: layer.obstacle for layer in found.layers}
    assert "does not fit" in str(reasons["back"])
    assert reasons["odd"] is None


def test_a_search_stops_at_the_zeros_that_a_pattern_has() -> None:
    options = {"max_drop": 0.5, "metric": lambda network: 1.0, "method": "magnitude", **QUICK}
    result = secateur.prune(mixed(), IMAGES, pattern="2:4", **options)
    assert result.report.sparsity == 0.5
