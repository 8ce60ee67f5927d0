"""Aten operations as typed ones: each says what it is, and keeps its own function to be run by."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from secateur.frontends.torch.operators import (
    MULTIPLICATIONS,
    gives_first_result,
    options_of,
    short_name,
    typed_as,
)
from secateur.network.layers import ON_THE_FLY
from secateur.network.ops import (
    Convolution,
    Linear,
    Op,
    Shape,
)

aten = torch.ops.aten

_CUTS = ("split", "split_with_sizes", "chunk", "slice")  # into parts along an axis

# Traced in the default memory layout; values in channels-last have other strides.
_ANY_LAYOUT: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}


@dataclass(frozen=True)
class Translator:
    """Turns nodes into operations.

    Attributes:
        keys: names of the values that nodes give.
        parameters: names of those that are held.
        trained: those of them that are parameters of the module, not buffers or constants.
        computed: how to make parameters of weights that are computed in each run, by module.
    """

    keys: dict[Node, str]
    parameters: Collection[str]
    trained: Collection[str]
    computed: Mapping[str, str]

    def ops(self, nodes: Sequence[Node]) -> list[Op]:
        """Nodes as operations."""
        gone = {part for node in nodes for part in self._first_results(node)}
        return [self._op(node) for node in nodes if node not in gone]

    def _first_results(self, node: Node) -> list[Node]:
        """What takes the normalised values out of a BatchNorm's results; it gets its name."""
        parts = list(node.users) if gives_first_result(node) else []
        self.keys.update(dict.fromkeys(parts, self.keys[node]))
        return parts

    def _op(self, node: Node) -> Op:
        typed = typed_as(node, lambda of: self.keys.get(of) in self.trained)
        held = [of for of in tree_leaves(list(typed.weights.values())) if of is not None]
        others = [of for of in node.all_input_nodes if of not in (*typed.inputs, *held)]
        others = [] if typed.compute else others
        module, part = module_of(node), None
        if typed.kind in (Convolution, Linear):
            why = self._why_computed(typed.weights["weight"], module)
            typed = replace(typed, settings={**typed.settings, "obstacle": why})
            part = self._part(typed.weights["weight"])
        return typed.kind(
            name=self.keys[node],
            inputs=tuple(self.keys[of] for of in typed.inputs),
            others=tuple(self.keys[of] for of in others),
            compute=typed.compute or _computation(node, [*typed.inputs, *held, *others]),
            operation=str(node.target).removeprefix("aten."),
            label=part or module or node.name,
            **map_arg(typed.weights, self.keys.__getitem__),
            **typed.settings,
        )

    def _why_computed(self, weight: Node, module: str) -> str | None:
        if self.keys[weight] in self.parameters:
            return None
        if part := self._part(weight):
            return f"{ON_THE_FLY}: {part} is a part"
        return f"{ON_THE_FLY}: {self.computed[module]}" if module in self.computed else None

    def _part(self, weight: Node) -> str | None:
        """The rows of a parameter that a weight is, such as those for the keys."""
        taken = weight.target is operator.getitem
        cut: Any = weight.args[0] if taken else weight
        if short_name(cut) not in _CUTS:
            return None
        options = options_of(cut)
        whole = self.keys.get(options["self"])
        if options["dim"] != 0 or whole not in self.trained:
            return None
        before = cut.meta["val"][: weight.args[1]] if taken else []
        start = sum(part.shape[0] for part in before) + (options.get("start") or 0)
        return f"{whole}[{start}:{start + weight.meta['val'].shape[0]}]"


def shape_of(node: Node, batch: int) -> Shape | None:
    """The shape of what a node gives; None where it is no tensor.

    Args:
        node: traced with an example.
        batch: images in the example.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    sizes = tuple(size if isinstance(size, int) else _hint(size) // batch for size in value.shape)
    return Shape(sizes, tuple(not isinstance(size, int) for size in value.shape))


def _hint(size: torch.SymInt) -> int:
    return size.node.hint if size.node.has_hint() else 0


def depends_on_values(node: Node) -> bool:
    """Whether a size of what a node gives depends on the values that it reads."""
    value = node.meta.get("val")
    shape = value.shape if isinstance(value, Tensor) else ()
    return any(isinstance(size, torch.SymInt) and not size.node.has_hint() for size in shape)


def module_of(node: Node) -> str:
    """The module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
    return paths[-1] if paths else ""


def _computation(node: Node, reads: Sequence[Node]) -> Callable[..., Any]:
    """A node's function of the values that it reads, in this order.

    A convolution or linear layer without a bias takes one as well.
    """
    target: Any = _ANY_LAYOUT.get(node.target, node.target)
    args, kwargs, first = node.args, node.kwargs, gives_first_result(node)
    if short_name(node) in MULTIPLICATIONS:
        rest = tuple(options_of(node).values())[3:]
        return lambda x, weight, bias=None: target(x, weight, bias, *rest)

    def compute(*values: Any) -> Any:
        look_up = dict(zip(reads, values, strict=True)).__getitem__
        result = target(*map_arg(args, look_up), **map_arg(kwargs, look_up))
        return result[0] if first else result

    return compute
