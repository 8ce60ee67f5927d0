"""A PyTorch module as a program of operations that change none of their inputs."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from secateur.errors import ModelError

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
_TAKES_STATISTICS = 5  # the number of their argument that says so


def export(module: nn.Module, example: Tensor) -> ExportedProgram:
    """Exports a module with a dynamic batch.

    Args:
        module: in eval mode.
        example: two inputs or more, batch first.

    Raises:
        ModelError: torch.export cannot trace it.
    """
    shapes = ({0: Dim.DYNAMIC},)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its internals
            try:
                program = torch.export.export(module, (example,), dynamic_shapes=shapes)
            except TypeError:  # forward(*args): the shapes must be nested alike
                program = torch.export.export(module, (example,), dynamic_shapes=(shapes,))
            _replace_changes(program)
            # Tracing it once more, without changes, takes twice as long as the export itself.
            return program if _changes_nothing(program) else program.run_decompositions({})
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(_why_not_exported(error, example)) from error


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


def _why_not_exported(error: Exception, example: Tensor) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    shape = tuple(example.shape)
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
