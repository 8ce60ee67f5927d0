"""A PyTorch module as a program of operations that change none of their inputs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from secateur.errors import ModelError
from secateur.frontends.torch.signature import Arguments, batch_of_any_size
from secateur.network.samples import Samples
from secateur.support.loggers import quiet

TRACING = threading.RLock()  # PyTorch's exporters change classes while they run: one at a time

aten = torch.ops.aten

# What gives a value of its own, never a view of another one or that one itself; and all pointwise.
_FRESH = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.linear.default,
    aten.batch_norm.default,
    aten.cat.default,
}
_NORMS = {aten.batch_norm.default, aten.instance_norm.default}
# Parts that are run as they are, under a setting.
_WRAPPED = {"wrap_with_autocast", "wrap_with_set_grad_enabled", "tag_activation_checkpoint"}
_TAKES_STATISTICS = 5  # the number of their argument that says so


class Exported(NamedTuple):
    """A module's program, and whether the module runs a part of it under `torch.autocast`."""

    program: ExportedProgram
    autocasts: bool


def export(
    module: nn.Module,
    example: Samples,
    free: Callable[[Tensor], dict[int, Any]] = batch_of_any_size,
) -> Exported:
    """Exports a module with a dynamic batch; what runs under `torch.autocast` is in float32.

    Args:
        module: in eval mode.
        example: two samples or more, by the names of the arguments of `forward`.
        free: the axes of an input whose size is left open, as `torch.export` wants them.

    Raises:
        ModelError: torch.export cannot trace it.
    """
    given = Arguments.of(module, example)
    shapes = given.shapes(module, free)
    try:
        # what torch warns of and logs there is about its internals; errors are raised
        with TRACING, torch.no_grad(), quiet("torch._subclasses.fake_tensor"):
            program = torch.export.export(
                module, given.args, dict(given.kwargs), dynamic_shapes=shapes
            )
            autocasts = _autocasts(program)
            _inline_all(program)
            if autocasts:
                _keep_float32(program)
            _replace_changes(program)
            # Tracing it once more, without changes, takes twice as long as the export itself.
            if not _changes_nothing(program):
                program = program.run_decompositions({})
            return Exported(program, autocasts)
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(_why_not_exported(error, example)) from error


def _inline_all(program: ExportedProgram) -> None:
    """Puts the operations of `with torch.autocast(...)`, `torch.no_grad()` and the like in line."""
    graph = program.graph_module.graph
    while wrapped := [node for node in graph.nodes if _is_wrapped(node)]:
        for node in wrapped:
            _inline(program, node)
    graph.lint()


def _keep_float32(program: ExportedProgram) -> None:
    """Casts to half precision become casts to float32, as networks of half precision do here."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
            continue
        node.args = map_aggregate(node.args, _float32)
        node.kwargs = map_aggregate(node.kwargs, _float32)


def _float32(argument: Any) -> Any:
    return torch.float32 if argument in (torch.float16, torch.bfloat16) else argument


def _autocasts(program: ExportedProgram) -> bool:
    """Whether a part of a program runs under `torch.autocast`."""
    parts = (part for part in program.graph_module.modules() if isinstance(part, GraphModule))
    return any(
        _name(node) == "wrap_with_autocast" and node.args[2] is not False
        for part in parts
        for node in part.graph.nodes
    )


def _name(node: Node) -> str:
    target = node.target
    return target.name() if isinstance(target, torch._ops.HigherOrderOperator) else ""


def _is_wrapped(node: Node) -> bool:
    return _name(node) in _WRAPPED


def _inline(program: ExportedProgram, node: Node) -> None:
    """Puts a wrapped part's operations in the place of the operation that calls it."""
    module, graph = program.graph_module, node.graph
    at = next(
        index for index, of in enumerate(node.args) if isinstance(of, Node) and of.op == "get_attr"
    )
    part = getattr(module, str(node.args[at].target))  # type: ignore[union-attr]
    copies: dict[Node, Any] = {}
    results: Any = ()
    given = iter(node.args[at + 1 :])
    with graph.inserting_before(node):
        for inner in part.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(given)
            elif inner.op == "output":
                results = map_arg(inner.args[0], copies.__getitem__)
            else:
                copies[inner] = graph.node_copy(inner, copies.__getitem__)
                if inner.op == "get_attr":
                    copies[inner].target = _moved(module, getattr(part, str(inner.target)))
    for reader in list(node.users):  # each takes one of the results
        result = results[reader.args[1]]
        reader.replace_all_uses_with(result)
        program.graph_signature.replace_all_uses(reader.name, result.name)
        graph.erase_node(reader)
    graph.erase_node(node)


def _moved(module: nn.Module, part: Any) -> str:
    """A name under which a module holds a part of one of its parts."""
    name = f"inlined_{len(list(module.named_children()))}"
    setattr(module, name, part)
    return name


def _replace_changes(program: ExportedProgram) -> None:
    """Puts `relu` for `relu_` and its like, where the value changed has no other name or reader.

    Later readers read what the operation gives: so the tracer names it.
    """
    graph = program.graph_module.graph
    for node in graph.nodes:
        without = _functional(node)
        if without is not None and _is_fresh(node.args[0]) and len(node.args[0].users) == 1:
            node.target = without
    graph.eliminate_dead_code()
    graph.lint()


def _is_fresh(node: Node) -> bool:
    """Whether a node's value has no other name."""
    target = node.target
    if not isinstance(target, OpOverload) or any(of.alias_info for of in target._schema.returns):
        return False
    return target in _FRESH or torch.Tag.pointwise in target.tags


def _functional(node: Node) -> OpOverload | None:
    """The operation that gives what an in-place one does, if there is one of the same arguments.

    All of one type: `x *= y` leaves x the type it has, where `x * y` may be of another.
    """
    target = node.target
    if not (isinstance(target, OpOverload) and target._schema.is_mutable and node.args):
        return None
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    found = getattr(packet, target._overloadname, None)
    if found is None or not isinstance(node.args[0], Node):
        return None
    values = [read.meta.get("val") for read in node.all_input_nodes]
    if len({value.dtype for value in values if isinstance(value, Tensor)}) != 1:
        return None
    names, own = ([of.name for of in op._schema.arguments] for op in (found, target))
    return found if names == own else None


def _changes_nothing(program: ExportedProgram) -> bool:
    """Whether no operation changes its inputs, nor a buffer unseen, nor holds others that may."""
    nodes = program.graph.nodes
    return not any(node.op == "get_attr" or _may_change(node) for node in nodes)


def _may_change(node: Node) -> bool:
    """Whether an operation changes an input, or statistics that it takes from the batch."""
    target = node.target
    if not isinstance(target, OpOverload):
        return isinstance(target, torch._ops.HigherOrderOperator)
    takes_statistics = target in _NORMS and bool(node.args[_TAKES_STATISTICS])
    return target._schema.is_mutable or takes_statistics


def _why_not_exported(error: Exception, example: Samples) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    shapes = [tuple(tensor.shape) for tensor in example.tensors.values()]
    shape = " and ".join(map(str, shapes))
    if cache := re.search(r"\b\w+Cache\b", str(error)):
        return (
            f"the network returns or keeps a {cache[0]}, which torch.export cannot trace, expected "
            "tensors: turn it off (model.config.use_cache = False), or wrap the network in a "
            "module that returns its logits"
        )
    if other := re.search(r"Found <class '(.*)'> in output", str(error)):
        return (
            f"the network returns an object of type {other[1]}, expected tensors, alone or in "
            "tuples, lists and dictionaries: wrap it in a module that returns these"
        )
    got = f"torch.export cannot trace the model on input of shape {shape}: {reason}"
    if "specialized" in str(error) or "onstraint" in str(error):
        return (
            f"{got} (the batch size is fixed in forward; expected any batch size: "
            "use x.shape[0] instead of a number)"
        )
    if "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__:
        return (
            f"{got} (forward branches on values of its input; expected the same operations for "
            "every input: use torch.where, or pass the part of the model without the branch)"
        )
    return (
        f"{got}; expected a module whose forward takes one batch of inputs: check the input's "
        "shape (size, preprocess), or pass the exportable part of the model"
    )
