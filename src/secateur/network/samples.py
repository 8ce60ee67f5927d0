"""What a network is run on: named tensors, with the samples on the first axis of each.

Samples of different lengths, such as sentences, are padded to the longest of those that are put
together. Where the padding is, a mask says, an input of shape (samples, positions):
"attention_mask" with a 1 for each real position and a 0 for each padded one, or another that the
user names, with a ~ before it if it is the other way round, as PyTorch's `src_key_padding_mask` is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from secateur.errors import DataError, OptionError
from secateur.network.layout import to_channels_last
from secateur.support.wording import counted

MASK = "attention_mask"  # the input that says which positions are real

# Input values per run of an operation. Larger chunks made EfficientNet-Lite0 up to 1.6 times
# slower: activations over 32 MB get fresh pages from the system at every allocation.
_CHUNK_VALUES = 8 * 3 * 224 * 224


@dataclass(frozen=True)
class Samples:
    """Inputs of a network, or all of its values at a cut.

    Attributes:
        tensors: of any type, by name, each with a row for each sample.
        masked_by: the tensor that says which positions are real, if there is one of this name;
            with a ~ before it which are padding.
        constants: inputs that are the same for all samples, by name.
    """

    tensors: Mapping[str, Tensor]
    masked_by: str = MASK
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if len({shape[:1] for shape in shapes.values()} - {()}) != 1 or () in shapes.values():
            raise ValueError(f"got tensors of shapes {shapes}, expected as many rows in each")

    def __len__(self) -> int:
        """How many samples."""
        return len(next(iter(self.tensors.values())))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    @property
    def values_per_sample(self) -> int:
        """Numbers in each sample, of all tensors together."""
        return sum(tensor[:1].numel() for tensor in self.tensors.values())

    def __getitem__(self, rows: slice) -> Samples:
        return self.select(rows)

    @property
    def first(self) -> Tensor:
        """The first tensor."""
        return next(iter(self.tensors.values()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one sample, by name."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def noun(self) -> str:
        """What one of them is called: one tensor of floats may be images, others are samples."""
        alone = len(self.tensors) == 1 and self.first.is_floating_point()
        return "image" if alone else "sample"

    def called(self, text: str) -> str:
        """A text about images, in the words for what they are."""
        if self.noun == "image":
            return text
        return re.sub(r"\bimage(s?)\b", r"sample\1", text.replace("an image", "a sample"))

    @property
    def mask(self) -> Tensor | None:
        """Which positions are real, (samples, positions); None where nothing says so."""
        wanted = self.masked_by.removeprefix("~")
        mask = next((of for name, of in self.tensors.items() if plain(name) == wanted), None)
        if mask is None or mask.dim() != 2:
            return None
        if mask.is_floating_point() and bool((mask < 0).any()):  # to be added to scores
            return mask == 0
        return mask == 0 if self.masked_by.startswith("~") else mask != 0

    def masked_inputs(self) -> list[str]:
        """The inputs that the mask is about: those of whole numbers that have its shape.

        Where there are none, all that have its positions, such as embeddings or sound.
        """
        mask = self.mask
        if mask is None:
            return []
        shaped = [name for name, of in self.tensors.items() if of.shape[:2] == mask.shape]
        whole = [
            name
            for name in shaped
            if not self.tensors[name].is_floating_point() and self.tensors[name].dim() == 2
        ]
        own = [name for name in whole if plain(name) != self.masked_by.removeprefix("~")]
        return own or shaped

    def only(self) -> Tensor:
        """The tensor, where there is one.

        Raises:
            ValueError: there are several.
        """
        if len(self.tensors) != 1:
            raise ValueError(f"got the inputs {', '.join(self.tensors)}, expected one")
        return self.first

    def named(self, names: Sequence[str]) -> Samples:
        """The same tensors by other names, in the same order."""
        return replace(self, tensors=dict(zip(names, self.tensors.values(), strict=True)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """Each tensor changed by a function that leaves the samples where they are."""
        return self.with_each(lambda _, tensor: change(tensor))

    def with_each(self, change: Callable[[str, Tensor], Tensor]) -> Samples:
        """As `map`, by a function that is told the tensor's name, too."""
        changed = {name: change(name, tensor) for name, tensor in self.tensors.items()}
        return replace(self, tensors=changed)

    def floats(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """As `map`, of the tensors of floating-point numbers alone."""
        return self.map(lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors as arrays."""
        return {name: of.cpu().contiguous().numpy() for name, of in self.tensors.items()}

    def select(self, rows: Tensor | slice | Sequence[int]) -> Samples:
        """Some of the samples: a slice is a view, numbers or a mask a copy."""
        return self.map(lambda tensor: tensor[rows])

    def inputs(self) -> dict[str, Tensor]:
        """The tensors as networks run on them fastest, by name: images channels-last.

        Copies, where they were not: to be made of a few samples at a time.
        """
        return {name: to_channels_last(tensor) for name, tensor in self.tensors.items()}

    def spread(self, count: int) -> Samples:
        """At most so many of them, evenly spread."""
        if len(self) <= count:
            return self
        return self.select(torch.arange(count, device=self.device) * len(self) // count)

    def split(self, size: int) -> list[Samples]:
        """All samples in parts of so many; the last may be smaller. No copies."""
        parts = zip(*(torch.split(tensor, size) for tensor in self.tensors.values()), strict=True)
        rows = (dict(zip(self.tensors, part, strict=True)) for part in parts)
        return [replace(self, tensors=of) for of in rows]

    def to(self, device: torch.device | str | int | None) -> Samples:
        """The samples on a device; None = where they are."""
        return self if device is None else self.map(lambda tensor: tensor.to(device))

    def same(self, one: int, other: int) -> bool:
        """Whether two samples are equal in all their values."""
        return all(torch.equal(tensor[one], tensor[other]) for tensor in self.tensors.values())

    def blank(self, count: int) -> Samples:
        """So many samples of the same shapes and types, of zeros, which take no memory."""
        return self.map(lambda tensor: tensor.new_zeros(1).expand(count, *tensor.shape[1:]))

    def pair(self) -> Samples:
        """The first two samples; of one sample two copies."""
        return self[:2] if len(self) > 1 else self.joined([self, self])

    def filled(self, size: int) -> Samples:
        """With copies of the last sample, until their number is a multiple of a size."""
        return self.select([*range(len(self)), *[len(self) - 1] * (-len(self) % size)])

    def _padded(self, names: Set[str], length: int, *, left: bool) -> Samples:
        """With padding behind (or before) the positions of some inputs, up to so many."""
        ones = self.masked_by.removeprefix("~") if self.masked_by.startswith("~") else ""

        def change(name: str, tensor: Tensor) -> Tensor:
            if name not in names:
                return tensor
            return _padded(tensor, length, value=int(plain(name) == ones), left=left)

        return self.with_each(change)

    def _with_positions(self) -> set[str]:
        """The inputs whose second axis is as long as the mask."""
        length = 0 if self.mask is None else self.mask.shape[1]
        return {name for name, of in self.tensors.items() if of.dim() > 1 and len(of[0]) == length}

    def of_length(self, length: int) -> Samples:
        """Cut to so many positions or padded up to them; as they are where no mask says which."""
        mask = self.mask
        if mask is None:
            return self
        names, left = self._with_positions(), _pads_left(mask)
        part = slice(-length, None) if left else slice(length)
        cut = self.with_each(lambda name, of: of[:, part] if name in names else of)
        return cut._padded(names, length, left=left)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """The samples of several parts, behind each other; where a mask says so, padded.

        On the side where they have padding already; behind, where they have none. Tensors that are
        parts of one already, in their order, are a view of it: no copies.
        """
        masks = [mask for part in parts if (mask := part.mask) is not None]
        lengths = {mask.shape[1] for mask in masks}
        if len(lengths) > 1:  # what has the positions of one part by chance has not those of all
            every = [part._with_positions() for part in parts]
            shared = {name for name in every[0] if all(name in names for names in every)}
            left = any(map(_pads_left, masks))
            parts = [part._padded(shared, max(lengths), left=left) for part in parts]
        names = parts[0].tensors
        whole = {name: _whole([part.tensors[name] for part in parts]) for name in names}
        return replace(parts[0], tensors=whole)


def chunk_size(samples: Samples) -> int:
    """Samples per run of an operation: 8 images of 224 pixels, more of smaller ones, at most 256.

    Of the samples' shape alone, not of the memory at hand: results depend on it. What a network
    makes of so many stays in a processor's caches: EfficientNet-Lite0 ran 2.3 times as many images
    a second as in batches of 64, ResNet-50 1.3 times (one thread).
    """
    return max(1, min(256, _CHUNK_VALUES // max(1, samples.values_per_sample)))


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """Tensors behind each other; where they lie so in memory already, a view of that."""
    first, rows = parts[0], 0
    places: list[int] = []
    for part in parts:
        places.append(int(first.storage_offset()) + rows * first.stride(0))
        rows += len(part)
    lie_so = first.stride(0) > 0 and all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and _form(part) == _form(first)
        and part.storage_offset() == place
        for part, place in zip(parts, places, strict=True)
    )
    if not lie_so:
        return torch.cat(list(parts))
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _form(tensor: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    """The type of a tensor, the shape of a row, and how rows lie in memory."""
    return tensor.dtype, tensor.shape[1:], tensor.stride()


def plain(name: str) -> str:
    """The network's name of an input, for a graph of a module puts a % before it."""
    return name.removeprefix("%")


def _pads_left(mask: Tensor) -> bool:
    """Whether padding stands before the real positions."""
    return bool(mask[:, -1].all()) and not bool(mask[:, 0].all())


def _padded(tensor: Tensor, length: int, *, value: int, left: bool) -> Tensor:
    """A tensor with a value along its second axis, up to a length."""
    rows, now, *rest = tensor.shape
    room = tensor.new_full((rows, length - now, *rest), value)
    return torch.cat([room, tensor] if left else [tensor, room], 1)


AnySamples: TypeAlias = Samples | Tensor | Mapping[str, Tensor]


def as_samples(given: AnySamples) -> Samples:
    """Samples of a tensor, for a network's first input, or of tensors by name."""
    if isinstance(given, Samples):
        return given
    return Samples({"0": given} if isinstance(given, Tensor) else given)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs that a network takes.

    Attributes:
        names: of all of them, in their order.
        required: how many of them have no default: names of inputs that have to be given.
        any_number: whether more than those with a name are taken, by their place.
        main: what a single tensor without a name is for; empty = the first.
        masked_by: see `Samples`.
        once: those that are given once for all samples, such as a sampling rate.
        numbers_once: whether a single number is given once, and not refused.
        kinds: the types that inputs are taken in, by name, where a network does not take any.
    """

    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    any_number: bool = False
    main: str = ""
    masked_by: str = MASK
    once: tuple[str, ...] = ()
    numbers_once: bool = False
    kinds: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])

    def bind(self, samples: Samples) -> Samples:
        """Samples by the network's own names, in its order.

        Names that are numbers stand for places, and so does any name of a single tensor.

        Raises:
            DataError: an input that is needed is not there, one is that is not taken, or one of
                whole numbers is given as floats.
        """
        given = {plain(name): tensor for name, tensor in samples.tensors.items()}
        any_names = len(given) == 1 or (self.any_number and not self.names)
        if not set(given) <= set(self.names) and (any_names or all(map(str.isdecimal, given))):
            places = self._places(len(given))
            given = dict(zip(places, given.values(), strict=len(places) == len(given)))
        lost = len(given) < len(samples.tensors)
        missing = any(name not in {**given, **samples.constants} for name in self.required)
        unknown = any(name not in (*self.names, *self._places(len(given))) for name in given)
        if lost or missing or unknown:
            found = _listed([*samples.tensors, *samples.constants])
            raise DataError(
                f"the data give {found}, the network takes "
                f"{_listed(self.required or self.names)}, expected the same: pass a dict of "
                "tensors by these names, or wrap the network in a module that takes what you have"
            )
        known = [name for name in self.names if name in given]
        return Samples(
            {name: self._taken(name, given[name]) for name in known or given},
            self.masked_by,
            {
                name: self._taken(name, of)
                for name, of in samples.constants.items()
                if self.has(name)
            },
        )

    def has(self, name: str) -> bool:
        """Whether there is such an input; a file made of a module holds what was given once."""
        return name in self.names

    def _taken(self, name: str, value: Tensor) -> Tensor:
        """A value in the type in which it is taken."""
        kind = self.kinds.get(name, value.dtype)
        if value.is_floating_point() > kind.is_floating_point:
            wanted, got = (str(of).removeprefix("torch.") for of in (kind, value.dtype))
            raise DataError(
                f"the network's input {name} takes {wanted}, got {got}, expected the same: "
                "convert it"
            )
        return value.to(kind)

    def masking(self, mask: str | None) -> Signature:
        """The same with another input as the mask; None = as it is.

        Raises:
            OptionError: the network has no such input.
        """
        if mask is None:
            return self
        if mask.removeprefix("~") not in self.names:
            raise OptionError(
                f"mask is {mask!r}, expected an input of the network ({', '.join(self.names)}), "
                "with ~ before it where it marks the padding: check the name"
            )
        return replace(self, masked_by=mask)

    def _places(self, count: int) -> list[str]:
        """The names of the first inputs that hold samples."""
        if count == 1 and self.main in self.names:
            return [self.main]
        names = [name for name in self.names if name not in self.once]
        more = range(len(names), count) if self.any_number else ()
        return [*names[:count], *map(str, more)]


def _listed(names: Iterable[str]) -> str:
    names = [*names]
    named = [name for name in names if not name.isdecimal()]
    shown = ", ".join(named[:6]) + (", ..." if len(named) > 6 else "")
    return counted(len(names), "input") + f" ({shown})" * bool(shown)
