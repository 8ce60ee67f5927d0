"""Charts: numbers lie where they should, axes are readable, and nothing in the data breaks them."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secateur.render.svg import Line, bars, curves, intervals
from secateur.render.svg_axes import Scale, spanning

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
ORDINARY = st.floats(-1e6, 1e6)


def parsed(markup: str) -> ElementTree.Element:
    """The drawing as XML; no place in it is NaN or infinite, whatever its texts are."""
    drawing = ElementTree.fromstring(markup)
    places = [value for element in drawing.iter() for value in element.attrib.values()]
    assert not [value for value in places if re.search(r"\b(nan|inf)\b", value)]
    return drawing


def bar_heights(svg: ElementTree.Element, kind: str) -> list[float]:
    return [float(one.get("height", 0)) for one in svg.iter("rect") if kind in one.get("class", "")]


def text(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


@given(ORDINARY, st.floats(1e-3, 1e6))
def test_ticks_are_round_evenly_spaced_and_within_the_axis(low: float, width: float) -> None:
    scale = Scale(low=low, high=low + width, start=0, end=100)
    ticks = [value for value, _ in scale.ticks()]
    assert 3 <= len(ticks) <= 10
    assert all(-1e-6 <= scale.place(value) <= 100 + 1e-6 for value in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    mantissa = min(steps) / 10 ** math.floor(math.log10(min(steps)) + 1e-6)
    assert any(mantissa == pytest.approx(round_one, rel=1e-5) for round_one in (1, 2, 5))


@given(st.floats(0, 1e5), st.floats(0.05, 1e5))
def test_labels_say_which_number_it_is(low: float, width: float) -> None:
    ticks = Scale(low=low, high=low + width, start=0, end=1).ticks()
    assert len({label for _, label in ticks}) == len(ticks)
    for value, label in ticks:
        assert float(label) == pytest.approx(value, abs=1e-4 * width + 1e-12)


@given(st.floats(1e-9, 1e9), st.floats(2, 1e12))
def test_logarithmic_ticks_are_few_and_rise(low: float, factor: float) -> None:
    scale = Scale(low=low, high=low * factor, start=100, end=0, logarithmic=True)
    ticks = [value for value, _ in scale.ticks()]
    assert 1 < len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= scale.place(value) <= 100 + 1e-6 for value in ticks)
    assert scale.place(low * math.sqrt(factor)) == pytest.approx(50, abs=1e-6)


@given(st.lists(NUMBERS, max_size=6), st.booleans())
def test_an_axis_has_room_for_whatever_comes(values: list[float], logarithmic: bool) -> None:
    scale = spanning(values, 0, 100, logarithmic=logarithmic)
    assert scale.high > scale.low
    assert all(math.isfinite(scale.place(value)) for value, _ in scale.ticks())


def test_bars_are_as_high_as_their_values() -> None:
    svg = parsed(bars("a", "title", "description", [1, 2, 4], ylabel="%", before=[4, 4, 8]))
    low, middle, high = bar_heights(svg, "series-1")
    assert (middle / low, high / low) == pytest.approx((2, 4), rel=0.01)
    assert bar_heights(svg, "muted")[2] == pytest.approx(2 * high, rel=0.01)
    assert {"1", "2", "3", "layer", "%"} <= set(text(svg))


def test_a_line_goes_through_its_points() -> None:
    line = Line(name="one", x=[0, 10], y=[1.0, 3.0], error=[0.5, 0.5])
    svg = parsed(curves("a", "title", "", [line, line], xlabel="x", ylabel="y"))
    (first, second, *_), lines = (
        [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in svg.iter("circle")],
        [path.get("d", "") for path in svg.iter("path") if "series-1" in path.get("class", "")],
    )
    assert lines[0] == f"M{first[0]:g} {first[1]:g} L{second[0]:g} {second[1]:g}"
    assert second[0] > first[0]
    assert second[1] < first[1]  # upwards
    assert len(lines) == 4  # the line, two error bars, the legend
    assert text(svg).count("one") == 2


def test_a_gray_line_is_behind_and_not_in_the_legend() -> None:
    lines = [Line(name="named", x=[0, 1], y=[1, 2]), Line(name="", x=[0, 1], y=[2, 1])]
    svg = parsed(curves("a", "title", "", lines, xlabel="x", ylabel="y"))
    kinds = [path.get("class") for path in svg.iter("path") if "line" in path.get("class", "")]
    assert kinds == ["line muted", "line series-1", "line series-1"]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5), st.booleans())
def test_no_number_breaks_a_chart(points: list[tuple[float, float]], logarithmic: bool) -> None:
    x, y = zip(*points, strict=True)
    line = Line(name="one", x=x, y=y, error=y)
    parsed(curves("a", "", "", [line], xlabel="", ylabel="", marks=points, logarithmic=logarithmic))
    parsed(bars("a", "", "", y, ylabel="", before=x))
    parsed(intervals("a", "", "", [("row", a, b, a) for a, b in points], xlabel=""))


@given(st.text())
@example("inf")
def test_no_name_breaks_a_chart(name: str) -> None:
    svg = parsed(intervals(name.isidentifier() * "a", name, name, [(name, 1, 2, 3)], xlabel=name))
    assert [element.tag for element in svg.iter() if element.tag not in _TAGS] == []


_TAGS = ("svg", "title", "desc", "path", "text", "circle")


def test_the_same_data_give_the_same_bytes() -> None:
    first, second = (bars("a", "t", "d", [0.1, 0.2], ylabel="%") for _ in range(2))
    assert first == second
