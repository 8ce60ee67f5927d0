"""Charts as inline SVG: text stays text, and the page's style gives colours and fonts.

Every shape has a class that `templates/page.css` colours, so that a chart is light or dark as its
page. The same data give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from secateur.render.svg_axes import Scale, drawable, spanning
from secateur.support.tables import printable

SERIES = 5  # colours there are
_WIDTH, _HEIGHT = 330, 200  # units in which text is 10 high
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 20, 36  # margins around the frame
_ENTRY = 14  # height of a line of a legend
_ROW = 30  # height of a row of intervals


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend; empty = one of many, in gray.
        x, y: its points.
        error: half of the error bars at each point; empty = none.
        dashed: whether it is dashed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    dashed: bool = False


def bars(
    name: str,
    title: str,
    describe: str,
    values: Sequence[float],
    *,
    ylabel: str,
    before: Sequence[float] = (),
) -> Markup:
    """One bar per layer, numbered from 1.

    Args:
        name: of the chart, for ids in the page: a word.
        title, describe: read out in the place of the chart.
        values: of each layer.
        ylabel: what they are.
        before: of each layer, dense: lighter bars behind.
    """
    plot = _Plot(name, title, describe, _HEIGHT)
    x = Scale(low=0.4, high=len(values) + 0.6, start=_LEFT, end=_WIDTH - _RIGHT, whole=True)
    y = spanning([*values, *before], plot.bottom, plot.top, low=0)
    plot.axes(x, y, xlabel="layer", ylabel=ylabel)
    for number, value in enumerate(before, 1):
        plot.bar(x, y, number, value, 0.8, "muted")
    for number, value in enumerate(values, 1):
        plot.bar(x, y, number, value, 0.5 if before else 0.8, "series-1")
    return plot.markup()


def curves(
    name: str,
    title: str,
    describe: str,
    lines: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    marks: Sequence[tuple[float, float]] = (),
    logarithmic: bool = False,
) -> Markup:
    """Lines with a legend below; those without a name are gray and behind.

    Args:
        name, title, describe: as for `bars`.
        lines: at most five with a name.
        xlabel, ylabel: of the axes.
        marks: points to mark.
        logarithmic: whether the y axis is.
    """
    named = [line for line in lines if line.name][:SERIES]
    plot = _Plot(name, title, describe, _HEIGHT, legend=len(named))
    ends = [end for line in lines for points in _error_bars(line) for end in points[1:]]
    heights = [*(value for line in lines for value in line.y), *ends]
    x = spanning((value for line in lines for value in line.x), _LEFT, _WIDTH - _RIGHT)
    y = spanning(heights, plot.bottom, plot.top, logarithmic=logarithmic)
    plot.axes(x, y, xlabel=xlabel, ylabel=ylabel)
    for line in (line for line in lines if not line.name):
        plot.line(x, y, line, "muted")
    for number, line in enumerate(named, 1):
        plot.line(x, y, line, f"series-{number}")
        plot.entry(number, line)
    for mark in marks:
        plot.diamond(x, y, *mark)
    return plot.markup()


def intervals(
    name: str,
    title: str,
    describe: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    xlabel: str,
) -> Markup:
    """Medians with their intervals, a row each: (label, low, median, high)."""
    plot = _Plot(name, title, describe, _ROW * len(rows) + _BOTTOM, top=0)
    x = spanning((value for row in rows for value in row[1:]), 10, _WIDTH - _RIGHT, low=0)
    plot.axes(x, None, xlabel=xlabel)
    for index, (label, low, middle, high) in enumerate(rows):
        height = _ROW * (index + 0.7)
        plot.text(12, height - 8, _short(label))
        if drawable(low, middle, high):
            plot.path([(x.place(low), height), (x.place(high), height)], "interval series-1")
            plot.dot(x.place(middle), height, "ink")
    return plot.markup()


class _Plot:
    """A drawing: a frame with its axes, and shapes in it.

    Attributes:
        top, bottom: places of the frame's upper and lower edge.
    """

    def __init__(
        self,
        name: str,
        title: str,
        describe: str,
        height: float,
        *,
        top: float = _TOP,
        legend: int = 0,
    ) -> None:
        self.top, self.bottom = top, height - _BOTTOM
        tall = height + legend * _ENTRY
        self.svg = ElementTree.Element(
            "svg",
            {
                "class": "chart",
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-describe",
                "viewBox": f"0 0 {_WIDTH} {tall}",
            },
        )
        for tag, words in (("title", title), ("desc", describe)):
            part = "title" if tag == "title" else "describe"
            self._add(tag, id=f"{name}-{part}").text = printable(words)

    def axes(self, x: Scale, y: Scale | None, *, xlabel: str, ylabel: str = "") -> None:
        """Draws the frame, grid lines, and the numbers beside them.

        Args:
            x, y: scales; without `y` the grid lines are upright.
            xlabel, ylabel: what the numbers are; the latter is above the frame.
        """
        right = _WIDTH - _RIGHT
        for value, label in x.ticks():
            place = x.place(value)
            if y is None:
                self.path([(place, self.bottom), (place, self.top)], "grid")
            self.text(place, self.bottom + 13, label, "middle")
        if y is not None:
            for value, label in y.ticks():
                place = y.place(value)
                self.path([(x.start, place), (right, place)], "grid")
                self.text(x.start - 4, place + 3.5, label, "end")
            self.text(2, 10, ylabel)
        self.path([(x.start, self.top), (x.start, self.bottom), (right, self.bottom)], "frame")
        self.text((x.start + right) / 2, self.bottom + 28, xlabel, "middle")

    def bar(self, x: Scale, y: Scale, number: int, value: float, width: float, kind: str) -> None:
        """A bar from zero, as wide as a share of the room there is for each."""
        if drawable(value):
            left, right = x.place(number - width / 2), x.place(number + width / 2)
            ends = sorted((y.place(value), y.place(0)))
            self._add(
                "rect",
                **{"class": f"fill {kind}"},
                x=_number(left),
                y=_number(ends[0]),
                width=_number(right - left),
                height=_number(ends[1] - ends[0]),
            )

    def line(self, x: Scale, y: Scale, line: Line, kind: str) -> None:
        """A line through its points; a solid one with a name has dots and error bars."""
        points = [
            (x.place(a), y.place(b))
            for a, b in zip(line.x, line.y, strict=True)
            if drawable(a) and drawable(b, logarithmic=y.logarithmic)
        ]
        self.path(points, f"line {kind}" + " dashed" * line.dashed)
        for a, low, high in _error_bars(line):
            if drawable(a) and drawable(low, high, logarithmic=y.logarithmic):
                self.path([(x.place(a), y.place(low)), (x.place(a), y.place(high))], f"line {kind}")
        if line.name and not line.dashed:
            for point in points:
                self.dot(*point, kind)

    def entry(self, number: int, line: Line) -> None:
        """A line of the legend, below the drawing."""
        height = self.bottom + _BOTTOM + _ENTRY * (number - 0.5)
        kind = f"series-{number}"
        self.path([(_LEFT, height), (_LEFT + 22, height)], f"line {kind}" + " dashed" * line.dashed)
        if not line.dashed:
            self.dot(_LEFT + 11, height, kind)
        self.text(_LEFT + 28, height + 3.5, _short(line.name))

    def diamond(self, x: Scale, y: Scale, a: float, b: float) -> None:
        """A mark at a point."""
        if drawable(a) and drawable(b, logarithmic=y.logarithmic):
            at, height = x.place(a), y.place(b)
            corners = [(at, height - 3), (at + 3, height), (at, height + 3), (at - 3, height)]
            self.path(corners, "fill ink")

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line from point to point."""
        if points:
            pairs = " L".join(f"{_number(x)} {_number(y)}" for x, y in points)
            self._add("path", **{"class": kind}, d=f"M{pairs}")

    def dot(self, x: float, y: float, kind: str) -> None:
        """A point."""
        self._add("circle", **{"class": f"fill {kind}"}, cx=_number(x), cy=_number(y), r="2")

    def text(self, x: float, y: float, words: str, anchor: str = "start") -> None:
        """Words that begin, end or have their middle at a place."""
        place = {"x": _number(x), "y": _number(y)}
        other = {} if anchor == "start" else {"text-anchor": anchor}
        self._add("text", **place, **other).text = printable(words)

    def markup(self) -> Markup:
        """The drawing as a part of a page."""
        return Markup(ElementTree.tostring(self.svg, encoding="unicode"))

    def _add(self, tag: str, **attributes: str) -> ElementTree.Element:
        return ElementTree.SubElement(self.svg, tag, attributes)


def _error_bars(line: Line) -> list[tuple[float, float, float]]:
    """The place, the lower and the upper end of each."""
    points = zip(line.x, line.y, line.error, strict=True) if line.error else ()
    return [(x, y - error, y + error) for x, y, error in points]


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _short(name: str) -> str:
    """A name that fits into a legend, its end kept: that is what tells layers apart."""
    name = printable(name)
    return name if len(name) <= 44 else "…" + name[-43:]
