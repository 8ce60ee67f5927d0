"""From an image to the input of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from secateur.errors import DataError, OptionError, SecateurError
from secateur.support.settings import at_least, check_settings
from secateur.support.wording import counted

Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS: dict[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Beyond these, all that is left of a picture is one value.
_SCALES = {"mean": (-10.0, 1.0), "std": (0.0, 10.0)}
_LUMA = (0.299, 0.587, 0.114)  # of RGB, as Pillow makes grey of them


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Turns an image into the network's input, as torchvision's evaluation transforms do.

    Use the values that the network was trained with::

        Preprocess(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    Attributes:
        size: side of the square centre crop, in pixels; None = no crop.
        resize: short side before the crop, in pixels (antialiased); None = `size`, if given.
        mean, std: per channel, for pixels scaled to [0, 1]; None = 0 and 1. Without either there
            is a warning, because few networks are trained that way.
        channels: 3 (RGB) or 1 (grayscale); any number for synthetic images.
        interpolation: "bilinear" or "bicubic", for resizing.
    """

    size: int | None = None
    resize: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int = 3
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        least = at_least(1)
        check_settings(self, size=least, resize=least, channels=least)
        if self.size and self.resize and self.resize < self.size:
            raise OptionError(
                f"resize is {self.resize} and size {self.size}, expected a crop no larger than "
                "the resized short side: raise resize or lower size"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise OptionError(
                    f"{name} has {counted(len(values), 'value')}, expected {self.channels} "
                    "(one per channel) or 1"
                )
        for name, values in (("mean", self.mean), ("std", self.std)):
            _check_scale(name, () if values is None else values)

    def __call__(self, image: Image.Image) -> Float[Tensor, "chan height width"]:
        """Converts, resizes, crops, scales to [0, 1] and normalises one image, of any mode.

        As in torchvision and timm, alpha is dropped (transparent pixels keep their stored colour)
        and the EXIF orientation is ignored.

        Raises:
            DataError: the range of its pixels is not known.
        """
        if self.channels not in (1, 3):
            raise OptionError(
                f"channels is {self.channels}, expected 1 (grey) or 3 (RGB) for images; "
                "other numbers are for synthetic ones such as fractal:300"
            )
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            return self.from_unit(_unit_pixels(image)[..., None])
        image = self._cut(_eight_bits(image).convert("RGB" if self.channels == 3 else "L"))
        pixels = torch.from_numpy(np.array(image))
        return self.normalise(pixels.reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1))

    def from_unit(
        self, pixels: Float[np.ndarray, "height width chan"]
    ) -> Float[Tensor, "chan height width"]:
        """As for an image, from grayscale or RGB pixels in [0, 1] with more than 8 bits."""
        planes = np.moveaxis(pixels.astype(np.float32), -1, 0)
        cut = [np.array(self._cut(Image.fromarray(np.ascontiguousarray(of)))) for of in planes]
        found = torch.from_numpy(np.stack(cut))
        if len(found) == 3 and self.channels == 1:
            found = torch.tensor(_LUMA).view(3, 1, 1).mul(found).sum(0, keepdim=True)
        return self._standardised(found.expand(self.channels, -1, -1))

    def normalise(self, pixels: UInt8[Tensor, "*batch chan height width"]) -> Tensor:
        """Scales pixels to [0, 1] and normalises them by mean and std."""
        return self._standardised(pixels.float() / 255)

    def _cut(self, image: Image.Image) -> Image.Image:
        how = INTERPOLATIONS[self.interpolation]
        return _center_crop(_resize_short(image, self.resize or self.size, how), self.size)

    def _standardised(self, unit: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(tuple(of)).view(-1, 1, 1)
            for of in (
                (0.0,) if self.mean is None else self.mean,
                (1.0,) if self.std is None else self.std,
            )
        )
        return ((unit - mean) / std).contiguous()


def _check_scale(name: str, values: Sequence[float]) -> None:
    """Raises OptionError for a mean or a standard deviation that pixels in [0, 1] never have.

    A std above 1 or a mean below 0 may be meant: they only scale and shift what goes in.
    """
    got = f"{name} is {','.join(f'{value:g}' for value in values)}"
    if name == "std" and any(value <= 0 for value in values):
        raise OptionError(f"{got}, expected numbers above 0")
    low, high = _SCALES[name]
    if any(not low <= value <= high for value in values):
        raise OptionError(
            f"{got}, expected that of pixels in [0, 1]: divide by 255 what is for pixels from 0 "
            f"to 255 ({','.join(f'{value / 255:.3g}' for value in values)})"
        )


def apply(preprocess: Transform, image: Image.Image, name: str) -> Float[Tensor, ...]:
    """The input that a preprocess makes of an image, in float32.

    Raises:
        DataError: it fails on the image, which the message names, or makes no floats of it.
    """
    try:
        found = preprocess(image)
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    except SecateurError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        raise DataError(
            f"the preprocess fails on {name}, an image of mode {image.mode} and size {image.size} "
            f"({type(error).__name__}: {said}), expected a float tensor: try it on that image"
        ) from error
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = found.dtype if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DataError(
            f"the preprocess makes {kind} of {name}, an image of mode {image.mode}, expected a "
            "float tensor: scale the pixels as the network was trained"
        )
    return found.detach().float()


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of any mode with 8 bits per channel as grey or RGB, without alpha."""
    if image.mode in ("L", "RGB"):
        return image
    steps = {"1": ["L"], "LA": ["L"], "La": ["LA", "L"], "RGBa": ["RGBA", "RGB"]}
    for mode in steps.get(image.mode, ["RGBA", "RGB"] if _has_clear_palette(image) else ["RGB"]):
        try:
            image = image.convert(mode)
        except ValueError as error:
            raise DataError(
                f"has the mode {image.mode}, which this version of Pillow cannot convert to "
                f"{mode}, expected RGB or grey: save it so"
            ) from error
    return image


def _has_clear_palette(image: Image.Image) -> bool:
    """Whether Pillow warns where such an image is made RGB at once."""
    return image.mode == "P" and "transparency" in image.info


def _unit_pixels(image: Image.Image) -> Float[np.ndarray, "height width"]:
    """Grey pixels of more than 8 bits, scaled to [0, 1] by the range of their type."""
    pixels = np.array(image).astype(np.float64)
    if image.mode == "F":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise DataError(
                f"has float pixels from {low:g} to {high:g}, expected the range from 0 to 1: "
                "rescale it, or save it in 8 or 16 bits"
            )
        return pixels
    # Pillow reads 16 bits of PNG and PGM into 32, older versions more of them
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise DataError(
            f"has 32-bit pixels from {pixels.min():g} to {pixels.max():g}, whose full range is "
            "not known, expected 8 or 16 bits: save it so"
        )
    return pixels / 65535


@dataclass(frozen=True, kw_only=True)
class ModelPreprocess(Preprocess):
    """The preprocessing that a network from a hub prescribes; preprocessed data skip it."""

    def __str__(self) -> str:
        parts = {
            "short side": self.resize,
            "crop": self.size,
            "mean": self.mean,
            "std": self.std,
        }
        settings = [f"{name} {_text(value)}" for name, value in parts.items() if value is not None]
        return f"{', '.join(settings)}, {self.interpolation}"


def completed(asked: Preprocess | None, own: ModelPreprocess | None) -> Preprocess | None:
    """The requested preprocessing, completed by what the network prescribes."""
    if asked is None or own is None:
        return own if asked is None else asked
    sized = asked.size is not None or asked.resize is not None
    normal = asked.channels == own.channels
    return replace(
        asked,
        size=asked.size if sized else own.size,
        resize=asked.resize if sized else own.resize,
        mean=own.mean if asked.mean is None and normal else asked.mean,
        std=own.std if asked.std is None and normal else asked.std,
        interpolation=own.interpolation,
    )


def _text(value: int | Sequence[float]) -> str:
    return str(value) if isinstance(value, int) else ",".join(f"{of:g}" for of in value)


def _resize_short(
    image: Image.Image, short: int | None, interpolation: Image.Resampling
) -> Image.Image:
    if short is None or min(image.size) == short:
        return image
    factor = short / min(image.size)
    width, height = (max(short, int(side * factor)) for side in image.size)
    return image.resize((width, height), interpolation)


def _center_crop(image: Image.Image, size: int | None) -> Image.Image:
    if size is None:
        return image
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


Transform = Callable[[Image.Image], Tensor]
