"""Writing results: whole or not at all, and nothing existing without `overwrite`.

Files are written in a hidden folder (`secateur.support.hidden_folders`), and renamed at the end.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from secateur.errors import OutputError
from secateur.support.hidden_folders import hidden_folder, is_hidden, is_partial, remove_leftovers
from secateur.support.interruptions import undisturbed, written


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Writes a file under a temporary name, then renames it.

    Raises:
        OutputError: it exists and `overwrite` is not given, or it cannot be written.
    """
    with output_files(path.parent, [path.name], overwrite=overwrite) as staging:
        (staging / path.name).write_bytes(content)


@contextmanager
def output_files(folder: Path, names: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write files into that get their places in `folder` only when the block ends well.

    They go to a hidden folder inside `folder`, and are renamed at the end. After an error or
    Ctrl-C nothing is left.

    Args:
        folder: where the files go; it has to exist.
        names: of the files, all of which the block has to write; renamed in this order.
        overwrite: whether existing files are replaced.

    Raises:
        OutputError: a file exists and `overwrite` is not given, a folder is in a file's place, or
            the disk refuses.
    """
    folder = Path(os.path.abspath(folder))
    with _plain_errors(folder / names[-1]):
        for name in names:
            _check_free(folder / name, overwrite=overwrite)
        with hidden_folder(folder, names[-1]) as staging:
            yield staging
            _place([(staging / name, folder / name) for name in names], overwrite=overwrite)


def check_file(path: Path, *, overwrite: bool = False) -> None:
    """Raises OutputError when a file cannot take its place; call it before long work."""
    with _plain_errors(path):
        _check_free(path, overwrite=overwrite)
        if not os.access(path.absolute().parent, os.W_OK):
            raise OutputError(
                f"{path.parent} is no folder that can be written to, expected one: choose another"
            )


def check_space(folder: Path, size: int) -> None:
    """Raises OutputError when a disk has fewer bytes left; call it before long work.

    Args:
        folder: where to write; it need not exist.
        size: bytes that will be written.
    """
    with _plain_errors(folder):
        free = shutil.disk_usage(_nearest(folder)).free
    if size > free:
        raise OutputError(
            f"{folder} has {free:,} bytes left, expected {size:,}: "
            "free some space or choose another place"
        )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the innermost one above it that exists."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def _check_free(path: Path, *, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        what = " as a link that leads nowhere" * _is_dangling(path)
        raise OutputError(
            f"{path} exists{what}, expected a new name: choose another or pass --force "
            "(overwrite=True)"
        )
    _check_place(path, wanted="file")


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def check_folder(folder: Path, files: Iterable[str] = (), *, overwrite: bool = False) -> None:
    """Raises OutputError when `output_folder` would refuse; call it before long work.

    Args:
        folder: where to write.
        files: names of those that will be written, as far as they are known.
        overwrite: whether files of the same name are replaced.
    """
    with _plain_errors(folder):
        _check_place(folder, wanted="folder")
        if not overwrite:
            _check_empty(folder)
        for name in files:
            for inner in list(Path(name).parents)[:-1]:
                _check_place(folder / inner, wanted="folder")
            _check_place(folder / name, wanted="file")
        parent = _nearest(folder)
        if not os.access(parent, os.W_OK):
            raise OutputError(
                f"{parent} cannot be written to, expected a writable folder: choose another"
            )


def rehearse_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Makes and removes the hidden folder of `output_folder`; call it before long work.

    Raises:
        OutputError: the disk or the name refuses.
    """
    with suppress(_RehearsalError), output_folder(folder, overwrite=overwrite):
        raise _RehearsalError


class _RehearsalError(Exception):
    """Ends a rehearsal."""


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(not is_partial(path, folder.name) for path in folder.iterdir()):
        raise OutputError(
            f"the output folder {folder} is not empty, expected an empty or new one: "
            "choose another or pass --force (overwrite=True) to replace files of the same name"
        )


@contextmanager
def output_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `folder` only when the block ends well.

    Files go to a hidden folder beside `folder`, which is renamed at the end. Where `folder` exists,
    which may be a disk of its own, the hidden one is inside and its files are moved out one by one.
    After an error or Ctrl-C nothing is left.

    Raises:
        OutputError: `folder` is not empty and `overwrite` is not given, a file would replace a
            folder or the other way round, or the disk refuses.
    """
    folder = Path(os.path.abspath(folder))
    check_folder(folder, overwrite=overwrite)
    with _plain_errors(folder):
        missing = [path for path in (folder.parent, *folder.parents) if not path.exists()]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            place = folder if folder.is_dir() else folder.parent
            remove_leftovers(folder.parent, folder.name)  # of a run for which it was not there
            with hidden_folder(place, folder.name) as staging:
                yield staging
                _open_to_others(staging)
                _move(staging, folder, overwrite=overwrite)
        except BaseException:
            for parent in missing:
                with suppress(OSError):  # somebody else may use it by now
                    parent.rmdir()
            raise


def _open_to_others(staging: Path) -> None:
    """The permissions that files usually get; temporary ones are for their owner only."""
    mask = _umask()
    for path in (staging, *staging.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _move(staging: Path, folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        with undisturbed():
            staging.rename(folder)
            _note(folder)
        return
    if not overwrite:  # somebody may have filled it meanwhile
        _check_empty(folder)
    paths = sorted(staging.rglob("*"))
    pairs = [(path, folder / path.relative_to(staging)) for path in paths]
    for path, target in pairs:  # all of them before the first is moved
        _check_place(target, wanted="folder" if path.is_dir() else "file")
    for path, target in pairs:
        if path.is_dir():
            target.mkdir(exist_ok=True)
    _place([pair for pair in pairs if not pair[0].is_dir()], overwrite=overwrite)


def _place(pairs: Sequence[tuple[Path, Path]], *, overwrite: bool) -> None:
    """Renames files; without `overwrite` all or none, and none that would replace another."""
    placed: list[Path] = []
    with undisturbed():
        try:
            for path, target in pairs:
                if overwrite:
                    path.replace(target)
                else:
                    _link(path, target)
                    placed.append(target)
        except BaseException:
            for target in placed:
                target.unlink(missing_ok=True)
            raise
        _note(pairs[-1][1] if pairs else None)


def _note(path: Path | None) -> None:
    """Remembers a result, unless it is a part of another one."""
    if path is not None and not is_hidden(path):
        written(path)


def _link(path: Path, target: Path) -> None:
    """Gives a file its name unless that is taken, also by somebody in this moment."""
    try:
        os.link(path, target)
    except FileExistsError:
        _check_free(target, overwrite=False)
        raise
    except OSError:  # file systems without hard links
        _check_free(target, overwrite=False)
        path.rename(target)


def _check_place(target: Path, *, wanted: Literal["file", "folder"]) -> None:
    """Raises OutputError where a folder is in the place of a file, or the other way round."""
    if wanted == "folder":
        held = "file" if os.path.lexists(target) and not target.is_dir() else None
    else:  # a link gives way to a file, wherever it leads
        held = "folder" if target.is_dir() and not target.is_symlink() else None
    held = "link that leads nowhere" if held and _is_dangling(target) else held
    if held:
        raise OutputError(
            f"{target} is a {held}, expected a {wanted} or a new name: choose another"
        )


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says into one sentence."""
    try:
        if "\0" in str(path):
            raise OutputError(f"{path} holds a NUL character, expected none: choose another name")
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
