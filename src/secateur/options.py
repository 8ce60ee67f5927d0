"""The options of a call of `prune`, `plan` or `sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.data.preprocess import Transform
from secateur.export.int8 import Precision
from secateur.pruning.recipe import Recipe, choose_recipe
from secateur.pruning.sampling import Sampling
from secateur.pruning.targets import Target, choose_target
from secateur.report.build import describe
from secateur.support.choices import check_device
from secateur.support.settings import SEEDS, at_least, check_settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a call, checked; see `secateur.prune`."""

    target: Target
    recipe: Recipe
    preprocess: Transform | None = None
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    max_images: int | None = None
    max_columns: int = Sampling.max_columns
    seed: int = 0
    device: torch.device | str | int | None = None
    quantize: Precision | None = None

    def __post_init__(self) -> None:
        least = at_least(1)
        check_settings(self, named=False, max_images=least, max_columns=least, seed=SEEDS)
        check_device(self.device)

    @classmethod
    def of(
        cls,
        *,
        sparsity: float | None = None,
        max_macs: float | None = None,
        max_bytes: float | None = None,
        max_drop: float | None = None,
        recipe: Recipe | str | Path,
        pattern: Any,
        method: Any,
        allocation: Any,
        inputs: Any,
        **others: Any,
    ) -> Options:
        """From the arguments of `secateur.prune`; `others` are fields of this class."""
        target = choose_target(
            sparsity=sparsity, max_macs=max_macs, max_bytes=max_bytes, max_drop=max_drop
        )
        chosen = choose_recipe(
            recipe, pattern=pattern, method=method, allocation=allocation, inputs=inputs
        )
        return cls(target=target, recipe=chosen, **others)

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
        }


def _names(asked: str | Sequence[str] | None) -> str | list[str] | None:
    return asked if asked is None or isinstance(asked, str) else list(asked)
