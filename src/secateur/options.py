"""The options of a call of `prune`, `plan` or `sweep`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from secateur.core.outputs import Judge
from secateur.core.patterns import Channels, UnitPattern, Unstructured, choose_pattern
from secateur.data.preprocess import Transform
from secateur.errors import OptionError
from secateur.evaluation.metric import check_metric
from secateur.export.int8 import Precision
from secateur.hardware.paying import MEASURED, pattern_note
from secateur.hardware.runtimes import BY_KEY
from secateur.pruning.allocations import Sensitivity
from secateur.pruning.recipe import Recipe, choose_recipe
from secateur.pruning.sampling import Sampling
from secateur.pruning.targets import EveryLayer, MaxDrop, Target, choose_target
from secateur.report.build import describe
from secateur.support.choices import check_device, check_sparsity, did_you_mean, name_of
from secateur.support.settings import SEEDS, at_least, check_settings, shown
from secateur.support.sizes import bytes_of

RuntimeName = Literal[
    "onnxruntime",
    "openvino",
    "torch",
    "torch-int8-sparse",
    "torch-cuda-2:4",
    "tensorrt",
    "deepsparse",
    "openvino-amx",
    "xnnpack-arm",
    "storage",
]


_NOT_OPTIONS = ("model", "data", "evaluation", "progress", "sparsities")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a call, checked; see `secateur.prune`."""

    target: Target
    recipe: Recipe
    preprocess: Transform | None = None
    include: str | Collection[str] | None = None
    exclude: str | Collection[str] | None = None
    max_images: int | None = None
    max_columns: int = Sampling.max_columns
    seed: int = 0
    device: torch.device | str | int | None = None
    mask: str | None = None
    output: str | int | None = None
    judge: Judge | None = None
    metric: Callable[[Any], float] | None = None
    quantize: Precision | None = None
    runtime: RuntimeName | None = None
    threads: int = 1
    then_sparsity: float | None = None
    memory: int | str | None = None
    work_dir: str | Path | None = None
    runtime_note: str = ""  # which pattern was chosen for it, and why

    def __post_init__(self) -> None:
        least = at_least(1)
        check_settings(
            self,
            named=False,
            max_images=least,
            max_columns=least,
            seed=SEEDS,
            threads=least,
            output=at_least(0),
        )
        if self.memory is not None:
            object.__setattr__(self, "memory", bytes_of("memory", self.memory))
        check_device(self.device)
        check_metric(self.metric)
        if self.then_sparsity is not None:
            object.__setattr__(self, "then_sparsity", self._zeros_after(self.then_sparsity))

    def _zeros_after(self, sparsity: Any) -> float:
        """The zeros to make in what channels have left.

        Raises:
            OptionError: no channels leave, or their number is not known before.
        """
        if not isinstance(self.recipe.pattern, Channels):
            raise OptionError(
                "then_sparsity is given without pattern='channels', expected both: say with "
                "sparsity alone how many zeros to make"
            )
        if isinstance(self.target, MaxDrop):
            raise OptionError(
                "got then_sparsity and max_drop, expected another target for the channels: zeros "
                "that are made afterwards would lose more than max_drop allows"
            )
        return check_sparsity(sparsity, "then_sparsity")

    @classmethod
    def given(cls, arguments: Mapping[str, Any]) -> Options:
        """From all arguments of `secateur.prune`, `plan` or `sweep`, by name."""
        return cls.of(**{name: of for name, of in arguments.items() if name not in _NOT_OPTIONS})

    @classmethod
    def of(
        cls,
        *,
        sparsity: float | None = None,
        max_macs: float | None = None,
        max_bytes: float | None = None,
        max_drop: float | None = None,
        max_latency: float | None = None,
        runtime: RuntimeName | None = None,
        recipe: Recipe | str | Path,
        pattern: Any,
        method: Any,
        allocation: Any,
        inputs: Any,
        **others: Any,
    ) -> Options:
        """From the arguments of `secateur.prune`; `others` are fields of this class."""
        _check_runtime(runtime, is_needed=max_latency is not None)
        chosen = choose_recipe(
            recipe, pattern=pattern, method=method, allocation=allocation, inputs=inputs
        )
        is_free = pattern is None and type(chosen.pattern) is Unstructured and allocation is None
        if runtime is not None and is_free:
            chosen = _for_runtime(chosen, runtime, sparsity)
        targets = {
            "sparsity": sparsity,
            "max_macs": max_macs,
            "max_bytes": max_bytes,
            "max_drop": max_drop,
            "max_latency": max_latency,
        }
        is_told = any(of is not None for of in targets.values())
        of_pattern = None if is_told else _sparsity_of(chosen.pattern)
        target = choose_target(**targets) if of_pattern is None else EveryLayer(of_pattern)
        if max_latency is not None and pattern is None and type(chosen.pattern) is not Channels:
            chosen = replace(chosen, pattern=Channels())  # zeros alone would not do
        _check_allocation(allocation, chosen)
        note = ""
        if runtime is not None:
            note = pattern_note(runtime, name_of(chosen.pattern), was_chosen=is_free)
        return cls(target=target, recipe=chosen, runtime=runtime, runtime_note=note, **others)

    @property
    def memory_cap(self) -> int | None:
        """Bytes that values may take; None = as many as they need."""
        return None if self.memory is None else int(self.memory)

    @property
    def measures(self) -> bool:
        """Whether the network's time is measured on the runtime of the call."""
        return self.runtime in MEASURED

    def settings(self, device: torch.device) -> dict[str, Any]:
        """For the report."""
        return {
            "target": {"name": self.target.name, "value": self.target.value},
            "recipe": self.recipe.settings(),
            "include": _names(self.include),
            "exclude": _names(self.exclude),
            "preprocess": None if self.preprocess is None else describe(self.preprocess),
            "max_images": self.max_images,
            "max_columns": self.max_columns,
            "seed": self.seed,
            "quantize": self.quantize,
            "device": str(device),
            **({} if self.mask is None else {"mask": self.mask}),
            **({} if self.output is None else {"output": self.output}),
            **({} if self.judge is None else {"judge": self.judge}),
            **({} if self.metric is None else {"metric": describe(self.metric)}),
            **({} if self.runtime is None else {"runtime": self.runtime, "threads": self.threads}),
            **({} if self.memory is None else {"memory": self.memory}),
            **({} if self.then_sparsity is None else {"then_sparsity": self.then_sparsity}),
        }


def _for_runtime(recipe: Recipe, runtime: RuntimeName, sparsity: float | None) -> Recipe:
    """The recipe with the pattern that pays on a runtime; zeros where these are asked for."""
    pays = BY_KEY[runtime].pattern
    if pays == "unstructured" or (pays == "channels" and sparsity is not None):
        return recipe
    return replace(recipe, pattern=choose_pattern(pays))


def _sparsity_of(pattern: Any) -> float | None:
    """The sparsity of a pattern that fixes it; None = it has to be asked for."""
    share = pattern.share if isinstance(pattern, UnitPattern) else None
    return None if share is None else 1 - share


def _check_allocation(asked: Any, recipe: Recipe) -> None:
    """Raises OptionError where an allocation is asked for that would be ignored."""
    pattern_has_own = isinstance(recipe.pattern, Channels)
    if asked is not None and pattern_has_own and recipe.allocation != Sensitivity():
        raise OptionError(
            f"allocation is {shown(asked)}, which would be ignored with pattern='channels', "
            "expected none: how many channels leave is told by curves of their own; leave "
            "allocation out"
        )


def _check_runtime(runtime: Any, *, is_needed: bool) -> None:
    """Raises OptionError unless there is a runtime to measure on where one is needed."""
    names = get_args(RuntimeName)
    if is_needed and (runtime is None or (runtime in names and runtime not in MEASURED)):
        given = f"with runtime {runtime}" if runtime else "without a runtime"
        raise OptionError(
            f"max_latency is given {given}, expected runtime={' or '.join(MEASURED)}: say where "
            "the network will run, and be measured"
        )
    if runtime is not None and runtime not in names:
        raise OptionError(
            f"runtime is {runtime!r}, expected one of {', '.join(names)}"
            f"{did_you_mean(str(runtime), names)}"
        )


def _names(asked: str | Collection[str] | None) -> str | list[str] | None:
    return asked if asked is None or isinstance(asked, str) else list(asked)
