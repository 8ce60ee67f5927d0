"""Adam calibration: the paper's layer-wise training of weights and biases on a fixed mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from secateur.core.methods.magnitude import Magnitude
from secateur.core.methods.protocol import Method
from secateur.core.patterns import Pattern
from secateur.core.problem import Patches, Problem, Solution
from secateur.errors import OptionError
from secateur.support.settings import SEEDS, at_least, check_settings


@dataclass(frozen=True, kw_only=True)
class AdamCalibration:
    """Trains the kept weights and the bias on the mean squared output error, with Adam.

    Choose it to reproduce the paper. `LeastSquares` finds the exact minimum of the same error on
    the same mask, at a fraction of the cost.
    Source: arXiv 2104.15023, section 3.3, with the defaults of its release in OpenVINO POT
    (Adam, learning rates 1e-5 and 1e-4, 30 iterations of 2000 samples in batches of 50 images,
    gradients of zeroed weights masked).

    Differences from the release, with the reason:
        - It trains on stored patches (input windows and their outputs at random positions), not
          on whole activations: memory is bounded, and the gradient has the same expectation. A
          batch holds `batch` patches, about 5 positions of each of 50 images.
        - Patches are drawn without replacement within a pass over the store.
        - The gradient is computed in closed form (the layer is linear), not by autograd.
        - The release changes its gradients only when the loss has grown; here every step counts.
        - Rows are scaled by a following BatchNorm; the release folds it.

    Attributes:
        base: the method that gives the initial mask, weights and bias.
        learning_rate, bias_learning_rate: Adam's step sizes, in units of the weights.
        iterations: groups of batches; only their product with `batches` matters.
        batches: batches per iteration.
        batch: patches per batch.
        patches: largest number of patches stored per layer.
        seed: seed of the order of the patches.
    """

    name: ClassVar[str] = "adam-calibration"
    summary: ClassVar[str] = (
        "Adam trained the remaining weights of each layer to reproduce the layer's outputs in the "
        "dense network."
    )

    base: Method = field(default_factory=Magnitude)
    learning_rate: float = 1e-5
    bias_learning_rate: float = 1e-4
    iterations: int = 30
    batches: int = 40
    batch: int = 256
    patches: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self,
            learning_rate=at_least(0),
            bias_learning_rate=at_least(0),
            iterations=at_least(1),
            batches=at_least(1),
            batch=at_least(1),
            patches=at_least(1),
            seed=SEEDS,
        )

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Cost: iterations * batches steps of 4 * batch * rows * cols operations.

        Raises:
            OptionError: the problem holds no patches (the walk stores them for this method).
        """
        previous = self.base.solve(problem, pattern, kept)
        if problem.patches is None:
            raise OptionError(
                "the problem holds no patches, expected stored samples to train on: "
                "keep some with Statistics.store"
            )
        bias = torch.zeros_like(problem.output_mean) if previous.bias is None else previous.bias
        rates = (self.learning_rate, self.bias_learning_rate if problem.fits_bias else 0.0)
        layer = _Training(previous.weight.clone(), bias.clone(), previous.mask, rates)
        for x, y in self._batches(problem.patches):
            layer.step(x, y)
        return previous.refined(layer.weight * previous.mask, layer.bias)

    def _batches(self, patches: Patches) -> Iterator[tuple[Tensor, Tensor]]:
        """Contiguous slices of the patches in random order, shuffled again after each pass."""
        generator = torch.Generator().manual_seed(self.seed)
        count = patches.inputs.shape[1]
        size = min(self.batch, count)
        left = self.iterations * self.batches
        while left > 0:
            order = torch.randperm(count, generator=generator).to(patches.inputs.device)
            x, y = patches.inputs[:, order], patches.outputs[:, order]
            for at in range(0, count - size + 1, size)[:left]:
                yield x[:, at : at + size], y[:, at : at + size]
            left -= count // size


class _Training:
    """A layer's weights and bias with Adam's state."""

    def __init__(
        self, weight: Tensor, bias: Tensor, mask: Tensor, rates: tuple[float, float]
    ) -> None:
        self.weight, self.bias, self.mask = weight, bias, mask.to(weight.dtype)
        groups = [
            {"params": [tensor], "lr": rate}
            for tensor, rate in zip((weight, bias), rates, strict=True)
        ]
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, fused=True)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step on mean ||y - W x - b||^2 over a batch (groups, samples, ...)."""
        error = torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT).sub_(y)
        error.mul_(2 / error.numel())
        self.weight.grad = torch.bmm(error.mT, x).mul_(self.mask)
        self.bias.grad = error.sum(1)
        self.optimizer.step()
