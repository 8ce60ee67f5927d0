"""Aten's products as einsums: what each multiplies, and along which axes it sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import ascii_letters
from typing import Any

from torch.fx import Node

Factors = tuple[Sequence[Node], str]  # what is multiplied, and the equation
Options = Mapping[str, Any]


def product_of(name: str, options: Options) -> Factors | None:
    """The factors and the equation of a product; None where an operation is none.

    Args:
        name: of the operation, without what tells its overloads apart.
        options: its arguments by name.
    """
    make = _PRODUCTS.get(name)
    return None if make is None else make(*list(options.values()))


def _rank(node: Node) -> int:
    return node.meta["val"].dim()


def _of(equation: str) -> Callable[..., Factors]:
    return lambda a, b, *rest: ((a, b), equation)


def _adding(equation: str) -> Callable[..., Factors]:
    """The same with a value before the factors that is added to their product."""
    return lambda added, a, b, *rest: ((a, b), equation)


def _matmul(a: Node, b: Node, *rest: Any) -> Factors:
    left = "j" if _rank(a) == 1 else "...ij"
    right = "j" if _rank(b) == 1 else "...jk"
    result = "..." + "i" * (_rank(a) > 1) + "k" * (_rank(b) > 1)
    return (a, b), f"{left},{right}->{result}"


def _inner(a: Node, b: Node, *rest: Any) -> Factors:
    """Along the last axes, each place of the one with each of the other."""
    return _tensordot(a, b, [_rank(a) - 1], [_rank(b) - 1])


def _tensordot(a: Node, b: Node, dims: Sequence[int], others: Sequence[int], *rest: Any) -> Factors:
    left = list(ascii_letters[: _rank(a)])
    right = list(ascii_letters[_rank(a) : _rank(a) + _rank(b)])
    for dim, other in zip(dims, others, strict=True):
        right[other] = left[dim]
    result = [label for label in (*left, *right) if (label in left) != (label in right)]
    return (a, b), f"{''.join(left)},{''.join(right)}->{''.join(result)}"


def _vecdot(a: Node, b: Node, dim: int = -1, *rest: Any) -> Factors:
    """Along one axis, counted from the end where there are several."""
    behind = ascii_letters[: -1 - dim] if dim < 0 else ascii_letters[: _rank(a) - 1 - dim]
    return (a, b), f"...z{behind},...z{behind}->...{behind}"


def _chain(factors: Sequence[Node], *rest: Any) -> Factors:
    """From left to right, which may be more than in the order that PyTorch finds best."""
    pairs = [ascii_letters[at : at + 2] for at in range(len(factors))]
    pairs[0] = pairs[0][-_rank(factors[0]) :]
    pairs[-1] = pairs[-1][: _rank(factors[-1])]
    ends = pairs[0][:-1] + pairs[-1][1:]
    return factors, f"{','.join(pairs)}->{ends}"


def _einsum(equation: str, factors: Sequence[Node], *rest: Any) -> Factors:
    return factors, equation


def _bilinear(a: Node, b: Node, weight: Node, *rest: Any) -> Factors:
    return (a, weight, b), "...i,oij,...j->...o"


_PRODUCTS: dict[str, Callable[..., Factors]] = {
    "matmul": _matmul,
    "linalg_matmul": _matmul,
    "mm": _of("ij,jk->ik"),
    "bmm": _of("bij,bjk->bik"),
    "mv": _of("ij,j->i"),
    "dot": _of("i,i->"),
    "vdot": _of("i,i->"),
    "inner": _inner,
    "linalg_vecdot": _vecdot,
    "tensordot": _tensordot,
    "linalg_multi_dot": _chain,
    "chain_matmul": _chain,
    "addmm": _adding("ij,jk->ik"),
    "baddbmm": _adding("bij,bjk->bik"),
    "addbmm": _adding("bij,bjk->ik"),
    "addmv": _adding("ij,j->i"),
    "einsum": _einsum,
    "bilinear": _bilinear,
}
