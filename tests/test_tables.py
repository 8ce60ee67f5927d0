"""Tables are neutral: a string, a terminal and a page show the same cells of the same objects."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar, get_args, get_type_hints

import pytest
import reports
import torch
from rich.console import Console
from test_console import bench, comparison, inspection, plan
from test_page import Page
from torch import nn

import secateur
from secateur.core.methods import METHODS, MethodName
from secateur.core.patterns import PATTERNS, PatternName
from secateur.core.problem import Solution
from secateur.data.preprocess import INTERPOLATIONS, Interpolation
from secateur.export.int8 import Precision
from secateur.pruning.allocations import ALLOCATIONS, AllocationName
from secateur.pruning.recipe import RECIPES, RecipeName
from secateur.pruning.streams import Inputs
from secateur.pruning.targets import MaxBytes, MaxDrop, MaxMacs, Sparsity
from secateur.render.page import report_page, sweep_page
from secateur.render.terminal import rendered
from secateur.report.sweep import Sweep
from secateur.support.tables import Column, Notice, Table, plain

COLUMNS = (
    Column("no.", "{:d}", detail=True),
    Column("name"),
    Column("share", "{:.1f}", unit="%"),
    Column("time", "{:.2f} ± {:.2f}", unit="s"),
)
ROWS = ((1, "a", 50.0, (1.0, 0.25)), (2, "long name", 3, None), (3, "層", None, "no time"))
TABLE = Table(name="t", columns=COLUMNS, rows=ROWS, title="A title")


def sweep() -> Sweep:
    made = [reports.report(seconds={"walk": 1.0, "evaluation": 0.5, "total": 2.0})] * 2
    return Sweep.of(made, [0.5, 0.6], {"total": 4.0})


DOCUMENTS = {
    "report": reports.report,
    "bench": bench,
    "inspection": inspection,
    "plan": plan,
    "comparison": comparison,
    "sweep": sweep,
}


def test_plain_text_has_the_columns_one_below_the_other() -> None:
    assert str(TABLE).splitlines() == [
        "A title",
        "name       share, %      time, s",
        "a              50.0  1.00 ± 0.25",
        "long name       3.0            -",
        "層                -      no time",
    ]


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="3 cells for 4 columns"):
        Table(name="t", columns=COLUMNS, rows=((1, "a", 2.0),))


def test_details_and_empty_columns_are_left_out_with_their_cells() -> None:
    labelled = Table(name="t", columns=COLUMNS, rows=((1, "a", None, None),), label=1)
    short = labelled.without_details().without_empty_columns()
    assert [of.heading for of in short.columns] == ["name"]
    assert short.rows == (("a",),)
    assert short.columns[short.label].heading == "name"
    nothing = Table(name="t", columns=COLUMNS, rows=())
    assert nothing.without_empty_columns().columns == ()


def test_text_is_one_line_and_commands_no_terminal() -> None:
    assert plain(["a\nb", Notice("\x1b[31m")]) == "a\\nb\n\\x1b[31m"
    assert Column("name").text("\x1b[2J") == "\\x1b[2J"


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_string_and_a_terminal_show_the_same_lines(kind: str) -> None:
    document = DOCUMENTS[kind]()
    file = io.StringIO()
    Console(file=file, width=2000, color_system=None).print(rendered(document.blocks()))
    on_terminal = [line.rstrip() for line in file.getvalue().splitlines()]
    assert on_terminal == str(document).splitlines()


@pytest.mark.parametrize(
    ("make", "page"), [(reports.report, report_page), (sweep, sweep_page)], ids=["report", "sweep"]
)
def test_a_page_shows_each_table_of_the_string_and_its_details(make, page) -> None:
    document = make()
    shown = Page(page(document)).text
    tables = [block for block in document.blocks() if isinstance(block, Table)]
    assert any(column.detail for table in tables for column in table.columns)
    for table in tables:
        for text in (column.title for column in table.columns):
            assert text in shown
        for text in (text for row in table.texts() for text in row):
            assert text in shown


KINDS = [*METHODS.values(), *ALLOCATIONS.values(), *PATTERNS.values()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda of: of.name)
def test_each_part_of_a_recipe_says_what_it_does(kind: type) -> None:
    assert kind.summary.endswith(".")
    assert kind.summary[0].isupper()


@pytest.mark.parametrize("kind", [Sparsity, MaxMacs, MaxBytes, MaxDrop], ids=lambda of: of.name)
def test_each_target_says_what_it_means(kind: type) -> None:
    assert kind.meaning
    assert not kind.meaning.endswith(".")


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (MethodName, METHODS),
        (AllocationName, ALLOCATIONS),
        (PatternName, PATTERNS),
        (RecipeName, RECIPES),
        (Interpolation, INTERPOLATIONS),
    ],
)
def test_editors_know_the_names_that_there_are(names, table) -> None:
    assert list(get_args(names)) == list(table)


@pytest.mark.parametrize("function", [secateur.prune, secateur.plan, secateur.sweep])
def test_arguments_that_take_a_name_list_the_names(function) -> None:
    kinds = get_type_hints(function)
    for argument, names in {
        "recipe": RecipeName,
        "pattern": PatternName,
        "method": MethodName,
        "allocation": AllocationName,
        "inputs": Inputs,
        "quantize": Precision,
    }.items():
        if argument in kinds:
            assert names in get_args(kinds[argument])
            for name in get_args(names):
                assert f'"{name}"' in secateur.prune.__doc__


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """A method of somebody's own."""

    name: ClassVar[str] = "rounding"
    summary: ClassVar[str] = "The weights that are nearest to zero were rounded to it."

    def solve(self, problem, pattern, kept) -> Solution:
        mask = problem.mask(pattern, problem.weight.abs(), kept)
        return Solution(weight=problem.weight * mask, mask=mask)


def test_a_method_needs_a_line_in_the_table_and_nothing_on_the_page(monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "rounding", Rounding)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)).eval()
    images = torch.randn(40, 9)
    result = secateur.prune(network, images, sparsity=0.3, method="rounding", allocation="uniform")
    assert result.report.requested["recipe"]["method"]["name"] == "rounding"
    assert Rounding.summary in " ".join(Page(report_page(result.report)).text.split())
