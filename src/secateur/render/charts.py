"""Charts as inline SVG, drawn by matplotlib: text stays text, colours follow the page's style.

Colours are placeholders that become CSS variables, so that a chart is light or dark as its page.
The same data give the same bytes. Nothing global in matplotlib is changed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from secateur.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours to draw with, and what stands for them in the page.
_INK, _GRID, _MUTED = "#010203", "#010204", "#010205"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215")
_CSS = {
    _INK: "var(--ink)",
    _GRID: "var(--grid)",
    _MUTED: "var(--muted-line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "text.parse_math": False,  # names with a dollar sign are names
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}
_BARE = {"Creator": None, "Date": None, "Format": None, "Type": None}
_WIDTH, _HEIGHT = 4.6, 2.7  # inches of 72 points: text of 10 points at any usual page width
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.82, 0.12, 0.1, 0.5  # margins, in inches
_ENTRY = 0.19  # height of a line of a legend


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend; empty = one of many, in grey.
        x, y: its points.
        error: half of the error bars at each point; empty = none.
        dashed: whether it is dashed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    dashed: bool = False


def require(purpose: str) -> None:
    """Raises MissingExtraError where matplotlib or Jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "matplotlib", "html", purpose) from error


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

    def draw(axes: Axes) -> None:
        numbers = range(1, len(values) + 1)
        if before:
            axes.bar(numbers, before, color=_MUTED, width=0.8)
        axes.bar(numbers, values, color=SERIES[0], width=0.5 if before else 0.8)
        axes.set_xlim(0.4, len(values) + 0.6)
        axes.set_ylim(bottom=0)
        _whole_numbers(axes)
        axes.set_xlabel("layer")
        axes.set_ylabel(ylabel)

    return _svg(name, title, describe, draw)


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
    """Lines with a legend below; those without a name are grey and behind.

    Args:
        name, title, describe: as for `bars`.
        lines: at most five with a name.
        xlabel, ylabel: of the axes.
        marks: points to mark.
        logarithmic: whether the y axis is.
    """

    def draw(axes: Axes) -> None:
        for line in (line for line in lines if not line.name):
            axes.plot(line.x, line.y, color=_MUTED, linewidth=0.8)
        for line, colour in zip((line for line in lines if line.name), SERIES, strict=False):
            style: dict[str, Any] = {"linestyle": "--" if line.dashed else "-"}
            marker = "" if line.dashed else "o"
            axes.errorbar(
                line.x,
                line.y,
                yerr=line.error or None,
                color=colour,
                marker=marker,
                markersize=3.5,
                capsize=2.5,
                label=_short(line.name),
                **style,
            )
        if marks:
            axes.plot(*zip(*marks, strict=True), "D", color=_INK, markersize=3, zorder=5)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if legend:
            below = (_BOTTOM + 0.02) / (_HEIGHT - _TOP - _BOTTOM)
            axes.legend(loc="upper left", bbox_to_anchor=(0, -below), borderaxespad=0)

    legend = sum(bool(line.name) for line in lines)
    return _svg(name, title, describe, draw, legend=_ENTRY * legend + 0.1 * bool(legend))


def intervals(
    name: str,
    title: str,
    describe: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    xlabel: str,
) -> Markup:
    """Medians with their intervals, a row each: (label, low, median, high)."""

    def draw(axes: Axes) -> None:
        for place, (label, low, middle, high) in enumerate(reversed(rows)):
            axes.plot([low, high], [place, place], color=SERIES[0], linewidth=3)
            axes.plot([middle], [place], "o", color=_INK, markersize=4)
            axes.text(0.01, place + 0.22, _short(label), transform=axes.get_yaxis_transform())
        axes.set_yticks([])
        axes.set_ylim(-0.5, len(rows) - 0.2)
        axes.set_xlim(0, 1.05 * max(row[3] for row in rows))
        axes.grid(axis="x")
        axes.set_xlabel(xlabel)

    return _svg(name, title, describe, draw, height=0.7 + 0.42 * len(rows))


def _svg(
    name: str,
    title: str,
    describe: str,
    draw: Callable[[Axes], None],
    *,
    height: float = _HEIGHT,
    legend: float = 0.0,
) -> Markup:
    """Draws; a legend takes room below, in inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # the page's own fonts show what matplotlib's lacks, it only measures with them
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        tall = height + legend
        figure = Figure(figsize=(_WIDTH, tall))
        FigureCanvasSVG(figure)
        figure.subplots_adjust(
            left=_LEFT / _WIDTH,
            right=1 - _RIGHT / _WIDTH,
            top=1 - _TOP / tall,
            bottom=(_BOTTOM + legend) / tall,
        )
        draw(figure.subplots())
        figure.savefig(file, format="svg", metadata=_BARE, transparent=True)
    return _inline(file.getvalue(), name, title, describe)


def _inline(svg: str, name: str, title: str, describe: str) -> Markup:
    """A part of a page: no prolog, ids of its own, CSS colours, a name for those who cannot see."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]+)"', body)
    head = (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-describe" '
        f'viewBox="{view.group(1) if view else ""}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-describe">{escape(describe)}</desc>'
    )
    body = re.sub(r"^<svg[^>]*>", "", body)
    return Markup(head + re.sub(r"<[^>]*>", lambda tag: _tag(tag.group(), name), body))


def _tag(tag: str, name: str) -> str:
    """A tag of matplotlib's with ids of the chart's own, and the page's colours and fonts."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", tag)
    tag = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    return re.sub(r"#0102\d\d", lambda colour: _CSS.get(colour.group(), colour.group()), tag)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))


def _short(name: str) -> str:
    """A name that fits into a legend, its end kept: that is what tells layers apart."""
    name = printable(name)
    return name if len(name) <= 44 else "…" + name[-43:]


def printable(text: str) -> str:
    """Text with control characters and the like written out as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
