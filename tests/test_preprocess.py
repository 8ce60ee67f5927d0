"""Images prepared as timm and Transformers prepare them: against pipelines written out in Pillow
and NumPy, and against both packages where they are at hand."""

from __future__ import annotations

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import secateur
from secateur import DataError, OptionError, Preprocess
from secateur.cli.app import app
from secateur.data.preprocess import ModelPreprocess, completed
from secateur.data.sources import load_images

MEAN, STD = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
SIDES = [(61, 97), (97, 61), (49, 64), (80, 80), (33, 150), (31, 30)]
FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng([height, width])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def resized(image: Image.Image, height: int, width: int, name: str) -> Image.Image:
    return image.resize((width, height), Image.Resampling[name.upper()])


def short_side(image: Image.Image, side: int, name: str) -> Image.Image:
    """torchvision's Resize(side), which Transformers follows."""
    if image.width < image.height:
        return resized(image, int(side * image.height / image.width), side, name)
    return resized(image, side, int(side * image.width / image.height), name)


def normalised(pixels: np.ndarray, mean=MEAN, std=STD) -> torch.Tensor:
    return torch.from_numpy(((pixels / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)


# timm


def timm_by_hand(image: Image.Image, config: dict) -> torch.Tensor:
    """transforms_imagenet_eval, in Pillow."""
    (_, height, width), name = config["input_size"], config["interpolation"]
    tall, wide = (math.floor(side / config["crop_pct"]) for side in (height, width))
    if config["crop_mode"] == "squash":
        image = resized(image, tall, wide, name)
    elif tall == wide:
        image = short_side(image, tall, name)
    else:
        ratio = min(image.height / tall, image.width / wide)
        image = resized(image, round(image.height / ratio), round(image.width / ratio), name)
    top = round((image.height - height) / 2.0)
    left = round((image.width - width) / 2.0)
    pixels = np.array(image)[top : top + height, left : left + width]
    return normalised(pixels, config["mean"], config["std"])


def timm_config(size=(3, 24, 24), **other) -> dict:
    base = {"input_size": size, "interpolation": "bicubic", "crop_pct": 0.875}
    return {**base, "mean": MEAN, "std": STD, "crop_mode": "center", **other}


TIMM = {
    **{name: timm_config(interpolation=name) for name in FILTERS},
    "upscaled": timm_config((3, 40, 40)),
    "odd margin": timm_config((3, 23, 23), crop_pct=0.8),
    "tall": timm_config((3, 28, 20)),
    "wide": timm_config((3, 20, 28), crop_pct=0.9),
    "whole": timm_config(crop_pct=1.0),
    "squash": timm_config((3, 24, 24), crop_mode="squash", crop_pct=1.0),
    "squash and crop": timm_config((3, 21, 30), crop_mode="squash", crop_pct=0.9),
}


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", TIMM)
def test_images_are_prepared_as_timm_does(name, sides) -> None:
    image = picture(*sides)
    found = Preprocess.from_timm(TIMM[name])(image)
    assert found.shape == TIMM[name]["input_size"]
    assert_close(found, timm_by_hand(image, TIMM[name]))


def test_where_timm_is_at_hand_it_is_followed() -> None:
    factory = pytest.importorskip("timm.data", exc_type=ImportError)
    for config in TIMM.values():
        transform = factory.create_transform(**config)
        own = Preprocess.from_timm(factory.resolve_data_config(pretrained_cfg=config))
        for sides in SIDES:
            assert_close(own(picture(*sides)), transform(picture(*sides)))


def test_a_table_of_timm_may_leave_out_what_timm_leaves_out() -> None:
    found = Preprocess.from_timm({"input_size": (3, 64, 64), "crop_pct": None, "first_conv": "x"})
    assert (found.size, found.resize, found.interpolation) == (64, 73, "bicubic")
    assert found.mean == (0.485, 0.456, 0.406)
    assert Preprocess.from_timm({"input_size": [3, 224, 192]}).size == (224, 192)


# Transformers


def vit(**other) -> dict:
    base = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_normalize": True}
    base |= {"do_rescale": True, "rescale_factor": 1 / 255, "resample": 2}
    return {
        **base,
        "size": {"height": 24, "width": 20},
        "image_mean": MEAN,
        "image_std": STD,
    } | other


def clip(**other) -> dict:
    named = {"image_processor_type": "CLIPImageProcessorFast", "resample": 3}
    crop = {"do_center_crop": True, "crop_size": {"height": 21, "width": 23}}
    return {**vit(), **named, **crop, "size": {"shortest_edge": 28}, **other}


def cropped(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Transformers rounds down where torchvision rounds to even."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def convnext(image: Image.Image) -> np.ndarray:
    return cropped(np.array(short_side(image, int(24 / 0.875), "bicubic")), 24, 24)


def kind(name: str, **other) -> dict:
    return vit(image_processor_type=f"{name}ImageProcessor", resample=3, **other)


HUGGING_FACE = {
    "squash": (vit(), lambda image: resized(image, 24, 20, "bilinear")),
    "lanczos": (vit(resample=1), lambda image: resized(image, 24, 20, "lanczos")),
    "nearest": (vit(resample=0), lambda image: resized(image, 24, 20, "nearest")),
    "one number": (vit(size=24), lambda image: resized(image, 24, 24, "bilinear")),
    "short side and crop": (
        clip(),
        lambda image: cropped(np.array(short_side(image, 28, "bicubic")), 21, 23),
    ),
    "numbers alone": (
        clip(size=28, crop_size=25),
        lambda image: cropped(np.array(short_side(image, 28, "bicubic")), 25, 25),
    ),
    "squash and crop": (
        kind("DeiT", size={"height": 28, "width": 28}, do_center_crop=True, crop_size=25),
        lambda image: cropped(np.array(resized(image, 28, 28, "bicubic")), 25, 25),
    ),
    "ConvNeXT": (kind("ConvNext", size={"shortest_edge": 24}, crop_pct=0.875), convnext),
    "large ConvNeXT": (
        kind("ConvNext", size={"shortest_edge": 384}),
        lambda image: resized(image, 384, 384, "bicubic"),
    ),
    "LeViT": (
        kind("Levit", size={"shortest_edge": 21}, do_center_crop=True, crop_size=21),
        lambda image: cropped(np.array(short_side(image, 24, "bicubic")), 21, 21),
    ),
    "PoolFormer": (
        kind("PoolFormer", size={"shortest_edge": 20}, crop_pct=0.9, do_center_crop=True)
        | {"crop_size": {"height": 20, "width": 20}},
        lambda image: cropped(np.array(short_side(image, 22, "bicubic")), 20, 20),
    ),
}


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_images_are_prepared_as_transformers_does(name, sides) -> None:
    table, by_hand = HUGGING_FACE[name]
    image = picture(*sides)
    assert_close(Preprocess.from_hugging_face(table)(image), normalised(np.array(by_hand(image))))


SCALES = {
    "not normalised": ({"do_normalize": False}, lambda x: x / 255),
    "not scaled": (
        {"do_rescale": False},
        lambda x: (x - np.array(MEAN)) / np.array(STD),
    ),
    "another factor": (
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
        lambda x: (x / 127.5 - 1 - np.array(MEAN)) / np.array(STD),
    ),
    "twice": (
        {"image_processor_type": "EfficientNetImageProcessor", "include_top": True},
        lambda x: (x / 255 - np.array(MEAN)) / np.array(STD) ** 2,
    ),
    "spread alone": (
        {"image_processor_type": "EfficientNetImageProcessor", "do_normalize": False},
        lambda x: x / 255 / np.array(STD),
    ),
    "one number": ({"image_mean": 0.5, "image_std": [0.25]}, lambda x: (x / 255 - 0.5) / 0.25),
}


@pytest.mark.parametrize("name", SCALES)
def test_pixels_are_scaled_as_transformers_does(name) -> None:
    other, by_hand = SCALES[name]
    image = picture(50, 40)
    pixels = np.array(resized(image, 24, 20, "bilinear")).astype(np.float64)
    found = Preprocess.from_hugging_face(vit(**other))(image)
    assert_close(found, torch.from_numpy(by_hand(pixels).transpose(2, 0, 1)))


def test_an_image_that_is_not_resized_stays_as_it_is() -> None:
    found = Preprocess.from_hugging_face(vit(do_resize=False, size=None, resample=None))
    assert_close(found(picture(30, 40)), normalised(np.array(picture(30, 40))))


def test_a_processor_its_table_and_its_file_say_the_same(tmp_path) -> None:
    class Own:
        def to_dict(self) -> dict:
            return clip()

    class Processor:
        image_processor = Own()

    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(clip()))
    forms = [clip(), Own(), Processor(), file, str(tmp_path)]
    assert len({Preprocess.from_hugging_face(of) for of in forms}) == 1
    assert ModelPreprocess.load(file).size == (21, 23)


def test_where_transformers_is_at_hand_it_is_followed() -> None:
    pytest.importorskip("transformers", exc_type=ImportError)
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    for made in (
        ViTImageProcessorPil(size={"height": 24, "width": 20}),
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 21, "width": 23}),
        ConvNextImageProcessorPil(size={"shortest_edge": 24}),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        LevitImageProcessorPil(size={"shortest_edge": 21}, crop_size={"height": 21, "width": 21}),
        SiglipImageProcessorPil(),
    ):
        own = Preprocess.from_hugging_face(made)
        for sides in SIDES:
            expected = made(picture(*sides), return_tensors="pt")["pixel_values"][0]
            assert_close(own(picture(*sides)), expected)


def test_a_network_of_timm_within_transformers_is_prepared_as_timm_does() -> None:
    table = {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": timm_config()}
    assert Preprocess.from_hugging_face(table) == Preprocess.from_timm(timm_config())


# what is refused

REFUSED = {
    "DETR": (kind("Detr"), "image processor Detr may do more than resize"),
    "padding": (vit(do_pad=True), "image processor ViT pads images"),
    "BGR": (kind("MobileViT", do_flip_channel_order=True), "turns RGB into BGR"),
    "any size": (
        vit(size={"shortest_edge": 20, "longest_edge": 40}),
        "has the size {'shortest_edge': 20, 'longest_edge': 40}",
    ),
    "crop alone": (clip(do_resize=False), "crops images without resizing them"),
    "no filter": (vit(resample=None), "has resample None, .*: pass the image processor itself"),
    "unknown filter": (vit(resample=9), "has resample 9"),
    "no mean": (vit(image_mean=None), "has image_mean None"),
    "texts": (vit(image_mean=["a"]), r"has image_mean \['a'\]"),
    "no size": (vit(size=None), "has size None"),
    "no crop": (clip(crop_size=None), "has crop_size None"),
    "a text as size": (vit(size={"height": "a", "width": 3}), "has the size"),
    "larger crop": (clip(crop_size=40), "expected a crop no larger than the resized image"),
    "no number": (vit(rescale_factor="a"), "has rescale_factor 'a'"),
    "a class": (Preprocess, "expected an image processor of Transformers"),
    "a number": (5, "got a int, expected an image processor of Transformers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_settings_cannot_say_is_refused(name) -> None:
    given, says = REFUSED[name]
    with pytest.raises(OptionError, match=says):
        Preprocess.from_hugging_face(given)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (5, "got a int, expected a table such as timm.data.resolve_data_config"),
        (timm_config(crop_mode="border"), "crop_mode is 'border', expected 'center' or 'squash'"),
        (timm_config(crop_pct=1.5), "crop_pct is 1.5"),
        (timm_config(crop_pct="a"), "crop_pct is 'a'"),
        (timm_config(size=(24, 24)), r"input_size is \(24, 24\), expected channels, height"),
        (timm_config(interpolation="random"), "interpolation is 'random', expected 'nearest'"),
        (timm_config((1, 24, 24)), "mean has 3 values, expected 1"),
        (timm_config(mean=0.5), "mean is 0.5, expected numbers"),
    ],
)
def test_what_timm_s_table_cannot_mean_is_refused(config, says) -> None:
    with pytest.raises(OptionError, match=says):
        Preprocess.from_timm(config)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_table_is_one_sentence(tmp_path, content) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_bytes(content)
    for read in (Preprocess.from_hugging_face, ModelPreprocess.load):
        with pytest.raises(DataError, match=r"preprocessor_config\.json .*expected JSON such as"):
            read(file)
    with pytest.raises(DataError, match=r"cannot be read .FileNotFoundError"):
        Preprocess.from_hugging_face(tmp_path / "elsewhere.json")


# sizes that are no squares


def test_a_short_side_is_never_a_pixel_off() -> None:
    """256 * 49 / 49 is 256, but 256 / 49 * 49 is a little less in floating point."""
    for short in range(20, 120):
        for wanted in (24, 30, 49):
            image = picture(short, short + 1 + short // 3)
            found = Preprocess(resize=wanted, mean=(0,), std=(1,))(image)
            expected = (wanted, int(wanted * image.width / image.height))
            assert tuple(found.shape[1:]) == expected


@pytest.mark.parametrize("sides", SIDES)
def test_a_crop_may_have_two_sides(sides) -> None:
    image = picture(*sides)
    found = Preprocess(size=(28, 20), mean=(0,), std=(1,))(image)
    ratio = min(image.height / 28, image.width / 20)
    whole = resized(image, round(image.height / ratio), round(image.width / ratio), "bilinear")
    top, left = round((whole.height - 28) / 2), round((whole.width - 20) / 2)
    pixels = np.array(whole)[top : top + 28, left : left + 20]
    assert_close(found, normalised(pixels, (0,) * 3, (1,) * 3))


def test_sizes_are_checked_side_by_side() -> None:
    Preprocess(size=(28, 20), resize=28)
    with pytest.raises(OptionError, match="resize is 24x40 and size 28x20, expected a crop no lar"):
        Preprocess(size=(28, 20), resize=(24, 40))
    for wrong in ((28,), (28, 20, 3), (28, 0), "28x20", (28, 2.5), True):
        with pytest.raises(OptionError, match=r"size is .*, expected a whole number at least 1"):
            Preprocess(size=wrong)


@pytest.mark.parametrize("kind", ["fractal", "gaussian", "pink"])
def test_synthetic_images_have_two_sides(kind) -> None:
    how = Preprocess(size=(12, 20), mean=(0.5,), std=(0.25,))
    assert load_images(f"{kind}:3", preprocess=how).tensor.shape == (3, 3, 12, 20)
    squashed = Preprocess(resize=(12, 20), fit="squash", mean=(0.5,), std=(0.25,))
    assert load_images(f"{kind}:3", preprocess=squashed).tensor.shape == (3, 3, 12, 20)


# the command line


def test_options_replace_what_a_file_says_one_by_one() -> None:
    own = ModelPreprocess.from_hugging_face(clip())
    found = completed(Preprocess(mean=(0.1,) * 3), own)
    assert (found.size, found.fit, found.crop_rounding) == ((21, 23), "cover", "down")
    assert (found.mean, found.std) == ((0.1,) * 3, STD)
    squashed = ModelPreprocess.from_hugging_face(vit())
    assert completed(Preprocess(size=12), squashed).fit == "squash"


def test_a_file_of_transformers_or_timm_on_the_command_line(tmp_path) -> None:
    network = tmp_path / "net.py"
    network.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))\n"
    )
    (tmp_path / "data").mkdir()
    for number in range(33):
        picture(30, 40 + number).save(tmp_path / "data" / f"{number:02}.png")
    tables = {
        "hf.json": (clip(), (21, 23)),
        "timm.json": (timm_config((3, 28, 20)), (28, 20)),
        "config.json": ({"architecture": "a", "pretrained_cfg": timm_config()}, 24),
    }
    for name, (table, size) in tables.items():
        (tmp_path / name).write_text(json.dumps(table))
        result = prune(network, tmp_path, name, "--preprocess", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert f"pictures are prepared as {tmp_path / name} says (short side" in result.stderr
        report = secateur.Report.load(tmp_path / name.partition(".")[0] / "report.json")
        held = report.requested["preprocess"]["size"]
        assert (tuple(held) if isinstance(held, list) else held) == size
    result = prune(network, tmp_path, "a.x", "--size", "12x10", "--mean", "0.5", "--std", "0.5")
    assert result.exit_code == 0, result.output
    report = secateur.Report.load(tmp_path / "a" / "report.json")
    assert report.requested["preprocess"]["size"] == [12, 10]
    assert prune(network, tmp_path, "b.x", "--size", "12x10x3").exit_code == 2
    shown = CliRunner().invoke(app, ["inspect", f"{network}:net", "--size", "20x16", "--json"])
    assert json.loads(shown.stdout)["layers"][0]["output"][-2:] == [18, 14]


def prune(network, folder, name, *options):
    arguments = ["prune", f"{network}:net", "--data", folder / "data", "--sparsity", 0.5]
    arguments += ["--method", "magnitude", "--allocation", "uniform", *options]
    arguments += ["-o", folder / name.partition(".")[0]]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# any value of any entry

VALUES = [
    None,
    "a",
    -1,
    0,
    1,
    2**70,
    0.5,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    [],
    [1],
    ["a"],
    {},
    True,
]
VALUES += [[1, 2, 3, 4], [0.0] * 3, {"height": 3}, {"height": "a", "width": None}, {"x": []}]
TABLES = {
    "timm": (Preprocess.from_timm, timm_config()),
    "ViT": (Preprocess.from_hugging_face, vit()),
    "CLIP": (Preprocess.from_hugging_face, clip()),
    "ConvNext": (Preprocess.from_hugging_face, HUGGING_FACE["ConvNeXT"][0]),
    "LeViT": (Preprocess.from_hugging_face, HUGGING_FACE["LeViT"][0]),
    "PoolFormer": (Preprocess.from_hugging_face, HUGGING_FACE["PoolFormer"][0]),
    "EfficientNet": (Preprocess.from_hugging_face, kind("EfficientNet", include_top=True)),
}


@pytest.mark.parametrize("name", TABLES)
def test_any_value_of_an_entry_is_a_preprocess_or_one_sentence(name) -> None:
    read, table = TABLES[name]
    kinds = {"crop_pct", "pretrained_cfg", "rescale_offset", "default_to_square", "crop_mode"}
    for entry in sorted({*table, *kinds}):
        for value in VALUES:
            with contextlib.suppress(OptionError):
                assert isinstance(read(table | {entry: value}), Preprocess)
        with contextlib.suppress(OptionError):
            read({of: at for of, at in table.items() if of != entry})
