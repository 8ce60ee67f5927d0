"""Layers solved one after the other, or several at a time where they are independent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from secateur.core.methods import Method, stored_patches
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem
from secateur.pruning.layer_fit import LayerFit, LayerSolution
from secateur.pruning.streams import Inputs


class LayerWorkers:
    """Solves layers at once, or several at a time.

    With dense inputs no layer waits for another's solution. Methods that train on patches take
    many small steps, which one thread does as fast as several: so each core gets a layer. Others
    use all cores by themselves.
    """

    def __init__(
        self,
        method: Method,
        inputs: Inputs,
        device: torch.device,
        on_solution: Callable[[LayerSolution], Any],
    ) -> None:
        """Makes threads where they serve.

        Args:
            method: what solves the layers.
            inputs: what they are fitted to.
            device: where they are solved.
            on_solution: called with each solution, in the order in which layers were given.
        """
        several = inputs == "dense" and device.type == "cpu" and stored_patches(method) > 0
        self.method, self.on_solution = method, on_solution
        self.threads = torch.get_num_threads()
        self.pool = (
            ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
            if several
            else None
        )
        self.pending: deque[Future[LayerSolution]] = deque()

    def __enter__(self) -> LayerWorkers:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=kind is not None)
            torch.set_num_threads(self.threads)

    def solve(self, fit: LayerFit, pattern: Pattern, kept: int) -> None:
        """Solves a layer, or gathers its statistics and has it solved meanwhile."""
        if self.pool is None or fit.in_blocks:
            self.finish()
            self.on_solution(fit.solve(self.method, pattern, kept))
            return
        problem = fit.problem(self.method)
        while len(self.pending) > self.threads:  # bounds the problems held
            self.on_solution(self.pending.popleft().result())
        self.pending.append(self.pool.submit(self._alone, fit, problem, pattern, kept))

    def _alone(self, fit: LayerFit, problem: Problem, pattern: Pattern, kept: int) -> LayerSolution:
        with torch.no_grad():  # which holds for one thread only
            return fit.solve_problem(problem, self.method, pattern, kept)

    def finish(self) -> None:
        """Waits for the layers under way."""
        while self.pending:
            self.on_solution(self.pending.popleft().result())
