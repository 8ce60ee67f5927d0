"""What is printed: no name is cut, on a terminal or off it, in any table."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace

import pytest
import reports
import torch
from rich.console import Console
from test_cli import invoke
from torch import nn

import secateur
from secateur.evaluation.results import Evaluation
from secateur.hardware.latency import Timing
from secateur.render import terminal

LONG = "transformer.encoder.layer_stack_0.attention.query_projection"
NAMES = [LONG, LONG.replace("query", "value"), "blocks[3].[red]conv[/red]", ":smile:", "w" * 300]
NAMES += ["/model/Conv [1] (2)", "層.重み"]


def inspection():
    net = nn.Sequential(*(nn.Linear(9, 9) for _ in NAMES))
    found = secateur.inspect(net, (9,))
    layers = [replace(of, name=name) for of, name in zip(found.layers, NAMES, strict=True)]
    return replace(found, layers=tuple(layers))


def plan():
    net = nn.Sequential(*(nn.Linear(9, 9) for _ in range(len(NAMES) + 1)))
    found = secateur.plan(net, torch.ones(2, 9), sparsity=0.5, allocation="uniform")
    layers = [replace(of, name=name) for of, name in zip(found.layers, NAMES, strict=True)]
    return replace(found, layers=tuple(layers))


def comparison():
    first = reports.report(*NAMES)
    layers = [replace(of, sparsity=0.9) for of in first.layers]
    return secateur.compare_reports(first, replace(first, layers=layers), ("a", "b"))


def bench():
    timings = [
        Timing(
            file=name.replace("/", "-"),
            runtime="ONNX Runtime",
            milliseconds=((1.0, 1.0),) * 5,
            median=1.0,
            low=0.9,
            high=1.1,
            peak_bytes=None,
            precision="float32",
            layers=None,
            sparse_layers=None,
        )
        for name in NAMES
    ]
    return reports.bench(*timings)


def dense():
    held = reports.report()
    layers = [replace(held.dense_layers[0], name=name) for name in NAMES]
    return replace(held, dense_layers=layers)


SHOWN = {
    "report": lambda: reports.report(*NAMES).blocks(),
    "layers left dense": lambda: dense().blocks(),
    "inspection": lambda: inspection().blocks(),
    "inspection, verbose": lambda: inspection().blocks(verbose=True)[4:],
    "plan": lambda: plan().blocks(),
    "comparison": lambda: comparison().blocks(),
    "bench": lambda: bench().blocks(),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_no_name_is_cut_or_folded_off_a_terminal(kind, capsys):
    terminal.print_blocks(SHOWN[kind]())
    printed = capsys.readouterr().out
    names = [name.replace("/", "-") if kind == "bench" else name for name in NAMES]
    assert [name for name in names if name not in printed] == []
    assert "…" not in printed
    assert all(line == line.rstrip() for line in printed.splitlines())


@pytest.mark.parametrize("make", [inspection, plan, comparison, bench, dense])
def test_the_text_of_an_object_is_what_the_command_prints(make, capsys):
    shown = make()
    terminal.print_blocks(shown.blocks())
    assert capsys.readouterr().out.removesuffix("\n") == str(shown)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("kind", ["report", "inspection", "plan", "comparison"])
def test_names_are_folded_on_a_terminal_not_cut(kind, width):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.print(terminal.rendered(SHOWN[kind]()))
    printed = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert "…" not in printed
    rows = printed[re.search(r"^layer ", printed, re.MULTILINE).start() :].splitlines()
    column = re.match(r"layer +", rows[0]).end()
    folded = re.sub(r"\s", "", "".join(row[:column] for row in rows))
    wide = "層.重み"  # its letters take two columns each
    assert [name for name in NAMES if name != wide and name.replace(" ", "") not in folded] == []


def test_a_name_does_not_command_the_terminal(capsys):
    terminal.print_blocks(reports.report("a\x1b[31m", "two\nlines").blocks())
    printed = capsys.readouterr().out
    assert "\x1b" not in "".join(line for line in printed.splitlines() if line.startswith("a"))
    assert r"a\x1b[31m" in printed
    assert r"two\nlines" in printed


def test_inspect_into_a_pipe_has_whole_names(tmp_path):
    blocks = ", ".join(f"({name!r}, nn.Linear(9, 9))" for name in ("a" * 90, "b" * 150))
    (tmp_path / "cli_long.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\n"
        f"def net():\n    return nn.Sequential(OrderedDict([{blocks}]))\n"
    )
    result = invoke("inspect", f"{tmp_path / 'cli_long.py'}:net", "--shape", "9")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()[-4:-2]] == ["a" * 90, "b" * 150]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (6.8, "680 %"),
        (123.4, "12,000 %"),
        (0.999, "100 %"),
        (0.0996, "10 %"),
        (0.0123, "1.2 %"),
        (0.0, "0 %"),
    ],
)
def test_an_output_error_is_told_in_plain_digits(share, text) -> None:
    found = Evaluation(images=40, output_error=share)
    assert found.error_text == f"output error {text} of the variance"


@pytest.mark.parametrize(("share", "told"), [(0.9, False), (1.5, True)])
def test_outputs_further_off_than_their_mean_are_a_warning(share, told, monkeypatch) -> None:
    near = lambda *_, **__: Evaluation(images=40, output_error=share)  # noqa: E731
    monkeypatch.setattr("secateur.report.build.compared_with", near)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", secateur.SecateurWarning)
        found = secateur.prune(network, torch.randn(64, 1, 8, 8), sparsity=0.3, method="magnitude")
    assert any("150 % of their variance" in of for of in found.report.warnings) == told
