"""Where streams keep their values between operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor


class ValueStore(MutableMapping[Hashable, Any]):
    """A mapping that knows how many bytes its values take.

    Memory that several values share counts once, such as that of a value which the dense and the
    pruned network still have in common.

    Attributes:
        bytes: of all tensors held.
        peak: the most bytes there have been.
    """

    def __init__(self) -> None:
        self.bytes = self.peak = 0
        self._values: dict[Hashable, Any] = {}
        self._holders: Counter[int] = Counter()  # of each storage, by its address

    def scope(
        self, *prefix: Hashable, values: Mapping[str, Any] | None = None
    ) -> MutableMapping[str, Any]:
        """The part of the store whose keys begin with a prefix, as a mapping by name.

        Args:
            prefix: of keys (prefix, name), such as a stream and a chunk; not used before.
            values: what it holds at first.
        """
        scope = _Scope(self, prefix)
        scope.update(values or {})
        return scope

    def __getitem__(self, key: Hashable) -> Any:
        return self._values[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.pop(key, None)
        self._values[key] = value
        for address, size in _storages(value):
            self.bytes += size if self._holders[address] == 0 else 0
            self._holders[address] += 1
        self.peak = max(self.peak, self.bytes)

    def __delitem__(self, key: Hashable) -> None:
        for address, size in _storages(self._values.pop(key)):
            self._holders[address] -= 1
            if self._holders[address] == 0:
                self.bytes -= size
                del self._holders[address]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


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

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    """Address and bytes of the memory behind each tensor of a value."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
    elif _is_several(value):
        for part in value:
            yield from _storages(part)


def _is_several(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, tuple | list)
