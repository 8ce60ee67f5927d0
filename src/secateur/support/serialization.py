"""Frozen objects as plain data, for JSON and TOML, and back: checked against the class."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from secateur.errors import DataError
from secateur.support.choices import did_you_mean
from secateur.support.files import write_file
from secateur.support.settings import check_arguments

Kind = TypeVar("Kind")


class Saved:
    """A dataclass that is saved as a JSON file; a field with the metadata `saved=False` is not."""

    schema: ClassVar[str]
    schema_version: ClassVar[int]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes JSON (UTF-8, `schema` and `schema_version` first).

        Raises:
            OutputError: the file exists and `overwrite` is not given, or it cannot be written.
        """
        check_arguments(Saved.save, locals())
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
        check_arguments(Saved.load, locals())
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
            return from_plain(cls, held, complete=True)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is damaged ({error}), expected a {what} as secateur has written it"
            ) from error


def to_plain(value: Any, where: str = "the value") -> Any:
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


def from_plain(
    kind: type[Kind],
    value: Any,
    *,
    named: Callable[[type, Any], Any] | None = None,
    plain: Callable[[Any], Any] = to_plain,
    complete: bool = False,
) -> Kind:
    """An object from plain data, every type and key of which is checked.

    Args:
        kind: a dataclass; lists become tuples and objects dataclasses as its fields say.
        value: plain data as JSON and TOML give them.
        named: makes objects of the types that are no dataclasses, from (type, plain data).
        plain: makes plain data of the object again, with every key that there may be.
        complete: refuses data without a key that has a default, too.

    Raises:
        ValueError: the data are not of that type, or hold a key that it does not have; the
            message starts with the place, as in "layers[0].zeros: expected a whole number".
    """
    try:
        result = msgspec.convert(value, kind, dec_hook=named)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(error, kind)) from error
    _check_keys(value, plain(result), "", complete)
    return result


def demand(right: bool, reason: str) -> None:
    """Raises ValueError with a reason where a saved object is not as one that was made here."""
    if not right:
        raise ValueError(reason)


def are_finite(*numbers: float) -> bool:
    """Whether none is NaN or infinite."""
    return all(map(math.isfinite, numbers))


_WORDS = {
    "int": "a whole number",
    "float": "a decimal number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "none",
    "date": "a date",
    "datetime": "a date",
}


def _sentence(error: msgspec.ValidationError, kind: type) -> str:
    """The place and the reason: of an error of our own as it stands, of msgspec's in words."""
    message, *places = str(error).split(" - at `$")
    place = places[-1].rstrip("`") if places else ""
    if error.__cause__ is not None:
        return _at(place, str(error.__cause__))
    field = get_type_hints(kind).get(place.removeprefix("."))
    names = ", ".join(map(repr, get_args(field))) if get_origin(field) is Literal else ""
    message = message.replace("Invalid enum value", f"Expected one of {names}, got")
    return _at(place, _in_words(message))


def _in_words(message: str) -> str:
    """A message such as "Expected `int | null`, got `str`" without Python's names."""
    pieces = (message[0].lower() + message[1:]).split("`")
    for place, names in enumerate(pieces[1::2]):
        words = [_WORDS.get(name, name) for name in names.split(" | ")]
        pieces[2 * place + 1] = " or ".join(words)
    return "".join(pieces)


def _check_keys(given: Any, kept: Any, place: str, complete: bool) -> None:
    """Refuses plain data with keys that are not in what was made of them."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                expected = f"expected {', '.join(kept) or 'none'}{did_you_mean(key, kept)}"
                raise ValueError(_at(place, f"there is no setting {key!r}, {expected}"))
            _check_keys(value, kept[key], f"{place}.{key}", complete)
        if complete and (missing := kept.keys() - given.keys()):
            raise ValueError(_at(place, f"{min(missing)} is missing"))
    elif isinstance(given, list) and isinstance(kept, list):
        for index, (value, other) in enumerate(zip(given, kept, strict=True)):
            _check_keys(value, other, f"{place}[{index}]", complete)


def _at(place: str, reason: str) -> str:
    return f"{place.removeprefix('.')}: {reason}" if place else reason
