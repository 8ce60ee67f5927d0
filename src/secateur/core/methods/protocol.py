"""The interface of a method, and how methods build on each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from secateur.core.patterns import Pattern
from secateur.core.problem import Problem, Solution


@runtime_checkable
class Method(Protocol):
    """The interface of a method.

    A method that refines another's solution has that method in a field `base`. One that trains
    on samples instead of sums states in a field `patches` how many a layer should keep.
    One that judges a fit to half of the images on the other half has `needs_folds` True. If that
    is the first thing it does, it has a method `without_folds` of the arguments of `solve`, which
    returns the problem with what was found there: wide layers take less memory then.
    One that takes less time where its weights are only where another walk starts has a field or
    property `rough`: the method to use there.
    """

    def solve(self, problem: Problem, pattern: Pattern, kept: int) -> Solution:
        """Prunes the problem's weights to `kept` non-zeros in the pattern."""
        ...


def stages(method: Any) -> Iterator[Any]:
    """A method and those it builds on, in the order in which they act."""
    if (base := getattr(method, "base", None)) is not None:
        yield from stages(base)
    yield method


def stored_patches(method: Any) -> int:
    """Samples per layer to keep for a method and those it builds on; 0 = sums are enough."""
    return max(getattr(stage, "patches", 0) for stage in stages(method))


def rough(method: Any) -> Any:
    """The method for a walk on the way to another one: its rough form, if it has one."""
    found = getattr(method, "rough", None)
    return method if found is None else found


def needs_folds(method: Any) -> bool:
    """Whether a method or those it builds on cross-validate on two halves of the images."""
    return any(getattr(stage, "needs_folds", False) for stage in stages(method))


def without_folds(method: Any, problem: Problem, pattern: Pattern, kept: int) -> Problem:
    """A problem that a method solves in the same way, without its folds where it has a way."""
    of = [stage for stage in stages(method) if getattr(stage, "needs_folds", False)]
    if len(of) != 1 or not hasattr(of[0], "without_folds"):
        return problem
    return of[0].without_folds(problem, pattern, kept)
