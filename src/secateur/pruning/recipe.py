"""A recipe: everything about how a network is pruned, except the network, images and target.

    Recipe(method=ADMM(damping=0.05))
    secateur.prune(model, images, sparsity=0.7, recipe="paper")

Recipes are frozen, load from TOML and save to it; a key that is not a setting is an error.
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import tomli_w

from secateur.core.methods import (
    ADMM,
    METHODS,
    AdamCalibration,
    BiasCorrection,
    Method,
    WeightCorrection,
    stages,
)
from secateur.core.patterns import PATTERNS, Pattern, UnitPattern, Unstructured, choose_pattern
from secateur.errors import OptionError
from secateur.pruning.alignment import ChannelAlignment
from secateur.pruning.allocations import ALLOCATIONS, Allocation, NormalizedMagnitude, Sensitivity
from secateur.pruning.permutation import ChannelPermutation
from secateur.pruning.reconstruction import BlockReconstruction
from secateur.pruning.streams import Inputs
from secateur.pruning.targets import Target
from secateur.support.choices import choose, did_you_mean, name_of
from secateur.support.files import write_file
from secateur.support.serialization import from_plain
from secateur.support.settings import Range, check_arguments, check_settings, from_to, shown

_KINDS: dict[type, Mapping[str, type]] = {
    Pattern: PATTERNS,
    Method: METHODS,
    Allocation: ALLOCATIONS,
}
_TABLES = {kind.__name__.lower(): table for kind, table in _KINDS.items()}
RecalibrationName = Literal["synthetic", "all", "none"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is pruned.

    Attributes:
        pattern: which zeros are allowed.
        method: chooses the weights to remove and fits the others.
        allocation: decides how many zeros each layer gets.
        inputs: "pruned" fits each layer to its inputs in the pruned network, "dense" to those in
            the dense network.
        alignment: equalises channels between convolutions first; None = no.
        permutation: puts channels in an order in which a pattern along input channels, such as
            2:4, removes less; None = no. Other patterns are not affected.
        recalibration: on which images layers are fitted with BatchNorm statistics that are taken
            anew on them (see `secateur.pruning.recalibration`): "synthetic", "all" or "none".
        schedule: by how much the target is relaxed on the way, the last one 0: (0.1, 0) prunes to
            ten points of sparsity less (or of MACs or bytes more), then starts from those
            weights for the target. Walks on the way are rougher (`ADMM.rough`), of 128 samples at
            most, which is enough to start from unless blocks are trained there.
        schedule_from: sparsity of the pruned layers from which a target is worth a walk; those
            before it are left out. At 50 % zeros EfficientNet-Lite0 gained nothing by another one.
        reconstruction: trains the surviving weights of each block together after a walk;
            None = no. Left out, with a note in the report, for ONNX files and for `Magnitude`,
            which changes no weight that stays.
        reconstruction_from: sparsity of the pruned layers from which a walk is followed by it.
            Training after the walk to 70 % on the way to 80 % gained nothing (ResNet-20).
    """

    pattern: Pattern = field(default_factory=Unstructured)
    method: Method = field(default_factory=ADMM)
    allocation: Allocation = field(default_factory=Sensitivity)
    inputs: Inputs = "pruned"
    alignment: ChannelAlignment | None = None
    permutation: ChannelPermutation | None = None
    recalibration: RecalibrationName = "synthetic"
    schedule: tuple[float, ...] = (0.0,)
    schedule_from: float = 0.0
    reconstruction: BlockReconstruction | None = None
    reconstruction_from: float = 0.0

    def __post_init__(self) -> None:
        fraction = Range(low=0, high=1, open_high=True)
        check_settings(
            self, schedule=fraction, schedule_from=from_to(0, 1), reconstruction_from=from_to(0, 1)
        )
        falling = all(a > b for a, b in itertools.pairwise(self.schedule))
        if not self.schedule or self.schedule[-1] != 0 or not falling:
            raise OptionError(
                f"schedule is {list(self.schedule)}, expected falling numbers below 1 that end "
                "with 0, such as [0.1, 0.0]"
            )

    def targets(self, target: Target) -> list[Target]:
        """The targets of the schedule, the given one last; those that ask nothing are left out."""
        relaxed = (target.relaxed(by) for by in self.schedule[:-1])
        return [*(easier for easier in relaxed if easier), target]

    def summary(
        self,
        *,
        reconstructed: bool,
        reordered: bool = False,
        allocates: bool = True,
        allocation: Any = None,
    ) -> list[str]:
        """What it does, in sentences for readers new to pruning.

        Args:
            reconstructed: whether blocks were trained.
            reordered: whether channels were put in another order.
            allocates: whether the allocation had anything to choose.
            allocation: what divided the target among layers; None = the recipe's own.
        """
        parts = [self.alignment, *stages(self.method)]
        parts[1:1] = [allocation or self.allocation] * allocates
        parts[1:1] = [self.permutation] * reordered
        parts[1:1] = [self.pattern] * isinstance(self.pattern, UnitPattern)
        parts += [self.reconstruction] if reconstructed else []
        return [summary_of(part) for part in parts if part is not None]

    def settings(self) -> dict[str, Any]:
        """The recipe as plain data: what `save` writes."""
        return _plain(self, unset=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes TOML.

        Raises:
            OutputError: the file exists and `overwrite` is not given, or it cannot be written.
        """
        check_arguments(Recipe.save, locals())
        write_file(Path(path), tomli_w.dumps(self.settings()).encode(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads TOML; settings that are not named have their defaults.

        Raises:
            OptionError: no such file, not TOML, an unknown key or a value of the wrong type.
        """
        check_arguments(Recipe.load, locals())
        try:
            settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            hint = f" (recipe={str(path)!r} is the one of that name)" * (str(path) in RECIPES)
            raise OptionError(f"{path} cannot be read as a recipe: {error}{hint}") from error
        return cls.of(settings, str(path))

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Makes a recipe from plain data."""
        check_arguments(Recipe.of, locals())
        try:
            return from_plain(cls, settings, named=_named, plain=_plain)
        except ValueError as error:
            raise OptionError(f"{where}: {error}") from error
        except RecursionError as error:
            raise OptionError(f"{where} has too many tables in each other to be read") from error


def choose_recipe(recipe: Recipe | RecipeName | str | Path | Any, **changes: Any) -> Recipe:
    """A recipe given as an object, a name or a TOML file, with some settings changed.

    Args:
        recipe: an object, a name in `RECIPES`, or a path.
        changes: objects or names by setting; None = as in the recipe.
    """
    if isinstance(recipe, Path) or (isinstance(recipe, str) and recipe.endswith(".toml")):
        chosen = Recipe.load(recipe)
    elif isinstance(recipe, str):
        if recipe not in RECIPES:
            raise OptionError(
                f"recipe is {recipe!r}, expected one of {', '.join(RECIPES)} or a .toml file"
                f"{did_you_mean(recipe, RECIPES)}"
            )
        chosen = RECIPES[recipe]
    elif isinstance(recipe, Recipe):
        chosen = recipe
    else:
        raise OptionError(
            f"recipe is {shown(recipe)}, expected an object of kind Recipe, one of "
            f"{', '.join(RECIPES)} or a .toml file: Recipe.of makes an object of plain settings"
        )
    given = {
        name: _chosen(name, value) if name in _TABLES else value
        for name, value in changes.items()
        if value is not None
    }
    return dataclasses.replace(chosen, **given)


def _chosen(setting: str, value: Any) -> Any:
    """An object for a setting given as an object, a class or a name."""
    if setting == "pattern":
        return choose_pattern(value)
    return choose(setting, value, _TABLES[setting])


def summary_of(part: Any) -> str:
    """What a part of a recipe does, in a sentence; of somebody else's its name."""
    summary = getattr(part, "summary", None)
    return summary if isinstance(summary, str) else f"Weights were chosen by {name_of(part)}."


def _plain(setting: Any, *, unset: bool = True) -> Any:
    """A setting as plain data, with or without those that are None."""
    if _is_tuple(setting):
        return list(setting)
    if not dataclasses.is_dataclass(setting):
        return setting
    if isinstance(setting, UnitPattern):
        return {"name": name_of(setting)}  # which says all of it
    values = {item.name: getattr(setting, item.name) for item in dataclasses.fields(setting)}
    plain = {
        name: _plain(value, unset=unset)
        for name, value in values.items()
        if unset or value is not None
    }
    named = isinstance(setting, Pattern | Method | Allocation)
    return {"name": name_of(setting), **plain} if named else plain


def _named(kind: type, value: Any) -> Any:
    """A pattern, method or allocation from its name, or from a table with `name` in it."""
    table = _KINDS[kind]
    settings = dict(value) if _is_table(value) else {"name": value}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise OptionError(
            f"expected a name or a table with a name, one of {', '.join(table)}, got {value!r}"
        )
    if kind is Pattern and isinstance(chosen := choose_pattern(name), UnitPattern):
        if settings:
            raise OptionError(f"the pattern {name} has no settings, got {', '.join(settings)}")
        return chosen
    part: object = choose("name", name, table)
    return from_plain(type(part), settings, named=_named, plain=_plain)


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _is_table(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


GRADUAL: dict[str, Any] = {"schedule": (0.1, 0.0), "schedule_from": 0.5}

RecipeName = Literal["default", "tuned", "paper"]
RECIPES = {
    "default": Recipe(
        **GRADUAL,
        permutation=ChannelPermutation(),
        reconstruction=BlockReconstruction(),
        reconstruction_from=0.75,
    ),
    "tuned": Recipe(
        **GRADUAL,
        permutation=ChannelPermutation(),
        reconstruction=BlockReconstruction(steps=300),
    ),
    "paper": Recipe(
        method=AdamCalibration(base=BiasCorrection(base=WeightCorrection())),
        allocation=NormalizedMagnitude(),
        inputs="dense",
        alignment=ChannelAlignment(),
        recalibration="none",
        schedule=(0.1, 0.0),
    ),
}
