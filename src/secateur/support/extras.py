"""Optional packages: imported where they are needed, and the install line where they are not."""

from __future__ import annotations

from typing import Any

from secateur.errors import MissingExtraError


def require(extra: str, purpose: str, *packages: str) -> list[Any]:
    """Optional packages as modules, in the order given.

    Args:
        extra: of pyproject.toml, which installs them.
        purpose: what needs them, for the message.
        packages: names to import.

    Raises:
        MissingExtraError: one of them is not installed; the message holds the install line.
    """
    found = []
    for package in packages:
        try:
            found.append(__import__(package))
        except ImportError as error:
            raise MissingExtraError(error.name or package, extra, purpose) from error
    return found


def require_onnx(purpose: str, *more: str, extra: str = "onnx") -> tuple[Any, Any]:
    """The modules onnx and onnxruntime, with `more` packages at hand, or the install line.

    Args:
        purpose: what needs them, for the message.
        more: names of packages.
        extra: the one to name in the message, which installs all that `purpose` needs.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    onnx, runtime, *_ = require(extra, purpose, "onnx", "onnxruntime", *more)
    return onnx, runtime
