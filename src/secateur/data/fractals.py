"""Synthetic calibration images, for networks without real ones.

Each image is a pile of fractals: attractors of random affine maps, with colours, contrasts and
textures that follow the published statistics of photographs. No file is read and nothing is
downloaded. Real images like those in use are better, even a few.

Source: arXiv 2104.15023 (pruning without data), after Kataoka et al., "Pre-training without
natural images" (FractalDB), 2020. Piling up occluding shapes is the dead leaves model: Lee,
Mumford and Huang, "Occlusion models for natural images", 2001.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from secateur.data.noise import Planes, check_sizes, power_law_fields
from secateur.support.settings import check_arguments

FILL = 0.2  # of the cells of a GRID x GRID grid over the points' bounding box
GRID = 32
FACTORS = (0.2, 0.6, 1.4, 1.8)
_MAPS = (2, 7)
_ORBITS = 512
_BURN = 12  # steps from the origin to the attractor, not drawn
_TRIAL = (64, 32)  # orbits, steps: 2,048 points decide whether a system fills the grid

# Pixels in [0, 1]. Mean: ImageNet's, as usual in preprocessing. Colour axes (columns: luminance,
# blue-yellow, green-magenta) and the variances along them: Krizhevsky et al., "ImageNet
# classification with deep convolutional neural networks", 2012.
_MEAN = (0.485, 0.456, 0.406)
_AXES = ((0.5675, 0.7192, 0.4009), (0.5808, -0.0045, -0.8140), (0.5836, -0.6948, 0.4203))
_VARIANCES = (0.2175, 0.0188, 0.0045)
_BETWEEN = 0.26  # share of the variance that lies between the means of images
_CONTRAST = 0.22  # median standard deviation of a channel within an image
_GREY = (0.299, 0.587, 0.114)

_LAYERS = (5, 14)  # fractals upon the background
_SLOPES = (1.0, 1.2, 1.5, 1.8)  # of the amplitude of the textures' spectra
_SIGMA = 2.6 / 224  # widest blur (kernel 15), in sides of the image

Plane = Float32[np.ndarray, "size size"]
Colours = Float32[np.ndarray, "3 size size"]  # along the axes of _AXES


def fractal_images(
    count: int, *, size: int = 224, channels: int = 3, seed: int = 0
) -> UInt8[Tensor, "count channels size size"]:
    """Draws synthetic images for calibration.

    Each fractal of each image draws a new system of 2 to 7 maps, and one of 25 variants of it
    (one of the 6 coefficients scaled by 0.2, 0.6, 1.4 or 1.8, or none). This is more diverse than
    the paper's 25 images per system. An image has several fractals over one another, each with a
    colour, a texture with a 1/f spectrum, and its density as brightness. They are mirrored,
    rotated by up to 30 degrees and blurred by up to 2.6 pixels at 224.

    Args:
        count: number of images, at least 1; use a few hundred.
        size: side in pixels, at least 8.
        channels: 3 = RGB, 1 = grayscale, any other number = that many fixed mixtures of R, G and
            B.
        seed: at least 0. Image i depends on (seed, i, size, channels) only, so fewer images are
            a prefix of more; the bytes do not depend on the number of threads.

    Returns:
        Pixels in 0..255.

    Raises:
        OptionError: an argument is out of range.

    Cost: 0.12 s of a busy 2.5 GHz core per image of 224 pixels; up to 8 cores are used.
    """
    check_arguments(fractal_images, locals())
    check_sizes(count, size, channels, seed)
    mixture = _mixture(channels, seed)

    def draw(index: int) -> UInt8[np.ndarray, "channels size size"]:
        pixels = _image(np.random.default_rng([seed, index]), size)
        return pixels if mixture is None else _to_bytes(_combine(mixture, pixels / 255))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        return torch.from_numpy(np.stack(list(threads.map(draw, range(count)))))


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Iterated function systems, iterated side by side.

    A map sends (x, y) to (a x + b y + e, c x + d y + f) and is chosen with probability
    proportional to |a d - b c|.

    Attributes:
        maps: coefficients a to f; zeros for the maps that a system does not have.
    """

    maps: Float[np.ndarray, "systems maps 6"]

    def points(
        self, rng: np.random.Generator, orbits: int, steps: int
    ) -> Float[np.ndarray, "systems 2 points"]:
        """`orbits` random walks of `steps` steps for each system; inf or NaN where it diverges."""
        table, edges = self.maps.reshape(-1, 6).T.astype(np.float32), self._edges()
        first = np.arange(len(self.maps))[:, None]
        points = np.zeros((2, len(self.maps), orbits), np.float32)
        walk = np.empty((len(self.maps), 2, steps, orbits), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(-_BURN, steps):
                # System k owns [k, k + 1): one search serves all. A float32 plus k stays below
                # k + 1, a float64 may be rounded up to it.
                chances = rng.random((len(self.maps), orbits), dtype=np.float32) + first
                points = _step(points, table[:, np.searchsorted(edges, chances, "right")])
                if step >= 0:
                    walk[:, :, step] = points.swapaxes(0, 1)
        return walk.reshape(len(self.maps), 2, -1)

    def _edges(self) -> Float[np.ndarray, " all_maps"]:
        """Where the maps' shares of [k, k + 1) end; an absent map, at the end, has none."""
        a, b, c, d = np.moveaxis(self.maps, -1, 0)[:4]
        shares = np.abs(a * d - b * c).cumsum(1)
        return (shares / shares[:, -1:] + np.arange(len(shares))[:, None]).ravel()


def _step(
    points: Float[np.ndarray, "2 systems orbits"], maps: Float[np.ndarray, "6 systems orbits"]
) -> Float[np.ndarray, "2 systems orbits"]:
    (x, y), (a, b, c, d, e, f) = points, maps
    return np.stack([a * x + b * y + e, c * x + d * y + f])


def fill_rate(points: Float[np.ndarray, "systems 2 points"]) -> Float[np.ndarray, " systems"]:
    """Share of the cells of a 32 x 32 grid over their bounding box that hold points.

    0 for systems that diverge or whose points lie on a line along an axis.
    """
    unit = _unit(points)
    finite = np.all(np.isfinite(unit), axis=(1, 2))
    cells = np.minimum(np.where(finite[:, None, None], unit, 0) * GRID, GRID - 1).astype(np.int64)
    flat = cells[:, 1] * GRID + cells[:, 0] + np.arange(len(points))[:, None] * GRID**2
    held = np.bincount(flat.ravel(), minlength=len(points) * GRID**2).reshape(len(points), -1)
    return np.where(finite, (held > 0).mean(1), 0.0)


def _unit(points: Float[np.ndarray, "systems 2 points"]) -> Float[np.ndarray, "systems 2 points"]:
    low, high = points.min(-1, keepdims=True), points.max(-1, keepdims=True)
    with np.errstate(all="ignore"):
        return (points - low) / (high - low)


def draw_systems(rng: np.random.Generator, count: int) -> Systems:
    """`count` systems, each a random variant of a random system, that fill 20 % of the grid."""
    kept = np.empty((0, _MAPS[1], 6))
    while len(kept) < count:
        drawn = _random_systems(rng, 2 * count)
        kept = np.concatenate([kept, drawn.maps[_fills(drawn, rng)]])
    return _variants(Systems(maps=kept[:count]), rng)


def _random_systems(rng: np.random.Generator, count: int) -> Systems:
    maps = rng.uniform(-1, 1, (count, _MAPS[1], 6))
    held = rng.integers(*_MAPS, size=count, endpoint=True)
    return Systems(maps=maps * (np.arange(_MAPS[1]) < held[:, None])[..., None])


def _fills(systems: Systems, rng: np.random.Generator) -> Bool[np.ndarray, " systems"]:
    return fill_rate(systems.points(rng, *_TRIAL)) >= FILL


def _variants(systems: Systems, rng: np.random.Generator) -> Systems:
    """Each system with one coefficient of its maps scaled, where that still fills the grid."""
    variant = rng.integers(-1, 6 * len(FACTORS), size=len(systems.maps))  # -1 = unchanged
    changed = np.flatnonzero(variant >= 0)
    scale = np.ones((len(variant), 6))
    scale[changed, variant[changed] % 6] = np.array(FACTORS)[variant[changed] // 6]
    scaled = Systems(maps=systems.maps * scale[:, None])
    return Systems(maps=np.where(_fills(scaled, rng)[:, None, None], scaled.maps, systems.maps))


def _image(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "3 size size"]:
    fields = power_law_fields(rng, _SLOPES, size)
    systems = draw_systems(rng, 1 + int(rng.integers(*_LAYERS, endpoint=True)))
    outlines = _unit(systems.points(rng, _ORBITS, max(4, size * size // 1024))) - 0.5
    patch = _patch(rng)
    image = np.zeros((3, size, size), np.float32)
    for index, outline in enumerate(outlines):
        scale = _log_uniform(rng, 0.2, 1.2) if index else 1.6
        hits = _stamp(_hits(outline * scale, rng, 0.5 if index else 0.0, size), patch)
        sigma = float(rng.random() ** 2 * _SIGMA * size)
        colours = _paint(rng, hits, fields, sigma)
        image = _cover(rng, image, colours, hits, sigma) if index else colours
    return _expose(rng, image)


def _hits(
    outline: Float[np.ndarray, "2 points"], rng: np.random.Generator, shift: float, size: int
) -> Int[np.ndarray, "size size"]:
    """Counts the points in each pixel: mirrored, turned, stretched and moved at random."""
    x, y = outline * rng.choice([-1, 1], (2, 1)).astype(np.float32)
    angle, stretch = np.deg2rad(rng.uniform(-30, 30)), float(np.exp(rng.normal(0, 0.25)))
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    turned = [(cosine * x - sine * y) * stretch, (sine * x + cosine * y) / stretch]
    centre = 0.5 + rng.uniform(-shift, shift, 2)
    column, row = (np.floor((turned[axis] + centre[axis]) * size) for axis in (0, 1))
    seen = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    pixels = (row[seen] * size + column[seen]).astype(np.int64)
    return np.bincount(pixels, minlength=size * size).reshape(size, size)


def _patch(rng: np.random.Generator) -> Bool[np.ndarray, "3 3"]:
    bits = int(rng.integers(1, 2**9))  # 0 would be the empty patch
    return np.array([bits >> place & 1 for place in range(9)], dtype=bool).reshape(3, 3)


def _stamp(
    hits: Int[np.ndarray, "size size"], patch: Bool[np.ndarray, "3 3"]
) -> Int[np.ndarray, "size size"]:
    """Draws each hit as the patch, and counts what falls on each pixel."""
    size, padded = len(hits), np.pad(hits, 1)
    shifts = zip(*np.nonzero(patch), strict=True)
    return np.sum([padded[row : row + size, col : col + size] for row, col in shifts], axis=0)


def _paint(
    rng: np.random.Generator, hits: Int[np.ndarray, "size size"], fields: Planes, sigma: float
) -> Colours:
    """A colour, with a texture and the density of the hits as light, in standard deviations."""
    relief = rng.uniform(0.3, 1.2) * (-1) ** int(rng.integers(2)) * _density(hits, sigma)
    light = _log_uniform(rng, 0.02, 0.25) * _field(rng, fields) + relief
    colours = np.empty((3, *hits.shape), np.float32)
    colours[:] = rng.standard_normal((3, 1, 1))
    colours[0] += light + _gradient(rng, len(hits))
    # The colour follows the light, as in photographs; fields of their own gave a rainbow.
    colours[1:] += rng.normal(0, 0.3, (2, 1, 1)).astype(np.float32) * light
    colours[1:] += 0.4 * rng.random() * _field(rng, fields)
    return colours


def _density(hits: Int[np.ndarray, "size size"], sigma: float) -> Plane:
    """Logarithm of the hits, standardised over the pixels hit and 0 elsewhere."""
    inside = hits > 0
    if not inside.any():
        return np.zeros(hits.shape, np.float32)
    density = np.log1p(hits).astype(np.float32)
    held = density[inside]
    levels = np.clip((density - held.mean()) / max(float(held.std()), 0.05), -2.5, 2.5) * inside
    return _blur(levels, sigma)


def _field(rng: np.random.Generator, fields: Planes) -> Plane:
    """One of the fields from a random place; they are periodic, so it has no seam."""
    field = fields[rng.integers(len(fields))]
    return np.roll(field, tuple(rng.integers(len(field), size=2)), (0, 1))


def _gradient(rng: np.random.Generator, size: int) -> Plane:
    """Light from one side, for half of the fractals."""
    strength, angle = rng.normal(0, 1) * rng.integers(2), rng.uniform(0, 2 * np.pi)
    place = (strength * (np.arange(size) / size - 0.5)).astype(np.float32)
    return place[:, None] * float(np.cos(angle)) + place * float(np.sin(angle))


def _cover(
    rng: np.random.Generator,
    image: Colours,
    colours: Colours,
    hits: Int[np.ndarray, "size size"],
    sigma: float,
) -> Colours:
    """Lays `colours` upon the image where there are hits; mostly as a body with an edge."""
    cover = (hits > 0).astype(np.float32)
    if rng.random() < 0.85:
        near = _blur(cover, len(hits) * _log_uniform(rng, 0.006, 0.04))
        cover = np.clip((near - 0.35) * rng.uniform(8, 30), 0, 1)
        colours[0] += _rim(rng, near) + _shade(rng, cover)
    return image + (colours - image) * _blur(cover, sigma)


def _rim(rng: np.random.Generator, near: Plane) -> Plane:
    """A bright or dark line along the edge, for 7 in 10 bodies."""
    strength = float(rng.normal(0, 1)) * (rng.random() < 0.7)
    return strength * np.clip(1 - np.abs(near - 0.45) / 0.15, 0, 1)


def _shade(rng: np.random.Generator, cover: Plane) -> Plane:
    """Light that falls off towards the edge, for half of the bodies: they look round."""
    strength = float(rng.normal(1.6, 1.0))
    if rng.random() < 0.5:
        return np.zeros_like(cover)
    return strength * (_blur(cover, 0.05 * len(cover)) - np.float32(0.5))


def _expose(rng: np.random.Generator, image: Colours) -> UInt8[np.ndarray, "3 size size"]:
    """Gives the image a contrast and a mean colour as photographs have, and makes it pixels."""
    centred = image - image.mean((1, 2), keepdims=True)
    contrast = _CONTRAST * np.exp(rng.normal(0, 0.27)) * 3**0.5
    spread = np.sqrt(np.array(_VARIANCES) / _VARIANCES[0])
    gain = spread * contrast / max(float(centred[0].std()), 0.05)
    mean = rng.standard_normal(3) * np.sqrt(_BETWEEN * np.array(_VARIANCES))
    colours = centred * gain[:, None, None].astype(np.float32)
    offset = _combine(_AXES, mean[:, None, None]) + np.array(_MEAN)[:, None, None]
    return _to_bytes(_combine(_AXES, colours) + offset.astype(np.float32))


def _combine(
    weights: tuple[tuple[float, ...], ...] | Float[np.ndarray, "channels 3"],
    planes: Float[np.ndarray, "3 size size"],
) -> Float[np.ndarray, "channels size size"]:
    """Weighted sums of planes; not by BLAS, whose rounding depends on the number of threads."""
    return np.stack(
        [sum(w * plane for w, plane in zip(row, planes, strict=True)) for row in weights]
    )


def _to_bytes(pixels: Float[np.ndarray, ...]) -> UInt8[np.ndarray, ...]:
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def _mixture(channels: int, seed: int) -> Float[np.ndarray, "channels 3"] | None:
    """How much R, G and B each channel takes, in sum 1; None = the colours as they are."""
    if channels == 3:
        return None
    if channels == 1:
        return np.array([_GREY])
    weights = np.random.default_rng([seed, channels, 1]).random((channels, 3))
    return weights / weights.sum(1, keepdims=True)


def _blur(plane: Plane, sigma: float) -> Plane:
    """Gaussian blur by Pillow, in 255 levels; sigma in pixels."""
    low, high = float(plane.min()), float(plane.max())
    if sigma < 0.2 or low == high:
        return plane
    levels = Image.fromarray(_to_bytes((plane - low) / (high - low)))
    blurred = np.asarray(levels.filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float32)
    return blurred * np.float32((high - low) / 255) + np.float32(low)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
