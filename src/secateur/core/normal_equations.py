"""Damped, normalised normal equations and conjugate gradients on a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.problem import Problem
from secateur.errors import NumericalError
from secateur.support.wording import counted

_CROWDED = 0.8  # share of rows still active at which the others leave
_MANY_ROWS = 2  # this many times the rows, where there are more than columns: the inverse
_LOOKS = {"cuda": 8}  # iterations between looks at what has converged: a GPU has to be waited for
_GROWTH, _ATTEMPTS = 10.0, 5  # how damping escalates where a Cholesky factorisation fails


@dataclass(frozen=True)
class NormalEquations:
    """(G + d I) W^T = (C + d W_dense)^T in columns scaled so that the diagonal is one.

    Attributes:
        gram: the scaled, damped Gram matrix; ones on its diagonal.
        cross: the scaled right-hand side.
        column_scale: square root of the damped diagonal; scaled weights are W * column_scale.
    """

    gram: Float[Tensor, "groups cols cols"]
    cross: Float[Tensor, "groups rows cols"]
    column_scale: Float[Tensor, "groups 1 cols"]

    @classmethod
    def of(cls, problem: Problem, damping: float) -> NormalEquations:
        """Damps by `damping` times the mean of the diagonal, then normalises the columns."""
        diagonal = problem.gram.diagonal(dim1=-2, dim2=-1)
        mean = diagonal.mean(-1, keepdim=True)
        amount = damping * torch.where(mean > 0, mean, torch.ones_like(mean))
        scale = (diagonal + amount).sqrt().unsqueeze(-2)
        gram = (problem.gram / scale).div_(scale.mT)
        gram.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        cross = (problem.cross + amount.unsqueeze(-1) * problem.weight) / scale
        return cls(gram, cross, scale)

    def factor(self, shift: float) -> tuple[Float[Tensor, "groups cols cols"], float]:
        """Cholesky factor of gram + shift * I, and the shift that it took.

        Raises:
            NumericalError: the matrix is not positive definite even with the largest shift.
        """
        for _ in range(_ATTEMPTS):
            factor = self.gram.clone()
            factor.diagonal(dim1=-2, dim2=-1).add_(shift)
            factor, info = _cholesky(factor, in_place=True)
            if not info.any():
                return factor, shift
            shift *= _GROWTH
        raise NumericalError(
            f"the Gram matrix is not positive definite even with damping {shift / _GROWTH:.2g} "
            "of its diagonal; look for extreme values in the images or weights"
        )

    def solver(self, shift: float, rows: int) -> tuple[Callable[[Tensor], Tensor], float]:
        """Solves with gram + shift * I for right-hand sides (groups, rows, cols).

        Args:
            shift: at least; more where the matrix is not positive definite.
            rows: of the right-hand sides. For many of them the inverse is worth its cost: products
                with it were 2.5 to 3 times as fast as triangular solves (one thread, AVX-512).
                For fewer, rows are solved as they lie in memory: `torch.cholesky_solve` on their
                transposes took 1.3 to 1.9 times as long (AVX2).

        Returns:
            right -> right (gram + shift I)^-1, and the shift that it took.

        Raises:
            NumericalError: as `factor`.
        """
        factor, shift = self.factor(shift)
        if _MANY_ROWS * rows >= factor.shape[-1]:
            inverse = torch.cholesky_inverse(factor)
            return lambda right: right @ inverse, shift
        return lambda right: _solved(factor, right), shift

    def fit(
        self,
        start: Float[Tensor, "groups rows cols"],
        mask: Bool[Tensor, "groups rows cols"],
        *,
        tolerance: float,
        iterations: int,
    ) -> tuple[Float[Tensor, "groups rows cols"], tuple[str, ...]]:
        """Least-squares weights on a mask, by conjugate gradients for all rows at once.

        Columns have unit diagonal, which is the Jacobi preconditioner. Each row has its own
        step lengths; a converged row stands still. Where all rows keep the same columns, as where
        channels leave, one Cholesky factor serves them all, and conjugate gradients have nothing
        left to do.

        Args:
            start: where to start, in unscaled weights; entries off the mask are ignored.
            mask: True = kept.
            tolerance: relative residual per row at which it has converged.
            iterations: greatest number of iterations.

        Returns:
            The weights, exactly zero off the mask, and a note when rows have not converged.
        """
        support = mask.to(self.gram.dtype)
        x = start * self.column_scale * support
        residual = (self.cross - x @ self.gram) * support
        target = (self.cross * support).square().sum(-1, keepdim=True) * tolerance**2
        power = residual.square().sum(-1, keepdim=True)
        if bool((power > target).any()) and (found := self._with_one_factor(mask)) is not None:
            x = found
            residual = (self.cross - x @ self.gram) * support
            power = residual.square().sum(-1, keepdim=True)
        direction = residual.clone()
        rows, look = _Rows(x), _LOOKS.get(x.device.type, 1)
        for number in range(iterations):
            active = power > target
            if number % look == 0:  # a converged row stands still: later is as good
                count = int(active.sum())
                if not count:
                    break
                if rows.can_leave(len(active), count):
                    parts = x, residual, direction, power, target, support, active
                    x, residual, direction, power, target, support, active = rows.keep(
                        active, parts
                    )
            product = (direction @ self.gram).mul_(support)
            curvature = (direction * product).sum(-1, keepdim=True)
            step = torch.where(active, power / curvature, 0.0)
            x += step * direction
            residual -= step * product
            previous, power = power, residual.square().sum(-1, keepdim=True)
            direction = residual + torch.where(active, power / previous, 0.0) * direction
        x = rows.all(x)
        left = int((power > target).sum())
        rows, limit = counted(left, "row"), counted(iterations, "iteration")
        notes = (f"{rows} not converged in {limit}",) if left else ()
        return x / self.column_scale * mask, notes

    def _with_one_factor(
        self, mask: Bool[Tensor, "groups rows cols"]
    ) -> Float[Tensor, "groups rows cols"] | None:
        """Scaled weights on a mask that all rows of a group share.

        None where rows differ, or the matrix is not positive definite.
        """
        kept = mask[:, :1]
        if not bool((mask == kept).all()):
            return None
        columns = kept.any(0).flatten().nonzero().squeeze(1)  # that some group keeps
        kept = kept[..., columns]
        gram = self.gram[:, columns][..., columns] * (kept & kept.mT)
        gram.diagonal(dim1=-2, dim2=-1).fill_(1.0)  # also of columns that others keep
        factor, info = _cholesky(gram)
        if info.any():
            return None
        found = torch.zeros_like(self.cross)
        found[..., columns] = _solved(factor, self.cross[..., columns] * kept)
        return found


class _Rows:
    """The rows that conjugate gradients still work on; those that have converged leave them.

    Attributes:
        found: all rows, (groups, rows, cols), as they were when they left.
        left: numbers of those that have not.
    """

    def __init__(self, x: Tensor) -> None:
        self.found, self.left = x, torch.arange(x.shape[1], device=x.device)

    def can_leave(self, groups: int, count: int) -> bool:
        """Whether enough have converged to be worth a copy of the others; in one group alone."""
        return groups == 1 and count <= _CROWDED * len(self.left)

    def keep(self, active: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """Some rows of tensors (1, rows, ...), the first of them what was found."""
        chosen = active.flatten().nonzero().squeeze(1)
        self.found = self.all(parts[0])
        self.left = self.left[chosen]
        return [part[:, chosen] for part in parts]

    def all(self, x: Tensor) -> Tensor:
        """All rows, those that have not left as they are now."""
        if x.shape == self.found.shape:
            return x
        found = self.found.clone()
        found[:, self.left] = x
        return found


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    """The rows x of x L L^T = right, for lower factors L."""
    half = _triangular(factor.mT, right, upper=True)
    return _triangular(factor, half, upper=False)


# PyTorch gives torch.linalg no types.
def _triangular(factor: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    """The rows x of x factor = right."""
    return torch.linalg.solve_triangular(factor, right, upper=upper, left=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _cholesky(matrix: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Lower factors and, for each, whether it failed: a number that is not 0.

    Args:
        in_place: whether the factors take the matrix's place.
    """
    info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    out = (matrix, info) if in_place else None
    return torch.linalg.cholesky_ex(matrix, out=out)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
