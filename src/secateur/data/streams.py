"""Images that are read batch by batch, and again at each pass, so that few are held at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.errors import DataError
from secateur.network.samples import MASK, Samples
from secateur.support.wording import counted

BATCH = 100  # images per forward pass

# Images that take no more than this together, as inputs, are kept for the next pass: 890 of 224
# pixels. Reading and decoding them again costs time for each network judged.
HELD_BYTES = 2**29


@dataclass(frozen=True)
class Part:
    """Some images of a source.

    Attributes:
        name: what messages call them.
        samples: inputs of the network.
        labels: their class numbers, where the source has them and they were asked for.
    """

    name: str
    samples: Samples
    labels: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def copy(self) -> Part:
        """In memory of its own."""
        labels = None if self.labels is None else self.labels.clone()
        return Part(self.name, self.samples.map(Tensor.clone), labels)

    def __getitem__(self, rows: slice) -> Part:
        return Part(
            self.name, self.samples[rows], None if self.labels is None else self.labels[rows]
        )


@dataclass(frozen=True)
class _Kept:
    """Parts that were copied, as often as they are asked for."""

    kept: list[Part]

    def __call__(self) -> list[Part]:
        return self.kept


@dataclass(kw_only=True, eq=False)
class ImageStream:
    """Images to be read from a source as often as they are needed; see `secateur.data.sources`.

    Where they take little room, they are kept from the first pass on. Where they do not, each
    later pass checks that it gets the same images as the first.

    Attributes:
        source: where they come from, for the report.
        parts: reads them, from the first on at each call.
        notes: what a reader of the report should know.
        warnings: what may be wrong with them; complete once they have been read.
        synthetic: generator and seed, when they were made rather than taken; None = real.
        classes: the class folders that the labels come from, in the order of their numbers.
        constant: whether they are in memory as they are.
    """

    source: str
    parts: Callable[[], Iterable[Part]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    synthetic: str | None = None
    classes: tuple[str, ...] = ()
    constant: bool = False
    _held: list[Part] | None = field(default=None, init=False, repr=False)
    _digests: list[bytes] | None = field(default=None, init=False, repr=False)

    def batches(self, size: int = BATCH) -> Iterator[Part]:
        """All images in their order, so many at a time.

        Raises:
            DataError: there are none, they differ in size, hold NaN or Inf, cannot be read, or
                are not those of the first pass.
        """
        if self._held is not None:
            yield from batched(self._held, size)
        elif self.constant:
            yield from batched(self.checked(), size)
        else:
            yield from self._keeping(batched(self._watched(self.checked()), size))

    def __getstate__(self) -> dict[str, Any]:
        """For a pickle: the images themselves, where they are in memory.

        Raises:
            DataError: they are read from their source at each pass.
        """
        if self._held is None and not self.constant:
            raise DataError(
                f"the images from {self.source} are read at each pass, expected some in memory for "
                "a pickle: leave them out, as dataclasses.replace(result, evaluation_set=None)"
            )
        parts = self.parts() if self._held is None else self._held
        return {**vars(self), "parts": _Kept([part.copy() for part in parts])}

    def check_repeats(self) -> None:
        """Reads the first batch again, unless it is held: another one is told before long work."""
        next(self.batches())

    def same_images(self, others: Samples) -> int:
        """How many of the images are among others, value for value."""
        if self._digests is None:
            self._digests = [digest for part in self.batches() for digest in digests(part.samples)]
        known = set(digests(others))
        return sum(digest in known for digest in self._digests)

    def warnings_for(self, outputs: int) -> list[str]:
        """The warnings, and one where a network has more outputs than there are class folders."""
        return [*self.warnings, *few_classes(self.source, self.classes, outputs)]

    def checked(self) -> Iterator[Part]:
        """The parts that hold images, finite and of one shape, all with labels or all without."""
        first, count = None, 0
        for part in self.parts():
            if not len(part):
                continue
            first = first or part
            check_shapes(part, first)
            check_finite(part.samples, self.source, count)
            count += len(part)
            if first.labels is None:
                part = Part(part.name, part.samples)
            elif part.labels is None:
                raise DataError(
                    f"{part.name} of {self.source} has no class numbers, and {first.name} has, "
                    "expected one for every image: label all of them, or none"
                )
            yield part
        if first is None:
            raise DataError(f"{self.source} holds no images, expected at least one: add images")

    def _watched(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts as they come; those of a later pass are compared with the first's."""
        seen: list[bytes] = []
        for part in parts:
            start = len(seen)
            seen += digests(part.samples)
            if self._digests is not None and seen[start:] != self._digests[start : len(seen)]:
                raise self._changed()
            yield part
        if self._digests is not None and len(seen) != len(self._digests):
            raise self._changed()
        self._digests = seen

    def _keeping(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts as they come, kept for the next pass if they are small together."""
        held: list[Part] | None = []
        room = HELD_BYTES
        for part in parts:
            room -= part.samples.nbytes
            if held is not None and room >= 0:
                held.append(part)
            else:
                held = None
            yield part
        self._held = held

    def _changed(self) -> DataError:
        return DataError(
            f"{self.source} gives other images when it is read again, expected the same in the "
            "same order, for several networks are judged on them: turn off shuffling and random "
            "transforms"
        )


def batched(parts: Iterable[Part], size: int) -> Iterator[Part]:
    """Parts of any sizes as parts of one size; the last may be smaller."""
    waiting: list[Part] = []
    for part in parts:
        while len(part):
            room = size - sum(map(len, waiting))
            waiting.append(part[:room])
            part = part[room:]
            if len(waiting[-1]) == room:
                yield joined(waiting)
                waiting = []
    if waiting:
        yield joined(waiting)


def joined(parts: Sequence[Part]) -> Part:
    """Parts of one source as one."""
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    samples = Samples.joined([part.samples for part in parts])
    return Part(parts[0].name, samples, torch.cat(labels) if labels else None)


def digests(samples: Samples) -> list[bytes]:
    """A hash of each sample's shapes and values; of its real positions, where a mask says so."""
    tensors = [tensor.detach().cpu().contiguous() for tensor in samples.tensors.values()]
    mask = samples.mask
    lengths = None if mask is None else _lengths(mask)
    return [
        _digest(
            [
                _real(tensor[row], mask, None if lengths is None else lengths[row])
                for tensor in tensors
            ]
        )
        for row in range(len(samples))
    ]


def _lengths(mask: Tensor) -> list[int]:
    """How far the real positions of each sample reach."""
    last = mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return last.amax(1).tolist()


def _real(value: Tensor, mask: Tensor | None, length: int | None) -> Tensor:
    """A value of one sample without the padding behind it."""
    padded = mask is not None and value.dim() > 0 and len(value) == mask.shape[1]
    return value[:length] if padded else value


def _digest(values: Sequence[Tensor]) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    for value in values:
        hashed.update(repr((tuple(value.shape), value.dtype)).encode())
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.digest()


def few_classes(source: str, classes: Sequence[str], outputs: int) -> list[str]:
    """A warning where a network has more outputs than there are class folders."""
    if not classes or len(classes) >= outputs:
        return []
    shown = ", ".join(f"{name} = {index}" for index, name in enumerate(classes[:3]))
    more = ", ..." if len(classes) > 3 else ""
    folders, numbers = counted(len(classes), "class folder"), counted(outputs, "output")
    return [
        f"{source} has {folders} for a network with {numbers}: the n-th in sorted order counts as "
        f"class n, from 0 on ({shown}{more}); where that is wrong, give the numbers in a labels.csv"
    ]


def check_shapes(part: Part, first: Part) -> None:
    """Raises where samples differ in size, but for the length that a mask counts."""
    kinds = [(of.samples.tensors.keys(), _dtypes(of)) for of in (part, first)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{part.name} gives the inputs {', '.join(part.samples.tensors)} and {first.name} "
            f"{', '.join(first.samples.tensors)}, or others types, expected the same in each"
        )
    one, other = part.samples.shapes, first.samples.shapes
    lengths = [_length(of.samples) for of in (part, first)]
    wrong = next((name for name in one if not _fit([one[name], other[name]], lengths)), None)
    if wrong is None:
        return
    if len(one) == 1 and first.samples.first.is_floating_point():
        raise DataError(
            f"{part.name} has shape {one[wrong]} and {first.name} {other[wrong]}, expected images "
            "of one size: pass Preprocess(size=...), or --size on the command line"
        )
    raise DataError(
        f"{wrong} of {part.name} has shape {one[wrong]} and that of {first.name} {other[wrong]}, "
        f"expected one length, or an input {MASK} (or the one that mask= names) that says where "
        f"padding is: pad or cut them"
    )


def _dtypes(part: Part) -> list[torch.dtype]:
    return [tensor.dtype for tensor in part.samples.tensors.values()]


def _length(samples: Samples) -> int | None:
    """The positions that a mask counts."""
    return None if samples.mask is None else samples.mask.shape[1]


def _fit(shapes: Sequence[tuple[int, ...]], lengths: Sequence[int | None]) -> bool:
    """Whether the shapes of an input in two parts are equal, but for the length of each part."""
    one, other = shapes
    positions = [shape[:1] == (of,) for shape, of in zip(shapes, lengths, strict=True)]
    return one == other or (all(positions) and one[1:] == other[1:])


def check_finite(samples: Samples, source: str, start: int = 0) -> None:
    """Raises where samples hold NaN or Inf; the first of them has the number `start`."""
    for tensor in samples.tensors.values():
        if not tensor.is_floating_point():
            continue
        bad = (~tensor.reshape(len(tensor), -1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"{source} has NaN or Inf (the first such image is number {start + bad[0]}), "
                "expected finite numbers: check the preprocessing"
            )
