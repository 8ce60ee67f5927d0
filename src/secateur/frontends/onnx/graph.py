"""ONNX front-end: any model that ONNX Runtime runs on one batch of images.

Layers are run by PyTorch, as those of PyTorch modules are, and what is between them by ONNX
Runtime. Weights are parameters in PyTorch's layout, (out, in) and (out, in / groups, kernel...),
whatever the file's; they go back into the file's constants as they were stored.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from secateur.errors import ModelError
from secateur.frontends.onnx.file import constants, first_line, has_body, put, reads, tensor_of
from secateur.frontends.onnx.first_run import Trial, trial
from secateur.frontends.onnx.plan import Plan, Site
from secateur.frontends.onnx.products import RECURRENT, product_macs, uses_per_weight
from secateur.frontends.onnx.schedule import schedule
from secateur.frontends.onnx.segment import Segment
from secateur.frontends.onnx.signature import known_shapes, several
from secateur.frontends.onnx.steps import Convolve, Multiply, Normalise, RowsFirst, Step
from secateur.frontends.onnx.whole import Whole
from secateur.network.folding import Fold, Folded, Folding, folded
from secateur.network.graph import (
    ON_THE_FLY,
    BiasParameter,
    Layer,
    LayerCall,
    Norm,
    Op,
    activations_product,
    alone,
    last_reads,
    merged,
    protected,
)
from secateur.network.rows import images_axis

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_UNSTEADY = ("NonMaxSuppression", "NonZero", "Compress", "Unique")  # rows depend on the values
_AGREEMENT = 1e-3  # largest difference of graph and file, relative to the largest output


@dataclass
class OnnxGraph:
    """An ONNX model, run step by step. See `secateur.network.graph.Graph` for the other attributes.

    Attributes:
        plan: what the file says.
        steps: what runs each operation.
        writable: names of the constants that the file has a place for.
        shapes: of the values of one image.
        shown: the same with 0 for axes that grow with the number of images.
        rows: what puts the images first in outputs that have another axis first, by output.
        judged: the value by which the network is judged; empty = its first output.
    """

    plan: Plan
    steps: list[Step]
    parameters: dict[str, Tensor]
    writable: frozenset[str]
    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shown: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rows: dict[str, RowsFirst] = field(default_factory=dict)
    judged: str = ""

    def __post_init__(self) -> None:
        self.input = self.plan.input
        self.outputs = [
            self.rows[name].name if name in self.rows else name for name in self.plan.outputs
        ]
        if self.judged:
            self.outputs = [self.judged, *(of for of in self.outputs if of != self.judged)]
        self.ops = [Op(step.name, step.reads) for step in self.steps]

    def run(self, index: int, values: Mapping[str, Any]) -> Any:
        """Runs one step without gradients."""
        return self.steps[index].run(values)

    def changed(self, parameters: Mapping[str, Tensor]) -> OnnxGraph:
        """The same network with some parameters replaced; the layers' BatchNorm scales follow."""
        twin = replace(self, parameters={**self.parameters, **parameters})
        twin.layers = _Layers(twin).find()
        return twin

    has_gradients: ClassVar[bool] = False  # ONNX Runtime gives none

    @property
    def unsteady(self) -> set[str]:
        """Values behind an operation that gives as many rows as it finds."""
        found: set[str] = set()
        for node in self.plan.nodes.nodes:
            if node.op_type in _UNSTEADY or not found.isdisjoint(reads(node)):
                found.update(node.output)
        tuples = {of.name: of.writes for of in self.steps if isinstance(of, Segment)}
        return found | {name for name, of in tuples.items() if not found.isdisjoint(of)}

    def judged_by(self, name: str, note: str) -> OnnxGraph:
        """The same network with a value before its outputs, and a note."""
        return replace(self, judged=name, notes=[*self.notes, note])

    def folded(self) -> Folding:
        """The network with BatchNormalizations in the layers that they alone follow."""
        found = _Layers(self)
        parameters, folds = dict(self.parameters), []
        moved: dict[str, tuple[str, str]] = {}  # by a layer's output: the norm's, and the bias
        for layer in self.layers:
            made = found.fold(layer)
            if made is None:
                continue
            norm, offset, new = made
            assert layer.bias is not None
            bias = layer.calls[0].bias or self.plan.nodes.fresh(f"{layer.name}.bias")
            weight = str(layer.parameter)
            parameters |= {weight: new.weight, bias: new.bias}
            moved[self.ops[layer.calls[0].op].name] = norm, bias
            folds.append(
                Fold(
                    weight=weight,
                    bias=bias,
                    bn_scale=new.bn_scale,
                    bias_parameter=layer.bias,
                    offset=offset,
                )
            )
        if not folds:
            return Folding(self, self)
        norms = {norm for norm, _ in moved.values()}
        steps = [
            _with_norm(step, *moved[step.name]) if step.name in moved else step
            for step in self.steps
            if step.name not in norms
        ]
        twin = replace(self, steps=steps, parameters=parameters)
        at = {step.name: index for index, step in enumerate(steps)}
        twin.layers = [self._moved(layer, moved, at) for layer in self.layers]
        return Folding(self, twin, folds)

    def _moved(
        self, layer: Layer, moved: Mapping[str, tuple[str, str]], at: Mapping[str, int]
    ) -> Layer:
        """A layer where its operations are among others, with its BatchNormalization in it."""
        names = [self.ops[use.op].name for use in layer.calls]
        if not names or names[0] not in moved:
            places = zip(layer.calls, names, strict=True)
            return replace(layer, calls=tuple(replace(use, op=at[name]) for use, name in places))
        norm, bias = moved[names[0]]
        use = replace(layer.calls[0], op=at[norm], output=norm, bias=bias)
        return replace(
            layer,
            calls=(use,),
            bias=BiasParameter(bias, 1),
            bn_scale=None,
            affine=(str(layer.parameter), bias),
        )

    @property
    def norms(self) -> list[Norm]:
        """BatchNormalizations that alone hold their statistics."""
        found = [
            Norm(index, step.input, step.mean, step.variance)
            for index, step in enumerate(self.steps)
            if isinstance(step, Normalise)
        ]
        return alone(found, self.parameters)

    def rehearse(self, images: Tensor) -> list[Any]:
        """Runs everything once; keeps the shapes of all values, returns the outputs."""
        values: dict[str, Any] = {self.input: images}
        names = ChainMap(values, self.parameters)
        self.shapes = {self.input: tuple(images.shape)}
        dead = last_reads(self)
        with torch.no_grad():
            for index, op in enumerate(self.ops):
                value = values[op.name] = self.run(index, names)
                if isinstance(value, Tensor):
                    self.shapes[op.name] = tuple(value.shape)
                for name in dead.get(index, ()):
                    del values[name]
        return [values[name] for name in self.outputs]


def trace(model: ModelProto, example: Tensor) -> OnnxGraph:
    """Makes a graph of an ONNX model, with a batch of any size, and finds its layers.

    Args:
        model: as `read` gives it; not changed.
        example: a few inputs, batch first; their device is where the layers run.

    Raises:
        ModelError: the model cannot be run on such inputs or takes several, a weight is NaN or
            infinite, or the graph does not give what the model gives.
    """
    example = several(model, example)
    found = trial(model, example)
    graph = _agreeing(model, example, found)
    _learn_shapes(graph, example)
    graph.layers = _Layers(graph).find()
    if any(has_body(node) for node in graph.plan.nodes.nodes):
        graph.notes.append("layers inside control flow (If, Loop, Scan) stay dense")
    return graph


def with_parameters(model: ModelProto, changes: Mapping[str, Tensor]) -> ModelProto:
    """A copy of a model with some constants changed, and nothing else.

    Args:
        model: not touched.
        changes: new values by parameter name, as the layers use them.
    """
    twin = ModelProto()
    twin.CopyFrom(model)
    stored, held = Plan(model).stored, constants(twin.graph)
    for name, value in changes.items():
        put(held[name], stored[name].write(value))
    return twin


def named_tensors(model: ModelProto) -> dict[str, Tensor]:
    """The floating-point constants of a model by name, as they are stored; copied."""
    held = constants(model.graph)
    return {name: tensor_of(of, name) for name, of in held.items() if of.data_type in _FLOATS}


def output_difference(model: ModelProto, images: Tensor) -> tuple[float, float] | None:
    """The output by which a file is judged against that of its layers run one after the other.

    Returns:
        The largest difference, and the largest output; None where the values decide how many rows
        the output has, and it has other numbers of them, or none.
    """
    images = images.cpu()
    whole = Whole(model, images[:2])
    own = whole(images)
    graph = trace(model, images[:2])
    part = graph.rehearse(images)[graph.plan.outputs.index(whole.name)]
    if own.shape != part.shape or not own.numel():
        return None
    return float((own - part).abs().max()), float(own.abs().max())


def _agreeing(model: ModelProto, example: Tensor, found: Trial) -> OnnxGraph:
    """The graph that gives what the file gives, with all images at once or one by one."""
    plan = Plan(model)
    parameters = _parameters(plan, example.device)
    ways = [lambda: _build(model, plan, parameters)]
    if found.batch:
        ways.append(lambda: _build(model, Plan(model, any_batch=found.batch), parameters))
    if found.batch == 1:
        ways.append(lambda: _one_by_one(_build(model, plan, parameters), example))
    reason: Exception | str = ""
    for way in ways:
        try:
            graph = _rows_first(way(), example)
            difference = _difference(graph, graph.rehearse(example), found)
        except (ValueError, RuntimeError, IndexError) as error:  # for another number of images
            reason = error
            continue
        if not difference > _AGREEMENT:  # NaN is told with its layer's name, by the walk
            return graph
        reason = f"its outputs differ by {difference:.2g} of the largest"
    if found.batch:
        raise ModelError(
            f"the ONNX model works on {found.batch} images at a time only ({first_line(reason)}), "
            "expected any number, or one: export it with a dynamic batch"
        )
    raise ModelError(
        f"the ONNX model's layers, run one after the other, do not give what the whole model gives "
        f"({first_line(reason)}), expected the same: a random model cannot be pruned; otherwise "
        "please report its operations"
    )


def _parameters(plan: Plan, device: torch.device) -> dict[str, Tensor]:
    """The layers' weights; ModelError names the first that holds a NaN or an infinity."""
    parameters = {name: value.to(device) for name, value in plan.parameters().items()}
    for name, value in parameters.items():
        if not value.isfinite().all():
            raise ModelError(
                f"the weights hold NaN or Inf in {name}, expected finite numbers: "
                "check the ONNX file and how it was exported"
            )
    return parameters


def _build(model: ModelProto, plan: Plan, parameters: dict[str, Tensor]) -> OnnxGraph:
    return OnnxGraph(plan, schedule(plan, {}), parameters, frozenset(constants(model.graph)))


def _one_by_one(graph: OnnxGraph, example: Tensor) -> OnnxGraph:
    """The graph with segments that take one image after the other."""
    graph.rehearse(example[:1])
    each = {name: sizes[0] if sizes else 0 for name, sizes in graph.shapes.items()}
    for step in graph.steps:
        if isinstance(step, Segment):
            step.each = each
    graph.notes.append("the file takes one image at a time: what is between layers was run so")
    return graph


def _rows_first(graph: OnnxGraph, example: Tensor) -> OnnxGraph:
    """The graph with outputs that have a row for each image, where they have an axis for these."""
    graph.rehearse(example[:1])
    one, unsteady = graph.shapes, graph.unsteady
    graph.rehearse(example)
    rows = {}
    for name in graph.outputs:
        if name in one and name in graph.shapes and name not in unsteady:
            axis, each = _images_axis(one[name], graph.shapes[name], len(example))
            if axis:
                new = graph.plan.nodes.fresh(name)
                rows[name] = RowsFirst(name=new, input=name, axis=axis, each=each)
    return replace(graph, steps=[*graph.steps, *rows.values()], rows=rows) if rows else graph


def _images_axis(
    one: tuple[int, ...], several: tuple[int, ...], count: int
) -> tuple[int | None, tuple[int, ...] | None]:
    """The axis of an output that counts the images, and its shape for one image.

    The latter where the values of several images lie behind each other, along the first axis.
    """
    behind = several == (one[0] * count, *one[1:]) if one else False
    if behind:
        return one.index(1) if 1 in one else None, one
    return images_axis(one, several, count), None


def _difference(graph: OnnxGraph, outputs: Sequence[Any], found: Trial) -> float:
    """The largest difference to the file's own outputs, as a share of the largest of them."""
    names = [value.name for value in graph.plan.model.graph.output]
    wanted = dict(zip(names, found.outputs, strict=True))
    unsteady, worst = graph.unsteady, 0.0
    for name, got in zip(graph.plan.outputs, outputs, strict=True):
        want = wanted[name]
        if want is None or not want.is_floating_point() or want.numel() == 0:
            continue
        want = want.movedim(graph.rows[name].axis, 0) if name in graph.rows else want
        want = want[: len(got)].to(got.device)
        if want.shape != got.shape and name in unsteady:  # a score on the edge of a selection
            continue
        if want.shape != got.shape:
            raise ModelError(f"output {name} has shape {tuple(got.shape)}, not {tuple(want.shape)}")
        worst = max(worst, float((want - got).abs().max()) / max(1.0, float(want.abs().max())))
    return worst


def _learn_shapes(graph: OnnxGraph, example: Tensor) -> None:
    """Sets a graph's shapes: what one image and several have, and within segments what is known."""
    of_several = graph.shapes
    graph.rehearse(example[:1])
    if any(site.step is None for site in graph.plan.sites):
        graph.shapes = known_shapes(graph.plan.model, example.shape[1:]) | graph.shapes
    graph.shown = {
        name: _batch_as_zero(sizes, of_several.get(name, (0, *sizes[1:])))
        for name, sizes in graph.shapes.items()
    }


def _batch_as_zero(one: tuple[int, ...], several: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with 0 where one image and several differ."""
    return tuple(a if a == b else 0 for a, b in zip(one, several, strict=False))


def _with_norm(step: Step, norm: str, bias: str) -> Step:
    """A layer's step that gives what the normalisation behind it gave."""
    assert isinstance(step, Convolve | Multiply)
    return replace(step, name=norm, bias=bias)


class _Layers:
    """Finds the layers of a graph."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph, self.plan, self.nodes = graph, graph.plan, graph.plan.nodes
        self.at = {step.name: index for index, step in enumerate(graph.steps)}
        self.sites: dict[str, list[Site]] = {}
        for site in self.plan.sites:
            if site.step is not None:
                self.sites.setdefault(site.step.weight, []).append(site)

    def find(self) -> list[Layer]:
        found = merged(self._layer(site) for site in self.plan.sites)
        return protected([self._settle(layer) for layer in found])

    def fold(self, layer: Layer) -> tuple[str, str | None, Folded] | None:
        """A BatchNormalization's output and free offset, and the new parameters, if any."""
        if layer.obstacle or len(layer.calls) != 1 or layer.bias is None:
            return None
        (site,) = self.sites[str(layer.parameter)]
        found = self._normalised(site)
        if found is None:
            return None
        (index, norm), held = found, self.graph.parameters
        offset = norm.beta if self._is_free(norm.beta, index) else None
        bias = None if layer.calls[0].bias is None else held[layer.calls[0].bias]
        weight, gamma, beta, mean, variance = (
            held[name]
            for name in (str(layer.parameter), norm.gamma, norm.beta, norm.mean, norm.variance)
        )
        new = folded(weight, bias, gamma, beta, mean, variance, norm.epsilon)
        return None if new is None else (norm.name, offset, new)

    def _layer(self, site: Site) -> Layer:
        if site.step is None:
            return self._dense(site)
        weight, shapes = self.graph.parameters[site.step.weight], self.graph.shapes
        output = shapes[site.step.name]
        places = math.prod(output[:-1] if site.kind == "linear" else (output[0], *output[2:]))
        use = LayerCall(
            op=self.at[site.step.name],
            input=site.step.input,
            geometry=site.step.geometry(shapes[site.step.input]),
            output=site.step.name,
            bias=site.step.bias,
        )
        return Layer(
            name=self._short(site.step.weight),
            parameter=site.step.weight,
            kind=site.kind,
            shape=weight.shape,
            output=self.graph.shown[site.step.name],
            macs=places * weight.numel(),
            calls=(use,),
            obstacle=self._obstacle(site),
        )

    def _dense(self, site: Site) -> Layer:
        node = self.nodes.nodes[site.node]
        reason = str(site.reason)
        computed = node.op_type == "Conv" or reason.startswith(("quantised weight", ON_THE_FLY))
        if site.weight is None and not computed:
            return activations_product(self._macs(site, ()))
        held = site.weight or next((name for name in node.input[1:2]), "")
        shape = self._sizes(held) or (0,)
        return Layer(
            name=self._short(site.weight) if site.weight else node.name or node.output[0],
            parameter=site.weight,
            kind=node.op_type,
            shape=torch.Size(shape),
            output=self.graph.shown.get(node.output[0], ()),
            macs=self._macs(site, shape),
            obstacle=site.reason,
        )

    def _macs(self, site: Site, shape: tuple[int, ...]) -> int:
        """Multiply-accumulates of a layer that stays dense; 0, and a note, where not known."""
        node = self.nodes.nodes[site.node]
        if node.op_type in RECURRENT:
            uses = uses_per_weight(node, self._sizes)
            found = None if uses is None else uses * math.prod(shape)
        else:
            found = product_macs(node, self._sizes)
        note = f"multiply-accumulates of {node.op_type} {node.name or node.output[0]} not counted: "
        if found is None and (note := f"{note}its shapes are not known") not in self.graph.notes:
            self.graph.notes.append(note)
        return found or 0

    def _sizes(self, name: str) -> tuple[int, ...] | None:
        """A value's shape for one image, where it is known."""
        held = self.nodes.constants.get(name)
        return self.graph.shapes.get(name) if held is None else tuple(held.dims)

    def _short(self, weight: str) -> str:
        """A weight's name without ".weight", unless another has that name."""
        short = weight.removesuffix(".weight")
        return weight if short in self.nodes.constants else short

    def _obstacle(self, site: Site) -> str | None:
        assert site.step is not None
        weight, sites = site.step.weight, self.sites[site.step.weight]
        own = {of.node for of in sites}
        others = [index for index in self.nodes.users(weight) if index not in own]
        if others:
            by = "an output" if others[0] < 0 else self.nodes.nodes[others[0]].op_type
            return f"weight also used by {by}"
        if weight not in self.graph.writable:
            return "weight inside a function of the file"
        if len(self.graph.shapes[site.step.input]) < 2:
            return "input without a batch axis"
        return None

    def _settle(self, layer: Layer) -> Layer:
        """Adds what depends on all uses: the place for a bias and the BatchNorm's slope."""
        if layer.obstacle:
            return layer
        assert layer.parameter is not None
        sites = self.sites[layer.parameter]
        norms = [self._normalised(site) for site in sites]
        uses = tuple(
            replace(use, output=norm[1].name) if norm else use
            for use, norm in zip(layer.calls, norms, strict=True)
        )
        only = norms[0] if len(sites) == 1 else None
        return replace(
            layer,
            calls=uses,
            bias=self._bias_parameter(sites, only),
            bn_scale=self._slope(norms[0][1]) if norms[0] else None,
            affine=self._affine(sites, only),
        )

    def _normalised(self, site: Site) -> tuple[int, Normalise] | None:
        """The BatchNormalization that alone reads a layer's output, and its node's number."""
        assert site.step is not None
        name = site.step.name
        index = self.nodes.only_reader(name)
        (step, *_) = self.plan.units.get(-1 if index is None else index, [None])
        rows_last = site.kind == "linear" and len(self.graph.shapes[name]) != 2
        if index is None or not isinstance(step, Normalise) or rows_last:
            return None
        return (index, step) if step.input == name else None

    def _slope(self, norm: Normalise) -> Tensor:
        """gamma / sqrt(variance + epsilon), per channel."""
        gamma, variance = (self.graph.parameters[name] for name in (norm.gamma, norm.variance))
        return (variance + norm.epsilon).rsqrt() * gamma

    def _bias_parameter(
        self, sites: list[Site], norm: tuple[int, Normalise] | None
    ) -> BiasParameter | None:
        biases = {site.step.bias for site in sites if site.step is not None}
        bias = next(iter(biases))
        if len(biases) > 1:
            return None
        if bias is not None:
            own = {site.node if site.add is None else site.add for site in sites}
            free = set(self.nodes.users(bias)) == own and bias in self.graph.writable
            return BiasParameter(bias, 1) if free else None
        if norm is None or not self._is_free(norm[1].mean, norm[0]):
            return None
        return BiasParameter(norm[1].mean, -1)

    def _affine(
        self, sites: list[Site], norm: tuple[int, Normalise] | None
    ) -> tuple[str, str | None] | None:
        """What scales and shifts a layer's output and nothing else."""
        (site, *others) = sites
        assert site.step is not None
        if others:
            return None
        if norm is not None:
            names = norm[1].gamma, norm[1].beta
            return names if all(self._is_free(name, norm[0]) for name in names) else None
        weight, bias = site.step.weight, site.step.bias
        reader = site.node if site.add is None else site.add
        return (weight, bias) if bias is None or self._is_free(bias, reader) else None

    def _is_free(self, name: str, index: int) -> bool:
        """Whether one node alone reads a constant, and once, and the file has a place for it."""
        return name in self.graph.writable and self.nodes.is_sole(name, index)
