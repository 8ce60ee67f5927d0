"""Values of all samples in mapped files, for what reads some rows at a time in any order.

A mapped file is like memory to those who read it; what of it is in memory can be given back at any
time. Rows lie in it as they would in memory, so that what is computed of them is the same.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.network.samples import Samples
from secateur.network.store import Spill
from secateur.support.sizes import size_text


class MappedValues:
    """Makes samples whose values lie in mapped files, or in memory where there is no cap."""

    def __init__(self, spill: Spill | None) -> None:
        """None are there yet; `spill` is the cap."""
        self._spill = spill
        self._maps: list[weakref.ref[mmap.mmap]] = []

    def release(self) -> None:
        """Gives the memory of all mapped values back; they are read again when they are needed."""
        alive = [(of, held) for of in self._maps if (held := of()) is not None]
        self._maps = [of for of, _ in alive]
        for _, held in alive:
            if hasattr(held, "madvise"):  # on Windows the system does so when it needs memory
                held.madvise(mmap.MADV_DONTNEED)

    def joined(self, samples: Samples, chunk: int, run: Callable[[Samples], Samples]) -> Samples:
        """What a function makes of samples, so many at a time; as `Samples.joined` puts it."""
        if self._spill is None:
            return Samples.joined([run(part) for part in samples.split(chunk)])

        def parts() -> Iterator[Samples]:
            for part in samples.split(chunk):
                yield run(part)
                self.release()

        return self._filled(parts(), len(samples), lambda of: torch.cat([of[:1], of[:1]]))

    def select(self, samples: Samples, rows: Tensor, chunk: int) -> Samples:
        """Some of the samples, as `Samples.select` does.

        Args:
            samples: all of them.
            rows: which, as a mask.
            chunk: how many are copied at a time.
        """
        if self._spill is None:
            return samples.select(rows)

        def parts() -> Iterator[Samples]:
            for part, chosen in zip(samples.split(chunk), torch.split(rows, chunk), strict=True):
                if chosen.any():
                    yield part.select(chosen)
                    self.release()

        two = torch.tensor([0, 0])
        return self._filled(parts(), int(rows.sum()), lambda of: of[two.to(of.device)])

    def _filled(
        self, parts: Iterator[Samples], count: int, like: Callable[[Tensor], Tensor]
    ) -> Samples:
        """Parts one after the other in files; `like` makes two rows as they are to lie there."""
        first = next(parts)
        made = {name: self._rows(like(of), count) for name, of in first.tensors.items()}
        at, part = 0, first
        while True:
            for name, of in part.tensors.items():
                made[name][at : at + len(part)] = of
            at += len(part)
            following = next(parts, None)
            if following is None:
                break
            part = following
        return Samples(made, first.masked_by, first.constants)

    def _rows(self, like: Tensor, count: int) -> Tensor:
        """So many rows in a new file, in the order of `like` in memory."""
        assert self._spill is not None
        size = count * like[0].numel() * like.element_size()
        if like.device.type != "cpu" or size == 0:
            return like.new_empty((count, *like.shape[1:]))
        path = self._spill.new_file()
        try:
            with path.open("w+b") as file:
                file.truncate(size)
                memory = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise DataError(
                f"{path.parent}: {size_text(size)} of values cannot be kept there "
                f"({error.strerror}), expected room for them: set TMPDIR to a folder on another "
                "disk, or leave out the memory cap"
            ) from error
        with suppress(OSError):  # it is there as long as it is mapped
            path.unlink()
        self._maps.append(weakref.ref(memory))
        flat = torch.frombuffer(memory, dtype=like.dtype)
        order = sorted(range(1, like.dim()), key=lambda axis: (-like.stride(axis), axis))
        back = [0, *(1 + order.index(axis) for axis in range(1, like.dim()))]
        return flat.view(count, *(like.shape[axis] for axis in order)).permute(back)
