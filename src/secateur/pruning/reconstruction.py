"""Block reconstruction: trains the remaining weights of several layers together, block by block.

A layer's fit minimises the error of its own outputs. It ignores the nonlinearities of a block, and
the error that the skip connection already carries. Once all layers are fitted, the network is
therefore cut where a single value passes from one part to the next. Adam trains each block's
remaining weights and biases, with back-propagation through that block alone, to reproduce the dense
network's outputs from the pruned network's inputs:

    min over W, b:  mean || block_dense(x_dense) - block(x_pruned; W, b) ||^2 ,   masks fixed.

Targets are activations, thousands for each image, and say more than the scores of a few hundred
images (training on scores overfits at once, see docs/experiments.md). Some images are held back. A
block that is no better on these is trained again with steps a quarter as large, and keeps its
fitted weights if that does not help either; the blocks behind it take the smaller steps at once. At
the end the network as fitted is compared with the network after each block, and the one whose
outputs on these images are closest to the dense ones is kept. A block's own outputs do not decide
that: for half of EfficientNet-Lite0 they came closer on images held back, while the network's
outputs moved away.
Source of the idea: Li et al., "BRECQ: Pushing the limit of post-training quantization by block
reconstruction", 2021, section 3.2; here for pruned weights.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from secateur.errors import DataError, ModelError
from secateur.network.cuts import Block, blocks, network_errors
from secateur.network.geometry import per_output
from secateur.network.graph import Graph, overlay
from secateur.network.layers import Layer
from secateur.network.mapped import MappedValues
from secateur.network.samples import Samples
from secateur.pruning.execution import Execution
from secateur.pruning.goal import Goal
from secateur.pruning.journal import Chapter
from secateur.support.settings import at_least, check_settings, more_than
from secateur.support.wording import counted

Changes = dict[str, Tensor]

_SMALLER = 4  # times smaller are the steps where larger ones made a block no better
_SMALLEST = 1 / 16  # of the first step size
_TRIAL = 5  # times fewer steps in the trials of step sizes
_STATE, _ERRORS = "generator's state", "errors"  # in journals
_NEGLIGIBLE = 1e-6  # an output's largest weight, relative to the layer's


@dataclass(frozen=True, kw_only=True)
class BlockReconstruction:
    """Settings of block reconstruction: training several layers together.

    Attributes:
        layers: smallest number of pruned layers in a block, or three quarters of all if that is
            less; 2 make a residual block one block. Longer blocks recover more accuracy: 2, 6
            and 18 gave 87.8, 88.7 and 89.0 % top-1 on ResNet-56 at 90 % zeros. All layers in one
            block, trained on the scores, overfit (docs/experiments.md).
        steps: Adam steps for each block.
        batch: images in each step. 32 cost nearly twice as much and gave ResNet-56 no more top-1
            (at 80 % zeros 92.0 and 92.0, at 90 % 88.5 and 88.7, standard errors 0.3 and 0.4).
        rate: first step size, relative to the root mean square of a tensor's remaining weights;
            it falls to 0 along half a cosine. A quarter of it, and a sixteenth, where a block would
            be no better on images held back; a fifth of the steps tells which, in the first block.
        held_back: one in this many images is held back to compare networks on.
    """

    name: ClassVar[str] = "block-reconstruction"
    summary: ClassVar[str] = (
        "Then the remaining weights of neighbouring layers were trained together to reproduce the "
        "values in the dense network."
    )

    layers: int = 16
    steps: int = 150
    batch: int = 16
    rate: float = 0.02
    held_back: int = 8

    def __post_init__(self) -> None:
        check_settings(
            self,
            layers=at_least(1),
            steps=at_least(1),
            batch=at_least(1),
            rate=more_than(0),
            held_back=at_least(2),
        )

    def reconstruct(
        self,
        graph: Graph,
        samples: Samples,
        layers: Sequence[Layer],
        changes: Mapping[str, Tensor],
        *,
        chunk: int,
        seed: int = 0,
        on_layer: Callable[[Layer], Any] = lambda layer: None,
        execution: Execution | None = None,
    ) -> tuple[Changes, ReconstructionResult]:
        """Trains the blocks of a pruned network.

        Args:
            graph: the dense network.
            samples: calibration inputs.
            layers: the pruned layers, in execution order.
            changes: the pruned network's parameters where they differ, by name.
            chunk: samples per run of an operation where nothing is trained.
            seed: of the choice of samples.
            on_layer: called with each layer when its block is done.
            execution: its journal has the blocks that were trained before, and is told of those
                trained here; with a cap on memory the values of all samples are in files; of its
                processes the first one trains, the others wait.

        Returns:
            The changes, those of trained layers new if that made the network better, and what
            happened.

        Raises:
            ModelError: the front-end's operations have no gradients.
            DataError: too few samples to hold one back.

        Cost: for each block steps * batch samples forward and backward, which is
        3 * steps * batch / samples forward passes of the whole network, and at most two fifths of
        the first block's more for the trials of step sizes. Twice more for a block at most, in the
        whole network, where steps turn out to be too large later on.
        Memory: the values at two cuts for all samples, dense and pruned, and what back-propagation
        through a block needs of a batch.
        """
        if not graph.has_gradients:
            raise ModelError(
                "block reconstruction needs gradients, which ONNX Runtime does not give, expected "
                "a PyTorch network: prune that, or leave out the reconstruction"
            )
        if len(samples) < self.held_back:
            raise DataError(
                f"{counted(len(samples), 'image')} to train blocks on, expected at least "
                f"{self.held_back}, of which one is held back: give more images, or leave out the "
                "reconstruction"
            )
        execution = execution or Execution()
        if not execution.group.is_first:
            return self._heard(execution, layers, on_layer)
        generator, trials = (torch.Generator().manual_seed(seed + at) for at in range(2))
        current: Changes = dict(changes)
        parameters = ChainMap(current, dict(graph.parameters))
        judged = torch.arange(len(samples)) % self.held_back == self.held_back - 1
        least = max(1, min(self.layers, len(layers) * 3 // 4))
        mapped = MappedValues(execution.spill)
        dense = pruned = samples
        done: list[BlockResult] = []
        stages = [dict(changes)]
        rate: float | None = None
        chapter = execution.journal.chapter("reconstruction", in_first=True, layers=len(layers))
        for number, block in enumerate(blocks(graph, samples, layers, least)):
            target = block.run(graph.parameters, dense, chunk, mapped)
            entry = chapter.get(number, BlockResult)
            if entry is None:
                goal = Goal.of(target, block, samples.mask)
                training = _Training(block, parameters, pruned, goal, judged, chunk, mapped)
                rate = self._rate(training, trials) if rate is None else rate
                new, result = self._reconstructed(training, rate, generator)
                chapter.put(number, result, {**new, _STATE: generator.get_state()})
            else:
                generator.set_state(entry.tensors.pop(_STATE))
                new, result = entry.tensors, entry.record
            rate = result.rate
            current.update(new)
            stages.append(dict(current))
            done.append(result)
            dense, pruned = target, block.run(parameters, pruned, chunk, mapped)
            for layer in block.layers:
                on_layer(layer)
        errors = _errors_before(chapter)
        if errors is None:
            errors = network_errors(graph, samples.select(judged), stages, chunk)
            chapter.put(_ERRORS, _Errors(tuple(errors)))
        last = errors.index(min(errors))
        left = [replace(block, kept=False) for block in done[last:]]
        result = ReconstructionResult((*done[:last], *left), errors[0], errors[last], self.rate)
        return execution.group.broadcast((stages[last], result))

    @staticmethod
    def _heard(
        execution: Execution, layers: Sequence[Layer], on_layer: Callable[[Layer], Any]
    ) -> tuple[Changes, ReconstructionResult]:
        """What the first process has found."""
        execution.journal.chapter("reconstruction", in_first=True, layers=len(layers))
        found: Any = execution.group.broadcast(None)
        for layer in layers:
            on_layer(layer)
        return found

    def _rate(self, training: _Training, generator: torch.Generator) -> float:
        """The first step size: the largest whose first steps make a block better.

        A whole training with steps that turn out to be too large would cost five times as much.
        """
        rate, brief = self.rate, max(1, self.steps // _TRIAL)
        while rate > self.rate * _SMALLEST:
            if (
                training.run(replace(self, rate=rate, steps=brief), generator).after
                < training.before
            ):
                break
            rate /= _SMALLER
        return rate

    def _reconstructed(
        self, training: _Training, rate: float, generator: torch.Generator
    ) -> tuple[Changes, BlockResult]:
        """Trains a block, again with smaller steps where it gets no better."""
        while True:
            trained = training.run(replace(self, rate=rate), generator)
            better = trained.after < training.before
            if better or not trained.changes or rate <= self.rate * _SMALLEST:
                break
            rate /= _SMALLER
        names = tuple(layer.name for layer in training.block.layers)
        result = BlockResult(names, training.before, trained.after, better, rate)
        return trained.changes if better else {}, result

    def train(
        self,
        block: Block,
        parameters: Mapping[str, Tensor],
        inputs: Samples,
        goal: Goal,
        generator: torch.Generator,
        release: Callable[[], Any] = lambda: None,
    ) -> Changes:
        """New values of what can be trained in a block, where its outputs come closer to a goal."""
        names = [name for layer in block.layers for name in _trainable(layer)]
        if not names:
            return {}
        values = {name: parameters[name].detach().clone().requires_grad_() for name in names}
        changed = overlay(values, parameters)
        variances = goal.variances(release)

        def error(chosen: Tensor) -> Tensor:
            given, wanted = inputs.select(chosen), goal.select(chosen)
            release()  # of the rows these are copies
            return wanted.distance(block.values(changed, given), variances)

        self._train(list(values.values()), error, len(inputs), generator)
        return {name: value.detach() for name, value in values.items()}

    def _train(
        self,
        values: list[Tensor],
        error: Callable[[Tensor], Tensor],
        samples: int,
        generator: torch.Generator,
    ) -> None:
        masks = [_alive(value.detach()) if value.dim() > 1 else None for value in values]
        adam = self._adam(values)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, self._falling)
        for _ in range(self.steps):
            chosen = torch.randint(samples, (self.batch,), generator=generator)
            with torch.enable_grad():
                loss = error(chosen)
            if not loss.requires_grad:  # the network detaches its values
                return
            adam.zero_grad()
            torch.autograd.backward(loss)
            for value, mask in zip(values, masks, strict=True):
                if mask is not None and value.grad is not None:
                    value.grad *= mask
            adam.step()
            schedule.step()

    def _adam(self, values: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [{"params": [value], "lr": self.rate * _size(value)} for value in values]
        )

    def _falling(self, step: int) -> float:
        """What the first step size is multiplied by at a step: half a cosine, from 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class _Errors:
    """Of the network's outputs, as it was fitted and after each block."""

    errors: tuple[float, ...]


def _errors_before(chapter: Chapter) -> list[float] | None:
    """Those that were written; None = there are none."""
    entry = chapter.get(_ERRORS, _Errors)
    return entry and list(entry.record.errors)


class _Trained(NamedTuple):
    """Changes, and the error they leave on the samples held back."""

    changes: Changes
    after: float


class _Training:
    """A block to train: on some samples, judged on those held back."""

    def __init__(
        self,
        block: Block,
        parameters: ChainMap[str, Tensor],
        inputs: Samples,
        goal: Goal,
        judged: Tensor,
        chunk: int,
        mapped: MappedValues,
    ) -> None:
        self.block, self.parameters, self.chunk = block, parameters, chunk
        self.release = mapped.release
        self.inputs, self.held_back = (
            mapped.select(inputs, rows, chunk) for rows in (~judged, judged)
        )
        self.goal, self.wanted = (
            Goal(mapped.select(goal.values, rows, chunk), goal.select_mask(rows))
            for rows in (~judged, judged)
        )
        self.before = self._error(parameters)

    def run(self, settings: BlockReconstruction, generator: torch.Generator) -> _Trained:
        """What training makes of the block."""
        new = settings.train(
            self.block, self.parameters, self.inputs, self.goal, generator, self.release
        )
        return _Trained(new, self._error(ChainMap(new, *self.parameters.maps)))

    def _error(self, parameters: Mapping[str, Tensor]) -> float:
        found = self.wanted.error(self.block.run(parameters, self.held_back, self.chunk))
        self.release()
        return found


@dataclass(frozen=True)
class BlockResult:
    """What training did to a block.

    Attributes:
        layers: names of its pruned layers.
        before, after: error of its outputs on the samples held back, relative to their variance.
        kept: whether the trained weights were taken; else it stays as it was fitted, because it
            was no better itself, or the network was not.
        rate: first step size that it was trained with last.
    """

    layers: tuple[str, ...]
    before: float
    after: float
    kept: bool
    rate: float


@dataclass(frozen=True)
class ReconstructionResult:
    """What training its blocks did to a network.

    Attributes:
        blocks: block by block.
        before, after: error of the network's outputs on the samples held back, relative to their
            variance.
        rate: the step size asked for; blocks that it made worse have a smaller one.
    """

    blocks: tuple[BlockResult, ...]
    before: float
    after: float
    rate: float

    @property
    def kept(self) -> bool:
        """Whether the trained network was taken; else it stays as it was fitted."""
        return self.after < self.before

    def note(self) -> str:
        """What was trained, for the report."""
        error = (
            f"{self.before:.2g} before, {self.after:.2g} after: error of the network's outputs on "
            "the calibration images held back"
        )
        if not self.kept:
            return (
                "blocks trained but left as they were fitted, because training made the network no "
                f"better ({error})"
            )
        kept = sum(block.kept for block in self.blocks)
        note = f"{kept} of {counted(len(self.blocks), 'block')} trained ({error})"
        if kept < len(self.blocks):
            note += "; training the others made nothing better"
        least = min(block.rate for block in self.blocks)
        if least < self.rate:
            note += f"; larger steps made a block worse, so that they became {least:.2g}"
        return note


def _trainable(layer: Layer) -> list[str]:
    """A pruned layer's weight and bias.

    Not the mean of a BatchNorm that could not be folded, where such a layer's bias goes: PyTorch
    has no gradient for it.
    """
    if len(layer.calls) != 1:
        return []
    bias = [layer.bias.name] if layer.bias is not None and layer.bias.sign == 1 else []
    return [str(layer.parameter), *bias]


def _alive(weight: Tensor) -> Tensor:
    """Weights to train: those left, but of outputs that are negligible, as they are to be.

    Steps are relative to the whole weight's size. Where a BatchNorm has switched an output off, its
    weights would be huge once divided by that BatchNorm's scale again.
    """
    largest = weight.abs().flatten(1).amax(1)
    rows = largest > _NEGLIGIBLE * largest.max()
    return (weight != 0) & per_output(rows, weight)


def _size(value: Tensor) -> float:
    """Root mean square of the entries that are not zero."""
    value = value.detach()
    return float(value.square().sum().div(value.count_nonzero().clamp_min(1)).sqrt())
