"""A report, sweep or bench file that loads can be shown; one that cannot is refused on loading."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import reports

from secateur import DataError, Report, Sweep
from secateur.hardware.latency import Timing
from secateur.render.page import report_page, sweep_page
from secateur.support.serialization import to_plain

REPORT = reports.report("a.conv")
WRONG = [{}, [], "x", None, math.nan, 0]


def timing(file: str) -> Timing:
    return Timing(
        file=file,
        runtime="OpenVINO",
        milliseconds=((1.0, 2.0), (1.5, 2.0)),
        median=1.5,
        low=1.0,
        high=2.0,
        peak_bytes=10,
        precision="f32",
        layers=3,
        sparse_layers=1,
    )


KINDS: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "report": (REPORT, report_page),
    "sweep": (Sweep.of([REPORT, reports.report("a.conv")], [0.5, 0.7], {"total": 3.0}), sweep_page),
    "bench": (
        reports.bench(timing("a.onnx"), timing("b.onnx")),
        lambda bench: report_page(REPORT, bench),
    ),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value in plain data lies."""
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        yield from places(inner, (*at, key))


def damaged(plain: Any, at: tuple[Any, ...], value: Any) -> Any:
    result = copy.deepcopy(plain)
    inner = result
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return result


def load(kind: type, plain: Any, folder) -> Any:
    path = folder / "file.json"
    head = {"schema": kind.schema, "schema_version": kind.schema_version}  # type: ignore[attr-defined]
    path.write_text(json.dumps({**head, **plain}))
    return kind.load(path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", KINDS)
def test_what_loads_can_be_shown(name, tmp_path) -> None:
    whole, page = KINDS[name]
    plain, refused = to_plain(whole), 0
    for at in places(plain):
        for value in WRONG:
            try:
                loaded = load(type(whole), damaged(plain, at, value), tmp_path)
            except DataError:
                refused += 1
                continue
            assert str(loaded)
            assert page(loaded)
    assert refused > 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"versions": {}}, "versions has no secateur"),
        ({"layers": []}, "layers is empty"),
        ({"sparsity": math.nan}, "a share of zeros, MACs or bytes is no finite number"),
        ({"seconds": {"total": math.inf}}, "seconds holds no finite number"),
        ({"seconds": {}}, "seconds has no total"),
        ({"exports": {"model.onnx": {"bytes": "x"}}}, "expected a whole number or a decimal"),
    ],
)
def test_what_cannot_be_shown_is_refused_on_loading(change, says, tmp_path) -> None:
    with pytest.raises(DataError, match=f"damaged .*{says}"):
        load(Report, {**to_plain(REPORT), **change}, tmp_path)


def test_reports_and_the_rest_load_as_they_were(tmp_path) -> None:
    for whole, _ in KINDS.values():
        assert load(type(whole), to_plain(whole), tmp_path) == whole
