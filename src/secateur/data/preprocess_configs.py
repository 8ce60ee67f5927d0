"""What timm and Transformers say of a network's images, as settings of a `Preprocess`.

Neither package is needed: both describe what they do in plain tables. What a table asks for and
`Preprocess` cannot do is refused with a reason, never left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from secateur.errors import DataError, OptionError

_LEAST = 1e-9  # of factors and shares
_Sides = Sequence[int]  # height and width

HUGGING_FACE_FILE = "preprocessor_config.json"

# Of timm, where a table says nothing: its own defaults.
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_TIMM = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875}
_TRANSFORM = "pass what timm.data.create_transform makes of it as the preprocess"

# Image processors of Transformers that resize, crop, scale and normalise, and do nothing else.
_PLAIN = {
    *("Beit", "Bit", "Blip", "ChineseCLIP", "CLIP", "ConvNext", "DeiT", "EfficientNet", "Levit"),
    *("MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip", "ViT"),
}
# Those for which a single number as `size` is the short side; it is both sides for the others.
_SHORT_SIDE = {
    *("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer"),
}
_FLAGS = {  # what an entry stands for that is true
    "do_pad": "pads images",
    "do_flip_channel_order": "turns RGB into BGR",
    "do_thumbnail": "makes thumbnails",
    "do_align_long_axis": "turns images",
    "do_crop_margin": "cuts margins off",
    "keep_aspect_ratio": "takes images of any aspect ratio",
}


def timm_settings(config: Any) -> dict[str, Any]:
    """Settings for a table of timm: `resolve_data_config(...)` or a `pretrained_cfg`.

    Raises:
        OptionError: it is something else, or asks for what `Preprocess` does not do.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if not isinstance(config, Mapping):
        raise OptionError(
            f"got a {type(config).__name__}, expected a table such as "
            "timm.data.resolve_data_config(model.pretrained_cfg): pass that"
        )
    given = {key: value for key, value in config.items() if value is not None}
    held = {**_TIMM, **_IMAGENET, **given}
    if not _are_numbers(held["input_size"], int) or len(held["input_size"]) != 3:
        raise OptionError(
            f"input_size is {held['input_size']!r}, expected channels, height and width"
        )
    for name in ("mean", "std"):
        if not _are_numbers(held[name]):
            raise OptionError(f"{name} is {held[name]!r}, expected numbers")
    channels, *size = held["input_size"]
    mode, crop = held.get("crop_mode") or "center", held["crop_pct"] or _TIMM["crop_pct"]
    if mode not in ("center", "squash"):
        raise OptionError(f"crop_mode is {mode!r}, expected 'center' or 'squash': {_TRANSFORM}")
    if not isinstance(crop, int | float) or not _LEAST < crop <= 1:
        raise OptionError(
            f"crop_pct is {crop!r}, expected a share of each side, in (0, 1]: {_TRANSFORM}"
        )
    return {
        "size": _smallest(size),
        "resize": _smallest([math.floor(side / crop) for side in size]),
        "mean": tuple(held["mean"]),
        "std": tuple(held["std"]),
        "channels": channels,
        "interpolation": held["interpolation"],
        "fit": "squash" if mode == "squash" else "cover",
    }


def hugging_face_settings(processor: Any) -> dict[str, Any]:
    """Settings for an image processor of Transformers, its table, or a file of that.

    Args:
        processor: an image processor or a processor that has one, what its `to_dict` gives, or
            the path of a `preprocessor_config.json` or of the folder that holds it.

    Raises:
        DataError: there is no such file, or it holds no table.
        OptionError: it asks for what `Preprocess` does not do, or leaves a number out.
    """
    table = _table(processor)
    if isinstance(table.get("pretrained_cfg"), Mapping):  # a network of timm in Transformers
        return timm_settings(table["pretrained_cfg"])
    asked = _Asked(table)
    asked.check()
    return {
        **asked.sizes(),
        **asked.scales(),
        "interpolation": asked.interpolation(),
        "crop_rounding": "down",
    }


def settings_from_file(path: Path) -> dict[str, Any]:
    """Settings for a JSON file of timm or of Transformers; raises as the two functions above."""
    table = _read(path)
    config = table.get("pretrained_cfg", table)
    is_timm = isinstance(config, Mapping) and "input_size" in config
    return timm_settings(config) if is_timm else hugging_face_settings(table)


@dataclass(frozen=True)
class _Asked:
    """The table of an image processor of Transformers."""

    table: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Its class, without what all of them end in; "" where the table does not say."""
        names = (self.table.get(key) for key in ("image_processor_type", "feature_extractor_type"))
        name = next((name for name in names if isinstance(name, str)), "")
        return re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)

    def check(self) -> None:
        """Raises OptionError where it does more than a `Preprocess`."""
        if self.kind and self.kind not in _PLAIN:
            raise self._refused("may do more than resize, crop and normalise")
        for flag, does in _FLAGS.items():
            if self.table.get(flag):
                raise self._refused(does)
        cropped = self.table.get("do_center_crop")
        if cropped and not self.table.get("do_resize", True):
            raise self._refused("crops images without resizing them")
        if cropped and self.kind == "ConvNext":
            raise self._refused("crops images twice")

    def sizes(self) -> dict[str, Any]:
        """How images are resized and cropped."""
        if not self.table.get("do_resize", True):
            return {}
        sides, fit = self._resize()
        own = {"ConvNext": self._convnext, "Levit": _levit, "PoolFormer": self._poolformer}
        if self.kind in own:
            sides, fit, crop = own[self.kind](sides, fit)
        else:
            crop = None
        if self.table.get("do_center_crop"):
            crop = self._pair(self.table.get("crop_size"), "crop_size")
        crop = sides if crop is None and fit == "squash" else crop
        return {
            "size": None if crop is None else _smallest(crop),
            "resize": _smallest(sides),
            "fit": fit,
        }

    def scales(self) -> dict[str, Any]:
        """Mean and spread for pixels in [0, 1], whatever the processor divides by and subtracts."""
        rescaled, normalised = (self.table.get(of, True) for of in ("do_rescale", "do_normalize"))
        unit = 255 * (self._number("rescale_factor", 1 / 255) if rescaled else 1.0)
        offset = 1.0 if rescaled and self.table.get("rescale_offset") else 0.0
        mean = self._numbers("image_mean") if normalised else (0.0,)
        std = self._numbers("image_std") if normalised else (1.0,)
        if self.kind == "EfficientNet" and self.table.get("include_top", True):
            again = self._numbers("image_std")  # it divides by it a second time
            std = tuple(of * std[place % len(std)] for place, of in enumerate(again))
        return {
            "mean": tuple((of + offset) / unit for of in mean),
            "std": tuple(of / unit for of in std),
        }

    def interpolation(self) -> str:
        """How it resizes; any name where it does not."""
        if not self.table.get("do_resize", True):
            return "bilinear"
        number = self.table.get("resample")
        try:
            return Image.Resampling(number).name.lower()
        except (TypeError, ValueError) as error:
            raise self._lacking("resample", number) from error

    def _resize(self) -> tuple[_Sides, str]:
        """The sides, and whether images keep their aspect ratio."""
        size = self.table.get("size")
        if isinstance(size, int):
            square = self.table.get("default_to_square", self.kind not in _SHORT_SIDE)
            return self._pair(size, "size"), "squash" if square else "cover"
        if isinstance(size, Mapping) and _given(size) == {"shortest_edge"}:
            return self._pair(size["shortest_edge"], "size"), "cover"
        return self._pair(size, "size"), "squash"

    def _pair(self, size: Any, name: str) -> _Sides:
        """Height and width."""
        if size is None:
            raise self._lacking(name, size)
        sides = [size, size]
        if isinstance(size, Mapping) and _given(size) == {"height", "width"}:
            sides = [size["height"], size["width"]]
        if not all(isinstance(side, int) for side in sides):
            raise self._refused(f"has the {name} {size}")
        return sides

    def _convnext(self, sides: _Sides, fit: str) -> tuple[_Sides, str, _Sides | None]:
        """It crops by itself; large images it squashes instead."""
        if fit == "squash":
            raise self._refused(f"has the size {list(sides)}")
        if sides[0] >= 384:
            return sides, "squash", None
        return [int(side / self._number("crop_pct", most=1)) for side in sides], fit, sides

    def _poolformer(self, sides: _Sides, fit: str) -> tuple[_Sides, str, None]:
        """It resizes to more than its size, and keeps the aspect ratio of what becomes a square."""
        if self.table.get("crop_pct") is None:
            return sides, fit, None
        fit = "cover" if len(set(sides)) == 1 else "squash"
        return [int(side / self._number("crop_pct", most=1)) for side in sides], fit, None

    def _number(self, name: str, default: float | None = None, *, most: float = math.inf) -> float:
        value = self.table.get(name, default)
        if not isinstance(value, int | float) or not _LEAST < value <= most:
            raise self._lacking(name, value)
        return value

    def _numbers(self, name: str) -> tuple[float, ...]:
        value = self.table.get(name)
        values = [value] if isinstance(value, int | float) else value
        if not _are_numbers(values) or not values:
            raise self._lacking(name, value)
        return tuple(map(float, values))

    def _refused(self, does: str) -> OptionError:
        return OptionError(
            f"{self._name} {does}, expected one that resizes to one size, crops, scales and "
            "normalises: pass a function as the preprocess, from a PIL image to a float tensor"
        )

    def _lacking(self, name: str, value: Any) -> OptionError:
        return OptionError(
            f"{self._name} has {name} {value!r}, expected a value that this class of Transformers "
            "knows: pass the image processor itself, which has all of them"
        )

    @property
    def _name(self) -> str:
        return f"the image processor {self.kind}".rstrip()


def _levit(sides: _Sides, fit: str) -> tuple[_Sides, str, None]:
    """Its short side is that of the crop."""
    return ([int(256 / 224 * side) for side in sides] if fit == "cover" else sides), fit, None


def _table(processor: Any) -> Mapping[str, Any]:
    """What an image processor says of itself."""
    if isinstance(processor, str | Path):
        return _read(Path(processor))
    processor = getattr(processor, "image_processor", processor)
    table = processor.to_dict() if hasattr(processor, "to_dict") else processor
    if not isinstance(table, Mapping):
        raise OptionError(
            f"got a {type(processor).__name__}, expected an image processor of Transformers, its "
            f"to_dict() or the path of its {HUGGING_FACE_FILE}: pass one of these"
        )
    return table


def _read(path: Path) -> Mapping[str, Any]:
    path = path / HUGGING_FACE_FILE if path.is_dir() else path
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}), expected JSON such as "
            f"{HUGGING_FACE_FILE}: check the path"
        ) from error
    if not isinstance(table, Mapping):
        raise DataError(
            f"{path} holds no table, expected JSON such as {HUGGING_FACE_FILE}: check the path"
        )
    return table


def _given(sizes: Mapping[str, Any]) -> set[str]:
    return {name for name, value in sizes.items() if value is not None}


def _are_numbers(values: Any, kind: Any = int | float) -> bool:
    """Whether a value is a list of numbers."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    return listed and all(isinstance(of, kind) for of in values)


def _smallest(sides: Sequence[int]) -> int | tuple[int, ...]:
    """One number for a square, height and width for others."""
    return sides[0] if len(set(sides)) == 1 else tuple(sides)
