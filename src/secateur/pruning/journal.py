"""A work folder: what a long run has finished, so that the same call can go on from there.

A run is a sequence of chapters (an allocation, a walk, the training of blocks, ...), which come in
the same order each time. A chapter has an entry for each layer or block that is done: a record and
some tensors, in one file, which is written under another name, flushed to the disk and renamed. An
entry holds all that later steps depend on, so that a run that goes on gives the same bytes as one
that nobody disturbed:

    run/journal.json                      what the run is of: see `Journal.check`
    run/lock                              held by the one process that writes here
    run/entries/walk-001-6a1f.../0012.safetensors

A file that is damaged counts as missing, and so do those after it in its chapter, which were found
with what it held.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from secateur.errors import OptionError, OutputError, SecateurWarning
from secateur.support.group import Group
from secateur.support.interruptions import resumable
from secateur.support.locks import locked
from secateur.support.serialization import from_plain, to_plain
from secateur.support.wording import counted

Record = TypeVar("Record")
Facts = Mapping[str, str]

_RUN, _LOCK, _ENTRIES, _NEW = "journal.json", "lock", "entries", ".new"
_SCHEMA = 1
_SHOWN = 60  # characters of a fact that a message shows


@dataclass(frozen=True)
class Run:
    """What a run is of: all that its results depend on, by what a user calls it."""

    facts: dict[str, str]


@dataclass(frozen=True)
class Entry(Generic[Record]):
    """What is known of something that is finished.

    Attributes:
        record: plain data.
        tensors: by name.
    """

    record: Record
    tensors: dict[str, Tensor]


class Chapter:
    """A part of a run that goes on entry by entry; without a folder it forgets them all."""

    def __init__(self, journal: Journal, folder: Path | None, group: Group | None = None) -> None:
        self._group = group or Group()
        self._journal, self._folder, self._ended = journal, folder, folder is None

    def get(self, key: int | str, kind: type[Record]) -> Entry[Record] | None:
        """What was written, as it was; None = it has to be found out.

        Args:
            key: of the entry; ask in the order in which they are written.
            kind: of the record, a dataclass.
        """
        if self._folder is None or self._ended:
            return None
        first = self._group.is_first
        found = self._group.broadcast(
            self._read(self._path(self._folder, key), kind) if first else None
        )
        self._ended = found is None
        if found is not None:
            self._journal.found += 1
        return found

    def put(self, key: int | str, record: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Writes an entry; it is there as a whole or not at all. All processes call it alike.

        Raises:
            OutputError: the disk refuses.
        """
        if self._folder is not None:
            self._ended = True
            if self._group.is_first:
                plain = json.dumps(to_plain(record))
                _write(self._path(self._folder, key), _packed(plain, tensors or {}))

    @staticmethod
    def _path(folder: Path, key: int | str) -> Path:
        name = f"{key:04d}" if isinstance(key, int) else key
        return folder / f"{name}.safetensors"

    def _read(self, path: Path, kind: type[Record]) -> Entry[Record] | None:
        if not path.exists():
            return None
        try:
            plain, tensors = _unpacked(path)
            return Entry(from_plain(kind, plain, complete=True), tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            warnings.warn(
                f"{path} is damaged ({reason}): what it held is found out again",
                SecateurWarning,
                stacklevel=2,
            )
            return None


@dataclass
class Journal:
    """What a run has finished.

    Attributes:
        folder: where it is kept; None = nowhere.
        asked: what the call asks for beyond the facts that `check` is given.
        found: entries that were there and have been used.
        group: the processes that work here: the first one reads and writes.
    """

    folder: Path | None = None
    asked: Facts = field(default_factory=dict[str, str])
    found: int = 0
    group: Group = field(default_factory=Group)
    _chapters: Counter[str] = field(default_factory=Counter[str])

    def chapter(self, name: str, *, in_first: bool = False, **given: Any) -> Chapter:
        """The next chapter of a name.

        Args:
            name: of what is done.
            in_first: whether the first process alone asks for its entries, and hears of them.
            given: plain data that it depends on, other than what the run is of: a chapter that was
                written with others is not read.
        """
        if self.folder is None:
            return Chapter(self, None)
        self._chapters[name] += 1
        number, facts = self._chapters[name], json.dumps(to_plain(given), sort_keys=True)
        called = f"{name}-{number:03d}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        folder = self.folder / _ENTRIES / called
        if self.group.is_first:
            with _refusals(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return Chapter(self, folder, None if in_first else self.group)

    def check(self, facts: Facts) -> None:
        """Writes what the run is of, or compares it with what was written.

        Args:
            facts: all that the results depend on, by what a user calls it; long ones as digests.

        Raises:
            OptionError: it was of something else; says what differs.
            OutputError: the disk refuses.
        """
        if self.folder is None:
            return
        facts = {**facts, **self.asked}
        path = self.folder / _RUN
        if not self.group.is_first:
            pass
        elif path.exists():
            _compare(self.folder, _read_facts(path), facts)
        else:
            run = to_plain(Run({**facts}))
            plain = {"schema": "secateur.journal", "schema_version": _SCHEMA, **run}
            _write(path, json.dumps(plain, indent=2).encode())
        resumable(self.folder)

    def notes(self) -> list[str]:
        """What a reader of the report should know."""
        if not self.found:
            return []
        return [
            f"{counted(self.found, 'step')} of this run had been finished by earlier calls, and "
            "came from the work folder; seconds are those of the last call"
        ]


@contextmanager
def opened(
    folder: str | Path | None, group: Group | None = None, **asked: str
) -> Generator[Journal, None, None]:
    """The journal in a folder, which no other process may use meanwhile.

    A folder that is made here is removed again where an error leaves nothing finished in it.

    Args:
        folder: made where it is missing; None = no journal.
        group: the processes that use it together; None = this one alone.
        asked: what the call asks for beyond its options; another call must ask for the same.

    Raises:
        OptionError: another process uses it, or it holds other files.
        OutputError: the disk refuses.
    """
    if folder is None:
        yield Journal()
        return
    place, group = Path(os.path.abspath(folder)), group or Group()
    if not group.is_first:
        yield Journal(place, asked, group=group)
        return
    with ExitStack() as stack:
        with _refusals(place):
            _check_place(place)
            made = [of for of in (place, *place.parents) if not of.exists()]
            place.mkdir(parents=True, exist_ok=True)
            is_ours = stack.enter_context(locked(place / _LOCK))
        if not is_ours:
            raise OptionError(
                f"work_dir {place} is used by another process, expected none: wait until it ends, "
                "or choose another folder"
            )
        with _refusals(place):
            for left in place.rglob(f"*{_NEW}"):  # by a process that was killed
                left.unlink(missing_ok=True)
        try:
            yield Journal(place, asked, group=group)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and (place / _RUN).exists():
                error.add_note(f"the same call goes on from what is finished in {place}")
            else:
                _remove_unused(made)
            raise


def _remove_unused(made: Sequence[Path]) -> None:
    """Removes a work folder in which nothing is finished, and folders around it.

    Args:
        made: those that the call has made, the work folder first. On Windows, where files that are
            held open cannot be removed, they stay.
    """
    with suppress(OSError):
        for place in made[:1]:
            files = [path.name for path in place.rglob("*") if path.is_file()]
            if not {*files} <= {_RUN, _LOCK}:
                return
            shutil.rmtree(place)
        for folder in made[1:]:
            folder.rmdir()


def _check_place(place: Path) -> None:
    """Raises OptionError where a folder cannot be, or holds something else than a journal."""
    if place.exists() and not place.is_dir():
        raise OptionError(
            f"work_dir {place} is a file, expected a folder or a new name: choose another"
        )
    if place.is_dir() and not (place / _RUN).exists() and _others(place):
        raise OptionError(
            f"work_dir {place} holds other files and no journal, expected an empty folder, a "
            "new one, or that of an earlier call: choose another"
        )


def _others(place: Path) -> list[str]:
    """Files that are not of a journal that was begun and has no facts yet."""
    ours = {_LOCK, f"{_RUN}{_NEW}"}
    return [path.name for path in place.iterdir() if path.name not in ours]


@contextmanager
def _refusals(place: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"work_dir: {place} cannot be used ({error.strerror}): choose another place"
        ) from error


def _write(path: Path, content: bytes) -> None:
    """A file that is there as a whole or not at all, also if the machine loses its power."""
    new = path.with_name(path.name + _NEW)
    with _refusals(path):
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        if os.name != "nt":  # where a folder cannot be opened
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _packed(plain: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A record and tensors as one file, with how these lie in memory and where.

    A tensor's strides are a part of what is computed with it: libraries choose a kernel by them,
    and round as that does.
    """
    held = {name: _rows(tensor) for name, tensor in tensors.items()}
    layout = {
        name: {"strides": list(tensor.stride()), "device": str(tensor.device)}
        for name, tensor in tensors.items()
    }
    texts = {"record": plain, "layout": json.dumps(layout)}
    return save(held, metadata={**texts, "digest": _digest(texts, held)})


def _unpacked(path: Path) -> tuple[Any, dict[str, Tensor]]:
    content = path.read_bytes()
    held = load(content)
    size = int.from_bytes(content[:8], "little")
    texts: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    if texts.pop("digest") != _digest(texts, held):
        raise ValueError("its digest is another")
    layout = json.loads(texts["layout"])
    return json.loads(texts["record"]), {
        name: _laid(tensor, layout[name]["strides"], layout[name]["device"])
        for name, tensor in held.items()
    }


def _rows(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, as files hold it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _laid(tensor: Tensor, strides: Sequence[int], device: str) -> Tensor:
    """A tensor with given strides, where these leave each value a place of its own."""
    like = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype)
    is_dense = like.untyped_storage().nbytes() >= tensor.nbytes
    laid = like.copy_(tensor) if is_dense else tensor.clone()
    return laid.to(device)


def _digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(texts):
        found.update(f"{name}={texts[name]};".encode())
    for name in sorted(tensors):
        found.update(f"{name};".encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _read_facts(path: Path) -> dict[str, str]:
    try:
        held = json.loads(path.read_text())
        if held.pop("schema_version") != _SCHEMA or held.pop("schema") != "secateur.journal":
            raise ValueError("of another schema")
        return from_plain(Run, held, complete=True).facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{path} is damaged or of another version of secateur, expected what an earlier call "
            "has written: remove the folder to begin anew, or choose another work_dir"
        ) from error


def _compare(folder: Path, before: Facts, now: Facts) -> None:
    """Raises OptionError where a run was of something else."""
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    if not names:
        return
    told = ", ".join(_difference(name, before.get(name), now.get(name)) for name in names[:4])
    more = f", and {len(names) - 4} more" * (len(names) > 4)
    raise OptionError(
        f"work_dir {folder} holds another run ({told}{more}), expected the same call: repeat it "
        "as it was, or choose another work_dir"
    )


def _difference(name: str, before: str | None, now: str | None) -> str:
    """What differs: a value in full, of digests that they do."""
    if before is None or now is None:
        return f"{name} is {'not given' if now is None else 'given'} now"
    if before.startswith("sha256:") or len(before) + len(now) > 2 * _SHOWN:
        return f"{name}: not the same"
    return f"{name} was {before}, is {now}"
