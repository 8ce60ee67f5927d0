"""Calibration and evaluation images from any source, as inputs of a network.

`Data` is what every function takes that takes images:

- a float tensor (N, C, ...), as the network takes it, or an array;
- a pair (images, labels) of these, with a class number for each image;
- for a network of several inputs a mapping of such tensors by the names of its inputs, whole
  numbers and bools too, or a tuple of them in their order; labels may come last;
- a DataLoader or any other iterable of batches (see `secateur.data.batches`);
- a Dataset of single images;
- the path of a folder of images, or of an `.npz` file with `images` and perhaps `labels`;
- a reference to a function that returns any of these: "file.py:callable" or
  "package.module:callable";
- synthetic images: "fractal:300" and, for comparison only, "gaussian:300" and "pink:300";
- what `load_images` or `open_images` returned.

Where labels are of no use, as in calibration, they are left out. `open_images` opens any of them
and returns them batch by batch, for networks are evaluated on any number of images. Layers are
fitted to all calibration images at once: `load_images` returns them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from secateur.data.images import MAX_IMAGES, Images
from secateur.data.iterating import Indexed
from secateur.data.preprocess import Transform
from secateur.data.reading import Reader
from secateur.data.streams import (
    ImageStream,
    check_finite,
    joined,
)
from secateur.network.samples import Signature
from secateur.support.settings import SEEDS, at_least, check_arguments

# Any source of images; the text at the top of this file describes each.
Data: TypeAlias = (
    Tensor
    | np.ndarray
    | tuple[Any, Any]
    | Iterable[Any]
    | Indexed
    | str
    | Path
    | Images
    | ImageStream
)


def load_images(
    data: Data,
    *,
    preprocess: Transform | None = None,
    max_images: int | None = MAX_IMAGES,
    seed: int = 0,
    labelled: bool = False,
    takes: Signature | None = None,
) -> Images:
    """Reads images from any accepted source: a folder, an array, a DataLoader and others.

    The guide (docs/guide.md) lists all sources.

    Args:
        data: the source.
        preprocess: `Preprocess`, or any function from a PIL image to a float tensor. Needed for
            uint8 arrays and for images of different sizes, refused for float arrays.
        max_images: use at most this many: a random choice with `seed`, in their order (of an
            iterable the first ones); None = all.
        seed: seed of that choice, and of synthetic images.
        labelled: whether to return labels, if the source has them.
        takes: the inputs of the network, by which those of a mapping or a tuple are found; None =
            of a mapping all but labels.

    Raises:
        DataError: the source does not exist, holds no images or broken ones, or they differ
            in size; the message names the file.
    """
    check_arguments(load_images, locals(), max_images=at_least(1), seed=SEEDS)
    if isinstance(data, Images):
        check_finite(data.samples, data.source)
        return _fewer(data, max_images, seed)
    stream = open_images(
        data,
        preprocess=preprocess,
        max_images=max_images,
        seed=seed,
        labelled=labelled,
        takes=takes,
    )
    whole = joined(list(stream.checked()))
    return Images(
        whole.samples,
        stream.source,
        whole.labels,
        stream.notes,
        stream.synthetic,
        stream.classes,
        stream.warnings,
    )


def _fewer(images: Images, most: int | None, seed: int) -> Images:
    """At most so many of some images."""
    chosen, notes = Reader(None, most, seed, labelled=True).choice(len(images.samples))
    if not notes:
        return images
    labels = None if images.labels is None else images.labels[chosen]
    notes = [*images.notes, *notes]
    return replace(images, samples=images.samples.select(chosen), labels=labels, notes=notes)


def open_images(
    data: Data,
    *,
    preprocess: Transform | None = None,
    max_images: int | None = None,
    seed: int = 0,
    labelled: bool = True,
    takes: Signature | None = None,
) -> ImageStream:
    """Opens any accepted source to be read batch by batch; arguments as for `load_images`.

    Raises:
        DataError: the source does not exist or holds no images, or its labels are wrong. Other
            faults are raised when the images are read.
    """
    check_arguments(open_images, locals(), max_images=at_least(1), seed=SEEDS)
    return Reader(preprocess, max_images, seed, labelled, takes).read(data)
