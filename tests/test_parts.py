"""Channels, then zeros in what they have left, then INT8: and what each of them brought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur import OptionError, timing
from secateur.errors import ModelError
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.hardware.compare_latency import Ratio
from secateur.pruning.targets import MaxLatency, MaxMacs
from secateur.render.page import report_page
from secateur.report import cautions

QUICK = secateur.Recipe()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 24, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def images(count: int = 48) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def both(**more: Any) -> secateur.PruneResult:
    settings: dict[str, Any] = {
        "pattern": "channels",
        "max_macs": 0.7,
        "then_sparsity": 0.5,
        "recipe": QUICK,
    }
    return secateur.prune(network(), images(), **{**settings, **more})


@pytest.fixture(scope="module")
def others() -> Tensor:
    return torch.randn(20, 3, 10, 10, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def alone(others: Tensor) -> secateur.PruneResult:
    return both(then_sparsity=None, evaluation=others)


@pytest.fixture(scope="module")
def result(others: Tensor) -> secateur.PruneResult:
    return both(evaluation=others)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def timed(monkeypatch: pytest.MonkeyPatch, fails: Sequence[int] = ()) -> list[list[Any]]:
    """Times by hand: a network takes as many milliseconds as there are networks after it."""
    seen: list[list[Any]] = []

    def compare(models: Sequence[Any], *_: Any, **__: Any) -> list[Ratio]:
        seen.append(list(models))
        if len(models) in fails:
            raise ModelError("it does not run there")
        count = len(models)
        return [
            Ratio(ratio=(count - at) / count, low=0, high=1, seconds=1e-3 * (count - at), rounds=7)
            for at in range(count)
        ]

    monkeypatch.setattr(timing, "compare", compare)
    monkeypatch.setattr(timing, "try_run", lambda model, *_, **__: compare([model]))
    return seen


def test_zeros_are_made_in_what_channels_have_left(alone, result) -> None:
    first, *others = weights(result.model).items()
    assert {name: of.shape for name, of in weights(alone.model).items()} == {
        name: of.shape for name, of in weights(result.model).items()
    }
    assert int((first[1] == 0).sum()) == 0  # the first layer stays dense
    zeros, total = (
        sum(int(f(of)) for _, of in others) for f in (lambda w: (w == 0).sum(), torch.numel)
    )
    assert zeros / total == pytest.approx(0.5, abs=1e-3)


def test_the_report_adds_up_what_each_part_brought(alone, result) -> None:
    report, alone = result.report, alone.report
    channels, zeros = report.parts
    assert [channels.name, zeros.name] == ["channels", "zeros"]
    assert alone.parts == []
    assert channels.macs_fraction == pytest.approx(alone.macs_fraction)
    assert channels.bytes_fraction == pytest.approx(alone.bytes_fraction)
    assert channels.evaluation == alone.evaluation["pruned"]
    assert zeros.evaluation == report.evaluation["pruned"]
    assert zeros.macs_fraction == report.macs_fraction < channels.macs_fraction
    assert zeros.bytes_fraction == report.bytes_fraction < channels.bytes_fraction
    before = {name: of.numel() for name, of in weights(network()).items()}
    after = {name: int(of.count_nonzero()) for name, of in weights(result.model).items()}
    gone = sum(before[of.name] - after[of.name] for of in report.layers)
    assert sum(of.zeros for of in report.layers) == gone
    assert report.sparsity == gone / sum(before[of.name] for of in report.layers)


def test_terminal_and_page_show_the_parts(result) -> None:
    report = result.report
    assert "After each part" in str(report)
    assert "or as zeros" in str(report)
    page = report_page(report)
    assert "What each part brought" in page
    assert "Channels" in page
    assert "or set to zero" in page


def test_parts_are_in_the_saved_report(tmp_path, result) -> None:
    result.save(tmp_path / "out")
    loaded = secateur.Report.load(tmp_path / "out" / "report.json")
    assert loaded.parts == result.report.parts
    fresh = secateur.load(network(), tmp_path / "out" / "model.safetensors")
    assert torch.equal(fresh(images(4)), result.model(images(4)))


def test_int8_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    seen = timed(monkeypatch)
    report = both(then_sparsity=None, quantize="int8", runtime="onnxruntime").report
    channels, int8 = report.parts
    assert int8.name == "INT8"
    assert int8.macs_fraction == channels.macs_fraction
    assert len(seen[-1]) == 3  # dense, narrow, in INT8
    assert [of.milliseconds for of in report.parts] == [2.0, 1.0]
    assert report.latency is not None
    assert report.latency.pruned == 2.0


def test_a_runtime_alone_measures_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch)
    report = both(runtime="openvino").report
    assert report.latency is not None
    assert (report.latency.dense, report.latency.pruned) == (3.0, 1.0)
    assert report.latency.predicted is None
    assert [of.ratio for of in report.parts] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert not any("asks for" in warning for warning in report.warnings)  # no time was asked for
    assert "3.000" in str(report)


def test_only_a_time_that_was_asked_for_can_be_missed() -> None:
    one = Ratio(ratio=0.95, low=0.9, high=1.0, seconds=1.0, rounds=7)
    latency = timing.latency_report("openvino", 1, one, one)
    assert cautions.slow(latency, MaxMacs(0.7)) == []
    assert len(cautions.slow(latency, MaxLatency(0.7))) == 1


@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_what_cannot_be_measured_in_the_end_does_not_lose_the_network(monkeypatch) -> None:
    seen = timed(monkeypatch, fails=[3])  # all but the first try of the dense network alone
    result = both(runtime="onnxruntime")
    assert len(seen[-1]) == 3
    assert result.report.latency is None
    (told,) = [of for of in result.report.warnings if "time was not measured" in of]
    assert "it does not run there" in told


def test_a_runtime_that_does_not_run_the_network_is_told_before_it_is_pruned(monkeypatch) -> None:
    timed(monkeypatch, fails=[1])
    with pytest.raises(ModelError, match="does not run there"):
        both(runtime="onnxruntime")


def test_a_plan_tries_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = timed(monkeypatch)
    secateur.plan(network(), images(), sparsity=0.5, runtime="onnxruntime")
    assert seen == []


def test_each_network_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []

    def trace(front_end: TorchFrontend, example: Any) -> Any:
        traced.append(sum(of.numel() for of in front_end.parameters()))
        return own(front_end, example)

    own = TorchFrontend.trace
    monkeypatch.setattr(TorchFrontend, "trace", trace)
    both()
    assert len(traced) == len(set(traced)) == 2  # the dense one, and the smaller one


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pattern": "unstructured", "max_macs": None, "sparsity": 0.5}, "without pattern"),
        ({"max_macs": None, "max_drop": 1.0}, "then_sparsity and max_drop"),
        ({"then_sparsity": 1.5}, "then_sparsity is 1.5"),
    ],
)
def test_mistakes_are_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        both(**given)


def test_a_plan_says_that_zeros_follow() -> None:
    plan = secateur.plan(
        network(), images(), pattern="channels", max_macs=0.7, then_sparsity=0.5, recipe=QUICK
    )
    assert "then 50.00% zeros" in str(plan)
