"""BatchNorms in the layers before them, for as long as layers are fitted.

While it is fitted a network is run as it will be deployed, each BatchNorm multiplied into the layer
that it alone follows; afterwards the new weights and biases go back to where they came from:

    W' = W * slope,  b' = (b - mean) * slope + beta,  slope = gamma / sqrt(variance + epsilon)

This saves the BatchNorms' time, and the arithmetic is that of PyTorch's ONNX exporter, so that a
module and the file made of it are the same numbers to the last bit. That matters more than it
seems: which of two weights goes may hang on a rounding, and a layer's mask on that (see
"How reproducible a mask is" in docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.network.geometry import per_output
from secateur.network.graph import BiasSlot, Graph


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A layer with a BatchNorm in it.

    Attributes:
        weight: name of its weight, the same with the BatchNorm and without.
        bias: name of its bias with the BatchNorm in it.
        slope: what each output's weights were multiplied by, nowhere 0.
        slot: where a change of the bias can go in the network as it was, before the BatchNorm.
        offset: name of the BatchNorm's offset, if nothing else reads it: a change goes there, as
            it is, sooner than to the slot, for which it is divided by the slope.
    """

    weight: str
    bias: str
    slope: Float[Tensor, " out"]
    slot: BiasSlot
    offset: str | None = None


@dataclass(frozen=True)
class Folding:
    """A network, and the same function with BatchNorms in the layers before them.

    Attributes:
        own: the network as it was.
        graph: the one to fit layers in.
        folds: the layers that differ.
    """

    own: Graph
    graph: Graph
    folds: Sequence[Fold] = ()

    def put_back(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes found in `graph`, as changes of the network as it was.

        Zeros stay zeros, and weights that were not changed stay what they were to the last bit.
        """
        found = dict(changes)
        for fold in self.folds:
            if (weight := found.get(fold.weight)) is not None:
                dense, own = (graph.parameters[fold.weight] for graph in (self.graph, self.own))
                new = weight / per_output(fold.slope, weight) + 0.0  # zeros without a sign
                # Own weights too small for the folded one are zeros there, and may be meant to be.
                same = (weight == dense) & ((weight != 0) | (own == 0))
                found[fold.weight] = torch.where(same, own, new)
            if (bias := found.pop(fold.bias, None)) is not None:
                change = bias - self.graph.parameters[fold.bias]
                name = fold.offset
                if name is None:
                    name, change = fold.slot.parameter, fold.slot.sign * change / fold.slope
                found[name] = self.own.parameters[name] + change
        return found


@dataclass(frozen=True)
class Folded:
    """New values of a layer's parameters: see the module."""

    weight: Float[Tensor, "out ..."]
    bias: Float[Tensor, " out"]
    slope: Float[Tensor, " out"]


def folded(
    weight: Float[Tensor, "out ..."],
    bias: Float[Tensor, " out"] | None,
    gamma: Float[Tensor, " out"] | None,
    beta: Float[Tensor, " out"] | None,
    mean: Float[Tensor, " out"],
    variance: Float[Tensor, " out"],
    epsilon: float,
) -> Folded | None:
    """A BatchNorm in the layer before it; None where a slope is 0 or infinite: no way back.

    In NumPy, in float32: PyTorch's square root differs from it in the last bit of some numbers.
    """
    own, centre, spread = (of.detach().cpu().numpy() for of in (weight, mean, variance))
    shift, offset = (_numbers(of, 0.0, spread) for of in (bias, beta))
    scale = _numbers(gamma, 1.0, spread)
    slope = scale / np.sqrt(spread + epsilon)
    size = np.abs(slope)
    if not (np.isfinite(size) & (size > np.finfo(np.float32).tiny)).all():
        return None
    new = (own * slope.reshape(-1, *[1] * (weight.dim() - 1)), (shift - centre) * slope + offset)
    return Folded(*(torch.from_numpy(of).to(weight) for of in (*new, slope)))


def _numbers(value: Tensor | None, default: float, like: np.ndarray) -> np.ndarray:
    return np.full_like(like, default) if value is None else value.detach().cpu().numpy()
