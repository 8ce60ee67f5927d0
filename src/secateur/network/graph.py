"""A network: operations in execution order, and the values that they start from.

The walk, the allocation and the report know a network only through this module. A front-end makes
one `Graph` of a model, and nothing else changes where a front-end is added.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from secateur.core.outputs import Judge
from secateur.network.layer_finder import find_layers
from secateur.network.layers import Layer
from secateur.network.ops import BatchNorm, Op, Shapes

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Norm:
    """A BatchNorm: the op, the value that it reads, and the parameters that hold its statistics."""

    op: int
    input: str
    mean: str
    variance: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network that can be run op by op.

    Attributes:
        ops: in execution order.
        inputs: names of the values that a network is given, in their order.
        outputs: names of the values that the network returns; for the first see
            `secateur.network.judging`.
        parameters: weights, biases, buffers and constants by name.
        shapes: of values, parameters and constants, as far as they are known.
        constants: names of tensors that may be a layer's weights: floating-point or quantised. Not
            all are in `parameters`.
        fixed: why parameters cannot be changed, by name, said of "weight".
        unsteady: names of values whose shapes depend on more than the number of images, as after a
            selection or NonMaxSuppression.
        output_names: what the network's users call its outputs, one for each as it was traced; see
            `secateur.network.returned`.
        judge: what its first output is judged by; None = not decided.
        notes: what a reader of the report should know.
        has_gradients: whether operations can be differentiated by PyTorch.
        rounding: of parameters that are not stored as they are, such as integers with a scale, by
            name: the nearest values that can be stored. Zeros stay zeros.
        uncut: why no channels can be cut out of parameters, by name.
    """

    ops: Sequence[Op]
    inputs: Sequence[str]
    outputs: Sequence[str]
    parameters: Mapping[str, Tensor]
    shapes: Shapes
    constants: Collection[str]
    fixed: Mapping[str, str]
    unsteady: Collection[str]
    output_names: Sequence[str] = ()
    judge: Judge | None = None
    notes: Sequence[str] = ()
    has_gradients: bool = True
    rounding: Mapping[str, Rounding] = field(default_factory=dict[str, Rounding])
    uncut: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def layers(self) -> Sequence[Layer]:
        """Layers in order of the first call."""
        return find_layers(self)

    @property
    def norms(self) -> Sequence[Norm]:
        """BatchNorms that alone hold their statistics, in execution order."""
        norms = [
            Norm(index, op.input, op.mean, op.variance)
            for index, op in enumerate(self.ops)
            if isinstance(op, BatchNorm)
        ]
        return alone(norms, self.parameters)

    def run(self, index: int, values: Mapping[str, Any]) -> Any:
        """Runs op number `index`; `values` holds activations and parameters by name."""
        return self.ops[index].run(values)

    def rounded(self, name: str, value: Tensor) -> Tensor:
        """A parameter's new value as it will be once it is stored."""
        round_it = self.rounding.get(name)
        return value if round_it is None else round_it(value)

    def changed(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The same network with some parameters replaced."""
        return replace(self, parameters={**self.parameters, **parameters})

    def judged_by(self, name: str, judge: Judge | None, notes: Sequence[str] = ()) -> Graph:
        """The same network with a value before its outputs, by which it is judged, and notes."""
        rest = [output for output in self.outputs if output != name]
        return replace(
            self, outputs=[name, *rest], output_names=(), judge=judge, notes=[*self.notes, *notes]
        )


def alone(norms: Sequence[Norm], parameters: Mapping[str, Tensor]) -> list[Norm]:
    """Those whose statistics are parameters that no other of them reads."""
    readers = Counter(name for norm in norms for name in (norm.mean, norm.variance))
    return [
        norm
        for norm in norms
        if all(readers[name] == 1 and name in parameters for name in (norm.mean, norm.variance))
    ]


def last_reads(graph: Graph) -> dict[int, tuple[str, ...]]:
    """The values that nothing reads after op i, by i; outputs are never dropped."""
    last = dict.fromkeys(graph.inputs, 0)
    for index, op in enumerate(graph.ops):
        last |= dict.fromkeys((op.name, *op.reads), index)
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in graph.outputs and name not in graph.parameters:
            dead.setdefault(index, []).append(name)
    return {index: tuple(names) for index, names in dead.items()}


def overlay(
    values: MutableMapping[str, Any], parameters: Mapping[str, Tensor]
) -> Mapping[str, Any]:
    """What is in `values` as it is at the time of the look-up, else the parameter of that name."""
    # The type asks for mappings that can be written, but a ChainMap writes to its first alone.
    return ChainMap(values, parameters)  # type: ignore[arg-type]
