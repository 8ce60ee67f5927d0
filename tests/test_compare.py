"""Two reports side by side, and several sparsities of one network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import reports
import torch
from test_cli import assert_mistake, invoke
from test_page import Page
from torch import nn

import secateur
from secateur import DataError, OptionError, Report, Sensitivity, Sweep, compare_reports
from secateur.pruning.allocations import sensitivity


def changed(**more: object) -> Report:
    """The report with other zeros in its second layer."""
    held = reports.report(**more)  # type: ignore[arg-type]
    held.layers[1] = reports.layer("b.conv", 1, sparsity=0.8, relative_error=0.5)
    held.requested["seed"] = 7
    return held


def test_what_differs_is_told_and_nothing_else() -> None:
    found = compare_reports(reports.report(), changed())
    assert [(one.name, one.first, one.second) for one in found.settings] == [("seed", 0, 7)]
    assert [pair.name for pair in found.layers] == ["b.conv"]
    assert found.layers[0].difference == pytest.approx(0.28)
    assert found.same_layers == 2  # the other pruned one, and the one left dense
    same = compare_reports(reports.report(), reports.report())
    assert same.settings == same.layers == ()
    assert all(figure.difference == 0 for figure in same.figures)


def test_differences_of_layers_come_largest_first() -> None:
    names = ("a", "b", "c", "d")
    one, two = reports.report(*names), reports.report(*names)
    for index, sparsity in enumerate((0.6, 0.9, 0.1, 0.55)):
        two.layers[index] = reports.layer(names[index], index, sparsity=sparsity)
    changes = [abs(pair.difference) for pair in compare_reports(one, two).layers]
    assert changes == sorted(changes, reverse=True)
    assert len(changes) == 4


def test_the_difference_of_accuracies_has_the_error_of_both() -> None:
    dense, pruned = (reports.report().evaluation[name] for name in ("dense", "pruned"))
    better = replace(pruned, top1=89.5, standard_error=1.0, drop=0.5, drop_error=0.4)
    other = changed(evaluation={"dense": dense, "pruned": better})
    figures = {one.name: one for one in compare_reports(reports.report(), other).figures}
    assert figures["top-1"].difference == pytest.approx(1.0)
    assert figures["top-1"].error == pytest.approx(math.hypot(2.3, 1.0))
    assert figures["points lost"].error == pytest.approx(math.hypot(0.9, 0.4))
    assert figures["top-1"].note == "on 200 images each (± is smaller if these are the same)"
    unjudged = compare_reports(changed(evaluation={}), reports.report())
    top1 = {one.name: one for one in unjudged.figures}["top-1"]
    assert top1.difference is None
    assert top1.note == "A was not evaluated"


def test_a_layer_left_dense_in_one_report_counts_as_without_zeros() -> None:
    held = reports.report("a.conv")
    held.layers.append(reports.layer("stem", 4, shape=(8, 3, 3, 3), sparsity=0.3))
    held.dense_layers.clear()
    (pair,) = compare_reports(reports.report("a.conv"), held).layers
    assert pair.sparsities == (0.0, pytest.approx(0.3))


@pytest.mark.parametrize("names", [("a.conv",), ("a.conv", "b.conv", "c.conv"), ("a.conv", "x")])
def test_reports_of_different_networks_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"different networks: only \w+ has (b|c)\.conv \[8, 8"):
        compare_reports(reports.report(), reports.report(*names))


def test_the_command_shows_both_or_says_why_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    reports.report().save(one)
    changed().save(two)
    shown = invoke("compare", one, two)
    assert shown.exit_code == 0
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.split()}
    assert rows["seed"] == ["seed", "0", "7"]
    assert rows["b.conv"] == ["b.conv", "52.0", "80.0", "+28.0", "2", "50", "+48"]
    reports.report("a.conv").save(two, overwrite=True)
    assert_mistake(invoke("compare", one, two), f"{one} and {two} are reports of different")


# sweeps


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 5)]
    stem = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()]
    return nn.Sequential(*stem, *head).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(24, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def judged(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Other images, and what the dense network says to them."""
    return images.flip(-1), network(images.flip(-1)).argmax(1)


@pytest.fixture(scope="module")
def swept(network: nn.Module, images: torch.Tensor) -> Sweep:
    with pytest.warns(secateur.SecateurWarning, match="only 24"):
        return secateur.sweep(
            network,
            images,
            sparsities=[0.8, 0.5, 0.5],
            evaluation=judged(network, images),
        )


def test_each_point_is_what_prune_gives(
    swept: Sweep, network: nn.Module, images: torch.Tensor
) -> None:
    evaluation = judged(network, images)
    assert [point.sparsity for point in swept.points] == pytest.approx([0.5, 0.8], abs=0.002)
    for point, report in zip(swept.points, swept.reports, strict=True):
        target = report.requested["target"]["value"]
        with pytest.warns(secateur.SecateurWarning):
            alone = secateur.prune(network, images, sparsity=target, evaluation=evaluation)
        assert point.evaluation == alone.report.evaluation["pruned"]
        assert report.layers == alone.report.layers
        assert report.dense_layers == alone.report.dense_layers
    assert swept.dense is not None
    assert swept.dense.top1 == 100


def test_sensitivity_is_measured_once(
    network: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fit = Sensitivity.fit
    monkeypatch.setattr(
        sensitivity.Sensitivity,
        "fit",
        lambda self, inputs: calls.append(inputs.previous) or fit(self, inputs),
    )
    seen = []
    with pytest.warns(secateur.SecateurWarning):
        secateur.sweep(
            network,
            images,
            sparsities=[0.3, 0.5, 0.7],
            progress=lambda done, total, name: seen.append((done, total)),
        )
    assert calls == [None]  # for 0.7, by way of 0.6, the walk to 0.6 finds out what is needed
    assert seen[-1] == (len(seen), len(seen))  # the bar reaches its end, and not before


def test_a_saved_sweep_comes_back_without_its_reports(swept: Sweep, tmp_path: Path) -> None:
    swept.save(tmp_path / "sweep.json")
    assert Sweep.load(tmp_path / "sweep.json") == swept
    assert "reports" not in json.loads((tmp_path / "sweep.json").read_text())
    with pytest.raises(DataError, match=r"schema 'secateur.sweep' version 3, expected"):
        Report.load(tmp_path / "sweep.json")


def test_the_page_of_a_sweep_has_its_points_and_loads_nothing(swept: Sweep, tmp_path: Path) -> None:
    secateur.save_page(swept, tmp_path / "sweep.html")
    page = Page((tmp_path / "sweep.html").read_text(encoding="utf-8"))
    for point in swept.points:
        assert f"{100 * point.sparsity:.2f}" in page.text
        assert point.evaluation is not None
        assert f"{point.evaluation.top1:.2f} ± " in page.text
    assert "only 24 calibration images" in page.text
    assert not page.named("script", "img")
    assert len(page.named("svg")) == 2
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("wrong", [[], [1.0], ["much"], "0.5", [0.5, -1]])
def test_wrong_sparsities_are_one_sentence(network: nn.Module, wrong: list[float]) -> None:
    with pytest.raises(OptionError, match="expected"):
        secateur.sweep(network, torch.zeros(1, 1, 12, 12), sparsities=wrong)


def test_the_command_writes_the_curve_and_a_report_per_point(tmp_path: Path) -> None:
    model, out = "secateur.example:trained", tmp_path / "out"
    data = "secateur.example:calibration"
    call = ["sweep", model, "--data", data, "--max-images", 40, "--method", "magnitude"]
    call += ["--allocation", "uniform", "-o", out, "--sparsities"]
    assert_mistake(invoke(*call, "0.5,6"), "sparsity is 6.0, expected", out)
    result = invoke(*call, "0.7,0.5")
    assert result.exit_code == 0, result.output
    names = ["report-0.5.json", "report-0.7.json", "sweep.html", "sweep.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert [line.split()[0] for line in result.stdout.splitlines()[2:4]] == ["50.00", "70.00"]
    assert Sweep.load(out / "sweep.json").points[1].sparsity == pytest.approx(0.7, abs=1e-4)
    assert_mistake(invoke(*call, "0.5"), "not empty")

    mine = out / "report-0.9.json"
    mine.write_text((out / "report-0.5.json").read_text())
    result = invoke(*call, "0.7,0.6", "--force")
    assert result.exit_code == 0, result.output
    names = ["report-0.6.json", "report-0.7.json", mine.name, "sweep.html", "sweep.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert f"{out / 'report-0.5.json'} was removed: an earlier sweep wrote it" in result.stderr
    assert f"{mine} was there before and is not of the sweep" in result.stderr
