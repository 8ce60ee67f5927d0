"""Options by name: look-ups that say what was meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from secateur.errors import OptionError


def by_name(*kinds: Any) -> dict[str, Any]:
    """Classes by the name that each gives itself."""
    return {kind.name: kind for kind in kinds}


def name_of(setting: Any) -> str:
    """A setting's name as it gives it itself; of others the class's."""
    name = getattr(setting, "name", None)
    return name if isinstance(name, str) else type(setting).__name__


def choose(what: str, value: Any, table: Mapping[str, type]) -> Any:
    """An object for an option given as an object, a class or a name of the table.

    Raises:
        OptionError: the name is not in the table; the message proposes the nearest.
    """
    if isinstance(value, type):
        return _made(what, value)
    if not isinstance(value, str):
        return value
    if value not in table:
        raise OptionError(
            f"{what} is {value!r}, expected one of {', '.join(table)}{did_you_mean(value, table)}"
        )
    return table[value]()


def _made(what: str, kind: type) -> Any:
    try:
        return kind()
    except TypeError as error:
        raise OptionError(
            f"{what} is the class {kind.__name__}, which makes no object without arguments "
            f"({error}), expected an object: call the class"
        ) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ": did you mean ...?" with the nearest known words, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else ""


def plain_number(value: Any) -> Any:
    """Python's own number for one of NumPy's; anything else as it is."""
    return value.item() if isinstance(value, np.number | np.bool) else value


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """Raises OptionError unless `sparsity` is a number in [0, 1)."""
    sparsity = plain_number(sparsity)
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not number or math.isnan(sparsity) or not 0 <= sparsity < 1:
        hint = f" ({sparsity:g} % is {sparsity / 100:g})" if number and 1 < sparsity < 100 else ""
        raise OptionError(
            f"{name} is {sparsity!r}, expected the fraction of zeros, in [0, 1): "
            f"write 0.7 for 70 %{hint}"
        )
    return float(sparsity)


def check_device(device: Any) -> None:
    """Raises OptionError unless PyTorch can hold values on a device here; None = no wish."""
    try:
        if device is None or torch.empty(0, device=device).device.type != "meta":
            return
        reason = "it holds no values"
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), "not available")
    raise OptionError(
        f"device is {str(device)!r}, expected one that this PyTorch can use, such as cpu: {reason}"
    )
