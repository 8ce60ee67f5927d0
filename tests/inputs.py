"""Tensors as the inputs of a network or a graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateur import frontends
from secateur.network.graph import Graph
from secateur.network.samples import Samples


def trace(model: Any, *tensors: Tensor) -> Graph:
    """A module or ONNX model as a graph, from samples in the order of its inputs."""
    samples = {str(number): tensor for number, tensor in enumerate(tensors)}
    return frontends.open(model).trace(Samples(samples))


def samples_of(graph: Graph, *tensors: Tensor) -> Samples:
    """The samples that a graph is run on, from tensors in the order of its inputs."""
    return Samples(dict(zip(graph.inputs, tensors, strict=True)))
