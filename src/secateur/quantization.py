"""INT8: post-training quantisation with NNCF in which every zero stays a zero.

Weights are symmetric: w = scale * q with integers q and a scale per output, so that 0 is q = 0.
Zeros are looked for in what comes out, layer by layer; one that is lost is an error.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.errors import ModelError
from secateur.extras import require


def quantize(
    model: Any, images: Tensor, *, batch: int, weights: Callable[[Any], Mapping[str, np.ndarray]]
) -> Any:
    """A model in INT8 by NNCF; the zeros of its weights are kept.

    Args:
        model: an `onnx.ModelProto` or an `openvino.Model`; not changed.
        images: calibration images as the network takes them; all are used.
        batch: how many the model takes at a time; 0 = any number.
        weights: what the layers of such a model multiply with, by layer.

    Raises:
        ModelError: NNCF refuses the model, or a zero was lost.
        MissingExtraError: nncf is not installed.

    Cost: about two forward passes, one image at a time.
    """
    nncf = require_nncf()
    size = batch or 1
    feed = [_fed(images[at : at + size], size) for at in range(0, len(images), size)]
    with _quiet():
        try:
            found = nncf.quantize(model, nncf.Dataset(feed), subset_size=len(feed))
        except Exception as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                f"NNCF cannot quantise the network: {first}; the other outputs do not need it: "
                "leave out INT8"
            ) from error
    check_zeros(weights(model), weights(found))
    return found
