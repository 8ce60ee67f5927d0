"""Where streams keep their values between operations: in memory, and beyond a cap in files.

Streams go through the chunks of the samples in turn, again and again, so that what was used last
will be needed last. Beyond the cap the values of the chunk before the present one are put into
files first, then those of the chunk before that; those of the first chunks stay in memory from
turn to turn. This is the best that can be done for such an order (Belady, 1966).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import (
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.support.hidden_folders import hidden_folder
from secateur.support.sizes import size_text


@dataclass(frozen=True)
class Spill:
    """A cap on the bytes that values take in memory, and where those beyond it are put.

    Attributes:
        memory: the cap.
        folder: of the files.
        numbers: of files to come; those who share the folder take them in turn.
    """

    memory: int
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_file(self) -> Path:
        """A file that is not there yet."""
        return self.folder / f"{next(self.numbers)}.values"


@contextmanager
def spilling(memory: int | None) -> Generator[Spill | None]:
    """A cap for a call, with a hidden folder among temporary files that is gone at the end.

    Args:
        memory: the cap in bytes; None = there is none, and no folder.
    """
    if memory is None:
        yield None
        return
    with hidden_folder(Path(tempfile.gettempdir()), "secateur-values") as folder:
        yield Spill(memory, folder)


class ValueStore(MutableMapping[Hashable, Any]):
    """A mapping that knows how many bytes its values take, and keeps them below a cap.

    Memory that several values share counts once, such as that of a value which the dense and the
    pruned network still have in common. Each is written to a file once at most, is the same to
    the bit and in the same order in memory when it is read, and its file goes with it. Those who
    hold a value that they got from the store have it in memory, whatever the store does.

    Attributes:
        bytes: of all tensors held in memory.
        peak: the most bytes there have been.
        written, read: bytes that went to files and came from there.
    """

    def __init__(self, spill: Spill | None = None, others: Iterable[Tensor] = ()) -> None:
        """An empty store.

        Args:
            spill: the cap; None = there is none.
            others: tensors that are held elsewhere, such as parameters: putting them into files
                would free nothing, and they do not count.
        """
        self.bytes = self.peak = self.written = self.read = 0
        self._spill = spill
        self._others: list[Tensor] = []  # as long as they are held their addresses are theirs
        self.exempt(others)
        self._values: dict[Hashable, Any] = {}  # tensors are views of memory
        self._resident: dict[int, _Memory] = {}  # by address
        self._groups: dict[Hashable, dict[_Memory, None]] = {}  # in memory; used last comes last

    def exempt(self, others: Iterable[Tensor]) -> None:
        """Tensors that are held elsewhere from now on; see above."""
        self._others += others
        self._elsewhere = {tensor.untyped_storage().data_ptr() for tensor in self._others}

    def scope(
        self, *prefix: Hashable, values: Mapping[str, Any] | None = None
    ) -> MutableMapping[str, Any]:
        """The part of the store whose keys begin with a prefix, as a mapping by name.

        Args:
            prefix: of keys (prefix, name), such as a stream and a chunk; not used before. Parts
                that have all but the first in common are used together.
            values: what it holds at first.
        """
        scope = _Scope(self, prefix)
        scope.update(values or {})
        return scope

    def __getitem__(self, key: Hashable) -> Any:
        return self._restored(self._values[key], _group(key))

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.pop(key, None)
        self._values[key] = self._taken(value, _group(key))

    def __delitem__(self, key: Hashable) -> None:
        for view in _views(self._values.pop(key)):
            view.memory.holders -= 1
            if view.memory.holders == 0:
                self._forget(view.memory)
                view.memory.remove()

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def pop(self, key: Hashable, default: Any = None) -> Any:
        """Drops a value, without reading it."""
        if key in self._values:
            del self[key]
        return default

    def _taken(self, value: Any, group: Hashable) -> Any:
        """A value as it is kept: of each tensor a view of its memory."""
        if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self._elsewhere:
            storage = value.untyped_storage()
            memory = self._resident.get(storage.data_ptr())
            if memory is None or storage.nbytes() == 0:
                memory = _Memory(storage, group)
                self._hold(memory)
            self._use(memory)
            memory.holders += 1
            return _View(value, memory)
        if _is_several(value):
            return _Several(value, [self._taken(part, group) for part in value])
        return value

    def _restored(self, kept: Any, group: Hashable) -> Any:
        if isinstance(kept, _View):
            if kept.memory.storage is None:
                self._make_room(kept.memory.size, group)
                kept.memory.load()
                self.read += kept.memory.size
                self._hold(kept.memory)
            self._use(kept.memory)
            return kept.tensor()
        if isinstance(kept, _Several):
            return kept.put_together([self._restored(part, group) for part in kept.parts])
        return kept

    def _hold(self, memory: _Memory) -> None:
        """Counts what came into memory."""
        self._make_room(memory.size, memory.group)
        if memory.storage is None or memory.size == 0:
            return
        self._resident[memory.storage.data_ptr()] = memory
        self.bytes += memory.size
        self.peak = max(self.peak, self.bytes)

    def _use(self, memory: _Memory) -> None:
        """What it belongs to was used last now."""
        held = self._groups.pop(memory.group, {})
        held.pop(memory, None)
        held[memory] = None
        self._groups[memory.group] = held

    def _forget(self, memory: _Memory) -> None:
        """It is not in memory any more."""
        if memory.storage is None:
            return
        if self._resident.pop(memory.storage.data_ptr(), None) is not None:
            self.bytes -= memory.size
        held = self._groups.get(memory.group, {})
        held.pop(memory, None)
        if not held:
            self._groups.pop(memory.group, None)

    def _make_room(self, size: int, group: Hashable) -> None:
        """Puts values into files, until so many bytes fit; of the present chunk in the end."""
        if self._spill is None:
            return
        while self.bytes + size > self._spill.memory and self._groups:
            others = (of for of in reversed(self._groups) if of != group)
            chosen = next(others, group)
            if chosen not in self._groups:
                return
            memory = next(iter(self._groups[chosen]))
            self._forget(memory)
            self.written += memory.put_away(self._spill)


class _Memory:
    """The memory behind one or several values.

    Attributes:
        size: in bytes.
        storage: the memory; None while it is in the file alone.
        group: what is used together with it.
        holders: how many tensors of the store it is behind.
        tensors: those that are views of it, by type and place, while it is there: whoever asks for
            the same one twice gets the same one.
    """

    def __init__(self, storage: torch.UntypedStorage, group: Hashable) -> None:
        self.size, self.device = storage.nbytes(), storage.device
        self.storage: torch.UntypedStorage | None = storage
        self.group, self.holders = group, 0
        self.tensors: dict[Any, Tensor] = {}
        self._file: Path | None = None

    def put_away(self, spill: Spill) -> int:
        """Lets go of the memory, which is in the file from now on; the bytes written."""
        assert self.storage is not None
        written = 0
        if self._file is None and self.size:
            self._file, written = spill.new_file(), self.size
            try:
                self._file.write_bytes(_bytes(self.storage.cpu()))
            except OSError as error:
                raise DataError(
                    f"{spill.folder}: {size_text(self.size)} of values cannot be written "
                    f"({error.strerror}), expected room for what the memory cap leaves: free some, "
                    "set TMPDIR to a folder on another disk, or raise the cap"
                ) from error
        self.storage = None
        self.tensors.clear()
        return written

    def load(self) -> None:
        """Reads it from the file, which stays for the next time."""
        storage = torch.UntypedStorage(self.size)
        if self._file is not None:
            with self._file.open("rb", buffering=0) as file:
                into, at = _bytes(storage), 0
                while at < self.size:
                    at += file.readinto(into[at:]) or _cut_short(self._file)
        self.storage = storage.to(device=self.device)

    def remove(self) -> None:
        """Removes the file."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None


class _View:
    """A tensor as a part of memory that may be away."""

    def __init__(self, tensor: Tensor, memory: _Memory) -> None:
        self.memory, self.dtype = memory, tensor.dtype
        self.place = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        memory.tensors.setdefault((self.dtype, self.place), tensor)

    def tensor(self) -> Tensor:
        """The tensor, once the memory is there."""
        assert self.memory.storage is not None
        key = self.dtype, self.place
        if key not in self.memory.tensors:
            empty = torch.empty(0, dtype=self.dtype, device=self.memory.device)
            self.memory.tensors[key] = empty.set_(self.memory.storage, *self.place)  # type: ignore[call-overload]
        return self.memory.tensors[key]


class _Several:
    """A tuple or a list of values."""

    def __init__(self, like: Sequence[Any], parts: list[Any]) -> None:
        self.kind, self.parts = type(like), parts

    def put_together(self, parts: list[Any]) -> Any:
        """The parts in a sequence of the same kind."""
        made: Any = self.kind
        return made(*parts) if hasattr(made, "_fields") else made(parts)


class _Scope(MutableMapping[str, Any]):
    """The values of one stream in a store."""

    def __init__(self, store: ValueStore, prefix: tuple[Hashable, ...]) -> None:
        self._store, self._prefix = store, prefix
        self._names: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        return self._store[*self._prefix, name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._store[*self._prefix, name] = value
        self._names[name] = None

    def __delitem__(self, name: str) -> None:
        del self._store[*self._prefix, name]
        del self._names[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _group(key: Hashable) -> Hashable:
    """What a key's value is used together with: the chunk, of whatever stream."""
    parts: Any = key
    is_scoped = isinstance(key, tuple) and len(parts) > 2
    return parts[1:-1] if is_scoped else parts


def _views(kept: Any) -> Iterator[_View]:
    if isinstance(kept, _View):
        yield kept
    elif isinstance(kept, _Several):
        for part in kept.parts:
            yield from _views(part)


def _bytes(storage: torch.UntypedStorage) -> memoryview:
    """Memory as bytes."""
    array: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()  # type: ignore[call-overload]
    return memoryview(array)


def _cut_short(file: Path) -> int:
    raise DataError(
        f"{file}: values that were put there are gone, expected all: leave the folder alone while "
        "secateur runs"
    )


def _is_several(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, tuple | list)
