"""Results appear whole or not at all, and nothing existing is lost without `overwrite`."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from functools import partial

import pytest

from secateur.errors import OutputError
from secateur.support import files, hidden_folders, interruptions
from secateur.support.files import (
    check_file,
    check_folder,
    check_space,
    output_files,
    output_folder,
    write_file,
)


@pytest.fixture(params=["one thread", "two threads"])
def threads(request):
    """With a second thread, as PyTorch has them: a signal may be given to either."""
    done = threading.Event()
    if request.param == "two threads":
        thread = threading.Thread(target=done.wait)
        thread.start()
    yield
    done.set()


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill_and_raise(target, error, **options):
    with output_folder(target, **options) as staging:
        (staging / "a").write_text("new")
        raise error


def fill(context, *names, meanwhile=lambda: None):
    with context as staging:
        for name in names:
            (staging / name).write_text("new")
        meanwhile()


@pytest.fixture
def umask_027():
    before = os.umask(0o027)
    yield
    os.umask(before)


# files


def test_write_file_writes_the_bytes_and_nothing_else(tmp_path):
    write_file(tmp_path / "a.bin", b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert everything_in(tmp_path) == ["a.bin"]


def test_an_existing_file_is_kept_without_force(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"a\.json exists"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    write_file(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_a_file_gets_the_permissions_the_umask_asks_for(tmp_path, umask_027):
    write_file(tmp_path / "a", b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("existed", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, existed):
    path = tmp_path / "a"
    if existed:
        path.write_bytes(b"old")
    before = everything_in(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_file(path, b"new", overwrite=True)
    assert everything_in(tmp_path) == before
    assert not existed or path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", b"")
    assert everything_in(tmp_path) == []


def test_a_missing_parent_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write_file(tmp_path / "no" / "a", b"")
    assert "\n" not in str(caught.value)


def test_several_files_appear_only_at_the_end(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with output_files(tmp_path, ["a", "b"]) as staging:
        for name in ("a", "b"):
            (staging / name).write_text(name)
        assert staging.parent == tmp_path  # the same disk, so that a rename suffices
        assert staging.name.startswith(".b.")
        assert not (tmp_path / "a").exists()
    assert everything_in(tmp_path) == ["a", "b", "mine"]
    assert (tmp_path / "b").read_text() == "b"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_none_of_several_files_is_left_after_an_error(tmp_path, error):
    def write_and_raise():
        with output_files(tmp_path, ["a", "b"], overwrite=True) as staging:
            (staging / "a").write_text("new")
            (staging / "b").write_text("new")
            raise error

    (tmp_path / "b").write_text("old")
    with pytest.raises(error):
        write_and_raise()
    assert everything_in(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "old"


@pytest.mark.parametrize("taken", ["a", "b"])
def test_one_existing_file_refuses_all_before_the_block(tmp_path, taken):
    (tmp_path / taken).write_text("old")
    with pytest.raises(OutputError, match=f"{taken} exists"), output_files(tmp_path, ["a", "b"]):
        pytest.fail("the block must not run")
    assert everything_in(tmp_path) == [taken]


def test_force_leaves_a_folder_in_a_files_place(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a is a folder, expected a file"):
        write_file(tmp_path / "a", b"", overwrite=True)
    assert everything_in(tmp_path) == ["a"]


# folders


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_appears_only_at_the_end(tmp_path, exists):
    target = tmp_path / "x" / "y" / "out"
    if exists:
        target.mkdir(parents=True)
    with output_folder(target) as staging:
        assert staging != target
        assert staging.parent == (target if exists else target.parent)  # the same disk
        assert staging.name.startswith(".")
        (staging / "a").write_text("1")
        (staging / "deep").mkdir()
        (staging / "deep" / "b").write_text("2")
        assert target.exists() == exists
        assert not exists or [path.name for path in target.iterdir()] == [staging.name]
    assert everything_in(tmp_path / "x" / "y") == ["out", "out/a", "out/deep", "out/deep/b"]
    assert (target / "deep" / "b").read_text() == "2"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["out", "x/y/out"])
def test_an_exception_leaves_nothing_made_parents_included(tmp_path, error, place):
    with pytest.raises(error):
        fill_and_raise(tmp_path / place, error)
    assert everything_in(tmp_path) == []


def test_an_exception_keeps_parents_that_were_there(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(RuntimeError), output_folder(tmp_path / "x" / "y" / "out"):
        raise RuntimeError
    assert everything_in(tmp_path) == ["x"]


def test_an_exception_keeps_a_filled_folder_as_it_was(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError):
        fill_and_raise(target, RuntimeError, overwrite=True)
    assert everything_in(tmp_path) == ["out", "out/a"]
    assert (target / "a").read_text() == "old"


@pytest.mark.parametrize("enter", [check_folder, lambda path: output_folder(path).__enter__()])
def test_a_filled_folder_is_refused_without_force(tmp_path, enter):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(OutputError, match=r"not empty.*--force"):
        enter(target)
    assert everything_in(tmp_path) == ["out", "out/a"]


def test_force_replaces_files_of_the_same_name_and_keeps_others(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "mine").write_text("mine")
    with output_folder(target, overwrite=True) as staging:
        (staging / "a").write_text("new")
        assert (target / "a").read_text() == "old"
    assert (target / "a").read_text() == "new"
    assert (target / "mine").read_text() == "mine"
    assert everything_in(tmp_path) == ["out", "out/a", "out/mine"]


@pytest.mark.parametrize("old", ["b/mine", "c"])
def test_force_replaces_nothing_where_a_file_and_a_folder_have_one_name(tmp_path, old):
    target = tmp_path / "out"
    (target / old).parent.mkdir(parents=True)
    (target / "a").write_text("old")
    (target / old).write_text("mine")
    before = everything_in(tmp_path)
    refused = pytest.raises(OutputError, match=r"out.[bc] is a f")
    with refused, output_folder(target, overwrite=True) as new:
        for name in ("a", "b"):
            (new / name).write_text("new")
        (new / "c").mkdir()
    assert everything_in(tmp_path) == before
    assert (target / "a").read_text() == "old"
    assert (target / old).read_text() == "mine"


def test_force_replaces_a_link_to_a_folder_by_a_file(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (target / "a").symlink_to(tmp_path / "elsewhere")
    with output_folder(target, overwrite=True) as staging:
        (staging / "a").write_text("new")
    assert everything_in(tmp_path) == ["elsewhere", "out", "out/a"]
    assert (target / "a").read_text() == "new"


def test_a_file_in_place_of_the_folder_is_refused_even_with_force(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_file_in_place_of_a_parent_is_one_sentence(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"), output_folder(tmp_path / "x/out"):
        pytest.fail("the block must not run")
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("enter", [check_folder, partial(write_file, content=b"")])
def test_a_name_that_the_system_refuses_is_one_sentence(tmp_path, enter):
    with pytest.raises(OutputError, match="cannot be written") as caught:
        enter(tmp_path / ("x" * 1000))
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_to_is_told_before_long_work(tmp_path, monkeypatch):
    asked = []

    def refuse(path, mode):
        asked.append((path, mode))
        return False

    monkeypatch.setattr(files.os, "access", refuse)
    with pytest.raises(OutputError, match="writable"):
        check_folder(tmp_path / "x" / "out")
    assert asked == [(tmp_path, os.W_OK)]


def test_a_new_folder_gets_the_permissions_the_umask_asks_for(tmp_path, umask_027):
    with output_folder(tmp_path / "out"):
        pass
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_a_relative_folder_is_where_it_was_when_the_block_began(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with output_folder(files.Path("out")) as staging:
        (staging / "a").write_text("1")
        os.chdir(tmp_path / "elsewhere")
    assert everything_in(tmp_path) == ["elsewhere", "out", "out/a"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(OutputError, match=r"the disk is full.*free some space"),
        output_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert everything_in(tmp_path) == []


def test_a_full_disk_told_by_safetensors_is_recognised(tmp_path):
    class SafetensorError(Exception):  # Rust's, which has no errno
        pass

    with pytest.raises(OutputError, match="the disk is full"), output_folder(tmp_path / "out"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(OutputError, match="cannot be written"), output_folder(tmp_path / "out"):
        raise SafetensorError("I/O error: something else (os error 5)")


# places that are odd, and places that are taken meanwhile


@pytest.mark.parametrize("enter", [check_file, partial(write_file, content=b"")])
def test_a_link_that_leads_nowhere_is_kept_without_force(tmp_path, enter):
    path = tmp_path / "a"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="a exists"):
        enter(path)
    assert path.is_symlink()


@pytest.mark.parametrize("enter", [check_file, check_folder, partial(write_file, content=b"")])
@pytest.mark.parametrize("name", ["x" * 256, "a\0b"])
def test_a_name_that_no_system_takes_is_one_sentence(tmp_path, enter, name):
    with pytest.raises(OutputError) as caught:
        enter(tmp_path / name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a b", "a\nb", "-", "\udcff", "[a-z]*"])
def test_every_name_that_the_system_takes_can_be_written_to(tmp_path, name):
    write_file(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1"
    (tmp_path / name).unlink()
    with output_folder(tmp_path / name) as staging:
        (staging / "a").write_text("1")
    assert everything_in(tmp_path) == [name, f"{name}/a"]


def test_a_file_that_appears_during_the_work_is_kept(tmp_path):
    def appear():
        (tmp_path / "b").write_text("mine")

    with pytest.raises(OutputError, match="b exists"):
        fill(output_files(tmp_path, ["a", "b"]), "a", "b", meanwhile=appear)
    assert everything_in(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "mine"


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_that_is_filled_during_the_work_is_kept(tmp_path, before):
    target = tmp_path / "out"
    if before:
        target.mkdir()

    def appear():
        target.mkdir(exist_ok=True)
        (target / "a").write_text("mine")

    with pytest.raises(OutputError):
        fill(output_folder(target), "a", meanwhile=appear)
    assert everything_in(tmp_path) == ["out", "out/a"]
    assert (target / "a").read_text() == "mine"


def test_without_hard_links_files_are_renamed_where_nothing_is(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a", b"1")
    with pytest.raises(OutputError, match="a exists"), output_files(tmp_path, ["a"]):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="b exists"):
        fill(
            output_files(tmp_path, ["b"]), "b", meanwhile=lambda: write_file(tmp_path / "b", b"me")
        )
    assert everything_in(tmp_path) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "me"


def test_space_is_asked_for_before_the_work(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "x" / "y", 0)
    with pytest.raises(OutputError, match="bytes left, expected"):
        check_space(tmp_path / "x" / "y", 2 * free + 1)


# runs that were killed

_UNTIL_KILLED = """
import signal, sys, time
from pathlib import Path
from secateur.support.files import output_files, output_folder

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

enter = output_folder(Path(sys.argv[1])) if sys.argv[2] == "folder" else output_files(
    Path(sys.argv[1]).parent, [Path(sys.argv[1]).name])
with enter as staging:
    (staging / "deep").mkdir()
    (staging / "deep" / "a").write_text("1")
    print(staging, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer():
    """Starts a program that writes until it is killed; gives it and its hidden folder."""
    started = []

    def start(path, kind="folder"):
        call = [sys.executable, "-c", _UNTIL_KILLED, str(path), kind]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, files.Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path, writer, kind):
    killed, left = writer(tmp_path / "out", kind)
    other, others = writer(tmp_path / "other", kind)
    for process in (killed, other):
        process.kill()
        process.wait()
    assert (left / "deep" / "a").exists()
    elsewhere = left.with_name(".out." + "0" * 24 + ".partial")  # of another machine
    elsewhere.mkdir()
    mine = tmp_path / ".out.notes.partial"
    mine.mkdir()
    link = left.with_name(left.name.replace(".partial", "")[:-16] + "f" * 16 + ".partial")
    link.symlink_to(mine)
    if kind == "folder":
        with output_folder(tmp_path / "out") as staging:
            (staging / "a").write_text("1")
    else:
        write_file(tmp_path / "out", b"1")
    assert not left.exists()
    assert all(path.is_dir() for path in (others, elsewhere, mine))
    assert link.is_symlink()


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_leaves_what_a_living_one_writes(tmp_path, writer, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    living, left = writer(target)
    with output_folder(target) as staging:
        (staging / "a").write_text("1")
    assert (left / "deep" / "a").exists()
    living.send_signal(signal.SIGINT)
    living.wait(30)
    assert everything_in(tmp_path) == ["out", "out/a"]


def test_a_run_into_a_folder_removes_what_was_left_beside_it(tmp_path, writer):
    killed, left = writer(tmp_path / "out")
    killed.kill()
    killed.wait()
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("1")
    assert not left.exists()
    assert everything_in(tmp_path) == ["out", "out/a"]


@pytest.mark.usefixtures("threads")
def test_ctrl_c_while_the_hidden_folder_is_removed_waits_for_that(tmp_path, monkeypatch):
    def interrupted(path, **options):
        os.kill(os.getpid(), signal.SIGINT)
        real(path, **options)

    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fill(output_folder(tmp_path / "out"), meanwhile=lambda: 1 / 0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert everything_in(tmp_path) == []


def test_after_ctrl_c_it_is_told_whether_a_result_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(interruptions, "_written", [])
    with output_folder(tmp_path / "out") as staging:
        write_file(staging / "a", b"1")
        assert interruptions.interruption() == "interrupted: nothing was written"
    assert interruptions.interruption() == f"interrupted after {tmp_path / 'out'} was written"
    write_file(tmp_path / "b", b"1")
    assert interruptions.interruption() == f"interrupted after {tmp_path / 'b'} was written"


def test_a_hidden_folder_is_left_where_locks_fail(tmp_path, writer, monkeypatch):
    killed, left = writer(tmp_path / "out")
    killed.kill()
    killed.wait()

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(hidden_folders.fcntl, "flock", refuse)
    with output_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("1")
    assert left.is_dir()
    assert (tmp_path / "out" / "a").exists()


def test_a_hidden_folder_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    calls = []

    def lock(folder, *, wait):
        calls.append(folder)
        if len(calls) == 1:  # as another run does that takes it for a leftover
            folder.rmdir()
        return real(folder, wait=wait)

    real = hidden_folders._lock
    monkeypatch.setattr(hidden_folders, "_lock", lock)
    write_file(tmp_path / "a", b"1")
    assert len(calls) == 2
    assert everything_in(tmp_path) == ["a"]


@pytest.mark.usefixtures("threads")
def test_a_polite_kill_waits_until_all_files_are_renamed(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    def kill_and_link(path, target):
        os.kill(os.getpid(), signal.SIGTERM)
        real(path, target)

    real = os.link
    monkeypatch.setattr(os, "link", kill_and_link)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            fill(output_files(tmp_path, ["a", "b"]), "a", "b")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert everything_in(tmp_path) == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_python_drops_comes_again(tmp_path, number):
    """In a destructor, or a weak reference's callback, exceptions are printed and forgotten."""
    (tmp_path / "program.py").write_text(
        "import os, signal, time\n"
        "from secateur.support.interruptions import clean_up_when_killed\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "clean_up_when_killed()\n"
        "class Mortal:\n"
        "    def __del__(self):\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(0.1)\n"
        "Mortal()\n"
        "try:\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    process = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (process.stdout, process.stderr) == ("interrupted\n", "")


def test_a_link_that_leads_nowhere_is_called_so(tmp_path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "none")
    for check in (check_file, check_folder):
        with pytest.raises(OutputError, match=r"link .*a link that leads nowhere, expected a"):
            check(link)
    check_file(link, overwrite=True)
