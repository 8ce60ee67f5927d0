"""What a runtime is: what it asks for before it leaves zeros out, and how it is measured.

Nothing here imports PyTorch, for `secateur.hardware.bench_worker` measures in a process in which
only the runtimes are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

AMPERE = (8, 0)  # CUDA compute capability from which on GPUs have sparse tensor cores


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of a model: its name, shape (the batch size in place of a free axis) and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model in a runtime.

    Attributes:
        inputs: what it takes.
        run: one inference on arrays by name.
        precision: of what was computed, as far as the runtime tells.
        layers: executed convolutions, linear layers and matrix products; None = not told.
        sparse_layers: those of them that leave zeros out, by the name of the executed kernel.
    """

    inputs: tuple[Input, ...]
    run: Callable[[Mapping[str, np.ndarray]], Any]
    precision: str
    layers: int | None = None
    sparse_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is run while it is measured.

    Attributes:
        threads: how many the runtime may use.
        rate: share of zeros in a layer from which a sparse path is to be taken.
        batch: size of the free axes of the inputs.
        shapes: of the first inputs, for their free axes; of others these have the batch's size.
        values: an .npz file with a value for each input, in their order; empty = random numbers.
    """

    threads: int
    rate: float
    batch: int
    shapes: Sequence[Sequence[int]] = ()
    values: str = ""

    def filled(self, free: Sequence[Any], number: int) -> tuple[int, ...]:
        """The shape of an input, by its number, with a size for each free axis."""
        given = self.shapes[number] if number < len(self.shapes) else ()
        known = given if len(given) == len(free) else None
        shape = sizes(list(free), 0)
        return tuple(
            size or (known[axis] if known else self.batch) for axis, size in enumerate(shape)
        )


Start = Callable[[Path, EngineOptions], Engine]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime.

    Attributes:
        name: as people call it.
        package: key of `Machine.versions` and `Machine.settings`; of one that is measured it is
            what Python imports.
        distributions: the packages that install it, the usual one first.
        feature: what leaves the zeros out, in a few words.
        machine: what a machine lacks for it; empty when nothing.
        layer: what a layer lacks for it; empty when nothing.
        zeros: how many zeros a layer needs, in a word; empty = any.
        source: where this is written.
        settings: names of its settings on this machine, where it is asked for them.
        engines: how a model file is run to be measured, by the name that the table shows; none =
            it is not measured.
        formats: suffixes of the files that it runs.
        extra: that installs it.
        sparse_path: what a layer needs for its zeros to be left out, where the executed model
            tells whether they were.
        key: what users call it in options; empty = they cannot.
        pattern: what makes a network faster or smaller there: the name of a pattern.
        dtype: what weights have to be in there, such as "int8".
        prepared: how a network is made ready for it, in a sentence.
        unmeasured: why a network's time there cannot be measured on a machine; empty where it can.
        found: whether it is there, where Python does not find it as `package`; None = it does.
    """

    name: str
    package: str
    distributions: tuple[str, ...]
    feature: str
    machine: Callable[[Machine], list[str]]
    layer: Callable[[LayerFacts], list[str]]
    zeros: str = ""
    source: str
    settings: Callable[[], frozenset[str] | None] | None = None
    engines: Mapping[str, Start] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    extra: str = ""
    sparse_path: str = ""
    key: str = ""
    pattern: str = ""
    dtype: str = "float32"
    prepared: str = ""
    unmeasured: Callable[[Machine], str] | None = None
    found: Callable[[], bool] | None = None

    def fits(self, layer: LayerFacts) -> str | None:
        """Why zeros in a layer would bring nothing there once it is pruned; None where they would.

        Args:
            layer: before it is pruned, in floats.
        """
        obstacles = self.layer(replace(layer, dtype=self.dtype, sparsity=None, zero_blocks=None))
        return "; ".join(obstacles) or None

    def obstacle_here(self, machine: Machine) -> str:
        """Why a network's time there cannot be measured on a machine; empty where it can."""
        if self.unmeasured is not None:
            return self.unmeasured(machine)
        return "; ".join(self.machine(machine))


def unless(holds: bool, obstacle: str) -> list[str]:
    """An obstacle, or none where a condition holds."""
    return [] if holds else [obstacle]


def not_installed(machine: Machine, package: str) -> list[str]:
    """That a runtime is missing on a machine."""
    return unless(package in machine.versions, "not installed")


def no_ampere(machine: Machine) -> list[str]:
    """That a machine has no GPU with sparse tensor cores."""
    if machine.cuda is None:
        return ["no CUDA GPU that PyTorch can use"]
    have, need = (".".join(map(str, of)) for of in (machine.cuda, AMPERE))
    return unless(machine.cuda >= AMPERE, f"the GPU has compute capability {have}, {need} needed")


def not_two_of_four(layer: LayerFacts) -> list[str]:
    """That a layer's zeros are not in the 2:4 pattern."""
    return unless(layer.two_of_four is not False, "zeros anywhere: only the 2:4 pattern")


def sizes(shape: list[Any], batch: int) -> tuple[int, ...]:
    """A shape with the batch size for its free axes."""
    return tuple(size if isinstance(size, int) and size > 0 else batch for size in shape)
