"""From an image to the input of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from secateur.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From an image to the network's input, as torchvision's evaluation transforms do it.

    Attributes:
        size: side of the square centre crop, in pixels; None = no crop.
        resize: the short side is resized to this before the crop (bilinear, antialiased);
            None = `size` where that is given.
        mean, std: per channel, for pixels scaled to [0, 1]; None = 0 and 1. Where neither is given,
            images come with a warning: few networks are trained so.
        channels: 3 (RGB) or 1 (grey); any number for synthetic images.
    """

    size: int | None = None
    resize: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise OptionError(f"channels is {self.channels}, expected 1 (grey) or 3 (RGB)")
        for name, least in (("size", self.size), ("resize", self.resize)):
            if least is not None and least < 1:
                raise OptionError(f"{name} is {least}, expected pixels, at least 1")
        if self.size and self.resize and self.resize < self.size:
            raise OptionError(
                f"resize is {self.resize} and size {self.size}, expected a crop no larger than "
                "the resized short side: raise resize or lower size"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise OptionError(
                    f"{name} has {len(values)} values, expected {self.channels} "
                    "(one per channel) or 1"
                )
        if self.std is not None and any(value <= 0 for value in self.std):
            raise OptionError(f"std is {tuple(self.std)}, expected numbers above 0")

    def __call__(self, image: Image.Image) -> Float[Tensor, "chan height width"]:
        """Converts, resizes, crops, scales to [0, 1] and normalises one image."""
        if self.channels not in (1, 3):
            raise OptionError(
                f"channels is {self.channels}, expected 1 (grey) or 3 (RGB) for images; "
                "other numbers are for synthetic ones such as fractal:300"
            )
        image = image.convert("RGB" if self.channels == 3 else "L")
        image = _center_crop(_resize_short(image, self.resize or self.size), self.size)
        pixels = torch.from_numpy(np.array(image))
        return self.normalise(pixels.reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1))

    def normalise(self, pixels: UInt8[Tensor, "*batch chan height width"]) -> Tensor:
        """Scales pixels to [0, 1], then by mean and std."""
        mean, std = (
            torch.tensor(tuple(of)).view(-1, 1, 1)
            for of in (
                (0.0,) if self.mean is None else self.mean,
                (1.0,) if self.std is None else self.std,
            )
        )
        return ((pixels.float() / 255 - mean) / std).contiguous()


def _resize_short(image: Image.Image, short: int | None) -> Image.Image:
    if short is None or min(image.size) == short:
        return image
    factor = short / min(image.size)
    width, height = (max(short, int(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _center_crop(image: Image.Image, size: int | None) -> Image.Image:
    if size is None:
        return image
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


Transform = Callable[[Image.Image], Tensor]
