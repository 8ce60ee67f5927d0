"""Shared by all tests: shape checks at run time, and the folder of shared data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports secateur: jaxtyping's shapes are checked by beartype, in tests only.
_HOOKED = [
    "core.methods",
    "core.normal_equations",
    "core.patterns",
    "core.problem",
    "core.statistics",
    "evaluation.evaluation_set",
    "evaluation.inference",
    "evaluation.metrics",
    "network.geometry",
]
with install_import_hook([f"secateur.{name}" for name in _HOOKED], "beartype.beartype"):
    import secateur

    _ = [getattr(secateur, of) for of in secateur.__all__]  # read on first use, which is here

# The same examples every time: what passes today passes next month.
hypothesis.settings.register_profile("the same", derandomize=True)
hypothesis.settings.load_profile("the same")

# Lines of progress come when a step takes long, which depends on the machine.
secateur.support.progress.FIRST = 1e6


def _unmeasured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without coverage's tracer, which is told of every line that PyTorch's exporter runs.

    Two thirds of the time of the tests is spent there, and twice as much of it with the tracer.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)
            _nothing()  # at a call the tracer takes its place again, before this one returns

    return call


def _nothing() -> None: ...


torch.export.export = _unmeasured(torch.export.export)
torch.export.ExportedProgram.run_decompositions = _unmeasured(
    torch.export.ExportedProgram.run_decompositions
)
torch.onnx.export = _unmeasured(torch.onnx.export)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED


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


@pytest.fixture
def quick_first_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """First runs of ONNX models in this process, for models that the tests make."""
    trial = pytest.importorskip("secateur.frontends.onnx.trial")

    def here(model: bytes, images: Any, batch: int) -> Any:
        return trial.run(model, images, 1, batch)

    monkeypatch.setattr("secateur.frontends.onnx.first_run.at_arms_length", here)
