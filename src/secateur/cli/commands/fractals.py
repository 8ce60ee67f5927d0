"""`secateur fractals`."""

from __future__ import annotations

import typer
from PIL import Image

from secateur.cli import options
from secateur.cli.output import working
from secateur.data.fractals import fractal_images
from secateur.errors import OptionError
from secateur.support.files import output_folder
from secateur.support.wording import counted


def run(asked: options.Fractals) -> None:
    """Writes fractal images, a PNG file each."""
    if asked.channels not in (1, 3):
        raise OptionError(f"--channels is {asked.channels}, expected 3 (RGB) or 1 (grayscale)")
    with working(asked.quiet) as teller, output_folder(asked.out, overwrite=asked.force) as folder:
        teller.step("making images")
        images = fractal_images(
            asked.count, size=asked.size, channels=asked.channels, seed=asked.seed
        )
        for index, image in enumerate(images):
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(folder / f"fractal-{index:05d}.png")
    made = counted(asked.count, "fractal image")
    typer.echo(f"{asked.out}: {made} of {asked.size} x {asked.size}, seed {asked.seed}")
