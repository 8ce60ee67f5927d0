"""Numbers in sentences."""

from __future__ import annotations


def counted(number: float, one: str, many: str = "") -> str:
    """A number and what it counts: "1 try", "3 tries", "1,000 images".

    Args:
        number: how many.
        one: the words for a single one.
        many: the words for several; an s behind `one` where nothing is said.
    """
    text = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{text} {one if number == 1 else many or f'{one}s'}"
