"""The demonstration: whole or not at all, and its mistakes are one line."""

import signal
import subprocess
from pathlib import Path

import pytest

from secateur import example
from secateur.example import demo


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the demonstration on a few images; gives its exit status and standard error."""
    images, labels = example.test()
    monkeypatch.setattr(example, "test", lambda: (images[:50], labels[:50]))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored here

    def run(out):
        monkeypatch.setattr("sys.argv", ["demo", "-o", str(out)])
        with pytest.raises(SystemExit) as ended:
            demo.main()
        return ended.value.code, capsys.readouterr().err

    yield run
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


def test_each_run_is_told_as_it_ends(tmp_path, monkeypatch, capsys):
    images, labels = example.test()
    monkeypatch.setattr(example, "test", lambda: (images[:50], labels[:50]))
    monkeypatch.setattr(demo, "METHODS", ("magnitude",))
    monkeypatch.setattr(demo, "SPARSITIES", (0.5, 0.9))
    told = []
    prune = demo.prune

    def recording(*arguments, **more):
        told.append(capsys.readouterr().out)
        return prune(*arguments, **more, allocation="uniform")

    monkeypatch.setattr(demo, "prune", recording)
    demo.demonstrate(tmp_path / "out")
    assert told[0].startswith("2 runs, which take a few minutes")
    assert told[1].startswith(" 1 of 2: 50% zeros, magnitude: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "magnitude-50",
        "magnitude-90",
    ]


def test_the_partial_folder_of_the_demonstration_is_no_news_to_git():
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("no clone")
    call = ["git", "check-ignore", "-q", ".demo-output.abc.partial/report.json"]
    assert subprocess.run(call, cwd=root, check=False).returncode == 0
