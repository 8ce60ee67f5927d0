"""Python objects by reference: `file.py:name` or `package.module:name`, as on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from secateur.errors import ModelError, UserError
from secateur.support.choices import did_you_mean


def is_reference(text: str) -> bool:
    """Whether a text has the form of a reference (it may still lead nowhere)."""
    module, colon, name = text.rpartition(":")
    return bool(colon and module) and name.replace(".", "").isidentifier()


def resolve(reference: str, error: type[UserError] = ModelError) -> Any:
    """The object behind a reference; modules are imported with their folder on the path.

    Raises:
        error: the file, module or name does not exist, or importing it fails.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise error(
            f"got {reference!r}, expected file.py:callable or package.module:callable: "
            "name the function that returns the object"
        )
    found: Any = _load(place, error)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(found) if not key.startswith("_")]
            raise error(
                f"{place} has no {part!r}, expected one of its functions or objects"
                f"{did_you_mean(part, public)}"
            )
        found = getattr(found, part)
    return found


def call(reference: str, error: type[UserError] = ModelError) -> Any:
    """The object behind a reference or, where that is a function or a class, what it returns."""
    found = resolve(reference, error)
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        with _without_torch_notices():
            return found()
    except UserError:
        raise
    except (Exception, SystemExit) as problem:
        raise error(
            f"{reference} raised {type(problem).__name__}: {_one_line(problem)}; expected a "
            "function without arguments that returns the object: try it in Python first"
        ) from problem


def _load(place: str, error: type[UserError]) -> ModuleType:
    try:
        with _without_torch_notices():
            return _load_file(Path(place), error) if place.endswith(".py") else _load_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as problem:
        raise error(
            f"importing {place} failed with {type(problem).__name__}: {_one_line(problem)}; "
            "expected a module that imports: try it in Python first"
        ) from problem


@contextmanager
def _without_torch_notices() -> Iterator[None]:
    """Hides what PyTorch says of its own internals, as when torch.compile is first imported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        yield


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _load_file(path: Path, error: type[UserError]) -> ModuleType:
    if not path.is_file():
        raise error(f"no such file: {path}, expected a Python file: check the path")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # the file may import its neighbours, now or when called
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:300]
