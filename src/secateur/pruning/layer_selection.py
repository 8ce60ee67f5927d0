"""Which layers are pruned: names and globs, and what to do where none is left."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from secateur.core.patterns import Pattern, UnitPattern
from secateur.errors import ModelError, OptionError
from secateur.network.layers import DEPTHWISE, ON_THE_FLY, Layer, Shares
from secateur.support.choices import did_you_mean, name_of


def in_pattern(layers: Sequence[Layer], pattern: Pattern) -> list[Layer]:
    """The layers, those that a pattern does not fit with the reason as their obstacle."""
    return [replace(layer, obstacle=layer.obstacle or misfit(layer, pattern)) for layer in layers]


def misfit(layer: Layer, pattern: Pattern) -> str | None:
    """Why a layer cannot be pruned in a pattern; None when it can."""
    if not isinstance(pattern, UnitPattern) or layer.parameter is None or not layer.calls:
        return None
    return pattern.obstacle(layer.rows // layer.groups, layer.inputs)


def select_layers(
    layers: Sequence[Layer],
    include: str | Collection[str] | None = None,
    exclude: str | Collection[str] | None = None,
    pattern: Pattern | None = None,
) -> list[Layer]:
    """The layers to prune, in execution order.

    Args:
        layers: all layers of the network.
        include: names or globs of the layers to prune, protected ones too; None = all that
            are not protected. A layer's exact name selects that layer, whatever is in it.
        exclude: names or globs of layers to leave dense.
        pattern: of the zeros; layers that it does not fit stay dense. None = any zeros.

    Raises:
        OptionError: a name or glob matches nothing that could be pruned, or the pattern fits none.
        ModelError: no layer is left to prune.
    """
    if pattern is not None:
        every, layers = layers, in_pattern(layers, pattern)
        _check_fits(every, layers, pattern)
    prunable = [layer for layer in layers if layer.obstacle is None]
    if include is None:
        chosen = {layer.name for layer in prunable if layer.protected is None}
    else:
        chosen = matching("include", include, layers)
    if exclude is not None:
        chosen -= matching("exclude", exclude, layers, any_layer=True)
    selected = [layer for layer in prunable if layer.name in chosen]
    if not selected:
        raise ModelError(_nothing_to_prune(layers, include, exclude, pattern))
    return selected


def _check_fits(before: Sequence[Layer], layers: Sequence[Layer], pattern: Pattern) -> None:
    """Raises OptionError where a pattern fits none of the layers that could be pruned."""
    reasons = [
        f"{layer.name}: {layer.obstacle}"
        for old, layer in zip(before, layers, strict=True)
        if old.obstacle is None and layer.obstacle
    ]
    if reasons and all(layer.obstacle for layer in layers):
        more = f"; and {len(reasons) - 3} more" * (len(reasons) > 3)
        raise OptionError(
            f"pattern is {name_of(pattern)}, expected one that fits a layer: ask for another "
            f"({'; '.join(reasons[:3])}{more})"
        )


def layers_to_fit(
    layers: Sequence[Layer], exclude: str | Collection[str] | None = None
) -> list[Layer]:
    """The layers that are fitted where whole channels leave, in execution order.

    All that can be, depthwise ones too, which get other inputs than before (on EfficientNet-Lite0
    at 60 % of the multiply-accumulates KL 0.349 with these, 0.390 without). The first layer gets
    what it always got, and tiny layers may hold fixed numbers.

    Raises:
        OptionError: a name or glob of `exclude` matches nothing.
        ModelError: no layer is left.
    """
    left_out = matching("exclude", exclude, layers, any_layer=True) if exclude else set[str]()
    fitted = [
        layer
        for layer in layers
        if layer.obstacle is None
        and layer.protected in (None, DEPTHWISE)
        and layer.name not in left_out
    ]
    if not fitted:
        raise ModelError(_nothing_to_prune(layers, None, exclude))
    return fitted


def matching(
    option: str, globs: str | Collection[str], layers: Sequence[Layer], any_layer: bool = False
) -> set[str]:
    """Names of the layers that names or globs mean.

    Args:
        option: that they were given for.
        globs: names or globs.
        layers: all layers of the network.
        any_layer: whether layers that cannot be pruned may be meant too.

    Raises:
        OptionError: one matches nothing.
    """
    names: set[str] = set()
    for glob in [globs] if isinstance(globs, str) else globs:
        matches = _named(glob, layers)
        if not matches:
            every_name = [layer.name for layer in layers]
            raise OptionError(
                f"{option}={glob!r} matches no layer, expected a layer's name or a glob such as "
                f"'layer1.*'{did_you_mean(glob, every_name)} (secateur inspect lists the names)"
            )
        usable = [layer.name for layer in matches if any_layer or layer.obstacle is None]
        if not usable:
            raise OptionError(
                f"{option}={glob!r} matches only {matches[0].name}, which cannot be pruned "
                f"({matches[0].obstacle}), expected a prunable layer: leave it out"
            )
        names.update(usable)
    return names


def _named(glob: str, layers: Sequence[Layer]) -> list[Layer]:
    """The layers of exactly this name; failing that, of this glob; failing that, of the glob with
    its brackets taken literally, for names such as `block[0].conv`.
    """
    exact = [layer for layer in layers if layer.name == glob]
    if exact:
        return exact
    matches = [layer for layer in layers if fnmatchcase(layer.name, glob)]
    literal = glob.replace("[", "[[]")
    return matches or [layer for layer in layers if fnmatchcase(layer.name, literal)]


def _nothing_to_prune(
    layers: Sequence[Layer], include: Any, exclude: Any, pattern: Pattern | None = None
) -> str:
    kept = [f"{layer.name} ({layer.obstacle or layer.protected or 'excluded'})" for layer in layers]
    more = f" and {len(kept) - 5} more" if len(kept) > 5 else ""
    left = f"only layers that stay dense: {', '.join(kept[:5])}{more}" if kept else "no such layer"
    return (
        "the model has no layer to prune, expected at least one convolution or linear layer; "
        f"found {left}: {_way_out(layers, include, exclude, pattern)}"
    )


def _way_out(layers: Sequence[Layer], include: Any, exclude: Any, pattern: Pattern | None) -> str:
    """What to do where no layer is left to prune; never what would be refused in its turn."""
    prunable = [layer for layer in layers if layer.obstacle is None]
    if not layers:
        return "check that this is the right model"
    shares = Shares.of(layers)
    has_reasons = any(str(layer.obstacle).startswith(f"{ON_THE_FLY}: ") for layer in layers)
    if has_reasons and shares.computed > 0.5:
        return (
            f"do what is said of these layers, for they hold {shares.computed:.0%} of the weights"
        )
    if not prunable:
        return "none of these can be pruned; pass a network with weights that can"
    if exclude is not None and (
        include is not None or any(layer.protected is None for layer in prunable)
    ):
        return "exclude fewer layers"
    if include is not None:
        return "name a layer in include="
    of_pattern = pattern is not None and any(
        layer.obstacle == misfit(layer, pattern)
        for layer in layers
        if layer.obstacle and layer.protected is None
    )
    if shares.stuck > 0.5 and not of_pattern:
        return (
            f"{shares.stuck:.0%} of the weights are in layers that cannot be pruned; pass a "
            "network whose weights can"
        )
    excluded: set[str] = set()
    if exclude is not None:
        excluded = matching("exclude", exclude, layers, any_layer=True)
    names = [layer.name for layer in prunable if layer.name not in excluded]
    if not names:
        return "exclude fewer layers, and name protected ones in include="
    others = f"name protected layers in include=, such as {names[0]!r}"
    return f"ask for another pattern, or {others}" if of_pattern else others
