"""What the results of a call depend on: a work folder goes on only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.evaluation.evaluation_set import EvaluationSet
from secateur.frontends import Frontend
from secateur.network.graph import Graph
from secateur.network.samples import Samples
from secateur.network.stream import Stream
from secateur.options import Options
from secateur.pruning.targets import MaxDrop
from secateur.support.serialization import to_plain
from secateur.version import __version__

_RUNTIMES = {".onnx": ("onnx", "onnxruntime"), ".xml": ("openvino",)}


def facts_of(
    options: Options,
    model: Frontend,
    graph: Graph,
    samples: Samples,
    baseline: EvaluationSet | None,
) -> dict[str, str]:
    """All that the results depend on, by what a user calls it; long things as digests.

    Args:
        options: of the call.
        model, graph: the dense network, and as it was traced.
        samples: calibration inputs.
        baseline: what the dense network says to the data to judge by; None = there are none. The
            weights depend on it in a search alone; reports are written anew each time.
    """
    judged = None if baseline is None or not isinstance(options.target, MaxDrop) else baseline
    settings = options.settings(samples.device)
    settings.pop("memory", None)  # with any cap the results are the same
    settings["threads of runtime"] = options.threads
    return {
        **versions(model),
        **dict(_flat("", to_plain(settings))),
        "parameters": _digest(sorted({**graph.parameters, **model.saved_tensors()}.items())),
        "operations": _text_digest(_operations(graph)),
        "what the network gives": _behaviour(graph, samples),
        "images": _digest([*sorted(samples.tensors.items()), *sorted(samples.constants.items())]),
        **({} if judged is None else {"data to judge by": _judged(judged)}),
    }


def versions(model: Frontend) -> dict[str, str]:
    """Programs, threads and the processor: sums are taken in another order by others."""
    packages = ("safetensors", *_RUNTIMES.get(model.suffix, ()))
    return {
        "secateur": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: installed(name) for name in packages},
        "threads of PyTorch": str(torch.get_num_threads()),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """The innermost settings by their path, as "recipe.method.iterations"."""
    if isinstance(value, Mapping) and value:
        for name, of in value.items():
            yield from _flat(f"{place}.{name}" if place else str(name), of)
    else:
        yield place, json.dumps(value)


def _operations(graph: Graph) -> str:
    """The operations, and what each reads; what they compute with else shows in what they give."""
    return "\n".join(f"{type(op).__name__} {op.operation} {op.name} {op.reads}" for op in graph.ops)


@torch.no_grad()
def _behaviour(graph: Graph, samples: Samples) -> str:
    """What the dense network gives for two samples; of CPUs, for others need not repeat it."""
    if samples.device.type != "cpu":
        return "not compared"
    stream = Stream(graph, graph.parameters, samples.select(slice(2)).inputs())
    stream.advance(len(graph.ops))
    found = stream.values[graph.outputs[0]]
    return _digest([("output", torch.as_tensor(found))])


def _judged(baseline: EvaluationSet) -> str:
    labels = [] if baseline.labels is None else [("labels", torch.as_tensor(baseline.labels))]
    return _digest([("dense", torch.as_tensor(baseline.dense)), *labels])


def _text_digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():
            held = tensor.detach().cpu().contiguous().flatten()
            found.update(held.view(torch.uint8).numpy().data)
    return f"sha256:{found.hexdigest()}"
