"""BatchNorms in the layers before them, for as long as layers are fitted.

While it is fitted a network is run as it will be deployed, each BatchNorm multiplied into the layer
that it alone follows; afterwards the new weights and biases go back to where they came from:

    W' = W * bn_scale,  b' = (b - mean) * bn_scale + beta
    bn_scale = gamma / sqrt(variance + epsilon)

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
from secateur.network.graph import BiasParameter, Graph


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A layer with a BatchNorm in it.

    Attributes:
        weight: name of its weight, the same with the BatchNorm and without.
        bias: name of its bias with the BatchNorm in it.
        bn_scale: what each output's weights were multiplied by, nowhere 0.
        bias_parameter: where a change of the bias can go before the BatchNorm, in the network as it
            was.
        offset: name of the BatchNorm's offset, if nothing else reads it: a change goes there, as
            it is, sooner than there, for which it is divided by the scale.
    """

    weight: str
    bias: str
    bn_scale: Float[Tensor, " out"]
    bias_parameter: BiasParameter
    offset: str | None = None


@dataclass(frozen=True)
class Folding:
    """A network, and the same function with BatchNorms in the layers before them.

    Attributes:
        original: the network as it was.
        graph: the one to fit layers in.
        folds: the layers that differ.
    """

    original: Graph
    graph: Graph
    folds: Sequence[Fold] = ()

    def unfold(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes found in `graph`, as changes of the network as it was.

        Zeros stay zeros, and weights that were not changed stay what they were to the last bit.
        """
        found = dict(changes)
        for fold in self.folds:
            if (weight := found.get(fold.weight)) is not None:
                dense = self.graph.parameters[fold.weight]
                original = self.original.parameters[fold.weight]
                new = weight / per_output(fold.bn_scale, weight) + 0.0  # zeros without a sign
                # Weights too small for the folded layer are zeros there, and may be meant to be.
                same = (weight == dense) & ((weight != 0) | (original == 0))
                found[fold.weight] = torch.where(same, original, new)
            if (bias := found.pop(fold.bias, None)) is not None:
                change = bias - self.graph.parameters[fold.bias]
                name, place = fold.offset, fold.bias_parameter
                if name is None:
                    name, change = place.name, place.sign * change / fold.bn_scale
                found[name] = self.original.parameters[name] + change
        return found


@dataclass(frozen=True)
class Folded:
    """New values of a layer's parameters: see the module."""

    weight: Float[Tensor, "out ..."]
    bias: Float[Tensor, " out"]
    bn_scale: Float[Tensor, " out"]


def folded(
    weight: Float[Tensor, "out ..."],
    bias: Float[Tensor, " out"] | None,
    gamma: Float[Tensor, " out"] | None,
    beta: Float[Tensor, " out"] | None,
    mean: Float[Tensor, " out"],
    variance: Float[Tensor, " out"],
    epsilon: float,
) -> Folded | None:
    """A BatchNorm in the layer before it; None where a scale is 0 or infinite: no way back.

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
