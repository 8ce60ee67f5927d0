"""Products with a parameter that are linear layers: `x @ weight`, `addmm`, `einsum("bi,oi->bo")`.

Their weight may be held as (in, out), as in the `Conv1D` of GPT-2, and lie behind transposes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from secateur.network.einsum import labelled

Options = Mapping[str, Any]

_SAME = ("detach", "alias", "contiguous", "clone")
_TURNS = ("t", "mT", "numpy_T")
_TWO_AXES = ("transpose", "swapaxes", "permute", "movedim", "moveaxis")


@dataclass(frozen=True)
class MatrixLayer:
    """A product that is a linear layer.

    Attributes:
        x, weight, bias: what is multiplied, and what is added.
        turned: whether the weight is held as (in, out).
    """

    x: Node
    weight: Node
    bias: Node | None
    turned: bool

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer, with any weight of this layout."""
        return F.linear(x, weight.mT if self.turned else weight, bias)


def linear_of(options: Options, is_weight: Callable[[Node], bool]) -> MatrixLayer | None:
    """What `linear` computes with a matrix that is held transposed; None of any other."""
    x, weight, bias = options.values()
    held, turned = _held(weight)
    return MatrixLayer(x, held, bias, turned) if held is not weight and is_weight(held) else None


def matrix_layer(
    factors: Sequence[Node], equation: str, options: Options, is_weight: Callable[[Node], bool]
) -> MatrixLayer | None:
    """A product as a linear layer; None where it is none.

    Args:
        factors: what is multiplied.
        equation: as of `torch.einsum`.
        options: of the operation.
        is_weight: whether a node holds a parameter.
    """
    if len(factors) != 2 or options.get("alpha", 1) != 1 or options.get("beta", 1) != 1:
        return None
    bias = options.get("self") if "beta" in options else None
    names, result = labelled(equation, [_rank(of) for of in factors])
    for x, weight in ((0, 1), (1, 0)):
        held, turned = _held(factors[weight])
        if not is_weight(held) or _rank(held) != 2 or is_weight(_held(factors[x])[0]):
            continue
        into_first = _reads_last(names[x], names[weight], result)
        if into_first is None or (bias is not None and not (is_weight(bias) and _rank(bias) == 1)):
            continue
        return MatrixLayer(factors[x], held, bias, turned=turned != into_first)
    return None


def _reads_last(x: Sequence[str], weight: Sequence[str], result: Sequence[str]) -> bool | None:
    """Whether a weight's first axis is summed with the last of x; None where neither of it is."""
    for into, out in ((0, 1), (1, 0)):
        summed = x[-1:] == [weight[into]] and weight[into] not in result
        if summed and weight[out] not in x and [*result] == [*x[:-1], weight[out]]:
            return into == 0
    return None


def _held(node: Node) -> tuple[Node, bool]:
    """What a matrix is made of by transposes alone, and whether it is transposed."""
    turned = False
    while (name := _name(node)) in (*_SAME, *_TURNS, *_TWO_AXES) and _rank(node) == 2:
        source = node.args[0]
        if not isinstance(source, Node) or _rank(source) != 2:
            break
        turned ^= name in _TURNS or (name in _TWO_AXES and _swaps(node))
        node = source
    return node, turned


def _swaps(node: Node) -> bool:
    """Whether an operation that moves axes exchanges those of a matrix."""
    if _name(node) == "permute":
        order: Any = node.args[1]
        return [axis % 2 for axis in order] == [1, 0]
    one, other = node.args[1:3]
    ends = [of[0] if isinstance(of, list | tuple) and len(of) == 1 else of for of in (one, other)]
    return all(isinstance(of, int) for of in ends) and ends[0] % 2 != ends[1] % 2  # type: ignore[operator]


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.removeprefix("aten::")


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else -1
