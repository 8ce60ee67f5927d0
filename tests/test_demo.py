"""The demonstration: whole or not at all, and its mistakes are one line."""

import signal

import pytest

from secateur import example
from secateur.example import demo


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the demonstration on a few images; gives its exit status and standard error."""
    images, labels = example.test()
    monkeypatch.setattr(example, "test", lambda: (images[:50], labels[:50]))
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    def run(out):
        monkeypatch.setattr("sys.argv", ["demo", "-o", str(out)])
        with pytest.raises(SystemExit) as ended:
            demo.main()
        return ended.value.code, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, before)


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
