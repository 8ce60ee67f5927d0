"""Fewer dimensions of queries and keys, matched on the logits.

A head with queries q = A x and keys k = B x of d dimensions has the logits q^T k. With r dimensions
it can have q^T M k for any M of rank r. Over pairs of positions that are independent, the loss is

    E (q^T k - q^T M k)^2 = || Q^T (I - M) K ||^2    with Q Q^T = E q q^T,  K K^T = Cov k

so that the best M follows from the largest singular values of Q^T K = U S V^T (Eckart and Young):

    q' = S^(1/2) U^T Q^-1 q,    k' = S^(1/2) V^T K^-1 k    of the first r rows each.

Both are linear in x, so that the rows of A and B change and nothing else does. Keys are centred:
what is added to all logits of a query changes no softmax. Heads of queries that share keys add up
in E q q^T. It needs the second moments of the layers' inputs alone, of which r dimensions are the
best possible for each head; no single dimension is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.problem import Problem
from secateur.network.couplings import Coupling, Slices
from secateur.network.graph import Graph
from secateur.network.layers import Layer

_SHIFT = 1e-6  # of the mean of the diagonal, for the Cholesky factors


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The queries and keys of a coupling, head by head, in the order of what they add to logits.

    Attributes:
        coupling: whose units they are.
        heads: the units of each head.
        queries, keys: what makes the dimensions anew from the old ones, the first dimension the
            one that matters most.
    """

    coupling: Coupling
    heads: Sequence[Sequence[int]]
    queries: Float[Tensor, "heads dims dims"]
    keys: Float[Tensor, "heads dims dims"]

    def changes(
        self, parameters: Mapping[str, Tensor], *, left: int, only: str | None = None
    ) -> dict[str, Tensor]:
        """Parameters that make the dimensions that are left, and zeros for the others.

        Args:
            parameters: by name.
            left: dimensions of each head, its first units.
            only: the weight of the layer whose part is wanted; None = of all layers.
        """
        met, changed = self.coupling.query_keys, dict[str, Tensor]()
        assert met is not None
        for parts, transform in ((met.queries, self.queries), (met.keys, self.keys)):
            if only is not None and only not in {part.parameter for part in parts}:
                continue
            for part in parts:
                held = changed.get(part.parameter, parameters[part.parameter])
                changed[part.parameter] = self._mixed(held, part, transform, left)
        return changed

    def _mixed(self, tensor: Tensor, part: Slices, transform: Tensor, left: int) -> Tensor:
        new = tensor.movedim(part.axis, 0).clone()
        for head, matrix in zip(self.heads, transform, strict=True):
            for at in _rows(part, head):
                rows = new[at].flatten(1) if new.dim() > 1 else new[at].unsqueeze(1)
                mixed = matrix.to(rows.device) @ rows.double()
                mixed[left:] = 0
                new[at] = mixed.to(new.dtype).view(new[at].shape)
        return new.movedim(0, part.axis).contiguous()


def _rows(part: Slices, head: Sequence[int]) -> Tensor:
    """The indices of a head's units, for each of the heads of queries that share its keys."""
    return torch.tensor([part.indices[unit] for unit in head]).T


def heads_of(coupling: Coupling) -> list[tuple[int, ...]]:
    """The units of each head that are queries and keys."""
    blocks = coupling.blocks or (tuple(range(coupling.units)),)
    return [block for block in blocks if not coupling.read & {*block}]


def mixing(
    coupling: Coupling, graph: Graph, queries: tuple[Layer, Problem], keys: tuple[Layer, Problem]
) -> Mixing:
    """How dimensions of queries and keys are made anew.

    Args:
        coupling: with queries and keys that may be mixed.
        graph: the dense network.
        queries, keys: the layer that makes each, and its problem in the dense network.

    Cost: dims^3 for each head.
    """
    met, heads = coupling.query_keys, heads_of(coupling)
    assert met is not None
    (asked,), (read,) = (
        [part for part in parts if part.parameter == layer.parameter]
        for parts, (layer, _) in ((met.queries, queries), (met.keys, keys))
    )
    all_queries, all_keys = _Outputs(graph, *queries), _Outputs(graph, *keys)
    found: list[tuple[Tensor, Tensor]] = []
    for head in heads:
        moments = torch.stack([all_queries.moments(at) for at in _rows(asked, head)]).sum(0)
        found.append(_balanced(moments, all_keys.covariance(_rows(read, head)[0])))
    return Mixing(
        coupling=coupling,
        heads=heads,
        queries=torch.stack([of for of, _ in found]),
        keys=torch.stack([of for _, of in found]),
    )


def _balanced(
    queries: Float[Tensor, "dims dims"], keys: Float[Tensor, "dims dims"]
) -> tuple[Float[Tensor, "dims dims"], Float[Tensor, "dims dims"]]:
    """What makes queries and keys anew, so that both have the same diagonal moments, falling."""
    first, second = _factor(queries), _factor(keys)
    left, sizes, right = _decomposed(first.mT @ second)
    root = sizes.sqrt().unsqueeze(1)
    return root * _divided(left.mT, first), root * _divided(right, second)


def _factor(moments: Tensor) -> Tensor:
    """Its Cholesky factor; a little is added to the diagonal."""
    shift = _SHIFT * moments.diagonal().mean().clamp_min(1e-12)
    shifted = moments + shift * torch.eye(len(moments), dtype=moments.dtype)
    # PyTorch gives torch.linalg no types; so below.
    return torch.linalg.cholesky(shifted)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T."""
    return torch.linalg.svd(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _divided(matrix: Tensor, factor: Tensor) -> Tensor:
    """A matrix times the inverse of a lower triangular one."""
    return torch.linalg.solve_triangular(factor, matrix, upper=False, left=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class _Outputs:
    """Second moments of what a layer gives, from those of its inputs."""

    def __init__(self, graph: Graph, layer: Layer, problem: Problem) -> None:
        call = layer.calls[0]
        matrix = call.geometry.matrix(graph.parameters[str(layer.parameter)])
        self.weight = matrix[0].double().cpu()
        self.gram = problem.gram[0].double().cpu()
        self.mean = self.weight @ problem.input_mean[0].double().cpu()
        if call.bias in graph.parameters:
            self.mean = self.mean + graph.parameters[str(call.bias)].double().cpu().flatten()

    def covariance(self, rows: Tensor) -> Tensor:
        """Of some outputs; not centred where the layer has no bias."""
        weight = self.weight[rows]
        return weight @ self.gram @ weight.mT

    def moments(self, rows: Tensor) -> Tensor:
        """Of some outputs, their means included."""
        mean = self.mean[rows]
        return self.covariance(rows) + mean.outer(mean)
