"""A number and what it counts agree: "1 image", "2 images"."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from secateur.support.wording import counted

SOURCES = Path(__file__).parents[1] / "src" / "secateur"
NOUNS = "images|layers|groups|rounds|samples|columns|rows|labels|channels|tries|weights|blocks"
KINDS = "calibration |evaluation |prunable |test |fractal |class "

# What is never one, or no number.
NOT_ONE = {
    "frames",  # of a file that holds several images
    "len(images)",  # three at least at a first run
    "batch",  # more than 1,024
    "self.groups",  # of a layer with several
    "layer.groups",
    "change[0]",  # several places of each
    "old",
    "left",  # a list
    "sorted(left)",
    "kind",  # a text
    "where",
    "_times(wanted)",
    "'evaluation' if judged else 'calibration'",
    "layer.dtype",
    "images",  # of the demonstration
    "layer.columns",  # too many for one fit
    "self.m",  # two at least
    "module.groups",  # several
    "BLOCK",  # four
    "len(self.columns)",  # a programmer's mistake
}


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (1234567, ("image",), "1,234,567 images"),
        (2, ("try", "tries"), "2 tries"),
        (1, ("image lies", "images lie"), "1 image lies"),
        (1.0, ("point",), "1 point"),
        (0.5, ("point",), "0.5 points"),
    ],
)
def test_one_and_several(number: float, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


def test_no_message_says_1_images() -> None:
    assert set(written_out("f'{n} images'")) == {"n"}
    assert not set(written_out("f'{n:.1%} zeros, {counted(n, chr(0))} images'"))
    found = [
        f"{path.relative_to(SOURCES)}: {number}"
        for path in sorted(SOURCES.rglob("*.py"))
        for number in written_out(path.read_text(encoding="utf-8"))
        if number not in NOT_ONE
    ]
    assert found == []  # use `counted`


def written_out(source: str) -> list[str]:
    """The numbers in f-strings that stand before several of something."""
    return [
        ast.unparse(number.value)
        for text in ast.walk(ast.parse(source))
        if isinstance(text, ast.JoinedStr)
        for number, words in zip(text.values, text.values[1:], strict=False)
        if isinstance(number, ast.FormattedValue)
        and isinstance(words, ast.Constant)
        and re.match(rf" ({KINDS})?({NOUNS})\b", words.value)
        and not ast.unparse(number.value).startswith("counted(")
    ]
