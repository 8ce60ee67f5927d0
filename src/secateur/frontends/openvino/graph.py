"""OpenVINO front-end: any model that OpenVINO runs on a batch of samples.

Layers are run by PyTorch, as those of PyTorch modules are, and what is between them by OpenVINO.
Weights are parameters in PyTorch's layout, (out, in) and (out, in / groups, kernel...), whatever
the file's; they go back into the file's constants as they were stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import openvino
import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.agreement import AGREEMENT, difference, growing, outputs_of
from secateur.frontends.openvino.nodes import leading_to
from secateur.frontends.openvino.operators import described
from secateur.frontends.openvino.runtime import (
    IR,
    batch_of,
    bound,
    compiled,
    output_names,
    reason,
    run_model,
)
from secateur.frontends.openvino.segment import Cutter, Segment
from secateur.frontends.openvino.translation import Translation, type_of
from secateur.frontends.schedule import Schedule
from secateur.network.graph import Graph
from secateur.network.layer_finder import uncounted
from secateur.network.ops import Fused, Linear, Op, Shape, Sizes, Transpose
from secateur.network.returned import asked_output
from secateur.network.rows import images_apart, images_first
from secateur.network.samples import Samples
from secateur.support.wording import counted

_HALF = {"f16": torch.float16, "bf16": torch.bfloat16}
_NO_WEIGHTS = ("i64", "i32", "i16", "boolean", "string", "u64", "u32", "u16")
_UNSTEADY = ("NonZero", "Unique", "NonMaxSuppression", "MatrixNms", "MulticlassNms")


def trace(model: Any, samples: Samples) -> Graph:
    """Makes a graph of an OpenVINO model, with a batch of any size.

    Args:
        model: the `openvino.Model`; not changed.
        samples: a few; their device is where the layers run.

    Raises:
        DataError: they are not what the model takes.
        ModelError: the model cannot be run on such samples, has a state, a weight is NaN or
            infinite, or the graph does not give what the model gives.
    """
    samples, batch = bound(model, samples), batch_of(model)
    count = 4 if batch == 3 else 3  # a number that it was not made for shows whether any will do
    samples = samples.select([number % len(samples) for number in range(count)])
    own = _own_outputs(model, samples, batch)
    parameters = _parameters(Translation(model.clone()), samples.device)
    why: Exception | str = ""
    for make, one_by_one in _ways(model, batch):
        try:
            translation = Translation(make())
            graph = _build(translation, parameters, samples, one_by_one=one_by_one)
            given = samples.named(graph.inputs)
            outputs = dict(zip(translation.nodes.outputs, own, strict=True))
            found = difference(graph, translation.outputs, given, outputs)
        except (ValueError, RuntimeError, IndexError) as error:  # for another number of samples
            why = error
            continue
        if not found > AGREEMENT:  # NaN is told with its layer's name, by the walk
            return graph
        why = f"its outputs differ by {found:.2g} of the largest"
    told = why if isinstance(why, str) else reason(why)
    if batch:
        raise ModelError(
            f"the OpenVINO model works on {counted(batch, 'image')} at a time only ({told}), "
            "expected any number, or one: convert it with a dynamic batch"
        )
    raise ModelError(
        f"the OpenVINO model's layers, run one after the other, do not give what the whole model "
        f"gives ({told}), expected the same: a random model cannot be pruned; otherwise please "
        "report its operations"
    )


def output_difference(
    model: Any, samples: Samples, output: str | int | None = None
) -> tuple[float, float] | None:
    """An output, by default the first, against that of the layers run one after the other.

    Returns:
        The largest difference, and the largest output; None where the values decide how many rows
        the output has, and it has other numbers of them, or none.
    """
    samples = bound(model, samples.to("cpu"))
    number = 0 if output is None else asked_output(output, output_names(model))
    wanted, graph = IR(model, number)(samples), trace(model, samples)
    name = output_names(model)[number]
    own = graph.output_names.index(name) if name in graph.output_names else number
    found = outputs_of(graph, samples.named(graph.inputs))[own]
    if wanted.shape != found.shape or not wanted.numel():
        return None
    return float((wanted - found).abs().max()), float(wanted.abs().max())


def _own_outputs(model: Any, samples: Samples, batch: int) -> list[Tensor | None]:
    """What the model itself gives for all samples; None for what has no axis of them."""
    whole, size = compiled(model), batch or len(samples)
    runs = [run_model(whole, part) for part in samples.filled(size).split(size)]
    return [_joined(parts, size) for parts in zip(*runs, strict=True)]


def _joined(parts: Sequence[Tensor], size: int) -> Tensor | None:
    """An output for all samples: its parts along the first axis of as many as one of them has."""
    if parts[0].dim() == 0:
        return None
    axis = next((axis for axis, of in enumerate(parts[0].shape) if of == size), 0)
    return torch.cat([*parts], axis)


def _ways(model: Any, batch: int) -> list[tuple[Callable[[], Any], bool]]:
    """Copies of a model that may take any number of samples, and whether to run them one by one."""
    if not batch:
        return [(model.clone, False)]
    ways = [(lambda: _freed(model, 0), False), (lambda: _freed(model, batch), False)]
    return [*ways, *([(model.clone, True)] if batch == 1 else [])]


def _freed(model: Any, batch: int) -> Any:
    """A copy with inputs for any number of samples, and changes of shape from one number to any."""
    twin = model.clone()
    for node in twin.get_ordered_ops() if batch else ():
        if node.get_type_name() == "Reshape":
            _free(node, batch)
    for value in twin.inputs:
        shape = value.get_partial_shape()
        if shape.rank.is_static and len(shape):
            shape[0] = openvino.Dimension(-1)
        value.get_node().set_partial_shape(shape)
    twin.validate_nodes_and_infer_types()
    return twin


def _free(node: Any, batch: int) -> None:
    """Has a change of shape to so many samples give as many as there are."""
    sizes, shape = node.input_value(1).get_node(), node.get_output_partial_shape(0)
    if sizes.get_type_name() != "Constant" or shape.is_dynamic or shape.to_shape()[:1] != [batch]:
        return
    if sizes.get_data().ravel()[:1].tolist() == [batch]:
        values = [-1, *list(shape.to_shape())[1:]]
        new = openvino.op.Constant(openvino.Type.i64, openvino.Shape([len(values)]), values)
        node.input(1).replace_source_output(new.output(0))


def _parameters(translation: Translation, device: torch.device) -> dict[str, Tensor]:
    """The layers' weights; ModelError names the first that holds a NaN or an infinity."""
    parameters = {name: value.to(device) for name, value in translation.parameters().items()}
    for name, value in parameters.items():
        if not value.isfinite().all():
            raise ModelError(
                f"the weights hold NaN or Inf in {name}, expected finite numbers: "
                "check the OpenVINO file and how it was converted"
            )
    return parameters


def _build(
    translation: Translation,
    parameters: Mapping[str, Tensor],
    samples: Samples,
    *,
    one_by_one: bool = False,
) -> Graph:
    """A graph, whose segments may take one sample after the other."""
    nodes = translation.nodes
    inner = any(node.has_body for node in nodes.nodes)
    shapes = _shapes(translation, samples, one_by_one=one_by_one)
    shapes |= {name: Shape(tuple(value.shape)) for name, value in parameters.items()}
    shapes = _with_turned(translation, shapes)
    cutter = Cutter(nodes)
    schedule = Schedule(
        reads=[node.reads for node in nodes.nodes],
        writes=[node.writes for node in nodes.nodes],
        fixed=nodes.fixed,
        outputs=translation.outputs,
        units=translation.units,
        absorbed=translation.absorbed,
        parameters=translation.layouts,
        fresh=nodes.fresh,
        segment=cutter.segment,
    )
    ops = list(schedule.ops())
    if one_by_one:
        each = {name: shape.sizes[0] if shape.sizes else 0 for name, shape in shapes.items()}
        ops = [_each(op, each) for op in ops]
    notes = ["layers inside control flow (If, Loop, TensorIterator) stay dense"] * inner
    notes += ["the file takes one image at a time: what is between layers was run so"] * one_by_one
    held = {name: type_of(of.output(0)) for name, of in nodes.constants.items()}
    called = dict(zip(nodes.outputs, output_names(nodes.model), strict=True))
    graph = Graph(
        ops=_described(ops, translation, shapes),
        inputs=nodes.inputs,
        outputs=translation.outputs,
        output_names=[called[name] for name in translation.outputs],
        parameters=parameters,
        shapes=shapes,
        constants={name for name, kind in held.items() if kind not in _NO_WEIGHTS},
        fixed=_fixed(translation),
        unsteady=_unsteady(translation, ops),
        notes=notes,
        has_gradients=False,  # OpenVINO gives none
        rounding={
            name: partial(_rounded, _HALF[layout.kind])
            for name, layout in translation.layouts.items()
            if layout.kind in _HALF
        },
    )
    graph = replace(graph, notes=[*graph.notes, *uncounted(graph)])
    return images_first(images_apart(graph))


def _rounded(kind: torch.dtype, value: Tensor) -> Tensor:
    """A parameter as it is once it is stored in another type."""
    return value.to(kind).to(value)


def _each(op: Op, each: Mapping[str, int]) -> Op:
    """An operation that takes one sample after the other, where it is a segment."""
    if not isinstance(op, Fused):
        return op
    return replace(op, compute=replace(cast(Segment, op.compute), each=each))


def _fixed(translation: Translation) -> dict[str, str]:
    """Why parameters cannot be changed: the file gives them back."""
    nodes = translation.nodes
    others = set(nodes.outputs) - set(translation.outputs)
    read = {name for node in leading_to(others, nodes.nodes) for name in node.reads}
    return dict.fromkeys((others | read) & set(nodes.constants), "also used by an output")


def _unsteady(translation: Translation, ops: Sequence[Op]) -> set[str]:
    """Values behind an operation that gives as many rows as it finds."""
    found: set[str] = set()
    for node in translation.nodes.nodes:
        if node.kind.startswith(_UNSTEADY) or not found.isdisjoint(node.reads):
            found.update(filter(None, node.writes))
    segments = {op.name: cast(Segment, op.compute) for op in ops if isinstance(op, Fused)}
    return found | {name for name, of in segments.items() if not found.isdisjoint(of.part.writes)}


def _shapes(translation: Translation, samples: Samples, *, one_by_one: bool) -> dict[str, Shape]:
    """The shapes of all values and constants: what one sample and several have."""
    nodes = translation.nodes
    one = _sizes(translation, samples.select(slice(1)))
    more = {} if one_by_one else _sizes(translation, samples)
    held = {name: Shape(nodes.shape(name) or ()) for name in nodes.constants}
    found = {
        name: Shape(sizes, growing(sizes, more.get(name), fixed=name in nodes.fixed))
        for name, sizes in one.items()
    }
    return held | found | _flattened(translation)


def _with_turned(translation: Translation, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes with those of values that only PyTorch has: turned, to be multiplied, and back."""
    for op in (op for _, unit in sorted(translation.units.items()) for op in unit):
        before = shapes.get(op.input)
        if before is None or op.name in shapes:
            continue
        if isinstance(op, Transpose):
            sizes = tuple(before.sizes[at] for at in op.permutation)
            shapes[op.name] = Shape(sizes, tuple(before.growing[at] for at in op.permutation))
        elif isinstance(op, Linear):
            rows = shapes[op.weight].sizes[0]
            shapes[op.name] = Shape((*before.sizes[:-1], rows), (*before.growing[:-1], False))
    return shapes


def _sizes(translation: Translation, samples: Samples) -> dict[str, Sizes]:
    """The shapes of all values for some samples, as OpenVINO infers them; 0 = it cannot tell."""
    nodes = translation.nodes
    twin = nodes.model.clone()
    shapes = [tuple(of.shape) for of in samples.tensors.values()]
    for value, shape in zip(twin.inputs, shapes, strict=True):
        value.get_node().set_partial_shape(openvino.PartialShape(list(shape)))
    twin.validate_nodes_and_infer_types()  # reshape() would change the nodes as well
    found: dict[str, Sizes] = dict(zip(nodes.inputs, shapes, strict=True))
    by_name = {node.get_friendly_name(): node for node in twin.get_ordered_ops()}
    for node in nodes.nodes:
        for name, value in zip(node.writes, by_name[node.name].outputs(), strict=True):
            shape = value.get_partial_shape()
            if name and shape.rank.is_static:
                found[name] = tuple(0 if of.is_dynamic else of.get_length() for of in shape)
    return found


def _flattened(translation: Translation) -> dict[str, Shape]:
    """Shapes of weights that have the groups of a layer on an axis of their own, without it.

    Of layers that OpenVINO runs; those of others have the shape that PyTorch takes.
    """
    nodes, found = translation.nodes, dict[str, Shape]()
    for index, node in enumerate(nodes.nodes):
        if node.kind.startswith("Group") and "Convolution" in node.kind:
            left = translation.left.get(index)
            for name in filter(None, (node.reads[1], left and left.weight)):
                shape = nodes.shape(name)
                if shape and len(shape) == nodes.rank(node.reads[1]):
                    found[name] = Shape((shape[0] * shape[1], *shape[2:]))
    return found


def _described(ops: Sequence[Op], translation: Translation, shapes: dict[str, Shape]) -> list[Op]:
    """Operations with what segments are made of, as typed ones."""
    seen, done = set[int](), list[Op]()
    for op in ops:
        if isinstance(op, Fused):
            part = cast(Segment, op.compute).part
            numbers = [number for number in part.numbers if number not in seen]
            seen.update(numbers)
            op = replace(op, parts=tuple(described(translation, shapes, numbers)))
        done.append(op)
    return done
