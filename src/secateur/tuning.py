"""Block tuning: the surviving weights of a few layers trained together, block after block.

A layer's fit minimises the error of its own outputs. What counts is what comes out of a residual
block, after the nonlinearities and with the error that the skip path already carries. So when all
layers are fitted, the network is cut where a single value passes from one part to the next, and
each block's surviving weights and biases are trained, by Adam and back-propagation through that
block alone, to give the dense network's outputs from the pruned network's inputs:

    min over W, b:  mean || block_dense(x_dense) - block(x_pruned; W, b) ||^2 ,   masks fixed.

Targets are activations, thousands for each image, so that the few hundred images tell more than
their scores alone do (training on these over-fits at once, see docs/experiments.md). A part of the
images is held back: a block that is not better on these stays as it was fitted, and when all are
done the whole network does, unless its outputs on these come closer to the dense one's. A block's
own outputs alone are no judge of that: those of half of EfficientNet-Lite0 came closer on images
held back too, and the network's outputs went further off.
Source of the idea: Li et al., "BRECQ: Pushing the limit of post-training quantization by block
reconstruction", 2021, section 3.2; here for pruned weights.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import DataError, ModelError
from secateur.graph import Graph, Layer

Changes = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class BlockTuning:
    """How blocks are tuned.

    Attributes:
        layers: pruned layers in a block at least, but at most three quarters of all; 2 make a
            residual block one block. Longer blocks make good more of what was lost: 2, 6 and 18
            gave 87.8, 88.7 and 89.0 % top-1 on ResNet-56 at 90 % zeros; all layers in one block,
            trained on the scores, fit the images alone (docs/experiments.md).
        steps: of Adam for each block.
        batch: images in each.
        rate: first step, relative to the root mean square of a tensor's surviving weights; it
            falls to 0 along half a cosine.
        held_back: one of so many images is not trained on but judged on.
    """

    layers: int = 16
    steps: int = 150
    batch: int = 32
    rate: float = 0.02
    held_back: int = 8

    def tune(
        self,
        graph: Graph,
        images: Tensor,
        layers: Sequence[Layer],
        changes: Mapping[str, Tensor],
        *,
        chunk: int,
        seed: int = 0,
        on_layer: Callable[[Layer], Any] = lambda layer: None,
    ) -> tuple[Changes, Tuned]:
        """Tunes a pruned network.

        Args:
            graph: the dense network.
            images: calibration inputs, batch first.
            layers: the pruned layers, in execution order.
            changes: the pruned network's parameters where they differ, by name.
            chunk: images per run of an operation where nothing is trained.
            seed: of the choice of images.
            on_layer: called with each layer when its block is done.

        Returns:
            The changes, those of tuned layers new if that made the network better, and what
            happened.

        Raises:
            ModelError: the front-end's operations have no gradients.
            DataError: too few images to hold one back.

        Cost: for each block steps * batch images forward and backward, which is
        3 * steps * batch / images forward passes of the whole network.
        Memory: the values at two cuts for all images, dense and pruned, and what back-propagation
        through a block needs of a batch.
        """
        if not graph.has_gradients:
            raise ModelError(
                "block tuning needs gradients, which ONNX Runtime does not give, expected a "
                "PyTorch network: prune that, or leave out tuning"
            )
        if len(images) < self.held_back:
            raise DataError(
                f"{len(images)} images to tune blocks on, expected at least {self.held_back}, of "
                "which one is held back: give more images, or leave out tuning"
            )
        generator = torch.Generator().manual_seed(seed)
        found: Changes = dict(changes)
        parameters = ChainMap(found, dict(graph.parameters))
        judged = torch.arange(len(images)) % self.held_back == self.held_back - 1
        least = max(1, min(self.layers, len(layers) * 3 // 4))
        dense = pruned = images
        blocks = []
        for block in _blocks(graph, images, layers, least):
            target = block.run(graph.parameters, dense, chunk)
            tuned = self._tuned(block, parameters, pruned[~judged], target[~judged], generator)
            before, after = (
                _error(block.run(values, pruned[judged], chunk), target[judged])
                for values in (parameters, ChainMap(tuned, *parameters.maps))
            )
            if after < before:
                found.update(tuned)
            names = tuple(layer.name for layer in block.layers)
            blocks.append(TunedBlock(names, before, after, after < before))
            dense, pruned = target, block.run(parameters, pruned, chunk)
            for layer in block.layers:
                on_layer(layer)
        whole = _whole(graph, images)
        wanted, first, last = (
            whole.run(ChainMap(dict(of), dict(graph.parameters)), images[judged], chunk)
            for of in ({}, changes, found)
        )
        result = Tuned(tuple(blocks), _error(first, wanted), _error(last, wanted))
        return (found if result.kept else dict(changes)), result

    def _tuned(
        self,
        block: _Block,
        parameters: Mapping[str, Tensor],
        inputs: Tensor,
        target: Tensor,
        generator: torch.Generator,
    ) -> Changes:
        """New values of what can be trained in a block."""
        names = [name for layer in block.layers for name in _trainable(layer)]
        if not names or not len(inputs):
            return {}
        values = {name: parameters[name].detach().clone().requires_grad_() for name in names}
        changed = ChainMap(values, parameters)  # type: ignore[arg-type]
        variance = target.var(correction=0).clamp_min(torch.finfo(target.dtype).tiny)

        def error(chosen: Tensor) -> Tensor:
            output = block.values(changed, inputs[chosen])
            return (output - target[chosen]).square().mean() / variance

        self._train(list(values.values()), error, len(inputs), generator)
        return {name: value.detach() for name, value in values.items()}

    def _train(
        self,
        values: list[Tensor],
        error: Callable[[Tensor], Tensor],
        images: int,
        generator: torch.Generator,
    ) -> None:
        masks = [value.detach() != 0 if value.dim() > 1 else None for value in values]
        groups = [{"params": [value], "lr": self.rate * _size(value)} for value in values]
        adam = torch.optim.Adam(groups)
        falling = lambda step: 0.5 * (1 + math.cos(math.pi * step / self.steps))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, falling)
        for _ in range(self.steps):
            chosen = torch.randint(images, (self.batch,), generator=generator)
            with torch.enable_grad():
                loss = error(chosen)
            adam.zero_grad()
            loss.backward()
            for value, mask in zip(values, masks, strict=True):
                if mask is not None and value.grad is not None:
                    value.grad *= mask
            adam.step()
            schedule.step()


@dataclass(frozen=True)
class TunedBlock:
    """What tuning did to a block.

    Attributes:
        layers: names of its pruned layers.
        before, after: error of its outputs on the images held back, relative to their variance.
        kept: whether the tuned weights were taken; else it stays as it was fitted.
    """

    layers: tuple[str, ...]
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class Tuned:
    """What tuning did to a network.

    Attributes:
        blocks: block by block.
        before, after: error of the network's first output on the images held back, relative to
            its variance.
    """

    blocks: tuple[TunedBlock, ...]
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the tuned network was taken; else it stays as it was fitted."""
        return self.after < self.before

    def note(self) -> str:
        """What was tuned, for the report."""
        error = (
            f"{self.before:.2g} before, {self.after:.2g} after: error of the network's outputs on "
            "the calibration images held back"
        )
        if not self.kept:
            return f"blocks tuned but left as they were fitted, because that is no better ({error})"
        kept = sum(block.kept for block in self.blocks)
        note = f"{kept} of {len(self.blocks)} blocks tuned ({error})"
        if kept < len(self.blocks):
            note += "; the others were no better on these"
        return note


@dataclass(frozen=True)
class _Block:
    """The operations from one cut of the network to the next.

    Attributes:
        graph: the network.
        input, output: the values at the cuts.
        first, stop: its operations.
        sizes: earlier operations that give sizes, which depend on the number of images.
        shape: of one image.
        layers: the pruned ones among its own.
    """

    graph: Graph
    input: str
    output: str
    first: int
    stop: int
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    def values(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The block's output."""
        images = x.new_zeros(1).expand(len(x), *self.shape)  # only their number matters
        values: dict[str, Any] = {self.graph.input: images, self.input: x}
        names = ChainMap(values, parameters)  # type: ignore[arg-type]
        for index in (*self.sizes, *range(self.first, self.stop)):
            values[self.graph.ops[index].name] = self.graph.run(index, names)
        return values[self.output]

    @torch.no_grad()
    def run(self, parameters: Mapping[str, Tensor], x: Tensor, chunk: int) -> Tensor:
        """The output for all images."""
        return torch.cat([self.values(parameters, part) for part in x.split(chunk)])


def _blocks(graph: Graph, images: Tensor, layers: Sequence[Layer], least: int) -> Iterator[_Block]:
    """Blocks of at least so many pruned layers; what comes after the last one stays."""
    first, value, inside = 0, graph.input, []
    waiting = list(layers)
    sizes, cuts = _cuts(graph, images[:2])
    for stop, name in cuts:
        while waiting and waiting[0].uses[-1].op < stop:
            inside.append(waiting.pop(0))
        if not inside or (len(inside) < least and waiting):
            continue
        earlier = tuple(index for index in sizes if index < first)
        shape = tuple(images.shape[1:])
        yield _Block(graph, value, name, first, stop, earlier, shape, tuple(inside))
        first, value, inside = stop, name, []


def _whole(graph: Graph, images: Tensor) -> _Block:
    """All operations up to the network's first output, as one block."""
    shape = tuple(images.shape[1:])
    return _Block(graph, graph.input, graph.outputs[0], 0, len(graph.ops), (), shape, ())


@torch.no_grad()
def _cuts(graph: Graph, images: Tensor) -> tuple[list[int], list[tuple[int, str]]]:
    """Where a network can be cut.

    Returns:
        The operations that give sizes (no tensors, of sizes only); and the cuts, as the number of
        operations before it and the one tensor, batch first, that is all the later ones read.
    """
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        last |= dict.fromkeys(op.reads, index)
    last |= dict.fromkeys(graph.outputs, len(graph.ops))
    values: dict[str, Any] = {graph.input: images}
    names = ChainMap(values, dict(graph.parameters))  # type: ignore[arg-type]
    sizes: list[int] = []
    made_of_sizes = {graph.input}
    alive, cuts = {graph.input}, []
    for index, op in enumerate(graph.ops):
        value = values[op.name] = graph.run(index, names)
        if not isinstance(value, Tensor | tuple | list) and made_of_sizes.issuperset(op.reads):
            sizes.append(index)
            made_of_sizes.add(op.name)
        else:
            alive.add(op.name)
        for name in [name for name in values if last.get(name, -1) <= index]:
            if name != graph.input and name not in made_of_sizes:
                del values[name]
        alive = {name for name in alive if last.get(name, -1) > index}
        tensors = {name for name in alive if name != graph.input or _is_read(graph, index, sizes)}
        single = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(images)
        if single and tensors == {op.name}:
            cuts.append((index + 1, op.name))
    return sizes, cuts


def _is_read(graph: Graph, after: int, sizes: Sequence[int]) -> bool:
    """Whether a later operation reads the images for more than their number."""
    return any(
        graph.input in op.reads and index not in sizes
        for index, op in enumerate(graph.ops)
        if index > after
    )


def _trainable(layer: Layer) -> list[str]:
    """A pruned layer's weight, and what scales and shifts its outputs and nothing else.

    Not a BatchNorm's mean, where fitted biases go: PyTorch has no gradient for it.
    """
    if len(layer.uses) != 1:
        return []
    return list(dict.fromkeys([str(layer.parameter), *filter(None, layer.affine or ())]))


def _error(output: Tensor, wanted: Tensor) -> float:
    """Mean squared error relative to the variance."""
    variance = wanted.float().var(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    return float((output.float() - wanted.float()).square().mean() / variance)


def _size(value: Tensor) -> float:
    """Root mean square of the entries that are not zero."""
    value = value.detach()
    return float(value.square().sum().div(value.count_nonzero().clamp_min(1)).sqrt())
