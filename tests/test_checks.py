"""Every setting of every recipe object is checked, from Python and from TOML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from jaxtyping import config

import secateur
from secateur.core.methods import ADMM, METHODS, LeastSquares
from secateur.core.patterns import PATTERNS
from secateur.options import Options
from secateur.pruning.alignment import ChannelAlignment
from secateur.pruning.allocations import ALLOCATIONS, Sensitivity
from secateur.pruning.recipe import RECIPES, Recipe
from secateur.pruning.reconstruction import BlockReconstruction
from secateur.pruning.sampling import Sampling
from secateur.pruning.targets import choose_target

KINDS = [
    Recipe,
    Sampling,
    ChannelAlignment,
    BlockReconstruction,
    *METHODS.values(),
    *ALLOCATIONS.values(),
    *PATTERNS.values(),
]
FIELDS = [
    (kind, item.name, get_type_hints(kind)[item.name])
    for kind in KINDS
    for item in dataclasses.fields(kind)
]
NUMBERS = [(kind, name, of) for kind, name, of in FIELDS if {int, float} & {of, *get_args(of)}]


@pytest.fixture(autouse=True)
def only_our_checks() -> Iterator[None]:
    """Without the checks of types that tests have for some modules."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def wrong(kind: Any, value: Any) -> Any:
    """A wrong number, in the place of a number or of the first of several."""
    return (value, 0.5) if get_origin(kind) is tuple else value


@pytest.mark.parametrize(("kind", "name", "of"), NUMBERS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, "1", None, True, [1], 1j])
def test_every_number_has_a_type_and_a_range(kind: type, name: str, of: Any, value: Any) -> None:
    with pytest.raises(secateur.OptionError, match=rf"{kind.__name__}'s {name} is .*, expected "):
        kind(**{name: wrong(of, value)})


@pytest.mark.parametrize(("kind", "name", "of"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_no_setting_takes_what_it_is_not(kind: type, name: str, of: Any) -> None:
    for value in (object(), b"", {"name": "admm"}, ADMM, 1j):
        with pytest.raises(secateur.OptionError, match=f"{name} is .*expected "):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ADMM(damping=-1), "ADMM's damping is -1, expected a number at least 0"),
        (lambda: ADMM(dampings=(0.1, 0.0)), "dampings is .*numbers, each more than 0"),
        (lambda: ADMM(max_row_gain=0.5), "max_row_gain is 0.5, expected a number at least 1"),
        (lambda: ADMM(steps=1.5), "steps is 1.5, expected a whole number at least 1"),
        (lambda: ADMM(steps=0), "steps is 0, expected a whole number at least 1"),
        (lambda: LeastSquares(tolerance=1), r"tolerance is 1, expected a number in \(0, 1\)"),
        (lambda: Sensitivity(levels=(1.5,)), r"levels is \(1.5,\), expected rising numbers, each"),
        (lambda: Sensitivity(levels=(0.5, 0.3)), "expected rising numbers"),
        (lambda: Sensitivity(levels=(0.5, 0.5)), "expected rising numbers"),
        (lambda: Sensitivity(levels=()), "expected rising numbers"),
        (lambda: Sensitivity(levels=0.5), "levels is 0.5, expected rising numbers"),
        (lambda: Sensitivity(method=LeastSquares), "method is the class LeastSquares, expected an"),
        (lambda: ChannelAlignment(quantile=2), r"quantile is 2, expected a number in \[0, 0.5\)"),
        (
            lambda: ChannelAlignment(limits=(2.0, 1.0)),
            "expected 2 rising numbers, each more than 0",
        ),
        (lambda: ChannelAlignment(limits=(1.0,)), "2 rising numbers"),
        (
            lambda: BlockReconstruction(held_back=1),
            "held_back is 1, expected a whole number at least 2",
        ),
        (lambda: Sampling(max_columns=0), "max_columns is 0, expected a whole number at least 1"),
        (lambda: Recipe(schedule=(0.1, math.nan, 0.0)), r"schedule is \(0.1, nan, 0.0\), expected"),
        (lambda: Recipe(schedule_from=2), r"schedule_from is 2, expected a number in \[0, 1\]"),
        (
            lambda: Recipe(reconstruction=True),
            "reconstruction is True, expected an object of kind BlockReconstruction",
        ),
        (lambda: Recipe(method="admm"), "method is 'admm', expected an object of kind Method"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_sentence(make: Any, says: str) -> None:
    with pytest.raises(secateur.OptionError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_settings_that_are_right_are_taken_as_they_are() -> None:
    for kind in KINDS:
        made = kind()
        assert dataclasses.replace(made) == made
    assert Sensitivity(levels=[0.2, 0.4]) == Sensitivity(levels=(0.2, 0.4))  # type: ignore[arg-type]
    assert ADMM(damping=1).damping == 1
    assert ADMM(dampings=()).dampings == ()
    assert all(Recipe.of(recipe.settings()) == recipe for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[method]\nname='admm'\ndamping=-1", "method: ADMM's damping is -1"),
        ("[method]\nname='admm'\ndamping=nan", "method: ADMM's damping is nan"),
        ("[method]\nname='bias-correction'\n[method.base]\nname='admm'\nrho=0", "rho is 0"),
        ("[allocation]\nname='sensitivity'\nlevels=[1.5]", r"levels is \(1.5,\), expected rising"),
        ("[allocation]\nname='sensitivity'\nlevels=[0.9, 0.5]", "expected rising numbers"),
        ("[alignment]\nquantile=2", "alignment: ChannelAlignment's quantile is 2"),
        ("[reconstruction]\nrate=inf", "reconstruction: BlockReconstruction's rate is inf"),
        ("schedule_from=1.5", "schedule_from is 1.5"),
    ],
)
def test_files_are_checked_alike(text: str, says: str, tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(secateur.OptionError, match=says) as error:
        Recipe.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["sparsity", "max_macs", "max_bytes", "max_drop"])
def test_targets_may_be_numbers_of_numpy(kind, name) -> None:
    target = choose_target(**{name: kind(0.5)})
    assert target == choose_target(**{name: 0.5})
    assert type(target.value) is float


def test_whole_numbers_of_numpy_become_python_s() -> None:
    options = Options(
        target=choose_target(sparsity=0.5),
        recipe=Recipe(),
        seed=np.int64(3),
        max_images=np.int32(20),
        max_columns=np.int64(64),
    )
    numbers = options.seed, options.max_images, options.max_columns
    assert numbers == (3, 20, 64)
    assert {type(number) for number in numbers} == {int}


def test_recipes_of_numpy_s_numbers_are_saved_as_any_other(tmp_path) -> None:
    method = ADMM(damping=np.float32(0.5), steps=np.int64(7), dampings=np.array([0.25, 0.5]))
    allocation = Sensitivity(levels=[np.float64(0.25), np.float32(0.5)], images=np.int32(20))
    recipe = Recipe(method=method, allocation=allocation, schedule=np.array([0.5, 0.0]))
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    assert method == ADMM(damping=0.5, steps=7, dampings=(0.25, 0.5))
    assert {type(of) for of in (method.damping, *method.dampings, *allocation.levels)} == {float}
