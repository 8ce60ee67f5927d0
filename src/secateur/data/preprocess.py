"""From an image to the input of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from secateur.data.preprocess_configs import (
    hugging_face_settings,
    settings_from_file,
    timm_settings,
)
from secateur.errors import DataError, OptionError, SecateurError
from secateur.support.settings import at_least, check_settings
from secateur.support.wording import counted

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
Fit = Literal["cover", "squash"]
Rounding = Literal["even", "down"]
Sides = int | Sequence[int]  # of a square, or height and width
# Beyond these, all that is left of a picture is one value.
_SCALES = {"mean": (-10.0, 1.0), "std": (0.0, 10.0)}
_LUMA = (0.299, 0.587, 0.114)  # of RGB, as Pillow makes grey of them


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Turns an image into the network's input, as torchvision's evaluation transforms do.

    Use the values that the network was trained with::

        Preprocess(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        Preprocess.from_timm(timm.data.resolve_data_config(model.pretrained_cfg))
        Preprocess.from_hugging_face(AutoImageProcessor.from_pretrained(name))

    Images are resized by Pillow, which makes every filter wider where they get smaller
    (antialiasing), as timm and Transformers have it done.

    Attributes:
        size: of the centre crop, in pixels: the side of a square, or height and width; None = no
            crop.
        resize: size before the crop, in pixels; a single number is both sides. None = `size`, if
            given.
        mean, std: per channel, for pixels scaled to [0, 1]; None = 0 and 1. Without either there
            is a warning, because few networks are trained that way.
        channels: 3 (RGB) or 1 (grayscale); any number for synthetic images.
        interpolation: filter for resizing, by Pillow's names in lower case.
        fit: "cover" keeps the aspect ratio, and makes images as small as they can be with neither
            side below `resize`: of a square, the short side is `resize`. "squash" makes them
            exactly `resize`.
        crop_rounding: where the crop begins if an odd number of rows or columns is left over:
            half to "even" (torchvision, timm) or half "down" (Transformers).
    """

    size: Sides | None = None
    resize: Sides | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: int = 3
    interpolation: Interpolation = "bilinear"
    fit: Fit = "cover"
    crop_rounding: Rounding = "even"

    @classmethod
    def from_timm(cls, config: Any) -> Self:
        """As timm prepares images to evaluate a network (`timm.data.create_transform`).

        Args:
            config: what `timm.data.resolve_data_config` gives, or a `pretrained_cfg`.

        Raises:
            OptionError: it asks for something else than these settings.
        """
        return cls(**timm_settings(config))

    @classmethod
    def from_hugging_face(cls, processor: Any) -> Self:
        """As an image processor of Transformers prepares images.

        Args:
            processor: the image processor, its `to_dict()`, or the path of its
                `preprocessor_config.json` or of the folder that holds it.

        Raises:
            DataError: the file cannot be read.
            OptionError: it does something that these settings cannot say, such as padding.
        """
        return cls(**hugging_face_settings(processor))

    def __post_init__(self) -> None:
        least = at_least(1)
        check_settings(self, size=least.several(2), resize=least.several(2), channels=least)
        if self.size is not None and self.resize is not None:
            self._check_crop(pair(self.size), pair(self.resize))
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

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None = those of the image count."""
        size = self.resize if self.size is None and self.fit == "squash" else self.size
        return None if size is None else pair(size)

    def _check_crop(self, crop: tuple[int, int], resize: tuple[int, int]) -> None:
        if crop[0] > resize[0] or crop[1] > resize[1]:
            raise OptionError(
                f"resize is {sides(resize)} and size {sides(crop)}, expected a crop no larger than "
                "the resized image: raise resize or lower size"
            )

    def _cut(self, image: Image.Image) -> Image.Image:
        wanted = self.size if self.resize is None else self.resize
        if wanted is not None:
            height, width = self._resized(image.height, image.width, pair(wanted))
            if (width, height) != image.size:
                image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        return image if self.size is None else self._cropped(image, pair(self.size))

    def _resized(self, height: int, width: int, wanted: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a resized image, with the rounding of torchvision and timm."""
        if self.fit == "squash":
            return wanted
        if wanted[0] == wanted[1]:
            short = min(height, width)
            return int(wanted[0] * height / short), int(wanted[0] * width / short)
        ratio = min(height / wanted[0], width / wanted[1])
        return round(height / ratio), round(width / ratio)

    def _cropped(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        start = round if self.crop_rounding == "even" else math.floor
        top, left = start((image.height - size[0]) / 2), start((image.width - size[1]) / 2)
        return image.crop((left, top, left + size[1], top + size[0]))

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
    """The preprocessing that a network prescribes; preprocessed data skip it."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads it from a file of timm or of Transformers.

        Args:
            path: a `preprocessor_config.json`, or a table of timm as JSON, alone or as the
                `pretrained_cfg` of another.

        Raises:
            DataError: the file cannot be read.
            OptionError: it asks for what these settings cannot say.
        """
        return cls(**settings_from_file(path))

    def __str__(self) -> str:
        named = {"short side" if self.fit == "cover" else "squashed to": self.resize}
        parts = [f"{name} {sides(of)}" for name, of in (named | {"crop": self.size}).items() if of]
        scales = {"mean": self.mean, "std": self.std}
        parts += [f"{name} {_listed(of)}" for name, of in scales.items() if of is not None]
        return f"{', '.join(parts)}, {self.interpolation}"


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
        fit=own.fit,
        crop_rounding=own.crop_rounding,
    )


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{of:g}" for of in numbers)


def pair(size: Sides) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def sides(size: Sides) -> str:
    """A size in words: the side of a square, or HEIGHTxWIDTH."""
    height, width = pair(size)
    return str(height) if height == width else f"{height}x{width}"


# From a PIL image to a float tensor; or, of `secateur.Text`, from texts to samples.
Transform = Callable[[Any], Any]
