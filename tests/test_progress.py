"""What a long call tells of itself, on a terminal and off it."""

from __future__ import annotations

import io
import itertools
import threading

import pytest
import torch
from test_cli import invoke, place, prune_arguments  # noqa: F401
from torch import nn

import secateur
from secateur import OptionError
from secateur.support.progress import AGAIN, Lines, Teller, telling


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 16), nn.Linear(16, 5)).eval()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_at(moments, *, first=2.0):
    """What is written when a step of unknown length is looked at, at each moment in seconds."""
    file = io.StringIO()
    lines = Lines(file, 0.0)
    lines.what, lines.due = "tracing", first
    told = []
    for now in moments:
        lines.tick(now)
        told.append(file.getvalue())
        file.truncate(file.seek(0))
    return told


def test_a_step_is_told_when_it_takes_long_and_every_ten_seconds():
    told = lines_at([0.0, 1.9, 2.0, 2.5, 11.9, 12.0, 13.0, 22.0])
    assert [bool(text) for text in told] == [False, False, True, False, False, True, False, True]
    assert told[2] == "secateur: 2 s: tracing\n"
    assert told[-1] == "secateur: 22 s: tracing\n"


def test_lines_tell_the_layer_and_how_many_there_are():
    file = io.StringIO()
    lines = Lines(file, 100.0)
    lines.expect(12)
    lines.step("pruning")
    for name in ("stem", "blocks[0].conv"):
        lines.visit(name)
    lines.tick(lines.due)
    assert file.getvalue().endswith(": pruning, 2 of 12: blocks[0].conv\n")
    lines.step("evaluating")
    lines.tick(lines.due)
    assert file.getvalue().endswith(" s: evaluating\n")


def test_at_most_a_line_in_ten_seconds_within_a_step():
    told = lines_at([0.1 * tenth for tenth in range(1000)])
    assert sum(map(bool, told)) == 1 + int((99.9 - 2.0) // AGAIN)


def test_nobody_reads_any_more():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    lines = Lines(Closed(), 0.0)
    lines.what, lines.due = "tracing", 0.0
    lines.run(threading.Event())  # comes back instead of raising


class Logger:
    """In the place of standard error, as programs do that log all that is written there."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.mark.parametrize("progress", [True, None, False])
@pytest.mark.parametrize("name", ["sys.stderr", "sys.stdout"])
def test_streams_that_can_write_only_are_no_terminals(name, progress, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(name, Logger())
    with telling(progress) as teller:
        teller.step("tracing")
    if isinstance(teller, Lines):
        teller.due = 0.0
        teller.run(threading.Event())  # ends where nothing can be flushed
        assert "tracing" in teller.stream.text


@pytest.mark.parametrize("progress", [None, False])
def test_off_a_terminal_python_is_told_nothing(progress, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with telling(progress) as teller:
        assert type(teller) is Teller


def test_on_a_terminal_a_bar_shows_steps_and_layers(monkeypatch):
    monkeypatch.setattr("sys.stderr", file := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with telling(None) as teller:
        teller.step("tracing")
        teller.bar.refresh()
        teller.expect(4)
        teller.step("pruning")
        teller.visit("a[red].conv")
        teller.bar.refresh()
    assert "tracing" in file.getvalue()
    assert "pruning" in file.getvalue()
    assert "1/4 a[red].conv" in file.getvalue()


def test_false_is_silent_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", file := Terminal())
    with telling(False) as teller:
        teller.step("tracing")
    assert file.getvalue() == ""


@pytest.mark.parametrize("call", ["prune", "plan", "sweep"])
def test_a_function_hears_of_every_layer_in_order(call, network):
    heard = []
    target = {"sparsities": [0.3, 0.4]} if call == "sweep" else {"sparsity": 0.4}
    images = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    getattr(secateur, call)(network, images, progress=lambda *of: heard.append(of), **target)
    totals = {total for _, total, _ in heard}
    assert [done for done, _, _ in heard] == list(range(1, len(heard) + 1))
    assert len(totals) == 1
    assert len(heard) <= totals.pop()
    assert {name for _, _, name in heard} == {"2", "3"}


@pytest.mark.parametrize("call", ["prune", "plan", "sweep"])
def test_every_step_is_told(call, network):
    class Recorder(Teller):
        def __init__(self):
            super().__init__()
            self.steps = []

        def step(self, what):
            super().step(what)
            self.steps.append(what)

    recorder = Recorder()
    target = {"sparsities": [0.3]} if call == "sweep" else {"sparsity": 0.4}
    images = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    more = {} if call == "plan" else {"evaluation": 2 * images[:8]}
    with telling(recorder) as teller:
        getattr(secateur, call)(network, images, progress=teller, **target, **more)
    words = " ".join(key for key, _ in itertools.groupby(recorder.steps))
    wanted = ["reading the images", "tracing", "measuring what each layer bears"]
    wanted += [] if call == "plan" else ["dense network", "pruning", "evaluating"]
    assert [of for of in wanted if of not in words] == []


def test_what_is_no_progress_is_one_sentence(network):
    with pytest.raises(OptionError, match="progress is 'yes', expected True, False, None or"):
        secateur.plan(network, torch.ones(2, 9), sparsity=0.4, progress="yes")


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_tells_off_a_terminal_unless_quiet(place, monkeypatch, quiet):  # noqa: F811
    monkeypatch.setattr("secateur.support.progress.FIRST", 0.0)
    monkeypatch.setattr("secateur.support.progress.TICK", 0.001)
    arguments = [of for of in prune_arguments(place, "nowhere") if of not in ("-o", "nowhere")]
    result = invoke(*arguments, "--dry-run", *["--quiet"] * quiet)
    assert result.exit_code == 0, result.output
    steps = [line for line in result.stderr.splitlines() if line.startswith("secateur: ")]
    assert bool(steps) is not quiet
    assert any("tracing the network" in line for line in steps) is not quiet
