"""Layers of given widths in PyTorch, eager, channels last, without gradients.

PyTorch fuses nothing: a BatchNorm and an activation behind the layer run by themselves, and their
time is counted with the layer's, since it depends on the same width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from secateur.hardware.layer_cells import clock_for
from secateur.hardware.layer_shape import LayerShape
from secateur.hardware.runtimes.protocol import Engine, EngineOptions, Input

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # memory formats by number of axes
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6}


class TorchCell:
    """A layer in PyTorch; it sets the threads of the whole process."""

    def __init__(self, shape: LayerShape, threads: int) -> None:
        torch.set_num_threads(threads)
        self.clock = clock_for(threads)
        generator = torch.Generator().manual_seed(0)
        self.input = channels_last(torch.randn(shape.input, generator=generator))
        self.function = _function(shape, generator)
        self.times: list[float] = []

    @torch.inference_mode()
    def run(self) -> None:
        """Runs it once; in a network, the layer before has just written the input."""
        self.input.mul_(1.0)
        begin = self.clock()
        self.function(self.input)
        self.times.append(self.clock() - begin)

    def seconds(self) -> list[float]:
        """The time of each run."""
        return self.times


def channels_last(value: Tensor) -> Tensor:
    """The same numbers with the channels side by side, where there are images."""
    layout = _LAST.get(value.dim())
    return value if layout is None else value.contiguous(memory_format=layout)


def _function(shape: LayerShape, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The layer, a BatchNorm and an activation as far as it has them."""
    layer = _layer(shape, generator)
    norm = [torch.zeros(shape.outputs), torch.ones(shape.outputs)] if shape.norm else None
    active = _ACTIVATIONS.get(shape.activation)

    def run(value: Tensor) -> Tensor:
        value = layer(value)
        if norm is not None:
            value = F.batch_norm(value, norm[0], norm[1], norm[1], norm[0])
        return value if active is None else active(value)

    return run


def _layer(shape: LayerShape, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    weight = channels_last(0.01 * torch.randn(shape.weight, generator=generator))
    bias = torch.zeros(shape.outputs) if shape.bias and not shape.norm else None
    if shape.kind == "linear":
        return lambda value: F.linear(value, weight, bias)
    before = tuple(pad[0] for pad in shape.pads)
    axes = len(shape.kernel)
    if shape.kind == "transposed":
        transposed = _TRANSPOSED[axes]
        more = (shape.stride, before, shape.extra, shape.groups, shape.dilation)
        return lambda value: transposed(value, weight, bias, *more)
    convolve = _CONVOLUTIONS[axes]
    if all(pad[0] == pad[1] for pad in shape.pads):
        rest = (shape.stride, before, shape.dilation, shape.groups)
        return lambda value: convolve(value, weight, bias, *rest)
    rest = (shape.stride, 0, shape.dilation, shape.groups)
    pads = [pad for both in reversed(shape.pads) for pad in both]
    return lambda value: convolve(F.pad(value, pads), weight, bias, *rest)


def start(path: Path, options: EngineOptions) -> Engine:
    """A program of `torch.export` as an engine; it sets the threads of the whole process."""
    torch.set_num_threads(options.threads)
    program = torch.export.load(path)
    taken = program.graph_signature.user_inputs
    nodes = [of for of in program.graph.nodes if of.op == "placeholder" and of.name in taken]
    inputs = tuple(_input(node, options, number) for number, node in enumerate(nodes))
    module: Any = program.module()
    args, kwargs = tree_unflatten(
        [node.name for node in nodes], cast(TreeSpec, program.call_spec.in_spec)
    )
    module.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(feed: Mapping[str, np.ndarray]) -> Any:
        values = {name: channels_last(torch.from_numpy(value)) for name, value in feed.items()}
        by_name = {name: values[of] for name, of in kwargs.items()}
        return module(*(values[name] for name in args), **by_name)

    floats = [one.dtype for one in inputs if one.dtype.startswith(("float", "bfloat"))]
    return Engine(inputs=inputs, run=run, precision=next(iter(floats), "float32"))


def _input(node: Any, options: EngineOptions, number: int) -> Input:
    value = node.meta["val"]
    free = [size if isinstance(size, int) else None for size in value.shape]
    dtype = str(value.dtype).removeprefix("torch.")
    return Input(name=node.name, shape=options.filled(free, number), dtype=dtype)
