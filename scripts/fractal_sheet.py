"""Write a sheet of synthetic calibration images, to see what they look like.

    python scripts/fractal_sheet.py -o docs/fractals.jpg

The sheet is written whole or not at all, and replaces an older one.
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from secateur.data.fractals import fractal_images
from secateur.support.files import write_file

ROWS, COLUMNS = 5, 8


def sheet(images: Tensor) -> Image.Image:
    """Lay (rows x columns, 3, size, size) pixels out in rows, at half their size."""
    size = images.shape[-1]
    cells = images.reshape(ROWS, COLUMNS, 3, size, size)
    pixels = cells.permute(0, 3, 1, 4, 2).reshape(ROWS * size, COLUMNS * size, 3)
    return Image.fromarray(pixels.numpy()).reduce(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/fractals.jpg"))
    parser.add_argument("--size", type=int, default=224, help="side in pixels before halving")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = fractal_images(ROWS * COLUMNS, size=options.size, seed=options.seed)
    jpeg = io.BytesIO()
    sheet(images).save(jpeg, "JPEG", quality=88, optimize=True)
    write_file(options.output, jpeg.getvalue(), overwrite=True)


if __name__ == "__main__":
    main()
