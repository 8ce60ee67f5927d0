"""Which nodes of an ONNX graph PyTorch runs, as typed operations, and how their weights are stored.

Convolutions and products with a weight, and normalisations, are run by PyTorch, so that weights can
be changed; see `schedule` for the others, and `operators` for what these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends import kernels
from secateur.frontends.onnx.file import inlined, tensor_of
from secateur.frontends.onnx.nodes import Nodes, is_node, option
from secateur.frontends.onnx.signature import inputs
from secateur.frontends.onnx.stored import PLAIN, Dequantised, Origin, WeightLayout, turned
from secateur.frontends.onnx.widening import HALF, widened
from secateur.network.geometry import ConvolutionGeometry
from secateur.network.layers import ON_THE_FLY
from secateur.network.ops import BatchNorm, Convolution, Linear, Op, Transpose

FOLD = "remove weight norms, parametrizations and masks before the export, or fold constants in it"


@dataclass(frozen=True)
class Left:
    """Why a layer is left to ONNX Runtime.

    Attributes:
        reason: in words.
        weight: the constant that it multiplies with; None where that is computed.
    """

    reason: str
    weight: str | None = None


@dataclass(frozen=True)
class _Bias:
    """A bias per output: the parameter, how it is stored, and the Add that brings it."""

    name: str | None = None
    layout: WeightLayout = PLAIN
    add: int | None = None

    @property
    def held(self) -> dict[str, WeightLayout]:
        return {} if self.name is None else {self.name: self.layout}


class Translation:
    """What PyTorch runs of a model.

    With `any_batch`, a reshape to that many images is read as one to as many as there are.

    Attributes:
        model: without functions and half precision.
        nodes: the graph's nodes, with look-ups.
        inputs: names of the values that hold the samples.
        outputs: names of the outputs that depend on them.
        layouts: how each parameter lies in the file, by name.
        units: the operations that PyTorch runs, by number of the node that they stand for.
        absorbed: numbers of further nodes that they stand for.
        left: layers that ONNX Runtime runs, by number of the node.

    Raises:
        ModelError: the model has no inputs, or gives nothing that depends on them.
    """

    def __init__(self, model: ModelProto, *, any_batch: int = 0) -> None:
        self.model = widened(inlined(model))
        self.inputs = [of.name for of in inputs(model)]
        self.nodes = Nodes(self.model, any_batch=any_batch)
        made = {*self.inputs, *self.nodes.makers} - self.nodes.fixed
        self.outputs = [name for name in self.nodes.outputs if name in made]
        if not self.outputs:
            raise ModelError(
                "the ONNX model has no output that depends on its inputs, expected at least one: "
                "check that this is the right file"
            )
        self.layouts: dict[str, WeightLayout] = {}
        self.units: dict[int, Sequence[Op]] = {}
        self.absorbed: set[int] = set()
        self.left: dict[int, Left] = {}
        for index, node in enumerate(self.nodes.nodes):
            make = self._MAKERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if make and index not in self.absorbed and not self.nodes.is_fixed(node):
                make(self, index, node)

    def parameters(self) -> dict[str, Tensor]:
        """The values of the parameters as the layers use them, copied."""
        return {
            name: of.read(self.constant(name), self.constant) for name, of in self.layouts.items()
        }

    def constant(self, name: str) -> Tensor:
        """The values of a constant, copied."""
        return tensor_of(self.nodes.constants[name], name)

    def rounding(self, kinds: Mapping[str, int]) -> dict[str, Callable[[Tensor], Tensor]]:
        """What becomes of new values of parameters that are not stored as float32, by name.

        Args:
            kinds: the types of the file's constants.
        """
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, layout in self.layouts.items():
            half = HALF.get(kinds.get(name, TensorProto.FLOAT))
            if half is not None or layout.is_quantised:
                found[name] = partial(self._rounded, layout, half)
        return found

    def uncut(self) -> dict[str, str]:
        """Why no channels can be cut out of parameters, by name."""
        return {
            name: "is stored in another shape than the one in which it is used"
            for name, layout in self.layouts.items()
            if not layout.vector
            and None in map(layout.axis, range(layout.rank(self.nodes.constants[name].dims)))
        }

    def _rounded(self, layout: WeightLayout, half: torch.dtype | None, value: Tensor) -> Tensor:
        held = layout.write(value, self.constant)
        held = held if half is None else held.to(half)
        return layout.read(held.float(), self.constant).to(value)

    def _normalisation(self, index: int, node: NodeProto) -> None:
        origins = [self.nodes.origin(name) for name in node.input[1:5]]
        known = [of for of in origins if of is not None]
        trains = option(node, "training_mode", 0) or any(node.output[1:])
        if trains or len(known) < 4 or len({of.shape for of in known}) > 1:
            return
        names = [of.name for of in known]
        layouts = {of.name: WeightLayout(steps=of.steps) for of in known}
        if len(known[0].shape) != 1 or not self._hold(layouts):
            return
        epsilon = option(node, "epsilon", 1e-5)
        held = dict(zip(("gamma", "beta", "mean", "variance"), names, strict=True))
        compute = kernels.batch_norm(epsilon)
        norm = _op(BatchNorm, node, node.input[0], epsilon=epsilon, compute=compute, **held)
        self.units[index] = [norm]

    def _convolution(self, index: int, node: NodeProto) -> None:
        held = self.nodes.origin(node.input[1])
        if held is None or len(held.shape) < 3:
            self._not_a_parameter(index, node.input[1])
            return
        shape = held.shape
        channels = (shape[0], *(1,) * (len(shape) - 2))
        bias = self._bias(node, shape[0], {channels, (1, *channels)})
        if not self._fits(index, held.name, WeightLayout(steps=held.steps), bias):
            return
        geometry = convolution_geometry(node, shape[2:])
        settings = {"geometry": geometry, "compute": kernels.convolution(geometry)}
        names = {"weight": held.name, "bias": bias.name}
        y = self._written(node, bias)
        self._unit(index, [_op(Convolution, node, node.input[0], y, **names, **settings)], bias)

    def _product(self, index: int, node: NodeProto) -> None:
        """Gemm, or MatMul with the weight on either side: W x = (x^T W^T)^T."""
        left = is_node(node, "MatMul") and node.input[0] in self.nodes.fixed
        operand, x = node.input[:2] if left else node.input[1::-1]
        held, alpha = self.nodes.origin(operand), option(node, "alpha", 1.0)
        if held is None or len(held.shape) != 2 or x in self.nodes.fixed or not alpha:
            self._not_a_parameter(index, operand)
            return
        held = held if left or option(node, "transB", 0) else turned(held)
        rows, layout = held.shape[0], WeightLayout(steps=held.steps, factor=alpha)
        bias = _Bias() if left else self._bias(node, rows, {(rows,), (1, rows)})
        if not self._fits(index, held.name, layout, bias):
            return
        y, ops = self._written(node, bias), list[Op]()
        if left or option(node, "transA", 0):
            ops.append(_swap(node, x, self.nodes.fresh(x)))
        names = {"weight": held.name, "bias": bias.name}
        x, product = (ops[0].name if ops else x), (self.nodes.fresh(y) if left else y)
        ops.append(_op(Linear, node, x, product, compute=F.linear, **names))
        self._unit(index, [*ops, *([_swap(node, product, y)] if left else [])], bias)

    def _bias(self, node: NodeProto, rows: int, added: set[tuple[int, ...]]) -> _Bias:
        """The bias among a node's inputs, or the one of some shapes that a following Add brings."""
        if len(node.input) > 2 and node.input[2]:
            held = self.nodes.origin(node.input[2])
            if held is None or math.prod(held.shape) != rows:
                return _COMPUTED
            return self._vector(held, option(node, "beta", 1.0))
        reader = self.nodes.only_reader(node.output[0])
        if reader is None or not is_node(self.nodes.nodes[reader], "Add"):
            return _Bias()
        (other,) = [name for name in self.nodes.nodes[reader].input if name != node.output[0]]
        held = self.nodes.origin(other)
        return self._vector(held, add=reader) if held and held.shape in added else _Bias()

    def _vector(self, held: Origin, factor: float = 1.0, add: int | None = None) -> _Bias:
        """A bias; in whatever shape it is stored, its numbers lie in the same order."""
        steps = tuple(step for step in held.steps if isinstance(step, Dequantised))
        vector = len(self.nodes.constants[held.name].dims) != 1
        return _Bias(held.name, WeightLayout(steps=steps, vector=vector, factor=factor), add)

    def _fits(self, index: int, weight: str, layout: WeightLayout, bias: _Bias) -> bool:
        """Whether a layer can be run by PyTorch; it stays in a segment where it cannot."""
        if bias is _COMPUTED:
            self.left[index] = Left("bias computed on the fly", weight)
            return False
        if bias.name == weight or not self._hold({weight: layout, **bias.held}):
            self.left[index] = Left("weight or bias also used in another form", weight)
            return False
        return True

    def _hold(self, layouts: Mapping[str, WeightLayout]) -> bool:
        """Takes constants as parameters; False when one is a parameter in another form."""
        if any(self.layouts.get(name, layout) != layout for name, layout in layouts.items()):
            return False
        self.layouts.update(layouts)
        return True

    def _written(self, node: NodeProto, bias: _Bias) -> str:
        return (node if bias.add is None else self.nodes.nodes[bias.add]).output[0]

    def _unit(self, index: int, ops: Sequence[Op], bias: _Bias) -> None:
        self.units[index] = ops
        self.absorbed.update([] if bias.add is None else [bias.add])

    def _not_a_parameter(self, index: int, operand: str) -> None:
        """Leaves a layer whose weight is not a float32 matrix or kernel in the file."""
        source = self.nodes.source(operand)
        stored, maker = self.nodes.constants.get(source), self.nodes.maker(source)
        if stored is not None and stored.data_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(stored.data_type).lower()
            self.left[index] = Left(f"weight of type {kind}", source)
        elif maker is not None and is_node(maker, "DequantizeLinear"):
            self.left[index] = Left("quantised weight")
        elif operand in self.nodes.fixed and stored is None:
            self.left[index] = Left(f"{ON_THE_FLY}: {FOLD}")
        elif is_node(self.nodes.nodes[index], "Conv"):
            self.left[index] = Left(ON_THE_FLY)

    _MAKERS = {  # noqa: RUF012
        "BatchNormalization": _normalisation,
        "Conv": _convolution,
        "Gemm": _product,
        "MatMul": _product,
    }


def _op(kind: type[Op], node: NodeProto, x: str, name: str = "", **settings: Any) -> Op:
    """What PyTorch runs of a node: an operation that reads one value beside its parameters."""
    settings = {"operation": node.op_type, "label": node.name, **settings}
    return kind(name=name or node.output[0], inputs=(x,), **settings)


def _swap(node: NodeProto, x: str, name: str) -> Op:
    """Of an unknown number of axes, which the shapes tell later."""
    settings = {"permutation": (), "compute": kernels.swap, "operation": "Transpose"}
    return _op(Transpose, node, x, name, **settings)


_COMPUTED = _Bias("")


def convolution_geometry(node: NodeProto, kernel: Sequence[int]) -> ConvolutionGeometry:
    """What a convolution's attributes say.

    Args:
        node: Conv, or one like it.
        kernel: its sizes.
    """
    axes = len(kernel)
    pads, same = option(node, "pads", [0] * 2 * axes), option(node, "auto_pad", b"").decode()
    pairs = [(0, 0)] * axes if same == "VALID" else zip(pads[:axes], pads[axes:], strict=True)
    padding: Any = same.lower() if same in ("SAME_UPPER", "SAME_LOWER") else tuple(pairs)
    geometry = ConvolutionGeometry(
        kernel=tuple(kernel),
        stride=tuple(option(node, "strides", [1] * axes)),
        padding=padding,
        dilation=tuple(option(node, "dilations", [1] * axes)),
        groups=option(node, "group", 1),
    )
    if any(step != 1 for step in geometry.stride):
        return geometry
    return replace(geometry, padding=geometry.pads([1] * axes))  # the same for every size
