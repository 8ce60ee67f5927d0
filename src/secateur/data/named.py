"""Inputs of networks that take several, or whole numbers: which of some values they are.

A mapping gives them by the names that the network has for them, a tuple in their order. What a
mapping or a tuple holds besides may be labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secateur.data.arrays import PIXELS, as_tensor
from secateur.data.batches import LABEL_KEYS, class_numbers
from secateur.errors import DataError
from secateur.network.samples import MASK, Samples, Signature
from secateur.support.wording import counted

ToInputs = Callable[[Any], Tensor]  # floats of pixels, or of PIL images


@dataclass(frozen=True)
class Named:
    """Inputs by name.

    Attributes:
        values: arrays, lists of numbers or PIL images, one entry for each sample in each.
        others: what was there besides, such as labels.
        once: names of those that are given once for all samples.
    """

    values: Mapping[str, Any]
    others: Sequence[Any] = ()
    once: Sequence[str] = ()

    def samples(
        self, source: str, to_inputs: ToInputs, *, single: bool = False, masked_by: str = MASK
    ) -> Samples:
        """The inputs as tensors.

        Args:
            source: what messages call them.
            to_inputs: of pixels in bytes and of PIL images.
            single: whether they are those of one sample.
            masked_by: see `Samples`.

        Raises:
            DataError: they are of different numbers of samples, or no numbers.
        """
        pads = masked_by.removeprefix("~") if masked_by.startswith("~") else ""
        self._check_lengths(source, masked_by.removeprefix("~"))
        found = {
            name: _tensor(value, name, to_inputs, single=single, padding=int(name == pads))
            for name, value in self.values.items()
            if name not in self.once
        }
        constants = {
            name: torch.as_tensor(value).detach()
            for name, value in self.values.items()
            if name in self.once
        }
        most = max(map(len, found.values()), default=0)
        found = {  # what is there for one sample, such as a state, is the same for all
            name: of.expand(most, *of.shape[1:]) if len(of) == 1 else of
            for name, of in found.items()
        }
        counts = {name: len(tensor) for name, tensor in found.items()}
        if len(set(counts.values())) > 1:
            raise DataError(
                f"{source} has {', '.join(f'{count} of {name}' for name, count in counts.items())}"
                ", expected as many samples of each input: check their first axes"
            )
        if not found:
            raise DataError(
                f"{source} has {', '.join(constants)} alone, which are the same for all samples, "
                "expected an input with samples too: add it"
            )
        return Samples(found, masked_by, constants)

    def _check_lengths(self, source: str, mask: str) -> None:
        """Raises where lists differ in length and no mask says which positions are real."""
        if mask in self.values:
            return
        for name, value in self.values.items():
            rows = value if isinstance(value, list | tuple) else ()
            lengths = {len(row) for row in rows if isinstance(row, list | tuple)}
            if len(lengths) > 1:
                raise DataError(
                    f"{source} has {name} of {min(lengths)} to {max(lengths)} positions, expected "
                    f"as many in each, or an input {mask} that says which are real: pad them"
                )


def named(value: Any, takes: Signature | None, *, whole: bool = False) -> Named | None:
    """The inputs that a value holds by name or in their order; None where it holds one of floats.

    Args:
        value: all data, a batch or a sample.
        takes: what the network takes; None = unknown: all that a mapping has but labels.
        whole: whether it is all data, of which a list may be several batches.
    """
    if isinstance(value, Mapping):
        return _of_mapping(value, takes)
    if not isinstance(value, tuple | list) or takes is None:
        return None
    return _with_labels(value, takes) or _by_place(value, takes, whole=whole)


def _with_labels(value: Sequence[Any], takes: Signature) -> Named | None:
    """(inputs, labels), the inputs by name or in a tuple of their own."""
    if len(value) != 2 or not isinstance(value[0], Mapping | tuple | list):
        return None
    if isinstance(value[1], Mapping | tuple) or (
        isinstance(value[1], list) and not _is_ints(value[1])
    ):
        return None  # two batches
    found = named(value[0], takes)
    return None if found is None else replace(found, others=[*found.others, value[1]])


def _by_place(value: Sequence[Any], takes: Signature, *, whole: bool) -> Named | None:
    """Arrays in the order of the inputs; class numbers behind those that are needed are labels.

    Inputs with a default count where several are needed, or the first holds whole numbers.
    """
    if takes.any_number and not takes.names:
        return _by_number(value, whole=whole)
    needed = max(1, len(takes.required))
    if len(value) < needed or not all(map(_is_array, value)):
        return None
    if needed < 2 and not (len(value) > 1 and len(takes.names) > 1 and _is_whole(value[0])):
        return None
    if whole and isinstance(value, list) and (needed < 2 or len(value) > needed + 1):
        return None  # batches
    end = len(value)
    if end > needed and class_numbers(value[-1], len(value[0])) is not None:
        end -= 1
    names = (*takes.required, *(of for of in takes.names if of not in takes.required))
    places = takes.names if takes.names[:needed] == takes.required else names
    count = min(end, len(places))
    return Named(dict(zip(places, value[:count], strict=False)), value[count:], takes.once)


def _by_number(value: Sequence[Any], *, whole: bool) -> Named | None:
    """A tuple of arrays for a network that takes any number of them; class numbers come last."""
    batches = whole and isinstance(value, list)
    if batches or len(value) < 2 or not all(map(_is_array, value)):
        return None
    end = len(value) - (class_numbers(value[-1], len(value[0])) is not None)
    if end < 2:
        return None
    return Named(dict(zip(map(str, range(end)), value[:end], strict=True)), value[end:])


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _of_mapping(value: Mapping[Any, Any], takes: Signature | None) -> Named | None:
    names = [name for name in value if isinstance(name, str) and value[name] is not None]
    if takes is None or (takes.any_number and not takes.names):
        chosen = [name for name in names if name not in LABEL_KEYS and _is_numbers(value[name])]
    else:
        chosen = [
            name
            for name in names
            if name in takes.names and (name in takes.required or not _is_label(name, value))
        ]
    several = takes is not None and len(takes.required) > 1
    if not chosen or (len(chosen) == 1 and not several and not _is_whole(value[chosen[0]])):
        return None
    rest = {name: value[name] for name in names if name not in chosen}
    once = () if takes is None else takes.once
    if takes is not None and takes.numbers_once:
        once = [*once, *(name for name in chosen if _is_number(value[name]))]
    return Named({name: value[name] for name in chosen}, [rest] * bool(rest), once)


def _is_number(value: Any) -> bool:
    """Whether a value is one number, such as a sampling rate."""
    return isinstance(value, int | float | np.generic) or (
        isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    )


def _is_label(name: str, value: Mapping[Any, Any]) -> bool:
    """Whether an entry is class numbers, by its name and its values."""
    if name not in LABEL_KEYS:
        return False
    count = len(value[name]) if hasattr(value[name], "__len__") and np.ndim(value[name]) else 1
    return class_numbers(value[name], count) is not None


def whole_numbers(tensor: Tensor) -> bool:
    """Whether a tensor on its own holds numbers of tokens rather than pixels or images."""
    return tensor.dim() == 2 and tensor.dtype in (torch.int64, torch.int32)


def _is_whole(value: Any) -> bool:
    """Whether an input alone is one of whole numbers."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim in (1, 2) and str(value.dtype).removeprefix("torch.") in (
            "int64",
            "int32",
        )
    first = value[0] if isinstance(value, list | tuple) and value else None
    return _is_ints(value) or (isinstance(first, list | tuple) and _is_ints(first))


def _is_ints(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(of, int | np.integer) for of in value)
    )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    )


def _tensor(
    value: Any, name: str, to_inputs: ToInputs, *, single: bool, padding: int = 0
) -> Tensor:
    """An input as the network takes it: floats in float32, pixels of images preprocessed."""
    pictures = isinstance(value, Image.Image) or (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Image.Image)
    )
    if pictures:
        return to_inputs([value] if isinstance(value, Image.Image) else list(value))
    tensor = _padded(value, name, padding) if isinstance(value, list | tuple) else as_tensor(value)
    tensor = tensor.detach()
    if single:
        tensor = tensor[None]
    if tensor.is_complex():
        raise DataError(f"{name} holds complex numbers, expected real ones: pass two inputs")
    if tensor.dim() == 0:
        raise DataError(
            f"{name} is a single number, expected one for each sample: repeat it for all samples"
        )
    if tensor.dtype in PIXELS and tensor.dtype != torch.bool and tensor.dim() == 4:
        return to_inputs(tensor)
    if tensor.is_floating_point():
        return tensor.float()
    return tensor if tensor.dtype in (torch.bool, torch.int32) else tensor.long()


def _padded(value: Sequence[Any], name: str, padding: int) -> Tensor:
    """A list of numbers, or of lists of these, with padding behind the shorter ones."""
    rows = [as_tensor(of) for of in value]
    if not rows or rows[0].dim() == 0:
        return as_tensor(value)
    if len({row.shape[1:] for row in rows}) > 1:
        shapes = [tuple(row.shape) for row in rows[:2]]
        raise DataError(f"{name} holds entries of shapes {shapes}, expected one shape: pad them")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 and name != MASK and rows[0].is_floating_point():
        raise DataError(
            f"{name} holds {counted(len(rows), 'sample')} of {min(lengths)} to {max(lengths)} "
            f"positions, expected as many in each, or whole numbers and an input {MASK}: pad them"
        )
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
