"""`output=`, `judge=` and `metric=` of prune, plan, sweep and evaluate, and of the command line."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_models import Builder
from torch import Tensor, nn
from torch.nn.functional import normalize
from typer.testing import CliRunner

import secateur
from secateur import OptionError, Sensitivity
from secateur.cli.app import app

QUICK: dict[str, Any] = {
    "method": "magnitude",
    "allocation": Sensitivity(levels=(0.5, 0.9)),
    "progress": False,
}
pytestmark = pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")


class Network(nn.Module):
    """Three layers; two heads on one body, the second far away from the first."""

    def __init__(self, outputs: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.one, self.other = nn.Linear(16, 6), nn.Linear(16, 5)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return self.outputs(self.one(x), self.other(x))


def rows(count: int = 48, *more: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *(more or (7,)), generator=generator)


def network(outputs: Callable[[Tensor, Tensor], Any]) -> Network:
    return Network(outputs).eval()


def zeros(outputs: Callable[[Tensor, Tensor], Any], **how: Any) -> dict[str, float]:
    result = secateur.prune(network(outputs), rows(), sparsity=0.6, **QUICK, **how)
    return {layer.name: layer.sparsity for layer in result.report.layers}


def two(one: Tensor, other: Tensor) -> Any:
    return {"first": one, "last": other}


@pytest.mark.parametrize("asked", ["last", 1, "1"])
def test_a_network_judged_by_an_output_is_the_one_that_returns_that_alone(asked) -> None:
    alone = zeros(lambda one, other: {"last": other, "unread": one})
    assert zeros(two, output=asked) == alone
    assert zeros(two) != alone


def as_onnx(net: Network) -> tuple[onnx.ModelProto, list[str]]:
    build = Builder(7)
    x = build.node("Relu", build.linear("input", net.body[0], "a"))
    x = build.node("Relu", build.linear(x, net.body[2], "b"))
    names = [build.linear(x, net.one, "one"), build.linear(x, net.other, "other")]
    return build.model(*names), names


def test_a_file_is_judged_by_its_outputs_names() -> None:
    net = network(two)
    model, names = as_onnx(net)
    found = secateur.prune(model, rows(), sparsity=0.6, output=names[1], **QUICK).report
    report = secateur.prune(net, rows(), sparsity=0.6, output="last", **QUICK).report
    assert [of.zeros for of in found.layers] == [of.zeros for of in report.layers]
    assert found.calibration.kl == pytest.approx(report.calibration.kl, rel=1e-3)
    for given in (model, net):
        same = secateur.evaluate(given, rows(), reference=net, output=1)
        assert same.agreement == 100
        assert same.kl == pytest.approx(0, abs=1e-6)


def test_all_figures_are_of_the_output_that_was_asked_for() -> None:
    net, held = network(two), rows(20, seed=2)
    result = secateur.prune(net, rows(), sparsity=0.6, output="last", evaluation=held, **QUICK)
    alone = network(lambda one, other: other)
    pruned = Network(lambda one, other: other).eval()
    pruned.load_state_dict(result.model.state_dict())
    for images, found in (
        (rows(), result.report.calibration),
        (held, result.report.evaluation["pruned"]),
    ):
        want = secateur.evaluate(pruned, images, reference=alone)
        assert (found.agreement, found.kl) == pytest.approx((want.agreement, want.kl))
    assert result.report.requested["output"] == "last"
    assert any("output='last'" in note for note in result.report.notes)


def test_embeddings_of_unit_length_and_those_that_are_said_to_be_some() -> None:
    unit = secateur.prune(
        network(lambda one, other: normalize(one)),
        rows(),
        sparsity=0.6,
        evaluation=rows(20, seed=2),
        **QUICK,
    ).report
    assert unit.calibration.cosine is not None
    said = secateur.prune(
        network(lambda one, other: one), rows(), sparsity=0.6, judge="embeddings", **QUICK
    ).report
    assert said.calibration.cosine == pytest.approx(unit.calibration.cosine)
    assert [of.zeros for of in said.layers] == [of.zeros for of in unit.layers]
    assert "mean cosine" in unit.result
    assert "mean cosine" in str(unit)
    plain = secateur.prune(network(lambda one, other: one), rows(), sparsity=0.6, **QUICK).report
    assert plain.calibration.agreement is not None


def test_a_search_keeps_hundredths_of_mean_cosine() -> None:
    net, held = network(lambda one, other: normalize(one)), rows(60, seed=2)
    result = secateur.prune(net, rows(), max_drop=2, evaluation=held, **QUICK)
    search = result.report.search
    assert search.measure == "cosine"
    found = secateur.evaluate(result.model, held, reference=net)
    assert search.drop == pytest.approx(100 * (1 - found.cosine), abs=1e-4)
    assert search.drop <= 2
    assert "lose at most 2 hundredths of mean cosine" in str(result.report)
    assert "hundredths lost" in str(result.report)


def tokens(one: Tensor, other: Tensor) -> Any:
    return {"hidden": one, "logits": other}


def test_tokens_are_judged_one_by_one_and_a_search_keeps_their_points(tmp_path) -> None:
    net, data, held = network(tokens), rows(40, 9, 7), rows(30, 9, 7, seed=2)
    how: dict[str, Any] = {"evaluation": held, "output": "logits", **QUICK}
    result = secateur.prune(net, data, max_drop=5, **how)
    report = result.report
    assert report.search.measure == "disagreement per token"
    assert report.evaluation["pruned"].tokens == 270
    assert report.calibration.tokens == 360
    assert report.search.drop == pytest.approx(100 - report.evaluation["pruned"].agreement)
    assert "5 points of agreement per token" in str(report)
    secateur.save_page(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "360 tokens of the 40 calibration images" in " ".join(page.split())
    report.save(tmp_path / "report.json")
    assert secateur.Report.load(tmp_path / "report.json").search == report.search


def test_perplexity_comes_with_labels_per_token() -> None:
    net, data = network(tokens), rows(12, 9, 7)
    labels = torch.randint(5, (12, 9), generator=torch.Generator().manual_seed(0))
    found = secateur.evaluate(net, data, labels, reference=net, output="logits")
    scores = net(data)["logits"].detach().flatten(0, 1)
    want = nn.functional.cross_entropy(scores, labels.flatten())
    assert found.perplexity == pytest.approx(math.exp(float(want)), rel=1e-5)
    assert (found.tokens, found.drop) == (108, 0)
    assert "perplexity" in str(found)


def test_a_drop_of_values_is_refused_and_says_what_would_do() -> None:
    net = network(lambda one, other: one)
    with pytest.raises(OptionError, match="pass a metric, or say by judge what the output is"):
        secateur.prune(net, rows(40, 9, 7), max_drop=1, **QUICK)
    result = secateur.prune(net, rows(40, 9, 7), max_drop=5, judge="tokens", **QUICK)
    assert result.report.search.measure == "disagreement per token"


class Counted:
    """The mean of a network's largest score, told of whom it is asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.data = rows(16, seed=3)

    def __call__(self, model: Any) -> float:
        self.seen.append(model)
        assert not model.training
        return -float((model(self.data).detach() - 1).square().mean())


def test_a_metric_is_measured_on_the_network_as_the_user_has_it() -> None:
    net, metric = network(lambda one, other: one).train(), Counted()
    result = secateur.prune(net, rows(), sparsity=0.6, metric=metric, **QUICK)
    assert net.training
    assert metric.seen == [net, result.model]
    found = result.report.evaluation
    net.eval()
    want = [metric(net), metric(result.model)]
    assert [found["dense"].metric, found["pruned"].metric] == want
    assert found["pruned"].metric_drop == pytest.approx(want[0] - want[1])
    assert found["pruned"].images == 0
    assert f"metric {want[1]:.4f}" in result.report.result
    assert "By your own metric" in str(result.report)


def test_a_metric_stands_beside_evaluation_data(tmp_path) -> None:
    net = network(lambda one, other: one)
    report = secateur.prune(
        net, rows(), sparsity=0.6, metric=Counted(), evaluation=rows(20, seed=2), **QUICK
    ).report
    assert report.evaluation["pruned"].images == 20
    assert report.evaluation["pruned"].agreement is not None
    assert report.evaluation["pruned"].metric is not None
    secateur.save_page(report, tmp_path / "report.html")
    assert "your own metric" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_a_search_keeps_a_drop_of_the_metric_in_its_own_unit(scale) -> None:
    net, counted = network(lambda one, other: one), Counted()

    def metric(model: nn.Module) -> float:
        return scale * counted(model)

    limit = 0.02 * scale
    result = secateur.prune(net, rows(), max_drop=limit, metric=metric, **QUICK)
    search = result.report.search
    assert (search.measure, search.images, search.error) == ("metric", 0, None)
    assert search.drop == pytest.approx(metric(net.eval()) - metric(result.model))
    assert search.drop <= limit
    assert 0.1 < search.sparsity < 0.99
    tried = {round(of.sparsity, 3) for of in search.tries}
    assert len(tried) > 1
    assert f"lose at most {limit:g} of the metric" in str(result.report)
    assert result.report.data.images == 48  # none were held back


def test_an_onnx_metric_gets_the_model() -> None:
    model, _ = as_onnx(network(two))
    seen: list[Any] = []

    def metric(given: Any) -> float:
        seen.append(given)
        return float(len(given.SerializeToString()))

    result = secateur.prune(model, rows(), sparsity=0.6, metric=metric, **QUICK)
    assert seen[-1] is result.model
    assert all(isinstance(of, onnx.ModelProto) for of in seen)


def test_evaluate_tells_the_metric_of_one_network_or_what_was_lost() -> None:
    net, metric = network(lambda one, other: one), Counted()
    alone = secateur.evaluate(net, rows(), metric=metric)
    assert (alone.metric, alone.metric_drop, alone.agreement) == (metric(net), None, None)
    other = network(lambda one, other: 2 * one)
    both = secateur.evaluate(other, rows(), reference=net, metric=metric)
    assert both.metric_drop == pytest.approx(metric(net) - metric(other))
    assert "of the metric lost" in str(both)


def test_a_metric_that_gives_no_number_is_one_sentence_before_the_work() -> None:
    def none(model: Any) -> Any:
        return None

    walked: list[Any] = []
    how = {**QUICK, "progress": lambda *of: walked.append(of)}
    for wrong in (none, lambda model: math.nan, lambda model: torch.ones(2)):
        with pytest.raises(OptionError, match="expected a finite number, larger for a better"):
            secateur.prune(network(two), rows(), sparsity=0.5, metric=wrong, **how)
    assert not walked


def test_a_plan_measures_no_metric() -> None:
    metric = Counted()
    secateur.plan(network(two), rows(), sparsity=0.5, metric=metric, output="last", **QUICK)
    assert not metric.seen
    with pytest.raises(OptionError, match="max_drop of a metric cannot be planned"):
        secateur.plan(network(two), rows(), max_drop=0.5, metric=metric, **QUICK)


def test_a_sweep_has_the_measure_at_each_point(tmp_path) -> None:
    net = network(lambda one, other: normalize(one))
    found = secateur.sweep(net, rows(), sparsities=[0.4, 0.7], metric=Counted(), **QUICK)
    assert all(of.evaluation.metric is not None for of in found.points)
    secateur.save_page(found, tmp_path / "metric.html")
    assert "Metric against zeros" in (tmp_path / "metric.html").read_text()
    found = secateur.sweep(net, rows(), sparsities=[0.4, 0.7], evaluation=rows(20), **QUICK)
    assert all(of.evaluation.cosine is not None for of in found.points)
    secateur.save_page(found, tmp_path / "sweep.html")
    assert "Mean cosine with the dense network" in (tmp_path / "sweep.html").read_text()


def test_the_command_line_takes_output_and_judge(tmp_path) -> None:
    model, names = as_onnx(network(two))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "rows.npz", images=rows().numpy())
    file, data = str(tmp_path / "net.onnx"), str(tmp_path / "rows.npz")
    shared = ["--output", names[1], "--judge", "embeddings"]
    command = ["evaluate", file, "--against", file, "--eval", data, *shared]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["network"]["cosine"] == pytest.approx(1)
    assert "mean cosine 1.0000" in CliRunner().invoke(app, command).stdout
    out = ["--sparsity", "0.5", "--method", "magnitude", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["prune", file, "--data", data, *shared, *out])
    assert result.exit_code == 0, result.output
    report = secateur.Report.load(tmp_path / "out" / "report.json")
    assert report.calibration.cosine is not None
    assert report.requested["output"] == names[1]
    out[-1] += "-other"
    for command in (["prune", file, "--data", data, *out], ["evaluate", file, "--eval", data]):
        wrong = CliRunner().invoke(app, [*command, "--judge", "embedings"])
        assert wrong.exit_code == 2
        assert "judge is 'embedings'" in " ".join(wrong.stderr.split())
