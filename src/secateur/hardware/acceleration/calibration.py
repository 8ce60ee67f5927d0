"""What calibration data tell of a layer: the range of its values, and some of its inputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from secateur.hardware.acceleration.candidates import Candidate
from secateur.hardware.acceleration.kernels import (
    INPUT_CODES,
    OUTPUT_CODES,
    Codes,
    quantized_weight,
)
from secateur.hardware.acceleration.layers import SharedInput
from secateur.network.samples import Samples

ROWS = 512  # inputs of a layer that are kept
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of a range, to be tried
_POWERS = (0.0, 0.75)  # see `best_input`
_WORTH = 5e-4  # of a layer's mean square: an error that a multiplication of each value is worth
Kind = TypeVar("Kind")


@dataclass
class Observed:
    """What was seen of a layer.

    Attributes:
        low, high: the least and the largest value of each channel of its inputs, at real positions.
        lowest, highest: the same of its outputs.
        inputs: some rows of them.
        rows_per_sample: rows of its matrix product for each sample, padded ones too.
        values: which value it read in each call, numbered in the order of the run.
    """

    low: Tensor | None = None
    high: Tensor | None = None
    lowest: Tensor | None = None
    highest: Tensor | None = None
    inputs: list[Tensor] = field(default_factory=list[Tensor])
    rows_per_sample: float = 0.0
    values: list[int] = field(default_factory=list[int])

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Widens the ranges by those of some rows."""
        self.low, self.high = _wider(self.low, self.high, inputs)
        self.lowest, self.highest = _wider(self.lowest, self.highest, outputs)

    @property
    def rows(self) -> Tensor:
        """The rows that were kept."""
        return torch.cat(self.inputs)[:ROWS]


class Observer:
    """Watches layers while a module runs."""

    def __init__(self, candidates: Sequence[Candidate], parts: int) -> None:
        self.candidates = candidates
        self.seen = {of.name: Observed() for of in candidates}
        self._each = -(-ROWS // parts)  # rows of a layer to keep of each run
        self._mask: Tensor | None = None
        self._samples = 1
        self._values: list[tuple[weakref.ref[Tensor], int, int]] = []
        self._count = 0
        self._generator = torch.Generator().manual_seed(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches meanwhile."""
        handles = [of.module.register_forward_hook(self._hook(of)) for of in self.candidates]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, samples: Samples) -> None:
        """Tells what runs next."""
        self._mask, self._samples, self._values = samples.mask, len(samples), []

    def _hook(self, of: Candidate) -> Callable[..., None]:
        def see(module: Any, given: tuple[Any, ...], output: Tensor) -> None:
            if given and isinstance(given[0], Tensor):
                self._see(of, given[0], output)

        return see

    def _see(self, of: Candidate, value: Tensor, output: Tensor) -> None:
        seen, whole = self.seen[of.name], of.rows(value)
        seen.values.append(self._number(value))
        seen.rows_per_sample = max(
            seen.rows_per_sample, whole.numel() / whole.shape[-1] / self._samples
        )
        rows = self._real(whole).float()
        results = self._real(output if of.kind != "1x1 convolution" else output.movedim(-3, -1))
        if not len(rows):
            return
        seen.add(rows, results.float())
        chosen = torch.randperm(len(rows), generator=self._generator)[: self._each]
        seen.inputs.append(rows[chosen].clone())

    def _real(self, values: Tensor) -> Tensor:
        """Rows of the positions that are no padding."""
        mask = self._mask
        if mask is not None and values.dim() > 2 and values.shape[:2] == mask.shape:
            return values[mask]
        return values.reshape(-1, values.shape[-1])

    def _number(self, value: Tensor) -> int:
        """The number of a value: of the same object that nobody wrote to since, the same."""
        for reference, version, number in self._values:
            if reference() is value and version == value._version:
                return number
        self._count += 1
        self._values = [of for of in self._values if of[0]() is not None]
        self._values.append((weakref.ref(value), value._version, self._count))
        return self._count


def readers(seen: Mapping[str, Observed], candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Layers that read the same value in each run, together; they have their rows in common."""

    def value(of: Candidate) -> tuple[Any, ...]:
        return (of.kind == "1x1 convolution", of.stride, tuple(seen[of.name].values))

    return [list(group) for _, group in groupby(sorted(candidates, key=value), value)]


def best_input(group: Sequence[Candidate], seen: Mapping[str, Observed]) -> SharedInput:
    """The codes, and factors, with the least error of the layers' outputs.

    The error of each layer is relative to its own size. Factors r^-a make the channels' ranges r
    more alike (a = 1: the same); weights are divided by them, and so become less alike. (Xiao et
    al., "SmoothQuant", 2023, move them into the layer before, which a module does not tell.)
    """
    rows = seen[group[0].name].rows
    exact = [rows @ of.matrix.float().mT for of in group]
    ranges = [(seen[of.name].low, seen[of.name].high) for of in group]
    low = torch.stack([one for one, _ in ranges if one is not None]).amin(0)
    high = torch.stack([one for _, one in ranges if one is not None]).amax(0)
    largest = torch.maximum(-low, high)
    floor = 1e-3 * float(largest.max()) or 1.0

    def tried(power: float) -> tuple[float, SharedInput]:
        factor = largest.clamp_min(floor) ** -power if power else None
        scaled = rows if factor is None else rows * factor
        weights = [_rounded(of.matrix, factor) for of in group]
        ends = (low, high) if factor is None else (low * factor, high * factor)

        def error(codes: Codes) -> float:
            rounded = codes.rounded(scaled)
            found = (rounded @ weight.mT for weight in weights)
            return sum(relative(one, other) for one, other in zip(exact, found, strict=True))

        least, most = float(ends[0].min()), float(ends[1].max())
        errors = {codes: error(codes) for codes in _clipped(least, most, INPUT_CODES)}
        best = min(errors, key=errors.__getitem__)
        return errors[best] / len(group), SharedInput(best, factor)

    return _worth([tried(power) for power in _POWERS])


def best_output(of: Candidate, seen: Observed) -> tuple[Codes, Tensor | None]:
    """The codes, and factors, with the least error of the layer's outputs."""
    outputs = seen.rows @ of.matrix.float().mT
    outputs = outputs if of.bias is None else outputs + of.bias
    low, high = seen.lowest, seen.highest
    assert low is not None
    assert high is not None

    def tried(factor: Tensor | None) -> tuple[float, tuple[Codes, Tensor | None]]:
        one = 1.0 if factor is None else factor
        scaled, least, most = outputs / one, float((low / one).min()), float((high / one).max())
        errors = {
            codes: relative(outputs, codes.rounded(scaled) * one)
            for codes in _clipped(least, most, OUTPUT_CODES)
        }
        best = min(errors, key=errors.__getitem__)
        return errors[best], (best, factor)

    largest = torch.maximum(-low, high)
    return _worth([tried(None), tried(largest.clamp_min(1e-3 * float(largest.max()) or 1.0))])


def _clipped(low: float, high: float, largest: int) -> list[Codes]:
    """Codes of a range, and of parts of it."""
    return list(dict.fromkeys(Codes.of(clip * low, clip * high, largest) for clip in _CLIPS))


def _worth(tried: Sequence[tuple[float, Kind]]) -> Kind:
    """The first, which costs nothing, unless another's error is clearly smaller."""
    (first, plain), *others = tried
    error, best = min(others, key=lambda one: one[0])
    return best if first - error > _WORTH else plain


def _rounded(weight: Tensor, factor: Tensor | None) -> Tensor:
    found, scale = quantized_weight(weight if factor is None else weight / factor)
    return found * scale[:, None]


def _wider(low: Tensor | None, high: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of each channel, of some rows and of those before."""
    least, most = rows.amin(0), rows.amax(0)
    if low is None or high is None:
        return least, most
    return torch.minimum(low, least), torch.maximum(high, most)


def relative(exact: Tensor, found: Tensor) -> float:
    """Mean squared error relative to the mean square."""
    size = float(exact.square().mean())
    return float((found - exact).square().mean()) / size if size else 0.0
