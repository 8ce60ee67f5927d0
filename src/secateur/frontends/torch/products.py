"""How often operations multiply: multiply-accumulates of all that are no convolution or linear.

Counted are products that sum, as in matrices; numbers that are multiplied one by one are not. Sizes
are those of the example that a module was traced with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

Sizes = tuple[int, ...]


def sizes(value: Any, batch: int | None = None) -> Sizes:
    """A node's output sizes, as in the example, or with `batch` for those that depend on it.

    Sizes that depend on the values are 0.
    """
    found = value.meta.get("val") if isinstance(value, Node) else value
    if not isinstance(found, Tensor):
        return ()
    return tuple(
        size if isinstance(size, int) else _hint(size) if batch is None else batch
        for size in found.shape
    )


def _hint(size: torch.SymInt) -> int:
    return size.node.hint if size.node.has_hint() else 0


def depends_on_values(node: Node) -> bool:
    """Whether a size of what a node gives depends on the values that it reads."""
    value = node.meta.get("val")
    shape = value.shape if isinstance(value, Tensor) else ()
    return any(isinstance(size, torch.SymInt) and not size.node.has_hint() for size in shape)


def grows_with_batch(node: Node) -> bool:
    """Whether what a node reads or gives has a size that depends on the number of images."""
    values = (of.meta.get("val") for of in (node, *node.all_input_nodes))
    return any(
        isinstance(size, torch.SymInt)
        for value in values
        if isinstance(value, Tensor)
        for size in value.shape
    )


def product_macs(node: Node) -> int | None:
    """Multiply-accumulates of a product; None where an operation is no such product."""
    count = _PRODUCTS.get(node.target)
    return None if count is None else count(*_arguments(node))


def _arguments(node: Node) -> list[Any]:
    return [node, *node.args, *node.kwargs.values()]


def operands(node: Node) -> list[Node]:
    """What a product multiplies: the values that it reads, but for one that it adds."""
    added = node.args[0] if node.target in _ADDING else None
    return [of for of in node.all_input_nodes if of is not added]


def recurrent_weights(node: Node) -> list[Node] | None:
    """Weights and biases of a recurrent layer or cell; None where an operation is none."""
    at = _RECURRENT.get(node.target)
    if at is None:
        return None
    held = node.args[at]
    return list(held) if isinstance(held, list | tuple) else list(node.args[at : at + 2])  # type: ignore[arg-type]


def uses_per_weight(node: Node, weight: Sizes) -> int:
    """How often a convolution, linear layer or recurrent layer uses each of its weights.

    Args:
        node: which.
        weight: its shape.
    """
    if node.target in _RECURRENT or node.target == aten.bilinear.default:
        given = sizes(node.args[0])
        return math.prod(given[:-1])
    transposed = "transpose" in str(node.target) or _is_transposed(node)
    places = sizes(node.args[0] if transposed else node)
    if len(weight) == 2:  # a linear layer
        return math.prod(places[:-1])
    spatial = len(weight) - 2
    return math.prod(places[: -spatial - 1]) * math.prod(places[-spatial:])


def _is_transposed(node: Node) -> bool:
    return node.target == aten.convolution.default and bool(node.args[6])


def _matmul(node: Node, a: Node, b: Node, *_: Any) -> int:
    return math.prod(sizes(node)) * sizes(a)[-1]


def _batches(node: Node, a: Node, b: Node, *_: Any) -> int:
    return math.prod(sizes(a)) * sizes(b)[-1]


def _vector(node: Node, a: Node, b: Node, *_: Any) -> int:
    return math.prod(sizes(a))


def _adding(count: Callable[..., int]) -> Callable[..., int]:
    return lambda node, added, a, b, *rest: count(node, a, b)


def _vecdot(node: Node, a: Node, b: Node, dim: int = -1, *_: Any) -> int:
    return math.prod(sizes(node)) * sizes(a)[dim]


def _tensordot(node: Node, a: Node, b: Node, dims: Sequence[int], other: Sequence[int]) -> int:
    summed = math.prod(sizes(a)[dim] for dim in dims)
    return math.prod(sizes(a)) * math.prod(sizes(b)) // max(1, summed)


def _chain(node: Node, factors: Sequence[Node], *_: Any) -> int:
    """From left to right, which may be more than in the order that PyTorch finds best."""
    shapes = [sizes(of) for of in factors]
    rows = math.prod(shapes[0][:-1])
    return sum(rows * math.prod(shape) for shape in shapes[1:])


def _attention(node: Node, query: Node, key: Node, value: Node, *_: Any) -> int:
    keys = sizes(key)[-2]
    return (math.prod(sizes(query)) + math.prod(sizes(node))) * keys


def _bilinear(node: Node, x: Node, other: Node, weight: Node, *_: Any) -> int:
    return uses_per_weight(node, sizes(weight)) * math.prod(sizes(weight))


def _einsum(node: Node, equation: str, factors: Sequence[Node], *_: Any, **more: Any) -> int:
    return einsum_macs(equation, [sizes(of) for of in factors])


def einsum_macs(equation: str, shapes: Sequence[Sizes]) -> int:
    """Multiply-accumulates of an einsum whose factors are multiplied from left to right.

    Products that sum over no axis are numbers multiplied one by one, and not counted.
    """
    given, _, result = equation.replace(" ", "").partition("->")
    labels = [_labels(of, len(shape)) for of, shape in zip(given.split(","), shapes, strict=True)]
    length: dict[str, int] = {}
    for names, shape in zip(labels, shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            length[name] = max(size, length.get(name, 0))
    wanted = set(_result(result, labels) if "->" in equation else _implied(labels))
    first, *others = (set(of) for of in labels)
    total = 0
    for index, other in enumerate(others):
        kept = wanted.union(*others[index + 1 :])
        first, other = (a & (b | kept) for a, b in ((first, other), (other, first)))
        if (first & other) - kept:
            total += math.prod(length[name] for name in first | other)
        first = (first | other) & kept
    return total


def _labels(text: str, axes: int) -> list[str]:
    """A label for each axis; those of an ellipsis are numbers, counted from its end."""
    before, dots, after = text.partition("...")
    more = axes - len(before) - len(after) if dots else 0
    return [*before, *(str(-at) for at in range(-more, 0)), *after]


def _result(text: str, labels: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (name for name in text if name != ".")
    if "..." in text:
        yield from (name for names in labels for name in names if name.isdigit())


def _implied(labels: Sequence[Sequence[str]]) -> Iterator[str]:
    every = [name for names in labels for name in names]
    return (name for name in every if name.isdigit() or every.count(name) == 1)


_PRODUCTS: dict[Any, Callable[..., int]] = {
    aten.matmul.default: _matmul,
    aten.linalg_matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _batches,
    aten.mv.default: _vector,
    aten.dot.default: _vector,
    aten.vdot.default: _vector,
    aten.inner.default: _matmul,
    aten.linalg_vecdot.default: _vecdot,
    aten.tensordot.default: _tensordot,
    aten.linalg_multi_dot.default: _chain,
    aten.chain_matmul.default: _chain,
    aten.addmm.default: _adding(_matmul),
    aten.baddbmm.default: _adding(_batches),
    aten.addbmm.default: _adding(_batches),
    aten.addmv.default: _adding(_vector),
    aten.einsum.default: _einsum,
    aten.bilinear.default: _bilinear,
    aten.scaled_dot_product_attention.default: _attention,
}
_ADDING = {
    aten.addmm.default,
    aten.baddbmm.default,
    aten.addbmm.default,
    aten.addmv.default,
}
_RECURRENT: dict[Any, int] = {  # and the number of the argument with the weights
    aten.lstm.input: 2,
    aten.gru.input: 2,
    aten.rnn_tanh.input: 2,
    aten.rnn_relu.input: 2,
    aten.lstm.data: 3,
    aten.gru.data: 3,
    aten.rnn_tanh.data: 3,
    aten.rnn_relu.data: 3,
    aten.lstm_cell.default: 2,
    aten.gru_cell.default: 2,
    aten.rnn_tanh_cell.default: 2,
    aten.rnn_relu_cell.default: 2,
}
