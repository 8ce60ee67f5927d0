"""PyTorch front-end: any `nn.Module` that `torch.export` can trace, as aten operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_unflatten

from secateur.errors import ModelError
from secateur.frontends.torch.modes import plain_copy
from secateur.frontends.torch.modules import (
    Places,
    cast_outside,
    check_finite,
    computed_weights,
    named_tensors,
    paths_outside,
    view_of,
    with_parameters,
)
from secateur.frontends.torch.program import export
from secateur.frontends.torch.signature import Arguments
from secateur.frontends.torch.translation import Translator, depends_on_values, shape_of
from secateur.network.graph import Graph
from secateur.network.layer_finder import uncounted
from secateur.network.ops import Shape, Shapes
from secateur.network.returned import named_leaves
from secateur.network.rows import images_first
from secateur.network.samples import Samples

__all__ = ["named_tensors", "trace", "with_parameters"]

_AGREEMENT = 1e-3  # largest difference of graph and module, relative to the largest output
_AUTOCAST_AGREEMENT = 0.1  # the same where the module rounds to 8 bits and the graph does not


def trace(model: nn.Module, example: Samples) -> Graph:
    """Exports a module with a dynamic batch and finds its layers.

    Args:
        model: any module; it is copied, put into eval mode and, if it is float16, bfloat16 or
            float64, turned to float32. The module passed in is not touched.
        example: a few samples, by the names of the arguments of `forward`; their device is where
            the graph runs.

    Raises:
        ModelError: a weight is NaN or infinite, the module cannot be exported, or the graph
            does not give what the module gives.
    """
    module = plain_copy(model)
    places = Places.of(module)
    module = module.float().to(example.device)
    cast_outside(module, example.device)
    places.tie(module)
    check_finite(module)
    example = example.map(Tensor.contiguous)  # a module may view what channels-last does not let
    if len(example) == 1:  # torch.export takes a batch of one for a constant
        example = example.pair()
    program, autocasts = export(module, example)
    graph = _build(program, places, module, example)
    if autocasts:
        note = "forward uses torch.autocast: layers were fitted in float32"
        graph = replace(graph, notes=[*graph.notes, note])
    _check_agreement(graph, module, example, _AUTOCAST_AGREEMENT if autocasts else _AGREEMENT)
    graph = replace(graph, parameters=_held_once(graph.parameters, named_tensors(model)))
    _let_go(module)
    return images_first(replace(graph, notes=[*graph.notes, *uncounted(graph)]))


def _held_once(copies: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's own tensors in the place of copies that are the same: nothing changes them."""

    def found(name: str, copy: Tensor) -> Tensor:
        given = own.get(name)
        if given is None or given.layout != torch.strided or given.is_inference():
            return copy
        same = _form(given) == _form(copy) and torch.equal(given, copy)
        return given.detach() if same else copy

    return {name: found(name, copy) for name, copy in copies.items()}


def _let_go(module: nn.Module) -> None:
    """Drops a module's tensors: the exporter leaves it in cycles, which may stay for long."""
    for part in module.modules():
        part._parameters.clear()
        part._buffers.clear()


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _check_agreement(graph: Graph, module: nn.Module, example: Samples, tolerance: float) -> None:
    with torch.no_grad():
        given = Arguments.of(module, example.map(Tensor.clone))
        try:
            outputs = list(_tensors(given.call(module)))
        except Exception as error:  # whatever a network raises
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                f"the network fails on the inputs ({said}), expected some like those it was made "
                "for: check their sizes and, of tokens, their numbers"
            ) from error
        expected = [t.detach() for t in outputs if t.is_floating_point()]
        values = dict(graph.parameters) | dict(example.named(graph.inputs).tensors)
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


def _tensors(output: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _build(program: ExportedProgram, places: Places, module: nn.Module, example: Samples) -> Graph:
    keys, parameters = _placeholders(program, places, paths_outside(module), example.constants)
    compute = [node for node in program.graph.nodes if node.op in ("call_function", "get_attr")]
    for node in compute:
        keys[node] = f"%{node.name}"
    for node in [node for node in compute if node.op == "get_attr"]:  # bodies of control flow
        parameters[keys[node]] = getattr(program.graph_module, str(node.target))
    nodes = [node for node in compute if node.op == "call_function"]
    inputs = [node for node in keys if node.op == "placeholder" and keys[node].startswith("%")]
    trained = {places.first.get(name, name) for name in program.graph_signature.parameters}
    ops = Translator(keys, parameters, trained, computed_weights(module)).ops(nodes)
    by_name = {node.name: node for node in keys}
    inner = any(isinstance(node.target, torch._ops.HigherOrderOperator) for node in nodes)
    outputs = [(name, keys[by_name[node]]) for name, node in _returned(program) if node in by_name]
    return Graph(
        ops=ops,
        inputs=[keys[node] for node in inputs],
        outputs=[key for _, key in outputs],
        output_names=[name for name, _ in outputs],
        parameters=parameters,
        shapes=_shapes(keys, parameters, len(example)),
        constants={name for name, held in parameters.items() if _is_numbers(held)},
        fixed={name: why for name in parameters if (why := places.why_fixed(name))}
        | dict.fromkeys(example.constants, "given once for all samples"),
        unsteady={keys[node] for node in nodes if depends_on_values(node)},
        notes=["layers inside control flow (torch.cond, checkpoint) stay dense"] * inner,
    )


def _returned(program: ExportedProgram) -> list[tuple[str, str]]:
    """What the program returns: what its users call each value, and its node's name."""
    specs = program.graph_signature.output_specs
    nodes = [getattr(of.arg, "name", "") for of in specs if of.kind.name == "USER_OUTPUT"]
    structure = program.call_spec.out_spec
    returned = tree_unflatten(range(len(nodes)), structure) if structure else nodes
    names = {number: name for name, number in named_leaves(returned)}
    return [(names.get(number, ""), node) for number, node in enumerate(nodes)]


def _shapes(keys: Mapping[Node, str], parameters: Mapping[str, Any], batch: int) -> Shapes:
    found = {key: shape_of(node, batch) for node, key in keys.items()}
    held = {name: Shape(tuple(of.shape)) for name, of in parameters.items() if _is_numbers(of)}
    return {name: shape for name, shape in found.items() if shape is not None} | held


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _placeholders(
    program: ExportedProgram,
    places: Places,
    outside: Mapping[Any, str],
    once: Mapping[str, Tensor],
) -> tuple[dict[Node, str], dict[str, Any]]:
    """Names parameters as in the state dict (aliases by their first name), inputs by "%".

    Tensors that the module holds otherwise are named by where it does: `hidden[0].weight`. Inputs
    that are given once are constants of the graph.
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
        elif node.name in once and isinstance(spec.arg, TensorArgument):
            keys[node] = node.name
            parameters[node.name] = once[node.name]
        elif isinstance(spec.arg, TensorArgument):  # and no number, which the program holds
            keys[node] = f"%{node.name}"
    return keys, parameters
