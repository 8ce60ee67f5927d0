"""A law for images of every mode and arrays of every type: the same picture gives the same input.

Where the range of the pixels is not known, they are refused; nothing is clipped.
"""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data.preprocess import Preprocess
from secateur.data.sources import load_images
from secateur.errors import DataError, OptionError

RAMP = np.linspace(0, 255, 32 * 32).round().astype(np.uint8).reshape(32, 32)
DEEP = RAMP.astype(np.uint16) * 257
UNIT = RAMP.astype(np.float32) / 255
PLAIN = Preprocess(mean=(0.0,), std=(1.0,))
GREY = Preprocess(mean=(0.0,), std=(1.0,), channels=1)
SMALL = Preprocess(size=12, resize=16, mean=(0.5,), std=(0.25,))


def converted(*modes: str) -> Image.Image:
    image = Image.fromarray(RAMP)
    for mode in modes:
        image = image.convert(mode)
    return image


def sixteen(mode: str, order: str) -> Image.Image:
    return Image.frombytes(mode, (32, 32), DEEP.astype(f"{order}u2").tobytes())


def premultiplied() -> Image.Image:
    return Image.frombytes("La", (32, 32), np.stack([RAMP, np.full_like(RAMP, 255)], -1).tobytes())


def see_through() -> Image.Image:
    """A palette with an opacity for each colour; only opaque ones are used."""
    image = converted("P")
    image.info["transparency"] = bytes([255] * 256)
    return image


# what each mode holds of the ramp, to within so many steps of 1/255
MODES = {
    "1": (lambda: Image.fromarray(RAMP > 127), None),
    "L": (lambda: converted("L"), 0),
    "P": (lambda: converted("P"), 0),
    "P with transparency": (see_through, 0),
    "RGB": (lambda: converted("RGB"), 0),
    "RGBA": (lambda: converted("RGBA"), 0),
    "RGBX": (lambda: converted("RGB", "RGBX"), 0),
    "RGBa": (lambda: converted("RGBA", "RGBa"), 0),
    "LA": (lambda: converted("LA"), 0),
    "La": (premultiplied, 0),
    "PA": (lambda: converted("P", "PA"), 0),
    "CMYK": (lambda: converted("CMYK"), 0),
    "YCbCr": (lambda: converted("RGB", "YCbCr"), 1),
    "HSV": (lambda: converted("RGB", "HSV"), 0),
    "I;16": (lambda: sixteen("I;16", "<"), 0),
    "I;16L": (lambda: sixteen("I;16L", "<"), 0),
    "I;16B": (lambda: sixteen("I;16B", ">"), 0),
    "I;16N": (lambda: sixteen("I;16N", "="), 0),
    "F": (lambda: Image.fromarray(UNIT), 0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [PLAIN, GREY, SMALL], ids=["RGB", "grey", "resized"])
def test_the_same_ramp_in_any_mode_is_the_same_input(mode, how) -> None:
    make, steps = MODES[mode]
    image = make()
    assert mode.split()[0] == image.mode
    want = how(Image.fromarray(np.uint8(RAMP > 127) * 255) if steps is None else converted("L"))
    rounding = 1 if how is SMALL else 0  # Pillow rounds 8 bits after each axis
    tolerance = ((steps or 0) + rounding) / 255 / (0.25 if how is SMALL else 1) + 1e-6
    assert float((how(image) - want).abs().max()) <= tolerance


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) - {name.split()[0] for name in MODES}))
def test_every_other_mode_of_pillow_is_scaled_or_refused(mode) -> None:
    try:
        assert PLAIN(Image.new(mode, (4, 4))).shape == (3, 4, 4)
    except DataError as error:
        assert re.search("has .*expected", str(error))  # noqa: PT017


def test_lab_is_converted_or_refused() -> None:
    try:
        image = converted("RGB", "LAB")
    except ValueError:
        with pytest.raises(DataError, match=r"has the mode LAB.*expected RGB or grey"):
            PLAIN(Image.new("LAB", (4, 4)))
    else:
        assert float((PLAIN(image) - PLAIN(converted("L"))).abs().max()) <= 3 / 255


def png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


FILES = {
    "8 bits.png": lambda: saved(converted("L"), "PNG"),
    "16 bits.png": lambda: png(DEEP[..., None]),
    "16 bits with alpha.png": lambda: png(np.stack([DEEP, np.full_like(DEEP, 65535)], -1)),
    "16 bits RGB.png": lambda: png(np.stack([DEEP] * 3, -1)),
    "16 bits RGBA.png": lambda: png(np.stack([*[DEEP] * 3, np.full_like(DEEP, 65535)], -1)),
    "16 bits.tif": lambda: saved(Image.fromarray(DEEP), "TIFF"),
    "16 bits.pgm": lambda: b"P5 32 32 65535\n" + DEEP.astype(">u2").tobytes(),
    "12 bits.pgm": lambda: b"P5 32 32 4095\n" + (RAMP / 255 * 4095).astype(">u2").tobytes(),
    "floats.tif": lambda: saved(Image.fromarray(UNIT), "TIFF"),
    "palette.gif": lambda: saved(converted("P"), "GIF"),
    "cmyk.tif": lambda: saved(converted("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("error")
def test_the_same_ramp_in_any_file_is_the_same_input(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(FILES[name]())
    found = load_images(tmp_path, preprocess=PLAIN).tensor[0]
    assert float((found - PLAIN(converted("L"))).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (RAMP.astype(np.float32), "has float pixels from 0 to 255, expected the range from 0 to 1"),
        (UNIT - 0.5, "has float pixels from -0.5 to 0.5"),
        (np.where(UNIT > 0.5, np.nan, UNIT).astype(np.float32), "has float pixels from nan"),
        (RAMP.astype(np.int32), "has 32-bit pixels from 0 to 255, whose full range is not known"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused_by_the_file_s_name(tmp_path, pixels, says) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif {says}"):
        load_images(tmp_path, preprocess=PLAIN)


def test_the_orientation_tag_is_left_alone(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(RAMP[:20]).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(
        load_images(tmp_path, preprocess=PLAIN).tensor[0], PLAIN(converted("L"))[:, :20]
    )


def test_transparent_pixels_have_the_colour_that_is_stored() -> None:
    clear = converted("RGBA")
    clear.putalpha(0)
    assert torch.equal(PLAIN(clear), PLAIN(converted("L")))


# arrays


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC", "NCHW3", "NHWC3"])
@pytest.mark.parametrize("how", [None, PLAIN, SMALL], ids=["no preprocess", "plain", "resized"])
@pytest.mark.parametrize("kind", ["array", "tensor", "loader"])
def test_arrays_of_any_pixel_type_give_the_same_inputs(layout, how, kind) -> None:
    def source(pixels: np.ndarray):
        pixels = np.stack([pixels, pixels[::-1]])
        if layout != "NHW":
            pixels = np.expand_dims(pixels, 1 if layout.startswith("NCHW") else 3)
        if layout.endswith("3"):
            pixels = pixels.repeat(3, 1 if layout.startswith("NCHW") else 3)
        if kind == "array":
            return pixels
        tensor = torch.from_numpy(pixels)
        return tensor if kind == "tensor" else (part for part in tensor.split(1))

    def load(pixels: np.ndarray) -> torch.Tensor:
        return load_images(source(pixels), preprocess=how).tensor

    step = 4 / 255 if how is SMALL else 0
    assert float((load(DEEP) - load(RAMP)).abs().max()) <= step + 1e-6
    black_and_white = np.uint8(RAMP > 127) * 255
    assert torch.equal(load(RAMP > 127), load(black_and_white))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint32])
@pytest.mark.parametrize("form", ["array", "npz", "batches"])
def test_integers_of_an_unknown_range_are_refused(tmp_path, kind, form) -> None:
    pixels = (RAMP // 2).astype(kind)[None, None]
    np.savez(tmp_path / "d.npz", images=pixels)
    source = {"array": pixels, "npz": tmp_path / "d.npz", "batches": [pixels]}[form]
    with pytest.raises(DataError, match=rf"holds {np.dtype(kind)}, whose range is not known"):
        load_images(source)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_of_any_precision_are_inputs(kind) -> None:
    found = load_images(UNIT.astype(kind)[None, None]).tensor
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, 0], torch.from_numpy(UNIT), atol=1e-3, rtol=0)


def test_a_choice_among_16_bit_images() -> None:
    numbers = np.arange(50, dtype=np.uint16)[:, None, None] * np.ones((50, 2, 2), np.uint16)
    found = load_images(numbers, max_images=7, seed=1).tensor[:, 0, 0, 0] * 65535
    eight = load_images(numbers.astype(np.uint8), max_images=7, seed=1).tensor[:, 0, 0, 0] * 255
    torch.testing.assert_close(found, eight)


def test_floats_too_large_for_float32_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or Inf"):
        load_images(np.full((1, 1, 2, 2), 1e300))


# a preprocess of one's own


@pytest.mark.parametrize(
    ("preprocess", "says"),
    [
        (lambda image: np.array(image), "makes a ndarray of .*a.png, an image of mode I;16"),
        (lambda image: torch.from_numpy(np.array(image).astype(np.int32)), "makes torch.int32 of"),
        (lambda image: image.nothing, r"fails on .*a.png.*AttributeError"),
    ],
)
def test_a_preprocess_that_makes_no_floats_is_told(tmp_path, preprocess, says) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=says):
        load_images(tmp_path, preprocess=preprocess)


def test_a_preprocess_of_one_s_own_gets_grey_16_bits_and_no_others() -> None:
    def own(image: Image.Image) -> torch.Tensor:
        assert image.mode == "I;16"
        return torch.from_numpy(np.array(image).astype(np.float32) / 65535)[None]

    found = load_images(DEEP[None], preprocess=own).tensor
    torch.testing.assert_close(found[0, 0], torch.from_numpy(UNIT))
    with pytest.raises(DataError, match=r"RGB in 16 bits.*secateur\.Preprocess"):
        load_images(np.stack([DEEP] * 3)[None], preprocess=own)


@pytest.mark.parametrize(("name", "frames"), [("stack.tiff", 3), ("moving.gif", 2)])
def test_files_of_several_images_are_refused(tmp_path, name, frames) -> None:
    pages = [Image.new("L", (8, 8), 40 * index) for index in range(frames)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=rf"{name} holds {frames} images, expected one in each"):
        load_images(str(tmp_path), preprocess=Preprocess(mean=(0,), std=(1,)))


@pytest.mark.parametrize(
    "given",
    [
        {"mean": (123.675, 116.28, 103.53), "std": (58.4, 57.1, 57.4)},
        {"mean": (123.675, 116.28, 103.53)},
        {"mean": (0.5,), "std": (127.5,)},
        {"mean": (-127.5,)},
        {"mean": (1.5,), "std": (0.25,)},
    ],
)
def test_a_scale_that_leaves_one_value_of_an_image_is_refused(given) -> None:
    with pytest.raises(OptionError, match=r"expected that of pixels in \[0, 1\]: divide by 255"):
        Preprocess(**given)
    if "mean" in given and len(given["mean"]) == 3:
        with pytest.raises(OptionError, match=r"\(0\.485,0\.456,0\.406\)"):
            Preprocess(**given)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,), (0.5,)),  # to -1..1
        ((0.0,), (1 / 255,)),  # to 0..255
        ((0.485,), (1 / 255,)),
        ((-1.0,), (1.0,)),  # to 1..2
        ((0.0,), (2.0,)),
        ((1.0,), (1.0,)),
    ],
)
def test_scales_that_people_train_with_are_taken(mean, std) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert Preprocess(mean=mean, std=std)(image).std() > 0.01


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_is_finite(name, value) -> None:
    with pytest.raises(OptionError, match="expected finite numbers"):
        Preprocess(**{name: (value,)})


@pytest.mark.parametrize("content", [b"taken in May", b"", b"GIF89a", b"\xff\xd8\xff\xe0cut"])
def test_what_is_no_image_is_told_as_that(tmp_path, content) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"notes\.txt is not a readable image, .*: remove or rep"):
        load_images(str(tmp_path), preprocess=PLAIN)


def test_an_image_that_is_cut_off_is_told_as_unreadable(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jpg is not a readable image"):
        load_images(str(tmp_path), preprocess=PLAIN)
