"""Writing results: whole or not at all, and nothing existing without `force`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from secateur.errors import OutputError


def clean_up_when_killed() -> None:
    """Makes of a polite kill (SIGTERM) what Ctrl-C is, so that nothing partial is left.

    Call it where a program begins.
    """

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def write_file(path: Path, content: bytes, *, force: bool = False) -> None:
    """Writes a file under a temporary name, then renames it.

    Raises:
        OutputError: it exists and `force` is not given, or it cannot be written.
    """
    with output_files(path.parent, [path.name], force=force) as staging:
        (staging / path.name).write_bytes(content)


@contextmanager
def output_files(folder: Path, names: Sequence[str], *, force: bool = False) -> Iterator[Path]:
    """A folder to write files into that get their places in `folder` only when the block ends well.

    They go to a hidden folder inside `folder`, and are renamed at the end. After an error or
    Ctrl-C nothing is left.

    Args:
        folder: where the files go; it has to exist.
        names: of the files, all of which the block has to write; renamed in this order.
        force: whether existing files are replaced.

    Raises:
        OutputError: a file exists and `force` is not given, a folder is in a file's place, or the
            disk refuses.
    """
    folder = Path(os.path.abspath(folder))
    with _plain_errors(folder / names[-1]):
        for name in names:
            _check_free(folder / name, force=force)
        with tempfile.TemporaryDirectory(
            prefix=f".{names[-1]}.", suffix=".partial", dir=folder, ignore_cleanup_errors=True
        ) as staging:
            yield Path(staging)
            for name in names:
                (Path(staging) / name).replace(folder / name)


def check_file(path: Path, *, force: bool = False) -> None:
    """Raises OutputError when a file cannot take its place; call it before long work."""
    _check_free(path, force=force)
    if not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(
            f"{path.parent} is no folder that can be written to, expected one: choose another"
        )


def _check_free(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise OutputError(
            f"{path} exists, expected a new name: choose another or pass --force (force=True)"
        )
    _check_place(path, wanted="file")


def check_folder(folder: Path, files: Iterable[str] = (), *, force: bool = False) -> None:
    """Raises OutputError when `output_folder` would refuse; call it before long work.

    Args:
        folder: where to write.
        files: names of those that will be written, as far as they are known.
        force: whether files of the same name are replaced.
    """
    with _plain_errors(folder):
        _check_place(folder, wanted="folder")
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise OutputError(
                f"the output folder {folder} is not empty, expected an empty or new one: "
                "choose another or pass --force to replace files of the same name"
            )
        for name in files:
            for inner in list(Path(name).parents)[:-1]:
                _check_place(folder / inner, wanted="folder")
            _check_place(folder / name, wanted="file")
        parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        if not os.access(parent, os.W_OK):
            raise OutputError(
                f"{parent} cannot be written to, expected a writable folder: choose another"
            )


@contextmanager
def output_folder(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `folder` only when the block ends well.

    Files go to a hidden folder beside `folder`; at the end it is renamed or, when `folder`
    exists, its files are moved in one by one. After an error or Ctrl-C nothing is left.

    Raises:
        OutputError: `folder` is not empty and `force` is not given, a file would replace a
            folder or the other way round, or the disk refuses.
    """
    folder = Path(os.path.abspath(folder))
    check_folder(folder, force=force)
    with _plain_errors(folder):
        made = _make_parents(folder.parent)
        try:
            with tempfile.TemporaryDirectory(
                prefix=f".{folder.name}.",
                suffix=".partial",
                dir=folder.parent,
                ignore_cleanup_errors=True,
            ) as name:
                yield Path(name)
                _open_to_others(Path(name))
                _move(Path(name), folder)
        except BaseException:
            for parent in made:
                with contextlib.suppress(OSError):  # somebody else may use it by now
                    parent.rmdir()
            raise


def _open_to_others(staging: Path) -> None:
    """The permissions that files usually get; temporary ones are for their owner only."""
    mask = _umask()
    for path in (staging, *staging.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and its parents; returns those made, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _move(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    pairs = [(path, folder / path.relative_to(staging)) for path in sorted(staging.rglob("*"))]
    for path, target in pairs:  # all of them before the first is moved
        _check_place(target, wanted="folder" if path.is_dir() else "file")
    for path, target in pairs:
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            path.replace(target)


def _check_place(target: Path, *, wanted: Literal["file", "folder"]) -> None:
    """Raises OutputError where a folder is in the place of a file, or the other way round."""
    if wanted == "folder":
        held = "file" if os.path.lexists(target) and not target.is_dir() else None
    else:  # a link gives way to a file, wherever it leads
        held = "folder" if target.is_dir() and not target.is_symlink() else None
    if held:
        raise OutputError(
            f"{target} is a {held}, expected a {wanted} or a new name: choose another"
        )


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says into one sentence."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        if number == errno.ENOSPC:
            raise OutputError(
                f"the disk is full: nothing was written to {path}; free some space and run again"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({os.strerror(number)}): choose another place"
        ) from error


def _errno(error: Exception) -> int | None:
    """The system's error number, also from writers that put it into their message only."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if type(error).__name__ == "SafetensorError":
        return errno.ENOSPC if "os error 28" in str(error) else errno.EIO
    return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
