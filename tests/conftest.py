"""Shared by all tests: shape checks at run time, and the folder of shared data."""

from __future__ import annotations

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before anything imports secateur: jaxtyping's shapes are checked by beartype, in tests only.
_HOOKED = [
    f"secateur.{name}" for name in ("evaluate", "geometry", "linear_algebra", "methods", "patterns")
]
with install_import_hook([*_HOOKED, "secateur.problem"], "beartype.beartype"):
    import secateur  # noqa: F401

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED


@pytest.fixture(autouse=True)
def short_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real pages only in the tests of pages: their charts take most of a second."""
    if Path(request.path).stem not in ("test_page", "test_compare", "test_bench"):
        monkeypatch.setattr("secateur.page.report_page", lambda *_: "<!doctype html>")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():  # the longest tests first: at the end the other cores would wait for them
        items.sort(key=lambda item: "shared" not in item.keywords)
        return
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="../shared/data is absent"))


_LEFT_OUT = ("../shared/data is absent", "no Chromium on this system")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in _LEFT_OUT:
        skipped = terminalreporter.stats.get("skipped", [])
        count = sum(reason in str(report.longrepr) for report in skipped)
        if count:
            terminalreporter.write_line(f"{count} tests left out: {reason}")
