"""The demonstration: whole or not at all, and its mistakes are one line."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur import Report, example
from secateur.cli import demo


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the demonstration on a few images; gives its exit status and standard error."""
    images, labels = example.test()
    monkeypatch.setattr(example, "test", lambda: (images[:50], labels[:50]))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back at the end
    threads = torch.get_num_threads()
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored here

    def run(out):
        monkeypatch.setattr("sys.argv", ["demo", "-o", str(out)])
        with pytest.raises(SystemExit) as ended:
            demo.main()
        return ended.value.code, capsys.readouterr().err

    yield run
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path, monkeypatch, run, number):
    staged = []

    def killed(*_, **__):
        staged.extend(tmp_path.rglob("*.partial"))
        signal.raise_signal(number)

    monkeypatch.setattr(demo, "prune", killed)
    told = "demo: error: interrupted: nothing was written\n"
    assert run(tmp_path / "x" / "out") == (2, told)
    assert staged
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path, run):
    (tmp_path / "out").write_text("mine")
    status, told = run(tmp_path / "out")
    assert status == 2
    assert told.startswith(f"demo: error: {tmp_path / 'out'} is a file")
    assert told.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


def test_each_run_is_told_as_it_ends_and_the_last_lines_are_what_was_written(
    tmp_path, monkeypatch, capsys
):
    images, labels = example.test()
    monkeypatch.setattr(example, "test", lambda: (images[:50], labels[:50]))
    options = {"method": "magnitude", "allocation": "uniform"}
    monkeypatch.setattr(demo, "METHODS", {"quick": options})
    monkeypatch.setattr(demo, "SPARSITIES", (0.5, 0.9))
    told = []
    prune = demo.prune

    def recording(*arguments, **more):
        told.append(capsys.readouterr().out)
        return prune(*arguments, **more)

    monkeypatch.setattr(demo, "prune", recording)
    out = tmp_path / "out"
    for _ in range(2):  # the second time over what the first has left
        demo.demonstrate(out)
    first, second = told[:2]
    assert first.startswith("pruning a network for Fashion-MNIST in 2 runs")
    assert second.startswith("1 of 2: quick-50 in ")
    lines = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in out.iterdir()) == ["dense", "quick-50", "quick-90"]
    files = [Path(line.strip()) for line in lines if line.startswith(f"  {out}")]
    assert {file.name for file in files} > {"model.safetensors", "report.html", "report.json"}
    assert all(file.is_file() for file in files)
    for name in ("quick-50", "quick-90"):
        (row,) = [line.split() for line in lines if line.startswith(f"{name} ")]
        report = Report.load(out / name / "report.json")
        pruned = report.evaluation["pruned"]
        packed = (out / name / "model.packed").stat().st_size
        assert row[:3] == [name, f"{100 * report.sparsity:.0f}", f"{pruned.top1:.2f}"]
        assert row[5:8] == [f"{pruned.drop:.2f}", "±", f"{pruned.drop_error:.2f}"]
        assert float(row[8]) == round(packed / 1000)
        assert report.exports["model.safetensors"]


def test_the_partial_folder_of_the_demonstration_is_no_news_to_git():
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("no clone")
    call = ["git", "check-ignore", "-q", ".demo-output.abc.partial/report.json"]
    assert subprocess.run(call, cwd=root, check=False).returncode == 0
