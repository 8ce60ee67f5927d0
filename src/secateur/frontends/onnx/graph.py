"""ONNX front-end: any model that ONNX Runtime runs on a batch of samples.

Layers are run by PyTorch, as those of PyTorch modules are, and what is between them by ONNX
Runtime. Weights are parameters in PyTorch's layout, (out, in) and (out, in / groups, kernel...),
whatever the file's; they go back into the file's constants as they were stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.agreement import AGREEMENT, difference, growing, outputs_of
from secateur.frontends.onnx.branches import InLine, Names, in_line
from secateur.frontends.onnx.constant_inputs import holding
from secateur.frontends.onnx.file import first_line, has_body, inlined, reads
from secateur.frontends.onnx.first_run import known_branches, trial
from secateur.frontends.onnx.nodes import leading_to
from secateur.frontends.onnx.operators import described
from secateur.frontends.onnx.schedule import schedule
from secateur.frontends.onnx.segment import Segment
from secateur.frontends.onnx.signature import bound, several
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.onnx.whole import Whole
from secateur.frontends.onnx.widening import widened
from secateur.network.graph import Graph
from secateur.network.layer_finder import uncounted
from secateur.network.ops import Fused, Op, Shape, Sizes, Transpose
from secateur.network.rows import images_apart, images_first
from secateur.network.samples import Samples
from secateur.network.stream import Stream
from secateur.support.wording import counted

_NO_WEIGHTS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING)
_UNSTEADY = ("NonMaxSuppression", "NonZero", "Compress", "Unique")  # rows depend on the values
_QUANTISED_AGREEMENT = 0.05  # where values are rounded to integers, which a last bit may tip
_ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear")


def trace(model: ModelProto, samples: Samples) -> Graph:
    """Makes a graph of an ONNX model, with a batch of any size.

    Args:
        model: as `read` gives it; not changed.
        samples: a few; their device is where the layers run.

    Raises:
        DataError: they are not what the model takes.
        ModelError: the model cannot be run on such samples, a weight is NaN or infinite, or the
            graph does not give what the model gives.
    """
    samples = bound(model, samples)
    names = Names(model)
    kinds = {name: held.data_type for name, held in names.constants().items()}
    model = widened(holding(model, samples.constants))
    example = several(model, samples)
    found = trial(model, example)
    plain = in_line(inlined(model), lambda twin: known_branches(twin, example))
    translation = Translation(plain.model)
    parameters = _parameters(translation, example.device)
    ways = [(translation, False)]
    if found.batch:
        ways.append((Translation(plain.model, any_batch=found.batch), False))
    if found.batch == 1:
        ways.append((translation, True))
    reason: Exception | str = ""
    for way, one_by_one in ways:
        try:
            graph = _build(way, parameters, example, one_by_one=one_by_one)
            graph = replace(
                graph,
                fixed=_fixed(way, kinds, plain.read_elsewhere),
                rounding=way.rounding(kinds),
                uncut=way.uncut() | dict.fromkeys(names.inner(), "is in a branch of the file"),
                notes=[*graph.notes, *_notes(plain)],
            )
            own = dict(zip((of.name for of in way.model.graph.output), found.outputs, strict=True))
            off = difference(graph, way.outputs, example, own)
        except (ValueError, RuntimeError, IndexError) as error:  # for another number of images
            reason = error
            continue
        rounds = any(node.op_type in _ROUNDS for node in way.nodes.nodes)
        limit = _QUANTISED_AGREEMENT if rounds else AGREEMENT
        if not off > limit:  # NaN is told with its layer's name, by the walk
            return graph
        reason = f"its outputs differ by {off:.2g} of the largest"
    if found.batch:
        raise ModelError(
            f"the ONNX model works on {counted(found.batch, 'image')} at a time only "
            f"({first_line(reason)}), expected any number, or one: export it with a dynamic batch"
        )
    raise ModelError(
        f"the ONNX model's layers, run one after the other, do not give what the whole model gives "
        f"({first_line(reason)}), expected the same: a random model cannot be pruned; otherwise "
        "please report its operations"
    )


def output_difference(
    model: ModelProto, samples: Samples, output: str | int | None = None
) -> tuple[float, float] | None:
    """The output by which a file is judged against that of its layers run one after the other.

    Returns:
        The largest difference, and the largest output; None where the values decide how many rows
        the output has, and it has other numbers of them, or none.
    """
    samples = bound(model, samples.to("cpu"))
    whole = Whole(model, samples[:2], output)
    wanted = whole(samples)
    index = Translation(model).outputs.index(whole.name)
    found = outputs_of(trace(model, samples[:2]), samples)[index]
    if wanted.shape != found.shape or not wanted.numel():
        return None
    return float((wanted - found).abs().max()), float(wanted.abs().max())


def _parameters(translation: Translation, device: torch.device) -> dict[str, Tensor]:
    """The layers' weights; ModelError names the first that holds a NaN or an infinity."""
    parameters = {name: value.to(device) for name, value in translation.parameters().items()}
    for name, value in parameters.items():
        if not value.isfinite().all():
            raise ModelError(
                f"the weights hold NaN or Inf in {name}, expected finite numbers: "
                "check the ONNX file and how it was exported"
            )
    return parameters


def _build(
    translation: Translation,
    parameters: Mapping[str, Tensor],
    example: Samples,
    *,
    one_by_one: bool = False,
) -> Graph:
    """A graph, whose segments may take one image after the other."""
    nodes = translation.nodes
    inner = any(has_body(node) for node in nodes.nodes)
    held = {name: Shape(tuple(tensor.dims)) for name, tensor in nodes.constants.items()}
    kinds = {name: tensor.data_type for name, tensor in nodes.constants.items()}
    graph = Graph(
        ops=schedule(translation),
        inputs=translation.inputs,
        outputs=translation.outputs,
        output_names=translation.outputs,
        parameters=parameters,
        shapes=held | {name: Shape(tuple(value.shape)) for name, value in parameters.items()},
        constants={name for name, kind in kinds.items() if kind not in _NO_WEIGHTS},
        fixed={},
        unsteady=set(),
        notes=["layers inside control flow (If, Loop, Scan) stay dense"] * inner,
        has_gradients=False,  # ONNX Runtime gives none
    )
    graph = replace(graph, unsteady=_unsteady(translation, graph.ops))
    graph = _one_by_one(graph, example) if one_by_one else graph
    graph = _described(_with_shapes(graph, translation, example), translation)
    graph = replace(graph, notes=[*graph.notes, *uncounted(graph)])
    return images_first(images_apart(graph))


def _fixed(
    translation: Translation, writable: Collection[str], elsewhere: Collection[str]
) -> dict[str, str]:
    """Why parameters cannot be changed: the file has no place for them, or others use them."""
    nodes = translation.nodes
    others = set(nodes.outputs) - set(translation.outputs)
    read = {name for node in leading_to(others, nodes.nodes) for name in reads(node)}
    fixed = dict.fromkeys((others | read) & set(nodes.constants), "also used by an output")
    inner = translation.layouts.keys() - set(writable)
    fixed |= dict.fromkeys(map(nodes.source, elsewhere), "also used by a branch that is not run")
    return fixed | dict.fromkeys(inner, "inside a function of the file")


def _notes(plain: InLine) -> list[str]:
    if not plain.left_out:
        return []
    branches = "branch" if plain.left_out == 1 else "branches"
    return [f"{plain.left_out} {branches} of the file not run on such inputs: left as they are"]


def _unsteady(translation: Translation, ops: Sequence[Op]) -> set[str]:
    """Values behind an operation that gives as many rows as it finds."""
    found: set[str] = set()
    for node in translation.nodes.nodes:
        if node.op_type in _UNSTEADY or not found.isdisjoint(reads(node)):
            found.update(node.output)
    segments = {op.name: cast(Segment, op.compute) for op in ops if isinstance(op, Fused)}
    return found | {name for name, of in segments.items() if not found.isdisjoint(of.writes)}


def _one_by_one(graph: Graph, example: Samples) -> Graph:
    """The graph with segments that take one image after the other."""
    (sizes,) = _sizes(graph, [example[:1]])
    each = {name: shape[0] if shape else 0 for name, shape in sizes.items()}
    ops = [
        replace(op, compute=replace(cast(Segment, op.compute), each=each))
        if isinstance(op, Fused)
        else op
        for op in graph.ops
    ]
    note = "the file takes one image at a time: what is between layers was run so"
    return replace(graph, ops=ops, notes=[note, *graph.notes])


@torch.no_grad()
def _sizes(graph: Graph, examples: Sequence[Samples]) -> list[dict[str, Sizes]]:
    """The shapes of all values for some batches of samples, those within segments included."""
    streams = [Stream(graph, graph.parameters, dict(samples.tensors)) for samples in examples]
    found = [{name: tuple(of.shape) for name, of in part.tensors.items()} for part in examples]
    for index, op in enumerate(graph.ops):
        for stream in streams:
            stream.advance(index)
        if isinstance(op, Fused):
            for sizes, inner in zip(found, _inner(op, streams), strict=False):
                sizes.update(inner)
        for sizes, stream in zip(found, streams, strict=True):
            stream.advance(index + 1)
            value = stream.values.get(op.name)  # none where nothing reads it
            if isinstance(value, Tensor):
                sizes[op.name] = tuple(value.shape)
    return found


def _inner(op: Fused, streams: Sequence[Stream]) -> list[dict[str, Sizes]]:
    """The shapes within a segment; of one that takes one image at a time those of one."""
    segment = cast(Segment, op.compute)
    runs = [[stream.value(name) for name in op.reads] for stream in streams]
    return segment.inner_shapes(runs if segment.each is None else runs[:1])


def _with_shapes(graph: Graph, translation: Translation, example: Samples) -> Graph:
    """The graph with the shapes of its values: what one image and several have."""
    one, more = _sizes(graph, [example[:1], example])
    fixed = translation.nodes.fixed
    shapes = {
        name: Shape(sizes, growing(sizes, more.get(name), fixed=name in fixed))
        for name, sizes in one.items()
    }
    return replace(graph, shapes={**graph.shapes, **shapes})


def _described(graph: Graph, translation: Translation) -> Graph:
    """The graph with what its segments are made of, as typed operations."""
    seen = set[int]()
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Fused):
            numbers = [number for number in cast(Segment, op.compute).numbers if number not in seen]
            seen.update(numbers)
            op = replace(op, parts=tuple(described(translation, graph.shapes, numbers)))
        elif isinstance(op, Transpose) and not op.permutation:
            *before, last, end = range(len(graph.shapes[op.input].sizes))
            op = replace(op, permutation=(*before, end, last))
        ops.append(op)
    return replace(graph, ops=ops)
