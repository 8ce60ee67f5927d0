"""The first run of an ONNX model, in a process of its own, and what it tells.

A pruned network is the same graph with other weights in its layers: within a call it is run here.
"""

from __future__ import annotations

import hashlib
import io
import math
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends import first_runs
from secateur.frontends.onnx.file import constants, first_line
from secateur.frontends.onnx.runtime import filled
from secateur.frontends.onnx.signature import check_images, declared_batch
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.onnx.trial import run
from secateur.support.subprocesses import run_program

_TIMEOUT_SECONDS = 300.0  # for the first run, on a few images
_PROGRAM = Path(__file__).with_name("trial.py")
_CRASHES = {-number.value: number.name for number in signal.Signals}


@dataclass(frozen=True)
class Trial:
    """What a first run of a model found.

    Attributes:
        outputs: for all images; None for what is not a tensor of numbers.
        batch: how many images it takes at a time; 0 = any number.
    """

    outputs: list[Tensor | None]
    batch: int


def trial(model: ModelProto, images: Tensor) -> Trial:
    """Runs a model for the first time, at arm's length; here where that has been done before.

    Args:
        model: with a single input.
        images: a few inputs.

    Raises:
        ModelError: it takes images of another shape, cannot be run, crashes, does not end, or
            needs half of the memory.
    """
    check_images(model, images.shape[1:])
    declared = declared_batch(model)
    if declared:
        images = filled(images, declared * math.ceil(len(images) / declared))
    key, known = _key(model, images.shape[1:]), first_runs.known()
    known = {} if known is None else known
    content, fed = model.SerializeToString(), images.cpu().contiguous().numpy()
    how = _here if key in known else at_arms_length
    arrays = how(content, fed, known.get(key, declared))
    found = [arrays.get(f"output{index}") for index in range(len(model.graph.output))]
    batch = int(arrays["batch"])
    batch = declared or (batch if batch != len(images) else 0)
    if key:
        known[key] = batch
    return Trial([None if array is None else torch.from_numpy(array) for array in found], batch)


def batch_of(model: ModelProto, images: Tensor) -> int:
    """How many images a model takes at a time, 0 = any number; its first run if it had none.

    Raises:
        ModelError: as `trial`.
    """
    known = (first_runs.known() or {}).get(_key(model, images.shape[1:]))
    return trial(model, images).batch if known is None else known


def _key(model: ModelProto, shape: Sequence[int]) -> bytes:
    """What a model does with images of a shape, whatever its layers' weights are.

    Empty outside of any `one_first_run`, and where nothing would be the same in another model.
    """
    if first_runs.known() is None:
        return b""
    twin = ModelProto()
    twin.CopyFrom(model)
    held = constants(twin.graph)
    try:
        layouts = Translation(model).layouts
    except Exception:  # the first run, which is at arm's length, tells what is wrong
        return b""
    for name in layouts.keys() & held.keys():
        held[name].ClearField("raw_data")
        held[name].ClearField("float_data")
    content = twin.SerializeToString(deterministic=True)
    return hashlib.sha256(content + repr(tuple(shape)).encode()).digest()


def _here(model: bytes, images: np.ndarray, batch: int) -> Mapping[str, np.ndarray]:
    """Runs a model in this process."""
    try:
        return run(model, images, torch.get_num_threads(), batch)
    except Exception as error:  # onnxruntime's own kinds
        raise ModelError(
            f"ONNX Runtime cannot run the model with these weights ({first_line(error)}), "
            "expected one that runs as it did before: please report its operations"
        ) from error


def at_arms_length(model: bytes, images: np.ndarray, batch: int) -> Mapping[str, np.ndarray]:
    """Runs a model in a process of its own; see `trial.py` for what goes in and comes out."""
    file = io.BytesIO()
    np.save(file, images)
    numbers = [str(torch.get_num_threads()), str(len(model)), str(batch)]
    try:
        done = run_program(
            _PROGRAM, numbers, seconds=_TIMEOUT_SECONDS, content=model + file.getvalue()
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"the ONNX model did not finish on {len(images)} images within {_TIMEOUT_SECONDS:g} s, "
            "expected one that ends: check its loops"
        ) from error
    if done.returncode != 0:
        raise ModelError(_why_not(done, images.shape))
    with np.load(io.BytesIO(done.stdout)) as held:
        return {name: held[name] for name in held.files}


def _why_not(done: subprocess.CompletedProcess[bytes], shape: tuple[int, ...]) -> str:
    """The sentence for a first run that failed."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 3 and lines:
        if "alloc" in lines[-1] or lines[-1] == "MemoryError":
            return (
                "the ONNX model asks for more memory than half of this machine's "
                f"({lines[-1][:200]}), expected less: check its sizes, or use smaller images"
            )
        return (
            f"ONNX Runtime cannot run the model on images of shape {shape[1:]} "
            f"({lines[-1][:300]}), expected a file and images that fit: check size and preprocess"
        )
    how = _CRASHES.get(done.returncode, f"status {done.returncode}")
    return (
        f"ONNX Runtime crashed on the model ({how}), expected a file that it runs: export it "
        "again, or update onnxruntime"
    )
