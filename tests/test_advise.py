"""What `advise` says: a row for each runtime, and only what was measured."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import secateur
from secateur import advice
from secateur.cli.commands import advise as command
from secateur.cli.options import Advise
from secateur.hardware.compare_latency import Ratio
from secateur.hardware.runtimes import BY_KEY
from secateur.pruning.allocations.sensitivity import _Study
from secateur.pruning.layer_fit import LayerFit

QUARTER = Ratio(ratio=0.25, low=0.2, high=0.3, seconds=1.0, rounds=10)


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for weight in net.parameters():
            fan_in = weight[0].numel() if weight.dim() > 1 else 1
            weight.normal_(0, (2 / fan_in) ** 0.5 * (weight.dim() > 1), generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def found(images) -> secateur.Advice:
    return secateur.advise(network(), images, seconds=0, progress=False)


def row(of: secateur.Advice, runtime: str) -> secateur.Suggestion:
    return {each.runtime: each for each in of.suggestions}[runtime]


def test_every_runtime_has_a_row_with_the_pattern_that_pays_there(found) -> None:
    assert [each.runtime for each in found.suggestions] == list(BY_KEY)
    for each in found.suggestions:
        assert each.pattern == BY_KEY[each.runtime].pattern
        assert each.lost is not None
        assert each.share is not None or each.note


def test_nothing_but_bytes_is_told_where_nothing_is_measured(found) -> None:
    storage = row(found, "storage")
    assert storage.what == "bytes"
    assert 0.5 < storage.share < 0.7  # half the weights of nearly all layers, and a bit for each
    assert all(each.share is None for each in found.suggestions if each is not storage)
    assert row(found, "onnxruntime").note == "not measured, as asked"


def test_more_zeros_lose_more_and_take_less_room(found, images) -> None:
    more = secateur.advise(network(), images, sparsity=0.9, seconds=0, progress=False)
    assert row(more, "storage").share < 0.6 * row(found, "storage").share
    assert row(more, "storage").lost > row(found, "storage").lost
    assert row(more, "onnxruntime").lost == row(found, "onnxruntime").lost


def test_a_row_is_what_prune_loses_with_the_quick_recipe(found, images) -> None:
    judged = torch.arange(64) % 3 == 2
    pruned = secateur.prune(
        network(), images[~judged], sparsity=0.5, recipe=advice.QUICK, progress=False
    )
    score = secateur.evaluate(pruned.model, images[judged], reference=network())
    assert row(found, "storage").lost == pytest.approx(100 - score.agreement)
    assert found.images == 43
    assert found.judged_on == "21 samples held back"


def test_what_layers_matter_is_measured_once_for_all_zeros(images, monkeypatch) -> None:
    """Blocks are fitted, but what their errors cost is known from single weights."""
    runs, fits = list[str](), list[str]()
    loss, solve_all = _Study.loss, LayerFit.solve_all

    def counted(self, layer, changes):
        runs.append(self.inputs.pattern.name)
        return loss(self, layer, changes)

    def fitted(self, method, pattern, *others, **how):
        fits.append(pattern.name)
        return solve_all(self, method, pattern, *others, **how)

    monkeypatch.setattr(_Study, "loss", counted)
    monkeypatch.setattr(LayerFit, "solve_all", fitted)
    secateur.advise(network(), images, seconds=0, progress=False)
    assert set(runs) == {"unstructured"}
    assert {"unstructured", "1x4"} == set(fits)


def test_runtimes_are_measured_on_the_network_in_their_pattern(images, monkeypatch) -> None:
    measured, files = {}, {}

    def compare(models, few, runtime, seconds, *, threads, quick):
        assert quick  # one process each: starting five would take longer than measuring
        files[runtime] = models
        measured[runtime] = [of.stat().st_size for of in models]
        assert (seconds, threads) == (3, 2)
        return [replace(QUARTER, ratio=1.0), QUARTER]

    def compare_modules(models, few, seconds, *, threads):
        assert (seconds, threads) == (3, 2)
        measured["torch"] = [sum(weight.numel() for weight in of.parameters()) for of in models]
        return [replace(QUARTER, ratio=1.0), QUARTER]

    monkeypatch.setattr(advice, "compare_modules", compare_modules)
    threads, real = list[int](), advice.accelerate

    def accelerate(*given, **how):
        threads.append(torch.get_num_threads())
        return real(*given, **how)

    monkeypatch.setattr(advice, "accelerate", accelerate)
    monkeypatch.setattr(advice, "compare", compare)
    data = {"seconds": 3, "threads": 2, "progress": False}
    found = secateur.advise(network(), images, **data)
    for runtime in measured:
        each = row(found, runtime)
        assert (each.share, each.low, each.high) == (0.25, 0.2, 0.3)
        dense, smaller = measured[runtime]
        assert smaller < dense
    assert set(measured) == {"onnxruntime", "openvino", "torch"}
    assert files["onnxruntime"] == files["openvino"]
    assert threads in ([], [2])
    fast = row(found, "torch-int8-sparse")
    assert fast.share is not None or "cannot be measured here" in fast.note
    assert "float32" in fast.note or "cannot be measured here" in fast.note


def test_a_runtime_that_fails_does_not_take_the_table_with_it(images, monkeypatch) -> None:
    def compare(*_, **__):
        raise secateur.ModelError("no kernel for this")

    monkeypatch.setattr(advice, "compare", compare)
    monkeypatch.setattr(advice, "accelerate", compare)
    found = secateur.advise(network(), images, progress=False)
    assert row(found, "onnxruntime").note == "not measured: no kernel for this"
    assert row(found, "storage").share is not None


def test_a_pattern_that_fits_no_layer_says_why(images) -> None:
    odd = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 70, 3), nn.Flatten())
    found = secateur.advise(odd.eval(), images, seconds=0, judge="values", progress=False)
    each = row(found, "torch-int8-sparse")
    assert each.lost is None
    assert each.note
    assert found.lost == ""


def test_a_runtime_that_prune_would_refuse_says_why(images) -> None:
    """Its layers are in the pattern, but of sizes that the runtime has no sparse kernels for."""
    small = nn.Sequential(nn.Flatten(), *(nn.Linear(192 // n, 192 // (n + 1)) for n in (1, 2, 3)))
    found = secateur.advise(small.eval(), images, seconds=0, judge="values", progress=False)
    each = row(found, "torch-cuda-2:4")
    with pytest.raises(secateur.ModelError, match="zeros would bring nothing") as refused:
        secateur.plan(small, images, runtime=each.runtime, progress=False)
    reason = each.note.removeprefix("zeros would bring nothing there: ")
    assert f"({reason})" in str(refused.value)


def test_a_metric_is_what_is_lost(images) -> None:
    found = secateur.advise(
        network(),
        images,
        metric=lambda net: float(sum((p != 0).sum() for p in net.parameters())),
        seconds=0,
        progress=False,
    )
    assert found.judged_on == "the metric's own data"
    assert found.images == 64
    assert row(found, "storage").lost > 1000


def test_the_table_and_the_file_say_the_same(found, tmp_path) -> None:
    found.save(tmp_path / "advice.json")
    again = secateur.Advice.load(tmp_path / "advice.json")
    assert again == found
    text = str(found)
    for each in found.suggestions:
        assert each.runtime in text
    assert "points lost" in text or "disagreement" in text or "lost" in text


def test_the_command_asks_for_the_same_and_prints_the_table_or_json(
    found, tmp_path, monkeypatch, capsys
) -> None:
    given = {}
    monkeypatch.setattr(command, "advise", lambda *_, **others: given.update(others) or found)
    (tmp_path / "net.py").write_text("import torch\nmake = lambda: torch.nn.Linear(4, 4)\n")
    monkeypatch.chdir(tmp_path)
    asked = Advise(model="net.py:make", data="images.npz", blocks=0.6, max_images=9, quiet=True)
    command.run(asked)
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    assert "quick fit" in printed
    assert (given["blocks"], given["max_images"], given["seconds"]) == (0.6, 9, 5.0)
    shared = set(inspect.signature(secateur.advise).parameters) - {"model", "data", "metric"}
    assert set(given) == shared
    command.run(replace(asked, json=True))
    plain = json.loads(capsys.readouterr().out)
    assert {of["runtime"] for of in plain["suggestions"]} == set(BY_KEY)
