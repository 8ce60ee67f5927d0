"""`secateur recipe`."""

from __future__ import annotations

import tomli_w
import typer

from secateur.cli import options
from secateur.pruning.recipe import choose_recipe


def run(asked: options.Recipe) -> None:
    """Prints a recipe as TOML, or writes it."""
    recipe = choose_recipe(asked.name)
    if asked.out is None:
        typer.echo(tomli_w.dumps(recipe.settings()), nl=False)
    else:
        recipe.save(asked.out, overwrite=asked.force)
