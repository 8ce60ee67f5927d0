"""Everything that Secateur raises or warns about.

SecateurError
├── UserError (also a ValueError: a mistake that the caller can correct)
│   ├── OptionError      an option is out of range, misspelt or matches nothing
│   ├── ModelError       the model cannot be loaded, exported or pruned
│   │   └── IncompleteError  a file of the result cannot be made; the others are written
│   ├── DataError        the images or labels cannot be used
│   ├── PackError        a file cannot be packed, or a packed file is damaged
│   └── OutputError      the result cannot be written to the given place
├── MissingExtraError    an optional package is not installed
├── NumericalError       a layer cannot be solved: values overflow or no damping helps
└── ProcessError         another of the processes that carry out a call together has failed

SecateurWarning (a UserWarning: the result is valid, but may not be what you want; also in the
report)

Each message says what was given, what was expected and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_LONGEST = 1500  # characters of a message


class SecateurError(Exception):
    """The base class of every error that this package raises on purpose.

    Its message is one printable line, because names in it may come from untrusted files.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class UserError(SecateurError, ValueError):
    """A mistake in the call or its inputs that the caller can correct."""


class OptionError(UserError):
    """An option is out of range, misspelt or matches nothing."""


class ModelError(UserError):
    """The model cannot be loaded, exported or pruned."""


class IncompleteError(ModelError):
    """A file of the result cannot be made; the others are written.

    Attributes:
        written: the size in bytes of each file that was written, by its path in the folder.
    """

    def __init__(self, message: str, written: Mapping[Path, int]) -> None:
        super().__init__(message)
        self.written = written


class DataError(UserError):
    """The images or labels cannot be used."""


class PackError(UserError):
    """A file cannot be packed, or a packed file is damaged."""


class OutputError(UserError):
    """The result cannot be written to the given place."""


class MissingExtraError(SecateurError, ImportError):
    """An optional package is not installed; the message holds the install line."""

    def __init__(self, package: str, extra: str, purpose: str, more: str = "") -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: "
            f"run {install_line(extra, more)}"
        )


def install_line(extra: str, more: str = "") -> str:
    """How to install an extra of pyproject.toml; secateur itself comes from a clone, not PyPI."""
    return f"pip install '.[{extra}]'{more} in your clone of secateur"


class NumericalError(SecateurError, ArithmeticError):
    """A layer cannot be solved; the message names the layer."""


class ProcessError(SecateurError):
    """Another of the processes that carry out a call together has failed; says why, if it did."""


class SecateurWarning(UserWarning):
    """The result is valid, but may not be what you want; read the message."""


def one_line(text: str) -> str:
    """The text without line ends and control characters; the middle of a long one is left out."""
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "?" for sign in text)
