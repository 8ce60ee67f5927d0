"""The first run of an ONNX model, in a process of its own, and what it tells.

A pruned network is the same graph with other weights in its layers: within a call it is run here.
"""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends import first_runs
from secateur.frontends.onnx.branches import conditions
from secateur.frontends.onnx.file import constants, first_line, reads
from secateur.frontends.onnx.large import apart, digest, loadable
from secateur.frontends.onnx.nodes import leading_to
from secateur.frontends.onnx.signature import check_shapes, declared_batch, described, fed
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.onnx.trial import Arrays, run
from secateur.network.samples import Samples
from secateur.support.subprocesses import run_program
from secateur.support.wording import counted

_TIMEOUT_SECONDS = 300.0  # for the first run, on a few images
_PROGRAM = Path(__file__).with_name("trial.py")
_CRASHES = {-number.value: number.name for number in signal.Signals}


@dataclass(frozen=True)
class Trial:
    """What a first run of a model found.

    Attributes:
        outputs: for all samples; None for what is not a tensor of numbers.
        batch: how many samples it takes at a time; 0 = any number.
    """

    outputs: list[Tensor | None]
    batch: int


def trial(model: ModelProto, samples: Samples) -> Trial:
    """Runs a model for the first time, at arm's length; here where that has been done before.

    Args:
        model: of any inputs.
        samples: a few of them, by the model's own names.

    Raises:
        ModelError: it takes samples of other shapes, cannot be run, crashes, does not end, or
            needs half of the memory.
    """
    check_shapes(model, samples)
    declared = declared_batch(model)
    samples = samples.filled(declared) if declared else samples
    key, known = _key(model, samples), first_runs.known()
    known = {} if known is None else known
    how = _here if key in known else at_arms_length
    with loadable(model) as held:
        arrays = how(held, fed(model, samples), known.get(key, declared))
    found = [arrays.get(f"output{index}") for index in range(len(model.graph.output))]
    batch = int(arrays["batch"])
    batch = declared or (batch if batch != len(samples) else 0)
    if key:
        known[key] = batch
    return Trial([None if array is None else torch.from_numpy(array) for array in found], batch)


def batch_of(model: ModelProto, samples: Samples) -> int:
    """How many samples a model takes at a time, 0 = any number; its first run if it had none.

    Raises:
        ModelError: as `trial`.
    """
    known = (first_runs.known() or {}).get(_key(model, samples))
    return trial(model, samples).batch if known is None else known


def known_branches(model: ModelProto, samples: Samples) -> dict[str, bool]:
    """Which branch of the outermost If is run, where that depends on constants and shapes alone.

    Told by three samples and by one; an If whose branch differs between these is left out.
    """
    found = conditions(model)
    if not found:
        return {}
    part = _telling(model, [*found.values()])
    trials = [trial(part, some).outputs for some in (samples, samples[:1])]
    told = [{*(of.flatten().tolist() if of is not None else ())} for runs in trials for of in runs]
    pairs = zip(found, told, told[len(found) :], strict=False)
    return {name: one == {True} for name, one, other in pairs if one == other and len(one) == 1}


def _telling(model: ModelProto, names: list[str]) -> ModelProto:
    """The part of a model that makes some numbers, whose outputs are lists of these."""
    twin = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    twin.graph.input.extend(model.graph.input)
    nodes = leading_to(names, model.graph.node)
    read = {*names, *(name for node in nodes for name in reads(node))}
    twin.graph.initializer.extend(of for of in model.graph.initializer if of.name in read)
    twin.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "a list of them"))
    twin.graph.node.extend(nodes)
    for number, name in enumerate(names):
        new = onnx.helper.make_node("Reshape", [name, "a list of them"], [f"told {number}"])
        twin.graph.node.append(new)
        told = onnx.helper.make_tensor_value_info(f"told {number}", TensorProto.BOOL, None)
        twin.graph.output.append(told)
    twin.graph.name = "conditions"
    return twin


def _key(model: ModelProto, samples: Samples) -> bytes:
    """What a model does with samples of such shapes, whatever its layers' weights are.

    Empty outside of any `one_first_run`, and where nothing would be the same in another model.
    """
    if first_runs.known() is None:
        return b""
    try:
        layouts = Translation(model).layouts
    except Exception:  # the first run, which is at arm's length, tells what is wrong
        return b""
    twin, weights = apart(model)
    held = constants(twin.graph)
    for name in layouts.keys() & held.keys():
        held[name].CopyFrom(TensorProto(name=held[name].name, dims=held[name].dims))
    content = digest(twin, weights) + repr(samples.shapes).encode()
    return hashlib.sha256(content).digest()


def _here(model: bytes | str, feed: Arrays, batch: int) -> Mapping[str, np.ndarray]:
    """Runs a model in this process."""
    try:
        return run(model, feed, torch.get_num_threads(), batch)
    except Exception as error:  # onnxruntime's own kinds
        raise ModelError(
            f"ONNX Runtime cannot run the model with these weights ({first_line(error)}), "
            "expected one that runs as it did before: please report its operations"
        ) from error


def at_arms_length(model: bytes | str, feed: Arrays, batch: int) -> Mapping[str, np.ndarray]:
    """Runs a model, or the file of one, in a process of its own; see `trial.py`."""
    file = io.BytesIO()
    np.savez(file, **feed)  # type: ignore[arg-type]
    held, path = (b"", [model]) if isinstance(model, str) else (model, [])
    options = [str(torch.get_num_threads()), str(len(held)), str(batch), *path]
    content = held + file.getvalue()
    try:
        done = run_program(_PROGRAM, options, seconds=_TIMEOUT_SECONDS, content=content)
    except subprocess.TimeoutExpired as error:
        count = counted(len(next(iter(feed.values()))), "image" if len(feed) == 1 else "sample")
        raise ModelError(
            f"the ONNX model did not finish on {count} within {_TIMEOUT_SECONDS:g} s, "
            "expected one that ends: check its loops"
        ) from error
    if done.returncode != 0:
        raise ModelError(_why_not(done, {name: array.shape[1:] for name, array in feed.items()}))
    with np.load(io.BytesIO(done.stdout)) as held:
        return {name: held[name] for name in held.files}


def _why_not(done: subprocess.CompletedProcess[bytes], shapes: dict[str, tuple[int, ...]]) -> str:
    """The sentence for a first run that failed."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 3 and lines:
        if "alloc" in lines[-1] or lines[-1] == "MemoryError":
            return (
                "the ONNX model asks for more memory than half of this machine's "
                f"({lines[-1][:200]}), expected less: check its sizes, or use smaller images"
            )
        return (
            f"ONNX Runtime cannot run the model on {described(shapes)} ({lines[-1][:300]}), "
            f"expected a file and {'images' if len(shapes) == 1 else 'samples'} that fit: check "
            "size and preprocess"
        )
    how = _CRASHES.get(done.returncode, f"status {done.returncode}")
    return (
        f"ONNX Runtime crashed on the model ({how}), expected a file that it runs: export it "
        "again, or update onnxruntime"
    )
