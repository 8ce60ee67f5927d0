"""Layers solved one after the other, or several at a time where they are independent."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from secateur.core.methods import Method, stored_patches
from secateur.core.patterns import Pattern
from secateur.core.problem import Problem
from secateur.pruning.layer_fit import LayerFit, LayerSolution
from secateur.pruning.sharing import Task, told
from secateur.pruning.streams import Inputs
from secateur.support.group import Group


class LayerWorkers:
    """Solves layers at once, or several at a time.

    With dense inputs no layer waits for another's solution. Methods that train on patches take
    many small steps, which one thread does as fast as several: so each core gets a layer. Others
    use all cores by themselves. Where several processes share the samples, each gets some of the
    layers; of layers that wait for each other one process solves all, and the others wait.
    """

    def __init__(
        self,
        method: Method,
        inputs: Inputs,
        device: torch.device,
        on_solution: Callable[[LayerSolution], Any],
        group: Group | None = None,
        tasks: Sequence[Sequence[Task]] = (),
    ) -> None:
        """Makes threads where they serve.

        Args:
            method: what solves the layers.
            inputs: what they are fitted to.
            device: where they are solved.
            on_solution: called with each solution, in the order in which layers were given, in
                all processes.
            group: the processes.
            tasks: which of them solves which layer, window by window, where no layer waits.
        """
        self.group = group or Group()
        self.tasks = {task.index: task for window in tasks for task in window}
        self.lasts = {window[-1].index for window in tasks}
        self.given: list[tuple[LayerFit, Callable[[], LayerSolution] | None]] = []
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
        if self.group.size > 1 and fit.index in self.tasks and not fit.in_blocks:
            self._solve_later(fit, pattern, kept)
        elif self.pool is None or fit.in_blocks:
            self.finish()
            solver = self.group.size - 1  # which has no more chunks than others
            solution = fit.solve(self.method, pattern, kept, solver)
            self.on_solution(told(self.group, solver, fit.layer, solution))
        else:
            problem = fit.problem(self.method)
            assert problem is not None
            while len(self.pending) > self.threads:  # bounds the problems held
                self.on_solution(self.pending.popleft().result())
            self.pending.append(self.pool.submit(self._alone, fit, problem, pattern, kept))

    def _alone(self, fit: LayerFit, problem: Problem, pattern: Pattern, kept: int) -> LayerSolution:
        with torch.no_grad():  # which holds for one thread only
            return fit.solve_problem(problem, self.method, pattern, kept)

    def _solve_later(self, fit: LayerFit, pattern: Pattern, kept: int) -> None:
        """Gathers the statistics of a layer where it is to be solved, when its window is full."""
        problem = fit.problem(self.method, solver=self.tasks[fit.index].solver)
        solve = problem and functools.partial(self._alone, fit, problem, pattern, kept)
        self.given.append((fit, solve))
        if fit.index in self.lasts:
            self._solve_window()

    def _solve_window(self) -> None:
        """Solves the layers of this process, several at a time, and hears of the others'."""
        given, self.given = self.given, []
        calls = [solve for _, solve in given]
        solved = list(map(_called, calls) if self.pool is None else self.pool.map(_called, calls))
        for (fit, _), solution in zip(given, solved, strict=True):
            solver = self.tasks[fit.index].solver
            self.on_solution(told(self.group, solver, fit.layer, solution))

    def finish(self) -> None:
        """Waits for the layers under way."""
        self._solve_window()
        while self.pending:
            self.on_solution(self.pending.popleft().result())


def _called(solve: Callable[[], LayerSolution] | None) -> LayerSolution | None:
    return None if solve is None else solve()
