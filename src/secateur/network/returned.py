"""What a network returns: its tensors, in order, by the names that its users know.

Keys of dictionaries, fields of dataclasses and named tuples, numbers in lists and tuples; where
they are nested, joined by dots: "last_hidden_state", "hidden_states.0".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from secateur.errors import OptionError
from secateur.support.choices import did_you_mean

_SHOWN = 12  # names in the sentence about one that is not there


def named_leaves(returned: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in what a network returns that holds nothing else, with its name.

    Args:
        returned: tensors, alone or in containers.
        name: of the whole; "" = what it returns.
    """
    children = _children(returned)
    if children is None:
        yield name, returned
        return
    for key, child in children:
        yield from named_leaves(child, f"{name}.{key}" if name else str(key))


def _children(value: Any) -> Sequence[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(cast("Mapping[Any, Any]", value).items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(of.name, getattr(value, of.name)) for of in dataclasses.fields(value)]
    if not isinstance(value, list | tuple):
        return None
    held = cast("Sequence[Any]", value)
    names: Sequence[Any] = getattr(held, "_fields", range(len(held)))
    return list(zip(names, held, strict=True))


def asked_output(asked: str | int, names: Sequence[str]) -> int:
    """The number of the output that is asked for.

    Args:
        asked: a name, or a number from 0 on; a name of digits is a number, unless it is a name.
        names: of all outputs, in their order; "" = it has none.

    Raises:
        OptionError: there is no such output.
    """
    if isinstance(asked, str) and asked in names:
        return names.index(asked)
    number = int(asked) if isinstance(asked, int) or asked.isdecimal() else -1
    if 0 <= number < len(names):
        return number
    known = [name for name in names if name and not name.isdecimal()]
    listed = ", ".join(known[:_SHOWN]) + ", ..." * (len(known) > _SHOWN)
    named = f"{listed}, or a" if known else "a"
    raise OptionError(
        f"output is {asked!r}, expected {named} number from 0 to {len(names) - 1}"
        f"{did_you_mean(str(asked), known)}"
    )
