"""The examples in public docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import reports
from test_bench import timing

import secateur

BENCH = secateur.bench

WITH_EXAMPLE = ["bench", "evaluate", "inspect", "pack", "plan", "prune", "quantize", "sweep"]


def measured(*arguments: Any, **options: Any) -> secateur.Bench:
    """In the place of `bench`, which takes long: an example need not measure to be right."""
    inspect.signature(BENCH).bind(*arguments, **options)
    return reports.bench(*(timing(*range(2, 7), file=file) for file in arguments))


def small_file(path: str) -> None:
    """An ONNX file for the images of the embedded example."""
    pytest.importorskip("nncf")
    import onnx
    import torch
    from onnx_models import Builder

    torch.manual_seed(0)
    build = Builder(1, 28, 28)
    convolved = build.convolution("input", torch.nn.Conv2d(1, 8, 3), "conv")
    pooled = build.node("Flatten", build.node("GlobalAveragePool", convolved))
    onnx.save(build.model(build.linear(pooled, torch.nn.Linear(8, 10), "head")), path)


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = inspect.getdoc(getattr(secateur, name)) or ""
    monkeypatch.chdir(tmp_path)
    if name == "bench":
        monkeypatch.setattr(secateur, "bench", measured)
    if name == "quantize":
        small_file("model.onnx")
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert example.examples, f"secateur.{name} has no example"
    said: list[str] = []
    found = doctest.DocTestRunner().run(example, out=said.append)
    assert not found.failed, "".join(said)
