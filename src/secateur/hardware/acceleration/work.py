"""What `accelerate` does for any runtime: layers found, replaced by others, the whole compared."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur.core.distance import relative_error
from secateur.core.outputs import judge_of
from secateur.errors import ModelError, OptionError
from secateur.evaluation.inference import first_output
from secateur.evaluation.metrics import compare
from secateur.frontends import open as open_model
from secateur.hardware.acceleration.candidates import Found, find, used_otherwise
from secateur.hardware.acceleration.report import AccelerationReport, LayerAcceleration
from secateur.hardware.compare_latency import module_turns
from secateur.hardware.machine import Machine
from secateur.network.samples import Samples
from secateur.support.choices import did_you_mean
from secateur.version import __version__

ROUNDS = 11  # of the whole module


class Work(ABC):
    """One call of `accelerate`, on a copy of the module that it changes.

    Attributes:
        original: the module that was given.
        model: the copy.
        samples: calibration data.
        batch: samples that the module will be run with at a time.
        allowed: kernels that a layer may get.
        layers: what became of each, by name.
        notes: what else there is to know.
    """

    nothing: ClassVar[str]
    """What there is to say where no layer can be replaced."""

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        samples: Samples,
        *,
        batch: int,
        allowed: Sequence[str],
    ) -> None:
        self.original, self.model, self.samples = original, model, samples
        self.batch, self.allowed = batch, allowed
        self.layers: dict[str, LayerAcceleration] = {}
        self.notes: list[str] = []

    def carried_out(self, runtime: str, exclude: Sequence[str]) -> AccelerationReport:
        """Replaces the layers; the report of it.

        Raises:
            OptionError: `exclude` names no layer.
            ModelError: no layer can be replaced.
        """
        expected = first_output(self.original, self.samples)
        found = self.replace_layers(self._found(exclude))
        return self._report(runtime, found, expected)

    @abstractmethod
    def replace_layers(self, found: Found) -> Found:
        """Puts others in the place of layers; what was left alone, with the reasons."""

    def obstacles(self, found: Found) -> Mapping[str, str]:
        """Why some of the candidates cannot be replaced, by name."""
        del found
        return {}

    def warnings(self) -> list[str]:
        """What may be wrong."""
        return []

    def times(self) -> dict[str, float]:
        """Milliseconds of a run of the module in floats and accelerated, in turns."""
        found = module_turns([self.original, self.model], self.few(), ROUNDS)
        return dict(zip(("float", "accelerated"), map(statistics.median, found), strict=True))

    def few(self) -> Samples:
        """As many samples as a run has."""
        count = len(self.samples)
        return self.samples.select([number % count for number in range(self.batch)])

    def check_any(self, found: Found) -> None:
        """Raises ModelError where no layer can be replaced."""
        if not found.candidates:
            raise ModelError(
                self.nothing.format(why=_most_common(found.reasons)) + ": leave the network as "
                "it is"
            )

    def _found(self, exclude: Sequence[str]) -> Found:
        found = find(self.model)
        names = [*(of.name for of in found.candidates), *found.reasons]
        out = _excluded(exclude, names)
        found = found.without({of.name: _EXCLUDED for of in found.candidates if of.name in out})
        found = found.without(self.obstacles(found))
        few = self.samples.pair()
        with open_model(self.model).running(few) as run:
            run(few)  # which layout it takes is found out
            return found.without(used_otherwise(found, lambda: run(few)))

    def _report(self, runtime: str, found: Found, expected: Tensor) -> AccelerationReport:
        output = first_output(self.model, self.samples)
        judge, weight = judge_of(expected), self.samples.mask
        milliseconds = self.times()
        names = [name for name, _ in self.model.named_modules()]
        for name, reason in found.reasons.items():
            self.layers[name] = LayerAcceleration(name=name, reason=reason)
        return AccelerationReport(
            runtime=runtime,
            layers=tuple(self.layers[name] for name in names if name in self.layers),
            batch=self.batch,
            threads=torch.get_num_threads(),
            milliseconds=milliseconds,
            rounds=ROUNDS,
            relative_error=relative_error(
                [expected], [output], judge, None if weight is None else [weight]
            ),
            compared=compare(output, None, expected, judge=judge, weight=weight),
            cpu=Machine.here().cpu,
            versions={"secateur": __version__, "torch": str(torch.__version__)},
            warnings=tuple(self.warnings()),
            notes=tuple(self.notes),
        )


_EXCLUDED = "excluded by the call"


def _excluded(globs: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that names or globs mean.

    Raises:
        OptionError: one matches nothing.
    """
    out: set[str] = set()
    for glob in globs:
        matches = [name for name in names if name == glob or fnmatchcase(name, glob)]
        if not matches:
            raise OptionError(
                f"exclude={glob!r} matches no linear layer or convolution, expected a name or a "
                f"glob such as 'layer1.*'{did_you_mean(glob, names)}"
            )
        out.update(matches)
    return out


def _most_common(reasons: Mapping[str, str]) -> str:
    """The reason that most layers have."""
    counts = Counter(reasons.values()).most_common(1)
    return counts[0][0] if counts else "it has neither linear layers nor convolutions"
