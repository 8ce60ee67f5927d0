"""Noise as network inputs: two baselines that calibration without photographs is compared with.

For comparison only. A network's later layers hardly respond to either, so layers fitted to them
are fitted to the wrong inputs; `fractals` is meant for use. Values are inputs, not pixels: zero
mean and unit variance, as normalised photographs have on average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from secateur.errors import OptionError

SHARED = 0.9  # correlation between two channels of pink noise, about that of photographs

Planes = Float32[np.ndarray, "planes size size"]


def gaussian_noise(
    count: int, *, size: int, channels: int = 3, seed: int = 0
) -> Float[Tensor, "count channels size size"]:
    """Independent values from N(0, 1).

    Args:
        count: number of images, at least 1.
        size: side in pixels, at least 8.
        channels: at least 1.
        seed: at least 0; image i depends on (seed, i, size, channels) only.

    Raises:
        OptionError: an argument is out of range.
    """
    return _images(_gaussian_image, count, size, channels, seed)


def pink_noise(
    count: int, *, size: int, channels: int = 3, seed: int = 0
) -> Float[Tensor, "count channels size size"]:
    """Gaussian fields whose amplitude falls as 1/f, the spectrum of photographs, without edges.

    A channel is sqrt(0.9) x + sqrt(0.1) y, where the channels of an image share the field x, so
    two channels correlate at 0.9 on average. Each channel of each image has zero mean and unit
    variance over its pixels. Cost: one FFT per channel.

    Args:
        count: number of images, at least 1.
        size: side in pixels, at least 8.
        channels: at least 1.
        seed: at least 0; image i depends on (seed, i, size, channels) only.

    Raises:
        OptionError: an argument is out of range.

    Source: D. J. Field, "Relations between the statistics of natural images and the response
    properties of cortical cells", 1987.
    """
    return _images(_pink_image, count, size, channels, seed)


def check_sizes(count: int, size: int, channels: int, seed: int) -> None:
    """Raises OptionError unless images of these sizes can be drawn with this seed."""
    for name, value, least, hint in (
        ("count", count, 1, "ask for one image or more, 300 say"),
        ("size", size, 8, "give the side of the network's input in pixels"),
        ("channels", channels, 1, "give the channels of the network's input, 3 for RGB"),
        ("seed", seed, 0, "choose a seed that is not negative"),
    ):
        if value < least:
            raise OptionError(f"{name} is {value}, expected at least {least}: {hint}")


def power_law_fields(
    rng: np.random.Generator, slopes: tuple[float, ...], size: int
) -> Float32[np.ndarray, "fields size size"]:
    """Periodic Gaussian fields, one per slope, whose amplitude falls as 1 / f**slope.

    Zero mean and unit variance over the pixels of each. Cost: two FFTs per field.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # no constant part
    white = rng.standard_normal((len(slopes), size, size), dtype=np.float32)
    filters = np.stack([(frequency**-slope).astype(np.float32) for slope in slopes])
    fields = np.fft.irfft2(np.fft.rfft2(white) * filters, s=(size, size))
    return _standardise(fields.astype(np.float32))


def _images(
    draw: Callable[[np.random.Generator, int, int], Planes],
    count: int,
    size: int,
    channels: int,
    seed: int,
) -> Float[Tensor, "count channels size size"]:
    check_sizes(count, size, channels, seed)
    generators = (np.random.default_rng([seed, index]) for index in range(count))
    return torch.from_numpy(np.stack([draw(rng, size, channels) for rng in generators]))


def _gaussian_image(rng: np.random.Generator, size: int, channels: int) -> Planes:
    return rng.standard_normal((channels, size, size), dtype=np.float32)


def _pink_image(rng: np.random.Generator, size: int, channels: int) -> Planes:
    shared, *own = power_law_fields(rng, (1.0,) * (channels + 1), size)
    mixed = np.stack([SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * field for field in own])
    return _standardise(mixed)


def _standardise(planes: Planes) -> Planes:
    centred = planes - planes.mean((1, 2), keepdims=True)
    return centred / centred.std((1, 2), keepdims=True)
