"""The report as a page: everything is in it, nothing is loaded, names are only names."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reports
from test_cli import assert_mistake, invoke

from secateur import DataError, Report, compare_reports
from secateur.evaluation.results import Evaluation
from secateur.render.page import report_page

CHROMIUM = next(
    (path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/google-chrome")) if path.exists()),
    None,
)
HOSTILE = (
    "<script>alert(1)</script>",
    "quo\"te' onload=x",
    "back\\slash{{ 7*7 }}",
    "nul\x00 \x1b[31m \u202e \ud800",
    "層.重み",
    "--><!--",
    "n" * 300,
    "$x^2$",  # one of those that the chart names
)


class Page(HTMLParser):
    """The elements of a page in their order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, *tags: str) -> list[tuple[str, dict[str, str | None]]]:
        return [element for element in self.elements if element[0] in tags]


@pytest.fixture(scope="module")
def written() -> str:
    return report_page(reports.report())


def test_a_negative_loss_is_a_gain_on_the_page() -> None:
    held = reports.report()
    held.evaluation["pruned"] = replace(held.evaluation["pruned"], drop=-0.5)
    assert "0.50 ± 0.90 points gained" in report_page(held)


def test_the_page_tells_everything_in_the_report(written: str) -> None:
    text = " ".join(Page(written).text.split())
    for fact in (
        "only 300 images of a warning",
        "a note of the report",
        "note of a.conv",
        "note of b.conv",
        "1.50 ± 0.90 points lost",
        "90.00 % before, 88.50 % now (top-1), on 200 images",
        "33.00 ± 3.00",
        "first-step",
        "first layer",
        "300 images of shape 3x8x8 from a folder",
        "chosen well",
        "12,345",
        "35.0 %",
        "150.0",
        "OpenVINO, CPU",
        "no speed-up expected",
    ):
        assert fact in text, fact


def test_without_evaluation_the_page_says_so() -> None:
    text = Page(report_page(reports.report(evaluation={}, steps=[], search=None))).text
    assert "Not measured." in text
    assert "not measured" in text.split("How it was pruned")[0]


def test_a_page_of_a_network_without_scores() -> None:
    other = Evaluation(images=300, output_error=0.0123)
    held = reports.report(calibration=other, evaluation={"pruned": other}, steps=[], search=None)
    text = Page(report_page(held)).text
    assert "of the pruned and the dense network is 1.2 % of the variance" in " ".join(text.split())
    assert "output error, % of variance" in text
    assert "output error 1.2 % of the variance (no table of scores" in " ".join(str(held).split())
    figures = {of.name: of for of in compare_reports(held, held).figures}
    assert figures["output error"].first == pytest.approx(1.23)
    assert "agreement" not in figures


def test_synthetic_data_come_first() -> None:
    text = Page(report_page(reports.report(synthetic="300 fractal images, seed 0"))).text
    assert text.index("300 fractal images, seed 0") < text.index("only 300 images of a warning")
    assert text.index("300 fractal images, seed 0") < text.index("Result")


def test_the_page_loads_nothing(written: str) -> None:
    page = Page(written)
    assert not page.named("script", "iframe", "object", "embed", "img", "form", "base", "image")
    assert [attrs["href"] for _, attrs in page.named("link")] == ["data:,"]
    assert not any(name.startswith("on") or name == "src" for _, a in page.elements for name in a)
    assert "@import" not in written
    assert "url(http" not in written
    assert written.encode().isascii() or '<meta charset="utf-8">' in written


def test_the_same_report_gives_the_same_bytes(written: str) -> None:
    assert report_page(reports.report()) == written


def test_ids_are_unique_and_labels_find_them(written: str) -> None:
    page = Page(written)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = [attrs.get("aria-labelledby") or "" for _, attrs in page.elements]
    assert {name for label in labels for name in label.split()} <= set(ids)


def test_headings_tables_and_charts_can_be_read_aloud(written: str) -> None:
    page = Page(written)
    levels = [int(tag[1]) for tag, _ in page.named("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert len(page.named("table")) == len(page.named("caption")) > 5
    assert all(attrs.get("scope") in ("col", "row") for _, attrs in page.named("th"))
    charts = [attrs for _, attrs in page.named("svg")]
    assert len(charts) == 5
    assert all(of["role"] == "img" and of["aria-labelledby"] for of in charts)
    assert [tag for tag, _ in page.named("header", "main", "footer")] == [
        "header",
        "main",
        "footer",
    ]


def test_names_are_only_names() -> None:
    held = reports.report(*HOSTILE)
    held.warnings.append(HOSTILE[0])
    held.exports[HOSTILE[1]] = {"bytes": 1}
    written = report_page(held)
    written.encode()
    page = Page(written)
    assert not page.named("script")
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert re.search(r"<text[^>]*>\$x\^2\$</text>", written)
    for name in (*HOSTILE[:3], *HOSTILE[4:]):
        assert name in page.text
    assert "nul\\x00 \\x1b[31m \\u202e \\ud800" in page.text
    assert "\x00" not in written


def test_a_page_of_many_layers_stays_small() -> None:
    many = [f"features.{index}.block.conv" for index in range(100)]
    assert len(report_page(reports.report(*many)).encode()) < 600_000


def test_colours_come_from_the_page(written: str) -> None:
    drawn = [attrs for tag, attrs in Page(written).elements if tag in ("path", "rect", "circle")]
    assert all(attrs["class"] and not attrs.keys() & {"fill", "stroke", "style"} for attrs in drawn)
    assert "var(--series-1)" in written
    assert "prefers-color-scheme: dark" in written


@pytest.mark.parametrize("wrong", ["list", "number", "missing", "unknown", "kind", "version"])
def test_a_damaged_report_is_told_in_one_sentence(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "report.json"
    reports.report().save(path)
    held = json.loads(path.read_text())
    if wrong == "list":
        held = [held]
    elif wrong == "number":
        held["layers"][1]["macs"] = "many"
    elif wrong == "missing":
        del held["layers"][0]["zeros"]
    elif wrong == "unknown":
        held["data"]["surplus"] = 1
    elif wrong == "kind":
        held["search"] = 3
    else:
        held["schema_version"] = 4
    path.write_text(json.dumps(held))
    with pytest.raises(DataError, match="expected"):
        Report.load(path)
    assert_mistake(invoke("report", path, "-o", tmp_path / "page.html"), str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_report_comes_back_as_it_was(tmp_path: Path) -> None:
    held = reports.report()
    held.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == held


def test_the_command_writes_the_page_of_an_old_report(tmp_path: Path, written: str) -> None:
    reports.report().save(tmp_path / "report.json")
    page = tmp_path / "page.html"
    assert invoke("report", tmp_path / "report.json", "-o", page).exit_code == 0
    assert page.read_text(encoding="utf-8") == written
    assert_mistake(invoke("report", tmp_path / "report.json", "-o", page), "exists")
    assert invoke("report", tmp_path / "report.json", "-o", page, "--force").exit_code == 0
    shown = invoke("report", tmp_path / "report.json")
    assert "only 300 images of a warning" in shown.stdout


def test_prune_writes_the_page(tmp_path: Path) -> None:
    model, data = "secateur.example:trained", "secateur.example:calibration"
    call = ["prune", model, "--data", data, "--max-images", 40, "--sparsity", 0.5]
    call += ["--method", "magnitude", "--allocation", "uniform", "-o", tmp_path / "out"]
    result = invoke(*call)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.safetensors", "report.html", "report.json"]
    assert not result.stderr
    held = Report.load(tmp_path / "out" / "report.json")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == report_page(held)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")
def test_a_browser_finds_nothing_wrong(tmp_path: Path, written: str) -> None:
    """No request but for the file, no message, nothing cut off, no finding on accessibility."""
    sync_api = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    path = tmp_path / "page.html"
    path.write_text(written, encoding="utf-8")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    messages: list[str] = []
    requests: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=quiet)
        for scheme, width in (("light", 1200), ("dark", 400)):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
            )
            page = context.new_page()
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page).response["violations"]
            assert [(of["id"], of["nodes"][0]["html"]) for of in found] == []
            context.close()
        browser.close()
    assert messages == []
    assert set(requests) <= {path.as_uri(), "data:,"}
