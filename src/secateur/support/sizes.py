"""Numbers of bytes, as people write them."""

from __future__ import annotations

import re
from typing import Any

from secateur.errors import OptionError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def bytes_of(name: str, size: Any) -> int:
    """A number of bytes, given as such or with a unit: 10**9 or "1 GB" or "512 MiB".

    Args:
        name: of the argument, for the message.
        size: what was given.

    Raises:
        OptionError: it is something else.
    """
    found = _WRITTEN.fullmatch(size) if isinstance(size, str) else None
    unit = _UNITS.get(found[2].upper()) if found else None
    if found and unit:
        size = round(float(found[1]) * unit)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(
            f"{name} is {size!r}, expected a size with its unit, such as '4 GB' or '500 MB', or "
            "a whole number of bytes"
        )
    return size


def size_text(size: float) -> str:
    """A number of bytes with three digits, such as "1.24 GB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
