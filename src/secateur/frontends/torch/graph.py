"""PyTorch front-end: any `nn.Module` that `torch.export` can trace, as aten operations."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from secateur.errors import ModelError
from secateur.frontends.torch.modules import (
    Places,
    cast_outside,
    check_finite,
    computed_weights,
    copy_module,
    named_tensors,
    paths_outside,
    view_of,
    with_parameters,
)
from secateur.frontends.torch.products import (
    depends_on_values,
    grows_with_batch,
    operands,
    product_macs,
    recurrent_weights,
    sizes,
    uses_per_weight,
)
from secateur.frontends.torch.program import export
from secateur.network.folding import Fold, Folded, Folding, folded
from secateur.network.geometry import Convolution, Geometry, Linear
from secateur.network.graph import (
    ON_THE_FLY,
    BiasParameter,
    Layer,
    LayerCall,
    Norm,
    Op,
    activations_product,
    alone,
    merged,
    protected,
)

__all__ = ["TorchGraph", "named_tensors", "trace", "with_parameters"]

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.convolution.default,
}
_LINEAR = aten.linear.default
_BATCH_NORMS = {  # and the number of the argument that holds epsilon
    aten.batch_norm.default: 7,
    aten._native_batch_norm_legit_no_training.default: 6,
}
_TRANSPOSED = {
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}
# Traced in the default memory layout; values in channels-last have other strides.
_ANY_LAYOUT: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}
_AGREEMENT = 1e-3  # largest difference of graph and module, relative to the largest output
_AUTOCAST_AGREEMENT = 0.1  # the same where the module rounds to 8 bits and the graph does not


@dataclass
class TorchGraph:
    """An exported module, run op by op. For other attributes see `secateur.network.graph.Graph`.

    Attributes:
        fixed: why parameters cannot be changed, by name.
        computed: how to make parameters of weights that are computed in each run, by module.
    """

    ops: list[Op]
    input: str
    outputs: list[str]
    parameters: dict[str, Tensor]
    layers: list[Layer]
    notes: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    keys: dict[Node, str] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)

    def run(self, index: int, values: Mapping[str, Any]) -> Any:
        """Runs one aten operation without gradients."""
        node = self.nodes[index]
        look_up = lambda argument: values[self.keys[argument]]  # noqa: E731
        target = _ANY_LAYOUT.get(node.target, node.target)
        return target(*map_arg(node.args, look_up), **map_arg(node.kwargs, look_up))

    def changed(self, parameters: Mapping[str, Tensor]) -> TorchGraph:
        """The same network with some parameters replaced; the layers' BatchNorm scales follow."""
        twin = replace(self, parameters={**self.parameters, **parameters})
        twin.layers = _Layers(twin).find()
        return twin

    has_gradients: ClassVar[bool] = True

    @property
    def unsteady(self) -> set[str]:
        """Values that have a size which depends on the values of others."""
        return {self.keys[node] for node in self.nodes if depends_on_values(node)}

    def judged_by(self, name: str, note: str) -> TorchGraph:
        """The same network with a value before its outputs, and a note."""
        others = [output for output in self.outputs if output != name]
        return replace(self, outputs=[name, *others], notes=[*self.notes, note])

    def folded(self) -> Folding:
        """The network with BatchNorms in the layers that they alone follow."""
        return _folding(self)

    @property
    def norms(self) -> list[Norm]:
        """BatchNorms that alone hold their statistics."""
        found = []
        for index, node in enumerate(self.nodes):
            if not _is_batch_norm(node):
                continue
            value, mean, variance = (self.keys[node.args[at]] for at in (0, 3, 4))  # type: ignore[index]
            found.append(Norm(index, value, mean, variance))
        return alone(found, self.parameters)

    def module_of(self, index: int) -> str:
        """The module that op number `index` belongs to, for messages."""
        return _module(self.nodes[index])


def trace(model: nn.Module, example: Tensor) -> TorchGraph:
    """Exports a module with a dynamic batch and finds its layers.

    Args:
        model: any module; it is copied, put into eval mode and, if it is float16, bfloat16 or
            float64, turned to float32. The module passed in is not touched.
        example: a few inputs, batch first; their device is where the graph runs.

    Raises:
        ModelError: a weight is NaN or infinite, the module cannot be exported, or the graph
            does not give what the module gives.
    """
    module = copy_module(model).eval()
    places = Places.of(module)
    module = module.float().to(example.device)
    cast_outside(module, example.device)
    places.tie(module)
    check_finite(module)
    example = example.contiguous()  # a module may view what in channels-last it could not
    if len(example) == 1:  # torch.export takes a batch of one for a constant
        example = torch.cat([example, example])
    program, autocasts = export(module, example)
    graph = _build(program, places, module)
    if autocasts:
        graph.notes.append("forward uses torch.autocast: layers were fitted in float32")
    _check_agreement(graph, module, example, _AUTOCAST_AGREEMENT if autocasts else _AGREEMENT)
    _put_rows_first(graph)
    return graph


def _check_agreement(
    graph: TorchGraph, module: nn.Module, example: Tensor, tolerance: float
) -> None:
    with torch.no_grad():
        outputs = _tensors(module(example))
        expected = [t.detach() for t in outputs if t.is_floating_point()]
        values = dict(graph.parameters) | {graph.input: example}
        for index, op in enumerate(graph.ops):
            values[op.name] = graph.run(index, values)
    unsteady = graph.unsteady
    found = [(name in unsteady, values[name]) for name in graph.outputs]
    found = [(may, of) for may, of in found if isinstance(of, Tensor) and of.is_floating_point()]
    for want, (may_differ, got) in zip(expected, found, strict=False):
        if want.numel() == 0 or (may_differ and want.shape != got.shape):
            continue  # nothing was found, or a score is on the edge of the selection
        difference = float((want - got).abs().max())
        if difference > tolerance * max(1.0, float(want.abs().max())):
            raise ModelError(
                f"the exported graph's output differs from the model's by {difference:.2g}, "
                "expected the same: forward is random or depends on state; make it deterministic"
            )


def _put_rows_first(graph: TorchGraph) -> None:
    """Gives outputs with another axis for the images, such as (time, batch, classes), rows."""
    by_key = {key: node for node, key in graph.keys.items()}
    batch = _shape(by_key[graph.input])[0]
    for index, name in enumerate(graph.outputs):
        node = by_key[name]
        sizes = _shape(node) if isinstance(node.meta.get("val"), Tensor) else ()
        axes = [axis for axis, size in enumerate(sizes) if str(size) == str(batch)]
        if len(axes) != 1 or axes == [0]:
            continue
        with node.graph.inserting_before(next(of for of in node.graph.nodes if of.op == "output")):
            moved = node.graph.call_function(aten.movedim.int, (node, axes[0], 0))
        moved.meta["val"] = node.meta["val"].movedim(axes[0], 0)
        graph.nodes.append(moved)
        graph.keys[moved] = graph.outputs[index] = f"%{moved.name}"
        graph.ops.append(Op(graph.keys[moved], (name,)))


def _tensors(output: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _build(program: ExportedProgram, places: Places, module: nn.Module) -> TorchGraph:
    keys, parameters = _placeholders(program, places, paths_outside(module))
    compute = [node for node in program.graph.nodes if node.op in ("call_function", "get_attr")]
    for node in compute:
        keys[node] = f"%{node.name}"
    for node in [node for node in compute if node.op == "get_attr"]:  # bodies of control flow
        parameters[keys[node]] = getattr(program.graph_module, str(node.target))
    nodes = [node for node in compute if node.op == "call_function"]
    ops = [Op(keys[node], tuple(keys[read] for read in node.all_input_nodes)) for node in nodes]
    inputs = [node for node in keys if node.op == "placeholder" and keys[node].startswith("%")]
    if len(inputs) != 1:
        raise ModelError(
            f"the model takes {len(inputs)} inputs, expected one (a batch of images): "
            "wrap it in a module whose forward takes only the images"
        )
    by_name = {node.name: node for node in keys}
    outputs = [
        keys[by_name[spec.arg.name]]
        for spec in program.graph_signature.output_specs
        if spec.kind.name == "USER_OUTPUT" and getattr(spec.arg, "name", "") in by_name
    ]
    fixed = {name: places.why_fixed(name) for name in parameters}
    fixed = {name: why for name, why in fixed.items() if why}
    graph = TorchGraph(
        ops,
        keys[inputs[0]],
        outputs,
        parameters,
        layers=[],
        nodes=nodes,
        keys=keys,
        fixed=fixed,
        computed=computed_weights(module),
    )
    graph.layers = _Layers(graph).find()
    if any(isinstance(node.target, torch._ops.HigherOrderOperator) for node in nodes):
        graph.notes.append("layers inside control flow (torch.cond, checkpoint) stay dense")
    return graph


def _folding(graph: TorchGraph) -> Folding:
    """A copy whose layers have following BatchNorms in them, where that can be undone."""
    if not graph.nodes:
        return Folding(graph, graph)
    found = _Layers(graph)
    copies: dict[Node, Node] = {}
    whole = fx.Graph()
    whole.output(whole.graph_copy(graph.nodes[0].graph, copies))  # which reads values too
    keys = {copies[node]: key for node, key in graph.keys.items()}
    parameters, renamed, folds = dict(graph.parameters), {}, []
    for layer in graph.layers:
        new = found.fold(layer)
        if new is None:
            continue
        (use,) = layer.calls
        node = graph.nodes[use.op]
        bias = use.bias or _fresh(f"{layer.name}.bias", parameters)
        parameters |= {str(layer.parameter): new.weight, bias: new.bias}
        assert layer.bias is not None
        (norm,) = node.users
        fold = Fold(
            weight=str(layer.parameter),
            bias=bias,
            bn_scale=new.bn_scale,
            bias_parameter=layer.bias,
            offset=found.offset(norm),
        )
        folds.append(fold)
        conv = copies[node]
        if use.bias is None:
            with whole.inserting_before(next(iter(whole.nodes))):
                place = whole.placeholder("bias")
            keys[place] = bias
            conv.args = (*conv.args[:2], place, *conv.args[3:])
        for part in _results(norm):
            copies[part].replace_all_uses_with(conv)
            whole.erase_node(copies[part])
            renamed[graph.keys[part]] = graph.keys[node]
        if norm not in _results(norm):
            whole.erase_node(copies[norm])
    nodes = [node for node in whole.nodes if node.op == "call_function"]
    twin = replace(
        graph,
        ops=[Op(keys[node], tuple(keys[read] for read in node.all_input_nodes)) for node in nodes],
        outputs=[renamed.get(name, name) for name in graph.outputs],
        parameters=parameters,
        nodes=nodes,
        keys={node: keys[node] for node in whole.nodes if node in keys},
    )
    twin.layers = _Layers(twin).find()
    return Folding(graph, twin, folds)


def _fresh(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _placeholders(
    program: ExportedProgram, places: Places, outside: Mapping[Any, str]
) -> tuple[dict[Node, str], dict[str, Any]]:
    """Names parameters as in the state dict (aliases by their first name), inputs by "%".

    Tensors that the module holds otherwise are named by where it does: `hidden[0].weight`.
    """
    keys: dict[Node, str] = {}
    parameters: dict[str, Any] = {}
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            name = str(spec.target)
            held = program.state_dict.get(name, program.constants.get(name))
            assert isinstance(held, Tensor)
            if name not in places.first:
                name = outside.get(view_of(held), name)
            keys[node] = places.first.get(name, name)
            parameters[keys[node]] = held.detach()
        else:
            keys[node] = f"%{node.name}"
    return keys, parameters


@dataclass
class _Layers:
    """Finds the layers of a graph."""

    graph: TorchGraph

    def __post_init__(self) -> None:
        self.readers: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for read in node.all_input_nodes:
                self.readers.setdefault(self.graph.keys[read], []).append(node)

    def find(self) -> list[Layer]:
        self._look_behind()
        nodes = enumerate(self.graph.nodes)
        layers = merged(layer for index, node in nodes for layer in self._layers(index, node))
        return protected([self._settle(layer) for layer in layers])

    def offset(self, norm: Node) -> str | None:
        """A BatchNorm's offset, if nothing else reads it."""
        beta = self.graph.keys[norm.args[2]] if isinstance(norm.args[2], Node) else None
        return beta if beta is not None and self._is_free(beta) else None

    def fold(self, layer: Layer) -> Folded | None:
        """New parameters of a layer with the BatchNorm behind it; None where there is no such."""
        if layer.obstacle or len(layer.calls) != 1 or layer.bias is None:
            return None
        (use,) = layer.calls
        norm = self._batch_norm(self.graph.nodes[use.op])
        if norm is None or len(_results(norm)) != 1:
            return None
        if norm not in _results(norm) and len(norm.users) != 1:
            return None
        held = [
            self.graph.parameters[self.graph.keys[name]] if isinstance(name, Node) else None
            for name in norm.args[1:5]
        ]
        bias = None if use.bias is None else self.graph.parameters[use.bias]
        weight = self.graph.parameters[str(layer.parameter)]
        return folded(weight, bias, *held, _epsilon(norm))  # type: ignore[arg-type]

    def _layers(self, index: int, node: Node) -> Iterator[Layer]:
        """The layers that an operation is: several of a recurrent one, one a weight."""
        if node.target in _CONVOLUTIONS or node.target == _LINEAR:
            yield self._multiplication(index, node)
        elif node.target in _TRANSPOSED:
            yield self._dense(node, node.args[1], "transposed convolution")
        elif (weights := recurrent_weights(node)) is not None:
            for weight in weights:
                if len(sizes(weight)) > 1:
                    yield self._dense(node, weight, "recurrent layer")
        elif macs := product_macs(node):
            yield self._product(node, self._per_image(node, macs))

    def _product(self, node: Node, macs: int) -> Layer:
        """A product of matrices, named by the largest parameter in a factor without images."""
        held = [self.behind[of] for of in operands(node) if of not in self.depends]
        weight = max(filter(None, held), key=self._count, default=None)
        if weight is None:
            return activations_product(macs)
        is_bilinear = node.target == aten.bilinear.default
        reason = "bilinear layer" if is_bilinear else "matrix product with a parameter"
        shape = self.graph.parameters[weight].shape
        return self._left_dense(node, _short(weight), weight, shape, macs, reason)

    def _look_behind(self) -> None:
        """What depends on the images, and the largest weight that each other value is made of."""
        self.depends: set[Node] = set()
        self.behind: dict[Node, str | None] = {}
        for node, key in self.graph.keys.items():
            if key == self.graph.input:
                self.depends.add(node)
            elif node.op != "call_function":
                self.behind[node] = key if self._is_weight(key) else None
        for node in self.graph.nodes:
            if self.depends.isdisjoint(node.all_input_nodes):
                held = (self.behind.get(read) for read in node.all_input_nodes)
                self.behind[node] = max(filter(None, held), key=self._count, default=None)
            else:
                self.depends.add(node)

    def _count(self, name: str) -> int:
        return self.graph.parameters[name].numel()

    def _is_weight(self, name: str) -> bool:
        value = self.graph.parameters.get(name)
        return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1

    def _per_image(self, node: Node, macs: int) -> int:
        """Of the example's multiply-accumulates those of one image; whole where none is read."""
        return macs // _example_batch(self.graph) if grows_with_batch(node) else macs

    def _dense(self, node: Node, weight: Any, reason: str) -> Layer:
        """A layer that stays dense, and its weight: a parameter or computed on the fly."""
        shape, key = sizes(weight), self.graph.keys[weight]
        held = key if key in self.graph.parameters else None
        macs = self._per_image(node, uses_per_weight(node, shape) * math.prod(shape))
        name = _module(node) or node.name if held is None else _short(held)
        return self._left_dense(node, name, held, shape, macs, reason)

    def _left_dense(
        self, node: Node, name: str, weight: str | None, shape: Sequence[int], macs: int, why: str
    ) -> Layer:
        return Layer(
            name=name,
            parameter=weight,
            kind=str(node.target).removeprefix("aten.").split(".")[0],
            shape=torch.Size(shape),
            output=sizes(node, batch=0),
            macs=macs,
            obstacle=why,
        )

    def _multiplication(self, index: int, node: Node) -> Layer:
        weight = self.graph.keys[node.args[1]]  # type: ignore[index]
        if weight not in self.graph.parameters:
            how = self.graph.computed.get(_module(node))
            return self._dense(node, node.args[1], f"{ON_THE_FLY}: {how}" if how else ON_THE_FLY)
        is_linear = node.target == _LINEAR
        geometry = Linear() if is_linear else _convolution(node)
        shape = self.graph.parameters[weight].shape
        if geometry is None:
            return self._dense(node, node.args[1], "transposed convolution")
        if len(shape) != (2 if is_linear else len(_shape(node))):
            return self._dense(node, node.args[1], "input without a batch axis")
        if depends_on_values(node):
            return self._dense(node, node.args[1], "as many inputs as the values lead to")
        bias = node.args[2] if len(node.args) > 2 else None
        positions = uses_per_weight(node, shape)
        use = LayerCall(
            op=index,
            input=self.graph.keys[node.args[0]],  # type: ignore[index]
            output=self.graph.keys[node],
            bias=self.graph.keys[bias] if isinstance(bias, Node) else None,
            geometry=geometry,
        )
        return Layer(
            name=_short(weight),
            parameter=weight,
            kind="linear" if is_linear else "conv",
            shape=shape,
            output=sizes(node, batch=0),
            macs=self._per_image(node, positions * shape.numel()),
            calls=(use,),
            obstacle=self._obstacle(weight),
        )

    def _obstacle(self, weight: str) -> str | None:
        if weight in self.graph.fixed:
            return f"weight {self.graph.fixed[weight]}"
        others = [
            reader
            for reader in self.readers[weight]
            if not (reader.target in _CONVOLUTIONS or reader.target == _LINEAR)
            or self.graph.keys.get(reader.args[1]) != weight  # type: ignore[arg-type]
        ]
        if others:
            return f"weight also used by {str(others[0].target).removeprefix('aten.')}"
        return None

    def _settle(self, layer: Layer) -> Layer:
        """Adds what depends on all uses: the place for a bias and the BatchNorm's slope."""
        if layer.obstacle:
            return layer
        norms = [self._batch_norm(self.graph.nodes[use.op]) for use in layer.calls]
        uses = tuple(
            replace(use, output=self._normalised(norm)) if norm else use
            for use, norm in zip(layer.calls, norms, strict=True)
        )
        return replace(
            layer,
            calls=uses,
            bias=self._bias_parameter(layer, norms),
            bn_scale=self._slope(norms[0]) if norms[0] else None,
            affine=self._affine(layer, norms[0]),
        )

    def _normalised(self, norm: Node) -> str:
        """The value that a BatchNorm gives: the first of its outputs."""
        results = _results(norm)
        return self.graph.keys[results[0] if len(results) == 1 else norm]

    def _affine(self, layer: Layer, norm: Node | None) -> tuple[str, str | None] | None:
        if len(layer.calls) != 1:
            return None
        if norm is None:
            names = layer.parameter, layer.calls[0].bias
        else:
            gamma, beta = norm.args[1:3]
            if not isinstance(gamma, Node) or not isinstance(beta, Node):
                return None
            names = self.graph.keys[gamma], self.graph.keys[beta]
        if not all(self._is_free(name) for name in names if name is not None):
            return None
        return names  # type: ignore[return-value]

    def _bias_parameter(self, layer: Layer, norms: list[Node | None]) -> BiasParameter | None:
        biases = {use.bias for use in layer.calls}
        bias = next(iter(biases))
        if len(biases) > 1:
            return None
        if bias is not None:
            own = {self.graph.nodes[use.op] for use in layer.calls}
            held = bias in self.graph.parameters and bias not in self.graph.fixed
            free = held and set(self.readers[bias]) == own
            return BiasParameter(bias, 1) if free else None
        norm = norms[0] if len(layer.calls) == 1 else None
        if norm is None:
            return None
        mean = self.graph.keys[norm.args[3]]  # type: ignore[index]
        return BiasParameter(mean, -1) if self._is_free(mean) else None

    def _is_free(self, name: str) -> bool:
        """Whether one operation alone reads a parameter, which can be changed."""
        return len(self.readers[name]) == 1 and name not in self.graph.fixed

    def _batch_norm(self, node: Node) -> Node | None:
        """The BatchNorm that alone reads a layer's output, with its statistics held."""
        readers = list(node.users)
        if len(readers) != 1 or not _is_batch_norm(readers[0]) or readers[0].args[0] is not node:
            return None
        if node.target == _LINEAR and len(sizes(node)) != 2:
            return None  # it normalises positions, not the layer's outputs
        norm = readers[0]
        held = [self.graph.keys[arg] for arg in norm.args[1:5] if isinstance(arg, Node)]
        return norm if all(name in self.graph.parameters for name in held) else None

    def _slope(self, norm: Node) -> Tensor:
        """gamma / sqrt(running variance + eps), per channel."""
        gamma, _, _, variance = (
            self.graph.parameters[self.graph.keys[arg]] if isinstance(arg, Node) else None
            for arg in norm.args[1:5]
        )
        slope = (variance + _epsilon(norm)).rsqrt()  # type: ignore[operator]
        return slope if gamma is None else slope * gamma


def _is_batch_norm(node: Node) -> bool:
    """Whether a node normalises with statistics that it is given."""
    given = node.target in _BATCH_NORMS and all(isinstance(of, Node) for of in node.args[3:5])
    return given and not (node.target == aten.batch_norm.default and node.args[5])


def _results(norm: Node) -> list[Node]:
    """The normalised values: the node itself, or the first of its outputs, each time it is read."""
    if norm.target == aten.batch_norm.default:
        return [norm]
    return [node for node in norm.users if node.target is operator.getitem and node.args[1] == 0]


def _epsilon(norm: Node) -> float:
    return norm.args[_BATCH_NORMS[norm.target]]  # type: ignore[return-value]


def _convolution(node: Node) -> Geometry | None:
    """The geometry of a convolution node; None for a transposed one."""
    options = _options(node)
    if options.get("transposed"):
        return None
    kernel = tuple(_shape(node.args[1])[2:])
    dilation = _each(options["dilation"], kernel)
    padding = options["padding"]
    if padding == "same":  # an odd pad more goes behind, as in PyTorch
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    elif padding == "valid":
        pads = tuple((0, 0) for _ in kernel)
    else:
        pads = tuple((pad, pad) for pad in _each(padding, kernel))
    stride = _each(options["stride"], kernel)
    return Convolution(
        kernel=kernel, stride=stride, padding=pads, dilation=dilation, groups=options["groups"]
    )


def _options(node: Node) -> dict[str, Any]:
    """A node's arguments by name, defaults included."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    options = {argument.name: argument.default_value for argument in arguments}
    names = [argument.name for argument in arguments]
    return options | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _each(option: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    values = [option] if isinstance(option, int) else list(option)
    return tuple(values * len(kernel) if len(values) == 1 else values)


def _shape(node: Any) -> torch.Size:
    return node.meta["val"].shape


def _example_batch(graph: TorchGraph) -> int:
    node = next(node for node, key in graph.keys.items() if key == graph.input)
    return sizes(node)[0]


def _module(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
    return paths[-1] if paths else ""


def _short(parameter: str) -> str:
    return parameter.removesuffix(".weight")
