"""Numbers that are the same: disjoint sets (Tarjan 1975)."""

from __future__ import annotations

import numpy as np


class Sets:
    """Sets of numbers from 0 on, each at first a set of its own."""

    def __init__(self) -> None:
        self.parents: list[int] = []

    def fresh(self, count: int) -> np.ndarray:
        """New numbers, each a set of its own."""
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def find(self, number: int) -> int:
        """The first number of its set."""
        root = number
        while self.parents[root] != root:
            root = self.parents[root]
        while self.parents[number] != root:
            self.parents[number], number = root, self.parents[number]
        return root

    def join(self, one: int, other: int) -> None:
        """Makes two numbers the same."""
        first, second = sorted((self.find(one), self.find(other)))
        self.parents[second] = first
