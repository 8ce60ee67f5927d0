"""Synthetic images: the law of the maps, the statistics of photographs, and purity."""

import hashlib
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from secateur.data.fractals import FILL, Systems, draw_systems, fill_rate, fractal_images
from secateur.data.noise import gaussian_noise, pink_noise
from secateur.errors import OptionError

MAKERS = [fractal_images, gaussian_noise, pink_noise]


@pytest.fixture(scope="module")
def images():
    return fractal_images(100, size=64, seed=3)


def digest(images):
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def amplitude_slope(planes):
    """Slope of log amplitude over log frequency, averaged over planes (count, size, size)."""
    size = planes.shape[-1]
    window = np.hanning(size)[:, None] * np.hanning(size)
    centred = planes - planes.mean((1, 2), keepdims=True)
    amplitude = np.sqrt((np.abs(np.fft.fft2(centred * window)) ** 2).mean(0))
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    held = (radius > 3 / size) & (radius < 0.4)
    return np.polyfit(np.log(radius[held]), np.log(amplitude[held]), 1)[0]


# the systems


def slow_points(maps, rng, orbits, steps, burn):
    """The law, point by point: point' = A point + b with the map that the draw falls on."""
    weights = [abs(a * d - b * c) for a, b, c, d, _, _ in maps]
    points, walk = [(0.0, 0.0)] * orbits, []
    for _ in range(burn + steps):
        draws = rng.random((1, orbits), dtype=np.float32)[0]
        for orbit, draw in enumerate(draws):
            chosen = sum(float(draw) >= share for share in np.cumsum(weights) / sum(weights))
            a, b, c, d, e, f = maps[chosen]
            x, y = points[orbit]
            points[orbit] = (a * x + b * y + e, c * x + d * y + f)
        walk.append(list(points))
    return np.array(walk[burn:]).reshape(-1, 2).T


def test_points_follow_the_maps_as_a_plain_loop_does():
    maps = np.random.default_rng(5).uniform(-0.8, 0.8, (3, 6))
    expected = slow_points(maps, np.random.default_rng(1), orbits=6, steps=10, burn=12)
    found = Systems(maps=maps[None]).points(np.random.default_rng(1), 6, 10)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_a_map_is_chosen_in_proportion_to_its_determinant():
    # Maps to (0, 0) and (1, 0) up to a small linear part, with determinants in the ratio 1 to 3.
    maps = np.array([[0.01, 0, 0, 0.01, 0, 0], [0.03, 0, 0, 0.01, 1, 0]])
    points = Systems(maps=maps[None]).points(np.random.default_rng(0), 500, 40)
    assert (points[0, 0] > 0.5).mean() == pytest.approx(0.75, abs=0.02)


def test_systems_do_not_mix_and_absent_maps_are_never_chosen():
    maps = np.zeros((2, 7, 6))
    maps[:, 0] = [0.1, 0, 0, 0.1, 5, 5]
    maps[1, 0, 4:] = -5
    points = Systems(maps=maps).points(np.random.default_rng(0), 50, 5)
    np.testing.assert_allclose(points[0], 5 / 0.9, rtol=1e-5)
    np.testing.assert_allclose(points[1], -5 / 0.9, rtol=1e-5)


def test_fill_rate_counts_cells_of_the_bounding_box():
    corners = np.array([[0.0, 0.0, 9.0, 9.0], [2.0, 4.0, 2.0, 4.0]])
    grid = np.stack(np.meshgrid(np.arange(32.0), np.arange(32.0))).reshape(2, -1)
    assert fill_rate(corners[None])[0] == 4 / 1024
    assert fill_rate(grid[None])[0] == 1
    diverged, level = np.full((2, 4), np.inf), corners * [[1], [0]]
    assert fill_rate(np.stack([diverged, level])).tolist() == [0, 0]


def test_kept_systems_fill_a_fifth_of_the_grid_with_other_points_too():
    systems = draw_systems(np.random.default_rng(0), 200)
    held = (np.abs(systems.maps).sum(2) > 0).sum(1)
    rates = fill_rate(systems.points(np.random.default_rng(1), 64, 32))
    assert len(rates) == 200
    assert (held.min(), held.max()) == (2, 7)
    # These are other points than the 2,048 that decided, so systems at the limit may miss it:
    # over 8 seeds 80 to 94 % reach it, and 50 to 57 % of systems drawn without the choice.
    assert (rates >= FILL).mean() > 0.75


def test_some_systems_are_scaled_variants_with_a_coefficient_beyond_one():
    maps = draw_systems(np.random.default_rng(0), 60).maps
    assert np.abs(maps).max() <= 1.8
    assert 0.05 < (np.abs(maps).max((1, 2)) > 1).mean() < 0.6


# shape, seed, purity


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (33, 1), (16, 5)])
def test_shape_and_type(make, size, channels):
    images = make(2, size=size, channels=channels)
    assert images.shape == (2, channels, size, size)
    assert images.dtype == (torch.uint8 if make is fractal_images else torch.float32)


def test_the_default_is_rgb_of_224_pixels():
    assert fractal_images(1).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("make", MAKERS)
def test_fewer_images_are_a_prefix_and_the_seed_decides(make):
    images = make(5, size=24, seed=1)
    assert torch.equal(make(3, size=24, seed=1), images[:3])
    assert torch.equal(make(5, size=24, seed=1), images)
    assert not torch.equal(make(5, size=24, seed=2), images)
    assert len({digest(image) for image in images}) == 5


def test_another_process_with_one_thread_makes_the_same_bytes():
    code = (
        "import hashlib, torch; torch.set_num_threads(1)\n"
        "from secateur.data.fractals import fractal_images\n"
        "from secateur.data.noise import gaussian_noise, pink_noise\n"
        "for images in (fractal_images(3, size=128), gaussian_noise(3, size=32),\n"
        "               pink_noise(3, size=32)):\n"
        "    print(hashlib.sha256(images.numpy().tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = [fractal_images(3, size=128), gaussian_noise(3, size=32), pink_noise(3, size=32)]
    assert run.stdout.split() == [digest(images) for images in here]


@pytest.mark.parametrize("make", MAKERS)
def test_global_random_states_are_left_alone(make):
    before = np.random.get_state()[1:], torch.get_rng_state(), random.getstate()  # noqa: NPY002
    make(2, size=16)
    after = np.random.get_state()[1:], torch.get_rng_state(), random.getstate()  # noqa: NPY002
    np.testing.assert_array_equal(after[0][0], before[0][0])
    assert after[0][1:] == before[0][1:]
    assert torch.equal(after[1], before[1])
    assert after[2] == before[2]


# statistics of photographs


def test_colours_and_contrasts_are_those_of_photographs(images):
    pixels = images.double() / 255
    torch.testing.assert_close(
        pixels.mean((0, 2, 3)), torch.tensor([0.48, 0.46, 0.41]).double(), rtol=0, atol=0.06
    )
    luminance = pixels.mean(1)
    assert 0.09 < luminance.mean((1, 2)).std() < 0.17
    assert 0.15 < pixels.std((2, 3)).mean() < 0.27
    correlations = torch.corrcoef(pixels.transpose(0, 1).flatten(1))
    assert correlations.min() > 0.75
    assert correlations[0, 2] < 0.98  # not grey


def test_channels_of_an_image_go_together_but_are_not_equal(images):
    within = torch.stack([torch.corrcoef(image.double().flatten(1))[0, 2] for image in images])
    assert 0.6 < within.median() < 0.98


def test_spectrum_falls_as_one_over_the_frequency(images):
    assert amplitude_slope(images.double().mean(1).numpy()) == pytest.approx(-1, abs=0.4)


def test_there_are_sharp_edges_and_flat_regions(images):
    """Steps between neighbours have heavy tails; those of a Gaussian field have a kurtosis of 3."""
    luminance = images.double().mean(1)
    steps = luminance.diff(dim=2) / luminance.std((1, 2), keepdim=True)
    assert (steps**4).mean() / (steps**2).mean() ** 2 > 8


def test_few_pixels_are_clipped(images):
    assert ((images == 0) | (images == 255)).double().mean() < 0.15


def test_grey_is_the_luminance_and_other_channels_are_mixtures_of_rgb(images):
    rgb = images[:6].double()
    grey = fractal_images(6, size=64, channels=1, seed=3)[:, 0].double()
    weights = torch.tensor([0.299, 0.587, 0.114]).double()
    assert ((rgb * weights[:, None, None]).sum(1) - grey).abs().max() <= 0.51
    mixed = fractal_images(6, size=64, channels=4, seed=3).double()
    assert (mixed <= rgb.amax(1, keepdim=True) + 0.51).all()
    assert (mixed >= rgb.amin(1, keepdim=True) - 0.51).all()
    assert torch.corrcoef(mixed.transpose(0, 1).flatten(1)).min() > 0.75


# noise


def test_gaussian_noise_is_white_with_unit_variance():
    noise = gaussian_noise(40, size=32).double()
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(noise.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.03
    assert amplitude_slope(noise[:, 0].numpy()) == pytest.approx(0, abs=0.1)


def test_pink_noise_is_standard_in_each_channel_and_correlated():
    noise = pink_noise(60, size=32).double()
    assert noise.mean((2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(
        noise.var((2, 3), correction=0), torch.ones(60, 3).double(), rtol=0, atol=1e-4
    )
    correlations = torch.corrcoef(noise.transpose(0, 1).flatten(1))
    assert correlations[0, 1] == pytest.approx(0.9, abs=0.04)
    assert amplitude_slope(noise[:, 0].numpy()) == pytest.approx(-1, abs=0.25)


# mistakes


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("count", "options", "sentence"),
    [
        (0, {}, "count is 0, expected at least 1: ask for one image or more"),
        (1, {"size": 7}, "size is 7, expected at least 8: give the side of the network's input"),
        (1, {"channels": 0}, "channels is 0, expected at least 1: give the channels"),
        (1, {"seed": -1}, "seed is -1, expected at least 0: choose a seed that is not negative"),
    ],
)
def test_a_mistake_says_what_was_got_what_was_expected_and_what_to_do(
    make, count, options, sentence
):
    with pytest.raises(OptionError, match=re.escape(sentence)):
        make(count, **{"size": 16, **options})
