"""Which nodes of an OpenVINO model PyTorch runs, as typed operations, and how weights are stored.

Convolutions and products with a weight, and normalisations, are run by PyTorch, so that weights can
be changed; see `schedule` for the others, and `operators` for what these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends import kernels
from secateur.frontends.openvino.nodes import Node, Nodes
from secateur.network.geometry import ConvolutionGeometry
from secateur.network.layers import ON_THE_FLY
from secateur.network.ops import BatchNorm, Convolution, Linear, Op, Sizes, Transpose

FOLD = "fold constants when you convert the network"
QUANTISED = "quantised weight"
_RESHAPES = ("Reshape", "Unsqueeze", "Squeeze")
_FLOATS = ("f32", "f16", "bf16", "f64")
_SMALL = ("i8", "u8", "i4", "u4", "u1", "u2", "u3", "u6", "nf4", "f4e2m1", "f8e4m3", "f8e5m2")

Step = tuple[str, tuple[int, ...], tuple[int, ...]]  # "permute" or "reshape", forth and back


@dataclass(frozen=True, kw_only=True)
class WeightLayout:
    """How a parameter lies in the file.

    Attributes:
        kind: type of the constant, such as "f16".
        steps: what makes the parameter of it: in each a permutation, or a shape, and the one that
            undoes it.
    """

    kind: str = "f32"
    steps: tuple[Step, ...] = ()

    def read(self, held: Tensor) -> Tensor:
        """The parameter as the layer uses it, of a constant in float32."""
        for what, forth, _ in self.steps:
            held = held.permute(forth) if what == "permute" else held.reshape(forth)
        return held.contiguous()

    def write(self, value: Tensor) -> Tensor:
        """The inverse."""
        for what, _, back in reversed(self.steps):
            value = value.permute(back) if what == "permute" else value.reshape(back)
        return value.contiguous()

    def permuted(self, order: Sequence[int]) -> WeightLayout:
        """With its axes in another order."""
        back = tuple(int(at) for at in np.argsort(order))
        return replace(self, steps=(*self.steps, ("permute", tuple(order), back)))

    def reshaped(self, before: Sizes, after: Sizes) -> WeightLayout:
        """In another shape."""
        if before == after:
            return self
        return replace(self, steps=(*self.steps, ("reshape", after, before)))


@dataclass(frozen=True)
class Stored:
    """A constant behind a value.

    Attributes:
        name: of the constant.
        shape: that it has there.
        layout: how that is made of what is stored.
    """

    name: str
    shape: Sizes
    layout: WeightLayout

    def reshaped(self, shape: Sizes) -> Stored:
        """In another shape."""
        return Stored(self.name, shape, self.layout.reshaped(self.shape, shape))

    def permuted(self, order: Sequence[int]) -> Stored:
        """With its axes in another order."""
        shape = tuple(self.shape[at] for at in order)
        return Stored(self.name, shape, self.layout.permuted(order))


@dataclass(frozen=True)
class Left:
    """Why a layer is left to OpenVINO.

    Attributes:
        reason: in words.
        weight: the constant that it multiplies with; None where that is computed.
    """

    reason: str
    weight: str | None = None


@dataclass(frozen=True)
class _Bias:
    """A bias per output: the parameter, and the Add that brings it."""

    stored: Stored | None = None
    add: int | None = None

    @property
    def name(self) -> str | None:
        return None if self.stored is None else self.stored.name

    @property
    def held(self) -> dict[str, WeightLayout]:
        return {} if self.stored is None else {self.stored.name: self.stored.layout}


class Translation:
    """What PyTorch runs of a model.

    Attributes:
        nodes: the model's nodes, with look-ups.
        outputs: names of the outputs that depend on its inputs.
        layouts: how each parameter lies in the file, by name.
        units: the operations that PyTorch runs, by number of the node that they stand for.
        absorbed: numbers of further nodes that they stand for.
        left: layers that OpenVINO runs, by number of the node.

    Raises:
        ModelError: the model has a state, or gives nothing that depends on its inputs.
    """

    def __init__(self, model: Any) -> None:
        if model.get_sinks() or model.get_variables():
            raise ModelError(
                "the OpenVINO model keeps a state from one run to the next, expected one that "
                "gives the same for the same inputs: convert it with its state as inputs and "
                "outputs"
            )
        self.nodes = Nodes(model)
        made = {*self.nodes.inputs, *self.nodes.makers} - self.nodes.fixed
        self.outputs = [name for name in self.nodes.outputs if name in made]
        if not self.outputs:
            raise ModelError(
                "the OpenVINO model has no output that depends on its inputs, expected at least "
                "one: check that this is the right file"
            )
        self.layouts: dict[str, WeightLayout] = {}
        self.units: dict[int, Sequence[Op]] = {}
        self.absorbed: set[int] = set()
        self.left: dict[int, Left] = {}
        for index, node in enumerate(self.nodes.nodes):
            make = _MAKERS.get(node.kind)
            if make and index not in self.absorbed and not self.nodes.is_fixed(node):
                make(self, index, node)

    def parameters(self) -> dict[str, Tensor]:
        """The values of the parameters as the layers use them, copied."""
        return {
            name: of.read(floats(self.nodes.constants[name])) for name, of in self.layouts.items()
        }

    def stored(self, name: str) -> Stored | None:
        """The constant of floats behind a value, through conversions and changes of shape."""
        way, value = list[Node](), name
        while (node := self.nodes.maker(name)) is not None:
            if node.kind not in (*_RESHAPES, "Convert", "Transpose"):
                return None
            way.append(node)
            name = node.reads[0]
        if name not in self.nodes.constants:
            return None
        held = self.nodes.constants[name]
        kind = type_of(held.output(0))
        found = Stored(name, tuple(held.get_output_shape(0)), WeightLayout(kind=kind))
        if kind not in _FLOATS or type_of(self.nodes.value(value)) != "f32":
            return None
        for node in reversed(way):
            if node.kind == "Transpose":
                order = self.nodes.integers(node.reads[1])
                found = (
                    None
                    if order is None
                    else found.permuted(order or range(len(found.shape))[::-1])
                )
            elif node.kind in _RESHAPES:
                shape = self.nodes.shape(node.writes[0])
                found = None if shape is None else found.reshaped(shape)
            if found is None:
                return None
        return found

    def normalisation(self, index: int, node: Node) -> None:
        """A BatchNorm with statistics."""
        if node.held.get_type_info().version_id == "opset1":  # with the data in the third place
            return
        x, *names = node.reads
        found = [self.stored(name) for name in names]
        held = [of for of in found if of is not None and len(of.shape) == 1]
        if len(held) < 4 or not self._hold({of.name: of.layout for of in held}):
            return
        epsilon = float(node.options["epsilon"])
        pairs = zip(("gamma", "beta", "mean", "variance"), held, strict=True)
        weights = {key: of.name for key, of in pairs}
        compute = kernels.batch_norm(epsilon)
        self.units[index] = [_op(BatchNorm, node, x, epsilon=epsilon, compute=compute, **weights)]

    def convolution(self, index: int, node: Node) -> None:
        """With groups or without; those of the file are an axis of the weight."""
        x, operand = node.reads
        weight = self.stored(operand)
        grouped = node.kind == "GroupConvolution"
        if weight is None or x in self.nodes.fixed:
            self._not_a_parameter(index, operand)
            return
        groups = weight.shape[0] if grouped else 1
        if grouped:
            weight = weight.reshaped((groups * weight.shape[1], *weight.shape[2:]))
        channels = (weight.shape[0], *(1,) * (len(weight.shape) - 2))
        bias = self._bias(node, lambda shape: shape in (channels, (1, *channels)), channels[0])
        if not self._fits(index, weight, bias):
            return
        geometry = convolution_geometry(node, weight.shape[2:], groups)
        settings = {"geometry": geometry, "compute": kernels.convolution(geometry)}
        held = {"weight": weight.name, "bias": bias.name}
        y = self._written(node, bias)
        self._unit(index, [_op(Convolution, node, x, y, **held, **settings)], bias)

    def product(self, index: int, node: Node) -> None:
        """A weight on either side: W x = (x^T W^T)^T."""
        left = node.reads[0] in self.nodes.fixed
        x, operand = node.reads[::-1] if left else node.reads
        turned, other = node.options["transpose_a"], node.options["transpose_b"]
        turned, other = (other, turned) if left else (turned, other)  # of x, and of the weight
        weight, rank = self.stored(operand), self.nodes.rank(node.writes[0])
        if weight is None or x in self.nodes.fixed or rank is None:
            self._not_a_parameter(index, operand)
            return
        axes = self.nodes.rank(x)
        if axes is None or min(axes, len(weight.shape)) < 2:
            return
        *more, first, last = weight.shape
        if math.prod(more) != 1 or axes < len(weight.shape):
            self.left[index] = Left("a stack of matrices", weight.name)
            return
        weight = weight.reshaped((first, last))
        if other == left:  # not (out, in)
            weight = weight.permuted((1, 0))
        rows = weight.shape[0]
        bias = _Bias()
        if not left:
            bias = self._bias(
                node, lambda shape: len(shape) <= rank and shape[-1:] == (rows,), rows
            )
        if not self._fits(index, weight, bias):
            return
        y, ops = self._written(node, bias), list[Op]()
        if left != turned:
            ops.append(_swap(node, x, self.nodes.fresh(x), axes))
        x, product = (ops[0].name if ops else x), (self.nodes.fresh(y) if left else y)
        held = {"weight": weight.name, "bias": bias.name}
        ops.append(_op(Linear, node, x, product, compute=F.linear, **held))
        if left:
            ops.append(_swap(node, product, y, rank))
        self._unit(index, ops, bias)

    def _bias(self, node: Node, fits: Callable[[Sizes], bool], rows: int) -> _Bias:
        """The bias that a following Add brings, where it has one entry for each output."""
        reader = self.nodes.only_reader(node.writes[0])
        if reader is None or self.nodes.nodes[reader].kind != "Add":
            return _Bias()
        (other,) = [name for name in self.nodes.nodes[reader].reads if name != node.writes[0]]
        stored = self.stored(other)
        if stored is None or math.prod(stored.shape) != rows or not fits(stored.shape):
            return _Bias()
        return _Bias(stored.reshaped((rows,)), reader)

    def _fits(self, index: int, weight: Stored, bias: _Bias) -> bool:
        """Whether a layer can be run by PyTorch; it stays in a segment where it cannot."""
        if bias.name == weight.name or not self._hold({weight.name: weight.layout, **bias.held}):
            self.left[index] = Left("weight or bias also used in another form", weight.name)
            return False
        return True

    def _hold(self, layouts: Mapping[str, WeightLayout]) -> bool:
        """Takes constants as parameters; False when one is a parameter in another form."""
        if any(self.layouts.get(name, layout) != layout for name, layout in layouts.items()):
            return False
        self.layouts.update(layouts)
        return True

    def _written(self, node: Node, bias: _Bias) -> str:
        return (node if bias.add is None else self.nodes.nodes[bias.add]).writes[0]

    def _unit(self, index: int, ops: Sequence[Op], bias: _Bias) -> None:
        self.units[index] = ops
        self.absorbed.update([] if bias.add is None else [bias.add])

    def _not_a_parameter(self, index: int, operand: str) -> None:
        """Leaves a layer whose weight is no matrix or kernel of floats in the file."""
        kinds = self._behind(operand)
        if operand not in self.nodes.fixed:
            if self.nodes.nodes[index].kind != "MatMul":
                self.left[index] = Left(ON_THE_FLY)
        elif kinds & {"FakeQuantize", *_SMALL}:
            self.left[index] = Left(QUANTISED, self._weight_behind(operand))
        elif operand in self.nodes.constants:
            kind = type_of(self.nodes.value(operand))
            self.left[index] = Left(f"weight of type {kind}", operand)
        else:
            self.left[index] = Left(f"{ON_THE_FLY}: {FOLD}")

    def _behind(self, name: str) -> set[str]:
        """Which operations and types of constants make a value that depends on constants only."""
        found, names = set[str](), [name]
        while names:
            name = names.pop()
            if name in self.nodes.constants:
                found.add(type_of(self.nodes.value(name)))
            elif (node := self.nodes.maker(name)) is not None:
                found.add(node.kind)
                names += node.reads
        return found

    def _weight_behind(self, name: str) -> str | None:
        """The constant that a quantised weight is made of: the first input's, as far as it goes."""
        while (node := self.nodes.maker(name)) is not None:
            name = node.reads[0]
        return name if name in self.nodes.constants else None


_MAKERS: Mapping[str, Callable[[Translation, int, Node], None]] = {
    "BatchNormInference": Translation.normalisation,
    "Convolution": Translation.convolution,
    "GroupConvolution": Translation.convolution,
    "MatMul": Translation.product,
}


def type_of(value: Any) -> str:
    """The type of an `openvino.Output`'s numbers, such as "f32"."""
    return value.get_element_type().get_type_name()


def floats(constant: Any) -> Tensor:
    """A constant's numbers in float32, copied."""
    return torch.from_numpy(np.array(constant.get_data(dtype=np.float32)))


def constant_like(constant: Any, value: Tensor) -> Any:
    """A new constant of the same type, shape and name.

    Raises:
        ModelError: a number is too large for the type.
    """
    kind = constant.get_element_type()
    array = value.detach().cpu().numpy().reshape(constant.get_output_shape(0))
    make: Any = openvino.op.Constant
    made = make(kind, openvino.Shape(array.shape), array.ravel())
    if not np.isfinite(made.get_data(dtype=np.float32)).all():
        raise ModelError(
            f"a new weight of {constant.get_friendly_name()} is too large for "
            f"{kind.get_type_name()}, the type that the file has it in, expected a smaller one: "
            "convert the network with weights in float32"
        )
    made.set_friendly_name(constant.get_friendly_name())
    return made


def _op(kind: type[Op], node: Node, x: str, name: str = "", **settings: Any) -> Op:
    """What PyTorch runs of a node: an operation that reads one value beside its parameters."""
    settings = {"operation": node.kind, "label": node.name, **settings}
    return kind(name=name or node.writes[0], inputs=(x,), **settings)


def _swap(node: Node, x: str, name: str, rank: int) -> Op:
    """The last two axes in the places of each other."""
    *before, last, end = range(rank)
    permutation = (*before, end, last)
    settings = {"permutation": permutation, "compute": kernels.swap, "operation": "Transpose"}
    return _op(Transpose, node, x, name, **settings)


def convolution_geometry(node: Node, kernel: Sequence[int], groups: int) -> ConvolutionGeometry:
    """What a convolution's attributes say.

    Args:
        node: Convolution, or one like it.
        kernel: its sizes.
        groups: how many.
    """
    options, same = node.options, str(node.options.get("auto_pad", "explicit")).lower()
    axes = len(kernel)
    pairs = zip(options["pads_begin"], options["pads_end"], strict=True)
    padding: Any = tuple((int(before), int(after)) for before, after in pairs)
    if same == "valid":
        padding = ((0, 0),) * axes
    geometry = ConvolutionGeometry(
        kernel=tuple(kernel),
        stride=tuple(map(int, options["strides"])),
        padding=same if same in ("same_upper", "same_lower") else padding,
        dilation=tuple(map(int, options["dilations"])),
        groups=groups,
    )
    if any(step != 1 for step in geometry.stride):
        return geometry
    return replace(geometry, padding=geometry.pads([1] * axes))  # the same for every size
