"""What the time of a layer depends on, whatever its weights are.

Nothing here imports PyTorch, for `secateur.hardware.layer_worker` measures in a process in which
only the runtime is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Sizes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A convolution or linear layer without its weights; equal shapes take equal time.

    Attributes:
        kind: "conv", "transposed" or "linear".
        inputs, outputs: its widths: channels, or sizes of the last axis.
        size: of the input for one image: spatial sizes; of a linear layer all axes but the last.
        groups, kernel, stride, dilation: of a convolution.
        pads: (before, after) per spatial axis; of a transposed one what is cut off.
        extra: of a transposed one, by how much the output is larger, per spatial axis.
        bias: whether it adds one; a BatchNorm behind it is one, once folded.
        norm: whether there is a BatchNorm behind it, which PyTorch runs by itself.
        activation: the ReLU-like function behind it, which runtimes fuse: "relu", "relu6" or none.
    """

    kind: Literal["conv", "transposed", "linear"]
    inputs: int
    outputs: int
    size: Sizes
    groups: int = 1
    kernel: Sizes = ()
    stride: Sizes = ()
    dilation: Sizes = ()
    pads: tuple[tuple[int, int], ...] = ()
    extra: Sizes = ()
    bias: bool = True
    norm: bool = False
    activation: Literal["", "relu", "relu6"] = ""

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel: inputs and outputs are one width."""
        return self.groups > 1 and self.groups == self.inputs

    @property
    def weight(self) -> Sizes:
        """Shape of its weight as frameworks store it: outputs first, of a transposed one inputs."""
        if self.kind == "transposed":
            return (self.inputs, self.outputs // self.groups, *self.kernel)
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def input(self) -> Sizes:
        """Shape of its input for one image."""
        if self.kind == "linear":
            return (*self.size, self.inputs)
        return (1, self.inputs, *self.size)

    @property
    def text(self) -> str:
        """In a few words: "3x3 conv, 56x56, stride 2, depthwise"."""
        size = "x".join(map(str, self.size))
        if self.kind == "linear":
            return f"linear, {size}"
        words = [f"{'x'.join(map(str, self.kernel))} {self.kind}", size]
        if any(step > 1 for step in self.stride):
            words.append(f"stride {'x'.join(map(str, sorted(set(self.stride))))}")
        if self.groups > 1:
            words.append("depthwise" if self.depthwise else f"{self.groups} groups")
        return ", ".join(words)

    def at(self, inputs: int, outputs: int) -> LayerShape:
        """The same layer at other widths; of a depthwise one, the outputs decide."""
        if not self.depthwise:
            return replace(self, inputs=inputs, outputs=outputs)
        channels = max(1, round(outputs * self.inputs / self.outputs))
        outputs = channels * (self.outputs // self.inputs)
        return replace(self, inputs=channels, groups=channels, outputs=outputs)

    def widths(
        self, shares: tuple[float, ...], step: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths to measure at, of inputs and of outputs, each rising to its full width.

        Shares of the full width, rounded to multiples of the step that the groups divide. Depthwise
        convolutions have one width: that of the outputs.
        """
        outputs = _rounded(self.outputs, shares, math.lcm(step, self._multiple))
        if self.depthwise:
            return (self.inputs,), outputs
        return _rounded(self.inputs, shares, math.lcm(step, self._multiple)), outputs

    @property
    def _multiple(self) -> int:
        """What its widths are multiples of, whatever the step is."""
        return self.outputs // self.inputs if self.depthwise else self.groups


def _rounded(full: int, shares: tuple[float, ...], step: int) -> tuple[int, ...]:
    """Shares of a width as multiples of a step, none above it, and the width itself."""
    steps = {step * max(1, round(share * full / step)) for share in shares if share < 1}
    return tuple(sorted({full} | {width for width in steps if width < full}))
