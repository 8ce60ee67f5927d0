"""Which nodes of an ONNX graph are layers, and how their weights are stored.

Convolutions, products with a weight and normalisations become steps that PyTorch runs; see
`schedule` for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.onnx.file import inlined, tensor_of
from secateur.frontends.onnx.nodes import Nodes, is_node, option
from secateur.frontends.onnx.products import RECURRENT, multiplies
from secateur.frontends.onnx.signature import images_input
from secateur.frontends.onnx.steps import Convolve, Multiply, Normalise, Step, Swap
from secateur.network.graph import ON_THE_FLY

_STAY_DENSE = {
    "ConvTranspose": "transposed convolution",
    "DeformConv": "deformable convolution",
    "Einsum": "matrix product with a parameter",
    "LSTM": "recurrent layer",
    "GRU": "recurrent layer",
    "RNN": "recurrent layer",
    "ConvInteger": "quantised",
    "MatMulInteger": "quantised",
    "QLinearConv": "quantised",
    "QLinearMatMul": "quantised",
    "QAttention": "quantised",
    "MatMulNBits": "quantised",
    "FusedConv": "fused by ONNX Runtime",
    "FusedGemm": "fused by ONNX Runtime",
    "FusedMatMul": "fused by ONNX Runtime",
    "Attention": "fused by ONNX Runtime",
}

FOLD = "remove weight norms, parametrizations and masks before the export, or fold constants in it"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a parameter lies in the file.

    Attributes:
        transposed: a matrix (in, out) where the layer has (out, in).
        factor: the layer multiplies by this (Gemm's alpha or beta).
        vector: of any shape with one axis longer than 1, such as (1, C, 1, 1).
    """

    transposed: bool = False
    factor: float = 1.0
    vector: bool = False

    def read(self, held: Tensor) -> Tensor:
        """The parameter as the layer uses it."""
        held = held.flatten() if self.vector else held.mT.contiguous() if self.transposed else held
        return held if self.factor == 1 else held * self.factor

    def write(self, value: Tensor) -> Tensor:
        """The inverse, up to the shape of a vector."""
        value = value.mT if self.transposed else value
        return value if self.factor == 1 else value / self.factor + 0.0  # no negative zeros


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where a layer is used.

    Attributes:
        node: number of the node.
        kind: "conv" or "linear", else the node's operation.
        step: what runs it; None where it is a part of a segment and stays dense.
        weight: the parameter; None when computed.
        add: number of the Add that brings its bias, where there is one.
        reason: why it stays dense.
    """

    node: int
    kind: str
    step: Convolve | Multiply | None = None
    weight: str | None = None
    add: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Bias:
    """A bias per output: the parameter, how it is stored, and the Add that brings it."""

    name: str | None = None
    stored: Stored = Stored()
    add: int | None = None

    @property
    def held(self) -> dict[str, Stored]:
        return {} if self.name is None else {self.name: self.stored}


class Plan:
    """What to run, in order, and where the layers are.

    With `any_batch`, a reshape to that many images is read as one to as many as there are.

    Attributes:
        model: without functions.
        nodes: the graph's nodes, with look-ups.
        input: name of the value that holds the images.
        outputs: names of the outputs that depend on them.
        stored: how each parameter lies in the file, by name.
        sites: where layers are used, in the file's order.
        units: the steps that PyTorch runs, by number of the node that they stand for.
        absorbed: numbers of further nodes that they stand for.

    Raises:
        ModelError: the model takes several inputs, or gives nothing that depends on its images.
    """

    def __init__(self, model: ModelProto, *, any_batch: int = 0) -> None:
        self.model = inlined(model)
        self.input = images_input(model).name
        self.nodes = Nodes(self.model, any_batch=any_batch)
        made = {self.input, *self.nodes.makers} - self.nodes.fixed
        self.outputs = [name for name in self.nodes.outputs if name in made]
        if not self.outputs:
            raise ModelError(
                "the ONNX model has no output that depends on its images, expected at least one: "
                "check that this is the right file"
            )
        self.stored: dict[str, Stored] = {}
        self.sites: list[Site] = []
        self.units: dict[int, list[Step]] = {}
        self.absorbed: set[int] = set()
        for index, node in enumerate(self.nodes.nodes):
            if index not in self.absorbed and not self.nodes.is_fixed(node):
                self._place(index, node)

    def parameters(self) -> dict[str, Tensor]:
        """The values of the parameters as the layers use them, copied."""
        held = self.nodes.constants
        return {name: of.read(tensor_of(held[name], name)) for name, of in self.stored.items()}

    def _place(self, index: int, node: NodeProto) -> None:
        """Makes a unit of a node that PyTorch runs, and a site of one that is a layer."""
        if is_node(node, "BatchNormalization"):
            self._normalisation(index, node)
        elif is_node(node, "Conv"):
            self._convolution(index, node)
        elif is_node(node, "Gemm"):
            self._gemm(index, node)
        elif is_node(node, "MatMul"):
            self._matmul(index, node)
        elif node.op_type in RECURRENT:
            for name in node.input[1:3]:
                self._dense(index, self.nodes.source(name)[0], _STAY_DENSE[node.op_type])
        elif node.op_type in _STAY_DENSE or multiplies(node):
            weight = self._largest(node)
            reason = _STAY_DENSE.get(node.op_type, "matrix product with a parameter")
            self._dense(index, weight, reason)

    def _normalisation(self, index: int, node: NodeProto) -> None:
        names = [self.nodes.source(name)[0] for name in node.input[1:5]]
        shapes = {self.nodes.float_shape(name) for name in names}
        trains = option(node, "training_mode", 0) or any(node.output[1:])
        if trains or len(shapes) != 1 or len(next(iter(shapes)) or ()) != 1:
            return
        if not self._hold(dict.fromkeys(names, Stored())):
            return
        gamma, beta, mean, variance = names
        step = Normalise(
            name=node.output[0],
            input=node.input[0],
            gamma=gamma,
            beta=beta,
            mean=mean,
            variance=variance,
            epsilon=option(node, "epsilon", 1e-5),
        )
        self.units[index] = [step]

    def _convolution(self, index: int, node: NodeProto) -> None:
        weight, turned = self.nodes.source(node.input[1])
        shape = self.nodes.float_shape(weight)
        if shape is None or len(shape) < 3 or turned:
            self._not_a_parameter(index, node.input[1])
            return
        axes = len(shape) - 2
        bias = self._own_bias(node, shape[0], 1.0)
        if bias is None:
            ones = (1,) * axes
            bias = self._added_bias(node, {(shape[0], *ones), (1, shape[0], *ones)})
        if not self._fits(index, weight, Stored(), bias):
            return
        pads, same = option(node, "pads", [0] * 2 * axes), option(node, "auto_pad", b"").decode()
        pads = [0] * 2 * axes if same == "VALID" else pads
        step = Convolve(
            name=self._written(node, bias),
            input=node.input[0],
            weight=weight,
            bias=bias.name,
            kernel=shape[2:],
            stride=tuple(option(node, "strides", [1] * axes)),
            dilation=tuple(option(node, "dilations", [1] * axes)),
            pads=None if "SAME" in same else tuple(zip(pads[:axes], pads[axes:], strict=True)),
            same=same,
            groups=option(node, "group", 1),
        )
        self._unit(index, "conv", step, [step], bias)

    def _gemm(self, index: int, node: NodeProto) -> None:
        alpha = option(node, "alpha", 1.0)
        found = self._matrix(node.input[1], turned=not option(node, "transB", 0), factor=alpha)
        if found is None or node.input[0] in self.nodes.fixed or not alpha:
            self._not_a_parameter(index, node.input[1])
            return
        weight, stored, rows = found
        bias = self._own_bias(node, rows, option(node, "beta", 1.0))
        bias = bias or self._added_bias(node, {(rows,), (1, rows)})
        if not self._fits(index, weight, stored, bias):
            return
        x = node.input[0]
        swap = [Swap(name=self.nodes.fresh(x), input=x)] if option(node, "transA", 0) else []
        step = Multiply(
            name=self._written(node, bias),
            input=swap[0].name if swap else x,
            weight=weight,
            bias=bias.name,
        )
        self._unit(index, "linear", step, [*swap, step], bias)

    def _matmul(self, index: int, node: NodeProto) -> None:
        left = node.input[0] in self.nodes.fixed
        held, x = (node.input[0], node.input[1]) if left else (node.input[1], node.input[0])
        found = self._matrix(held, turned=not left)
        if found is None:
            self._not_a_parameter(index, held)
            return
        weight, stored, rows = found
        bias = _Bias() if left else self._added_bias(node, {(rows,), (1, rows)})
        if not self._fits(index, weight, stored, bias):
            return
        name = self._written(node, bias)
        if not left:
            step = Multiply(name=name, input=x, weight=weight, bias=bias.name)
            self._unit(index, "linear", step, [step], bias)
            return
        into, out = self.nodes.fresh(x), self.nodes.fresh(name)  # W x = (x^T W^T)^T
        step = Multiply(name=out, input=into, weight=weight, bias=None)
        swaps = Swap(name=into, input=x), Swap(name=name, input=out)
        self._unit(index, "linear", step, [swaps[0], step, swaps[1]], bias)

    def _matrix(
        self, name: str, *, turned: bool, factor: float = 1.0
    ) -> tuple[str, Stored, int] | None:
        """A weight as parameter, how it is stored, and its rows; None when it is no matrix."""
        weight, again = self.nodes.source(name)
        shape = self.nodes.float_shape(weight)
        if shape is None or len(shape) != 2:
            return None
        stored = Stored(transposed=turned ^ again, factor=factor)
        return weight, stored, shape[1 if stored.transposed else 0]

    def _own_bias(self, node: NodeProto, rows: int, factor: float) -> _Bias | None:
        """The bias among a node's inputs; None where it has none."""
        if len(node.input) < 3 or not node.input[2]:
            return None
        name, shape = self.nodes.vector(node.input[2])
        if shape is None or math.prod(shape) != rows:
            return _COMPUTED
        return _Bias(name, self._as_vector(name, factor))

    def _added_bias(self, node: NodeProto, shapes: set[tuple[int, ...]]) -> _Bias:
        """The constant of one of these shapes that a following Add brings, or no bias."""
        reader = self.nodes.only_reader(node.output[0])
        if reader is None or not is_node(self.nodes.nodes[reader], "Add"):
            return _Bias()
        (other,) = [name for name in self.nodes.nodes[reader].input if name != node.output[0]]
        name, shape = self.nodes.vector(other)
        return _Bias(name, self._as_vector(name), reader) if shape in shapes else _Bias()

    def _as_vector(self, name: str, factor: float = 1.0) -> Stored:
        return Stored(vector=len(self.nodes.constants[name].dims) != 1, factor=factor)

    def _fits(self, index: int, weight: str, stored: Stored, bias: _Bias) -> bool:
        """Whether a layer can be run by PyTorch; it stays in a segment where it cannot."""
        if bias is _COMPUTED:
            self._dense(index, weight, "bias computed on the fly")
            return False
        if bias.name == weight or not self._hold({weight: stored, **bias.held}):
            self._dense(index, weight, "weight or bias also used in another form")
            return False
        return True

    def _hold(self, wanted: Mapping[str, Stored]) -> bool:
        """Takes constants as parameters; False when one is a parameter in another form."""
        if any(self.stored.get(name, stored) != stored for name, stored in wanted.items()):
            return False
        self.stored.update(wanted)
        return True

    def _written(self, node: NodeProto, bias: _Bias) -> str:
        return (node if bias.add is None else self.nodes.nodes[bias.add]).output[0]

    def _unit(
        self, index: int, kind: str, step: Convolve | Multiply, steps: list[Step], bias: _Bias
    ) -> None:
        self.units[index] = steps
        self.absorbed.update([] if bias.add is None else [bias.add])
        site = Site(node=index, kind=kind, step=step, weight=step.weight, add=bias.add)
        self.sites.append(site)

    def _not_a_parameter(self, index: int, operand: str) -> None:
        """A site for a layer whose weight is not a float32 matrix or kernel in the file."""
        node, (source, _) = self.nodes.nodes[index], self.nodes.source(operand)
        held, maker = self.nodes.constants.get(source), self.nodes.makers.get(source)
        if held is not None:
            kind = TensorProto.DataType.Name(held.data_type).lower()
            same = held.data_type == TensorProto.FLOAT
            reason = "matrix product with a parameter" if same else f"weight of type {kind}"
            self._dense(index, source, reason)
        elif maker is not None and is_node(self.nodes.nodes[maker], "DequantizeLinear"):
            self._dense(index, None, "quantised weight")
        elif operand in self.nodes.fixed:
            self._dense(index, None, f"{ON_THE_FLY}: {FOLD}")
        elif is_node(node, "Conv"):
            self._dense(index, None, ON_THE_FLY)
        else:
            weight = self._largest(node)  # Gemm with a constant on the left
            self._dense(index, weight, "matrix product with a parameter")

    def _largest(self, node: NodeProto) -> str | None:
        """The largest matrix or kernel among a node's inputs."""
        names = [self.nodes.source(name)[0] for name in node.input]
        held = {name: self.nodes.constants[name] for name in names if name in self.nodes.constants}
        sizes = {name: math.prod(of.dims) for name, of in held.items() if len(of.dims) > 1}
        return max(sizes, key=sizes.__getitem__, default=None)

    def _dense(self, index: int, weight: str | None, reason: str) -> None:
        kind = self.nodes.nodes[index].op_type
        self.sites.append(Site(node=index, kind=kind, weight=weight, reason=reason))


_COMPUTED = _Bias("")
