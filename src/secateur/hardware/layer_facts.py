"""What decides whether a runtime can leave out the zeros of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.network.layers import Layer


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What decides whether a layer's zeros can be left out.

    Attributes:
        kind: "conv", "linear" or another operation's name.
        shape: of the weight, (out, in, ...).
        groups: of a convolution; 1 for others.
        dtype: of the weights, such as "float32".
        sparsity: the fraction of zeros; None = not pruned yet.
        two_of_four: whether at least two of each four weights in a row are zero; None = not
            known.
        zero_blocks: the fraction of blocks of four neighbouring inputs that are zero throughout;
            None = not known.
    """

    kind: str
    shape: tuple[int, ...]
    groups: int = 1
    dtype: str = "float32"
    sparsity: float | None = None
    two_of_four: bool | None = None
    zero_blocks: float | None = None

    @classmethod
    def of(cls, layer: Layer, weight: Tensor | None, *, pruned: bool) -> LayerFacts:
        """Of a layer and its weight; `pruned` tells whether its zeros count."""
        dtype = "unknown type" if weight is None else str(weight.dtype).removeprefix("torch.")
        known = weight if pruned else None
        return cls(
            kind=layer.kind,
            shape=tuple(layer.shape),
            groups=layer.groups,
            dtype=dtype,
            sparsity=None if known is None else float((known == 0).double().mean()),
            two_of_four=None if known is None else _two_of_four(layer, known.float()),
            zero_blocks=None if known is None else _zero_blocks(layer, known.float()),
        )

    @property
    def operation(self) -> str:
        """What a person calls it: "3x3 convolution of 8 groups", or the operation's name."""
        if self.kind != "conv":
            return self.kind
        groups = f" of {self.groups} groups" if self.groups > 1 else ""
        return f"{'x'.join(map(str, self.shape[2:]))} convolution{groups}"


def _two_of_four(layer: Layer, weight: Tensor) -> bool:
    """Whether at least two of each four neighbours along the inputs are zero."""
    fits = bool(layer.calls) and layer.inputs % 4 == 0
    return fits and is_two_of_four(layer.calls[0].geometry.matrix(weight))


def is_two_of_four(matrix: Tensor) -> bool:
    """Whether at least two of each four neighbours in a row are zero; not where some are over."""
    return matrix.shape[-1] % 4 == 0 and bool(((matrix != 0).reshape(-1, 4).sum(1) <= 2).all())


def _zero_blocks(layer: Layer, weight: Tensor) -> float:
    """Which share of the blocks of four neighbours along the inputs is zero."""
    fours = _fours(layer, weight)
    return 0.0 if fours is None else float((~fours.any(1)).double().mean())


def _fours(layer: Layer, weight: Tensor) -> Tensor | None:
    """Which weights are not zero, four inputs in a row; None where they do not fit."""
    if not layer.calls or layer.inputs % 4:
        return None
    matrix = layer.calls[0].geometry.matrix(weight)  # columns: the inputs lie side by side
    return (matrix != 0).reshape(-1, 4)
