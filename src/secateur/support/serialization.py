"""Frozen objects as JSON files and back: what a file holds is checked against the class."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from secateur.errors import DataError
from secateur.support.files import write_file


class Saved:
    """A dataclass that is saved as a JSON file; a field with the metadata `saved=False` is not."""

    schema: ClassVar[str]
    schema_version: ClassVar[int]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes JSON (UTF-8, `schema` and `schema_version` first).

        Raises:
            OutputError: the file exists and `overwrite` is not given, or it cannot be written.
        """
        content = to_plain(self, self.schema.removeprefix("secateur."))
        plain = {"schema": self.schema, "schema_version": self.schema_version, **content}
        text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
        write_file(Path(path), text.encode(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            DataError: no such file, not JSON, of another schema or version, or damaged.
        """
        what = cls.schema.removeprefix("secateur.")
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"no such file: {path}, expected a {what}.json: check the path"
            ) from error
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}), expected a {what}.json: check the path"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is not a {what}.json, expected one as secateur has written it: check the "
                "path, or whether the file is whole"
            ) from error
        if not isinstance(held, dict):
            raise DataError(f"{path} holds no object, expected a {what} that secateur has written")
        schema, version = held.pop("schema", None), held.pop("schema_version", None)
        if schema != cls.schema or version != cls.schema_version:
            raise DataError(
                f"{path} has schema {schema!r} version {version}, expected {cls.schema!r} version "
                f"{cls.schema_version}: use the version of secateur that wrote it"
            )
        try:
            return build(cls, held, what)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path} is damaged ({error}), expected a {what} as secateur has written it"
            ) from error


def to_plain(value: Any, where: str) -> Any:
    """A value as JSON holds it: dataclasses as objects, arrays and tuples as lists, paths as text.

    Args:
        value: of these kinds, however nested.
        where: what it is, for the message.

    Raises:
        TypeError: something else is in it, which would not come back as it was.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (of for of in dataclasses.fields(value) if of.metadata.get("saved", True))
        return {of.name: to_plain(getattr(value, of.name), f"{where}.{of.name}") for of in fields}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: to_plain(of, f"{where}.{key}") for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(of, f"{where}[{place}]") for place, of in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if listed := getattr(value, "tolist", None):  # of NumPy and PyTorch
        return to_plain(listed(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, expected plain data: convert it first")


def build(kind: Any, value: Any, where: str) -> Any:
    """A value of a type from plain data; lists become tuples, objects dataclasses.

    Args:
        kind: a dataclass, list, tuple, dict, a union of such, a plain type, or Any.
        value: plain data as JSON gives it.
        where: what it is, for the message.

    Raises:
        ValueError: the data are not of that type.
    """
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        chosen = [of for of in inner if of is not type(None)]
        return (
            None if value is None and len(chosen) < len(inner) else build(chosen[0], value, where)
        )
    if dataclasses.is_dataclass(kind):
        return _object(kind, _of(dict, value, where), where)
    if origin in (list, tuple):
        held = [
            build(inner[0], one, f"{where}[{i}]") for i, one in enumerate(_of(list, value, where))
        ]
        return held if origin is list else tuple(held)
    if origin is dict:
        return {
            key: build(inner[1], of, f"{where}.{key}")
            for key, of in _of(dict, value, where).items()
        }
    if kind is float:
        return float(_of((int, float), value, where))
    return _of(kind, value, where)


def _object(kind: Any, held: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    missing, unknown = set(hints) - set(held), set(held) - set(hints)
    if missing or unknown:
        wrong = "without " + min(missing) if missing else "with an unknown " + min(unknown)
        raise ValueError(f"{where} is {wrong}")
    return kind(**{name: build(of, held[name], f"{where}.{name}") for name, of in hints.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    saved = (of.name for of in dataclasses.fields(kind) if of.metadata.get("saved", True))
    return {name: hints[name] for name in saved}


def _of(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is a {type(value).__name__}")
    return value
