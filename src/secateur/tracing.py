"""The network as a graph, on the inputs that it is fitted to."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from secateur.data.images import Images
from secateur.errors import ModelError
from secateur.frontends import Frontend
from secateur.network import judging
from secateur.network.graph import Graph
from secateur.network.lookups import check_numbers
from secateur.network.samples import Samples
from secateur.options import Options


@dataclass(frozen=True, kw_only=True)
class Traced:
    """The network as a graph, and what it is run on.

    Attributes:
        graph: with the output first that it is judged by.
        samples: the calibration inputs.
        rows: whether that output has a row for each image, not by chance only.
        output: name or number of the output that was asked for; None = none was.
    """

    graph: Graph
    samples: Samples
    rows: bool
    output: str | int | None = None


def trace(model: Frontend, images: Images, options: Options) -> Traced:
    """Traces the network."""
    samples = (
        model.signature.masking(options.mask)
        .bind(images.samples)
        .to(options.device or model.device)
    )
    samples = samples.map(_ordinary)
    graph = _traced(model, samples)
    samples = samples.named(graph.inputs)
    check_numbers(graph, samples)
    judged = judging.judged(graph, samples, output=options.output, judge=options.judge)
    return Traced(
        graph=judged,
        samples=samples,
        rows=judged.outputs[0] in graph.outputs,
        output=_output(model, graph, options.output),
    )


def _traced(model: Frontend, samples: Samples) -> Graph:
    """The network as a graph; tokens that it does not have are told as such."""
    few = samples.select(slice(2))
    try:
        return model.trace(few)
    except ModelError:
        known = few.map(lambda tensor: tensor if tensor.is_floating_point() else tensor * 0)
        with suppress(ModelError):
            graph = model.trace(known)
            check_numbers(graph, few.named(graph.inputs))
        raise


def _output(model: Frontend, graph: Graph, asked: str | int | None) -> str | int | None:
    """The output that is asked for, as networks made of this one know it.

    By number, for files that modules are exported to have names of their own. Of files by name: a
    graph has only outputs that depend on its inputs.
    """
    if asked is None:
        return None
    number = judging.output_number(graph, asked)
    name = graph.output_names[number] if model.chooses and graph.output_names else ""
    return name or number


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor that gradients can pass through: blocks are trained with them."""
    return tensor.clone() if tensor.is_inference() else tensor
