"""What is saved is plain data, or it is an error; what comes back is what was saved."""

import copy
import dataclasses
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reports
import torch
from torch import nn

import secateur
from secateur.data.preprocess import Preprocess
from secateur.errors import DataError, OptionError
from secateur.options import Options
from secateur.report.build import describe
from secateur.report.model import Report
from secateur.support.serialization import to_plain

IMAGES = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
HOW = {"method": "magnitude", "allocation": "uniform", "progress": False}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 4), nn.Flatten()).eval()


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    place: Path = Path("a/b")


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    hidden: object = field(default=None, metadata={"saved": False})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("a", "a"),
        ((1, (2.0, "b")), [1, [2.0, "b"]]),
        ({"a": {"b": (1,)}}, {"a": {"b": [1]}}),
        (Path("a/b"), "a/b"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (torch.ones(2), [1.0, 1.0]),
        (Outer(hidden=object()), {"inner": {"sizes": [1, 2], "place": "a/b"}}),
    ],
)
def test_what_is_known_becomes_plain(value, plain) -> None:
    found = to_plain(value, "it")
    assert found == plain
    assert type(found) is type(plain)
    assert json.loads(json.dumps(found)) == plain


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (object(), "it is a object"),
        ({"a": [1, {2}]}, r"it\.a\[1\] is a set"),
        ({1: 2}, "it is a dict"),
        (Inner(place=torch.float32), r"it\.place is a dtype"),
        (b"bytes", "it is a bytes"),
        (Inner, "it is a type"),
        (1 + 2j, "it is a complex"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_the_place(value, where) -> None:
    with pytest.raises(TypeError, match=where):
        to_plain(value, "it")


def test_a_report_with_something_unknown_in_it_is_not_written(tmp_path) -> None:
    report = secateur.prune(network(), IMAGES, sparsity=0.3, **HOW).report
    report.exports["model.onnx"] = {"check": {1, 2}}
    with pytest.raises(TypeError, match=r"report\.exports\.model\.onnx\.check is a set"):
        report.save(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def scaled(image, by: float = 255.0) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / by


@dataclass(frozen=True)
class Mine:
    kind: torch.dtype = torch.float32
    before: object = scaled

    def __call__(self, image) -> torch.Tensor:
        return scaled(image).to(self.kind)


@pytest.mark.parametrize(
    ("preprocess", "told"),
    [
        (Preprocess(mean=np.full(3, 0.5), std=(0.5,)), {"mean": [0.5] * 3, "std": [0.5]}),
        (Preprocess(mean=torch.full((3,), 0.5)), {"mean": [0.5] * 3, "std": None}),
        (Mine(), {"name": "Mine", "kind": "torch.float32", "before": "scaled"}),
        (scaled, "scaled"),
        (partial(scaled, by=255.0), "functools.partial(<function scaled>, by=255.0)"),
    ],
)
def test_reports_hold_any_preprocess_and_come_back(tmp_path, preprocess, told) -> None:
    report = secateur.prune(
        network(), PIXELS, sparsity=0.3, preprocess=preprocess, exclude=("none*",)[:0], **HOW
    ).report
    report.save(tmp_path / "report.json")
    found = Report.load(tmp_path / "report.json")
    kept = found.requested["preprocess"]
    assert kept == told if isinstance(told, str) else told.items() <= kept.items()
    assert found.requested["exclude"] == []
    assert to_plain(found, "report") == to_plain(report, "report")


def settings(value, plain) -> Iterator[tuple[dict, str]]:
    """Every field of every object in a value: the plain data it lies in, and its name."""
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield plain, item.name
            yield from settings(getattr(value, item.name), plain[item.name])
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from settings(one, plain[key])
    elif isinstance(value, list | tuple):
        for one, part in zip(value, plain, strict=True):
            yield from settings(one, part)


def load(plain, folder: Path) -> Report:
    path = folder / "report.json"
    path.write_text(
        json.dumps({"schema": Report.schema, "schema_version": Report.schema_version, **plain})
    )
    return Report.load(path)


def test_a_report_comes_back_equal(tmp_path) -> None:
    report = reports.report()
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_a_report_without_one_of_its_fields_or_with_one_too_many_is_damaged(tmp_path) -> None:
    report = reports.report()
    plain = to_plain(report)
    assert load(plain, tmp_path) == report
    places = list(settings(report, plain))
    assert len(places) > 100
    for held, name in places:
        before = copy.copy(held)
        kept = held.pop(name)
        with pytest.raises(DataError, match=rf"damaged .*{name}"):
            load(plain, tmp_path)
        held.update({name: kept, f"{name}s": kept})
        with pytest.raises(DataError, match=rf"damaged .*'{name}s'.*did you mean {name}"):
            load(plain, tmp_path)
        held.clear()
        held.update(before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": {}}, "layers: expected a list, got a table"),
        ({"layers": [3]}, r"layers\[0\]: expected a table, got a whole number"),
        ({"search": True}, "search: expected a table or none, got true or false"),
        ({"sparsity": "0.5"}, "sparsity: expected a decimal number, got a text"),
        ({"sparsity": 10**400}, "sparsity: number out of range"),
        ({"warnings": "abc"}, "warnings: expected a list, got a text"),
        ({"seconds": {"total": None}}, r"seconds\[\.\.\.\]: expected a decimal number, got none"),
    ],
)
def test_what_is_wrong_in_a_report_is_named(changes, says, tmp_path) -> None:
    with pytest.raises(DataError, match=rf"damaged \({says}\), expected a report"):
        load(to_plain(reports.report()) | changes, tmp_path)


def test_descriptions_hold_no_addresses() -> None:
    assert describe(object()) == "<object object>"
    assert describe(Mine(before=object()))["before"] == "<object object>"


# plan takes what prune takes


def test_plan_and_prune_take_the_same_arguments() -> None:
    ours, theirs = (inspect.signature(of).parameters for of in (secateur.plan, secateur.prune))
    assert list(ours) == list(theirs)
    for name in ours:
        assert (ours[name].default, ours[name].kind) == (theirs[name].default, theirs[name].kind)
        assert ours[name].annotation == theirs[name].annotation


def test_sweep_takes_what_prune_takes_but_for_the_target() -> None:
    ours, theirs = (inspect.signature(of).parameters for of in (secateur.sweep, secateur.prune))
    targets = {"sparsity", "max_macs", "max_bytes", "max_drop", "max_latency"}
    targets |= {"runtime", "threads", "then_sparsity"}
    assert set(ours) == set(theirs) - targets - {"quantize"} | {"sparsities"}
    for name in set(ours) - {"sparsities"}:
        assert (ours[name].default, ours[name].kind) == (theirs[name].default, theirs[name].kind)
        assert ours[name].annotation == theirs[name].annotation


def test_prune_takes_every_option_there_is() -> None:
    taken = set(inspect.signature(secateur.prune).parameters)
    assert {of.name for of in dataclasses.fields(Options)} - {"target", "runtime_note"} < taken
    recipe = set(inspect.signature(Options.of).parameters) - {"others"}
    assert recipe < taken


@pytest.mark.parametrize(
    "options",
    [
        {"method": "least-squares", "inputs": "dense", "pattern": "unstructured"},
        {"evaluation": (IMAGES, torch.arange(40) % 4)},
        {"max_images": 20, "seed": 3, "include": ("*",)},
        {"allocation": "normalized-magnitude", "recipe": "paper"},
    ],
)
@pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")
def test_a_plan_made_with_the_arguments_of_prune_foresees_it(options) -> None:
    options = {**HOW, **options}
    found = secateur.plan(network(), IMAGES, sparsity=0.5, **options)
    report = secateur.prune(network(), IMAGES, sparsity=0.5, **options).report
    assert {of.name: of.sparsity for of in found.layers} == pytest.approx(
        {of.name: of.sparsity for of in report.layers}
    )


def test_a_plan_checks_what_prune_would_refuse(tmp_path) -> None:
    with pytest.raises(OptionError, match="quantize"):
        secateur.plan(network(), IMAGES, sparsity=0.5, quantize="int4", **HOW)
    with pytest.raises(DataError, match="no such file or folder"):
        secateur.plan(network(), IMAGES, sparsity=0.5, evaluation=tmp_path / "none", **HOW)
    with pytest.raises(DataError, match="NaN or Inf"):
        secateur.plan(network(), IMAGES, sparsity=0.5, evaluation=IMAGES * float("nan"), **HOW)
