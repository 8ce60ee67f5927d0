"""Texts from wherever they are: lines of a file, JSON lines, lists, rows of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from secateur.data.batches import LABEL_KEYS
from secateur.data.masked_head import MaskedHead
from secateur.data.streams import ImageStream, Part
from secateur.data.synthetic_text import synthetic_texts
from secateur.data.text import TOKENS, Text, Texts
from secateur.errors import DataError
from secateur.network.samples import Samples, Signature
from secateur.support.import_string import call, is_reference
from secateur.support.model_files import steady
from secateur.support.wording import counted

Choice: TypeAlias = Callable[[int], tuple[Tensor, list[str]]]

SYNTHETIC = "text"  # text:300
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv")
_EXPECTED = (
    "expected texts: a file with one a line, JSON lines (.jsonl), a list of texts, rows with the "
    "columns of Text(columns=...), or text:300"
)


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Texts, and what is known of them.

    Attributes:
        texts: of each sample: one, or a pair.
        labels: class numbers of the samples, where every row has one.
        notes: facts for the report.
        synthetic: how they were made; None = they are real.
    """

    texts: Texts
    labels: Tensor | None = None
    notes: list[str] = field(default_factory=list)
    synthetic: str | None = None


def text_stream(
    data: Any, how: Text, choice: Choice, *, seed: int, labelled: bool, takes: Signature
) -> ImageStream:
    """Texts as inputs of a network, all at once.

    Args:
        data: as for `open_texts`, or a reference to a function that gives it.
        how: how they become inputs.
        choice: which of so many are used, and a note if not all are.
        seed: of made texts.
        labelled: whether labels are asked for.
        takes: the inputs of the network; others are left out.

    Raises:
        DataError: there are none, or something else.
        OptionError, MissingExtraError: as for `Text`.
    """
    name = str(data) if isinstance(data, str | Path) else type(data).__name__
    found = open_texts(followed(data), how, seed=seed)
    rows, notes = choice(len(found.texts))
    samples, cut = how.encoded([found.texts[row] for row in rows.tolist()])
    if found.synthetic is not None and how.masked_head is not None:
        head = MaskedHead.of(how.masked_head, how.loaded)
        samples = head.rewritten(samples, TOKENS, seed=seed)
    taken = [name for name in samples.tensors if name in takes.names] or [*samples.tensors]
    samples = Samples({name: samples.tensors[name] for name in taken}, takes.masked_by)
    labels = found.labels[rows] if labelled and found.labels is not None else None
    return ImageStream(
        source=name,
        parts=lambda: [Part(name, samples, labels)],
        notes=[*found.notes, *notes, *cut],
        synthetic=found.synthetic,
        constant=True,
    )


def open_texts(data: Any, how: Text, *, seed: int = 0) -> TextSource:
    """The texts of a source.

    Args:
        data: a path, `text:300`, or texts: each a text, a pair of them, or a mapping with columns.
        how: its tokenizer makes texts, its columns are read.
        seed: of made texts.

    Raises:
        DataError: there are none, or something else.
    """
    if not isinstance(data, str | Path):
        return _given(data, how)
    if _is_made(str(data)):
        return _made(str(data).partition(":")[2], how, seed)
    return _read(Path(data), how.columns)


def followed(data: Any) -> Any:
    """What a reference to a function gives; other data as they are."""
    if not isinstance(data, str | Path) or not is_reference(str(data)) or _is_made(str(data)):
        return data
    return call(str(data), DataError)


def are_texts(data: Any) -> bool:
    """Whether data look like texts, for networks that take tokens as well."""
    if isinstance(data, str | Path):
        return _is_made(str(data)) or (Path(data).is_file() and Path(data).suffix != ".npz")
    rows = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not rows or isinstance(data, Tensor | np.ndarray | Mapping) or not len(data):
        return False
    row = data[0]
    if isinstance(row, Mapping):
        return TOKENS not in row and any(isinstance(of, str) for of in row.values())
    row = [row] if isinstance(row, str) else row
    return isinstance(row, list | tuple) and all(isinstance(of, str) for of in row)


def _is_made(text: str) -> bool:
    """Whether a source is `text:300`, and not a file of that name."""
    return text.startswith(f"{SYNTHETIC}:") and not Path(text).exists()


def _given(data: Any, how: Text) -> TextSource:
    """Texts in memory."""
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise DataError(f"the data are a {type(data).__name__}, {_EXPECTED}")
    rows = list(data)
    named = [f"row {number} of the data" for number in range(len(rows))]
    return _source(rows, how.columns, named, "the data")


def _made(number: str, how: Text, seed: int) -> TextSource:
    """Texts made of the tokenizer's vocabulary."""
    if not number.isdecimal() or int(number) < 1:
        raise DataError(f"got text:{number}, expected how many to make, such as text:300")
    count, texts = int(number), max(1, len(how.columns))
    made = synthetic_texts(how.loaded, count, longest=how.room(texts), texts=texts, seed=seed)
    what = f"{counted(count, 'text')} of words of the tokenizer in random order, seed {seed}"
    if how.masked_head is not None:
        kind = type(how.masked_head).__name__
        what = f"{counted(count, 'text')} drawn from the masked-language head {kind}, seed {seed}"
    return TextSource(texts=made, synthetic=what)


def _read(path: Path, columns: Sequence[str]) -> TextSource:
    """A text a line; or, where the file's name says so, JSON lines."""
    lines = _lines(path)
    full = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    named = [f"line {number} of {path}" for number, _ in full]
    rows: list[Any] = [line.strip() for _, line in full]
    if path.suffix.lower() in _JSON_LINES:
        rows = [_json(line, name) for line, name in zip(rows, named, strict=True)]
    elif columns or path.suffix.lower() in _TABLES:
        raise DataError(
            f"{path} has no columns that can be read, expected a text a line, or JSON lines in a "
            f"file that ends in {_JSON_LINES[0]}: write one"
        )
    found = _source(rows, columns, named, str(path))
    blank = len(lines) - len(full)
    return TextSource(
        texts=found.texts,
        labels=found.labels,
        notes=[f"{counted(blank, 'blank line')} left out"] * bool(blank),
    )


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise DataError(f"no such file: {path}, {_EXPECTED}")
    try:
        with steady(path, DataError):
            return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text ({type(error).__name__}), expected lines in UTF-8: "
            "check the file"
        ) from error


def _json(line: str, name: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, Mapping):
        raise DataError(
            f'{name} is no JSON object, expected one in every line, such as {{"text": "..."}}: '
            "check it"
        )
    return row


def _source(
    rows: Sequence[Any], columns: Sequence[str], named: Sequence[str], name: str
) -> TextSource:
    """Rows that are texts, pairs of texts, or mappings with columns of texts."""
    if not rows:
        raise DataError(f"{name} holds no text, {_EXPECTED}")
    if not isinstance(rows[0], Mapping):
        texts = [_text(row, len(columns), of) for row, of in zip(rows, named, strict=True)]
        return TextSource(texts=texts)
    columns = columns or _only_column(rows[0], name)
    texts = [_chosen(row, columns, of) for row, of in zip(rows, named, strict=True)]
    return TextSource(texts=texts, labels=_labels(rows))


def _text(row: Any, columns: int, name: str) -> tuple[str, ...]:
    """A row without columns: a text or a pair."""
    texts = (row,) if isinstance(row, str) else row
    few = isinstance(texts, tuple | list) and len(texts) in (1, 2)
    if not few or not all(isinstance(of, str) for of in texts) or columns > len(texts):
        kind = "a text" if isinstance(row, str) else f"a {type(row).__name__}"
        wanted = "a mapping with its columns" if columns else "a text or a pair of texts"
        raise DataError(f"{name} is {kind}, expected {wanted}, for a tokenizer was given: check it")
    return tuple(texts)


def _only_column(row: Mapping[str, Any], name: str) -> list[str]:
    columns = [column for column, value in row.items() if isinstance(value, str)]
    if len(columns) != 1:
        raise DataError(
            f"{name} has {counted(len(columns), 'column')} of text "
            f"({', '.join(columns[:6]) or 'none'}), expected one, or to be told: pass "
            "Text(columns=...), or --columns"
        )
    return columns


def _chosen(row: Any, columns: Sequence[str], name: str) -> tuple[str, ...]:
    """The texts of a row with columns."""
    row = row if isinstance(row, Mapping) else {}
    for column in columns:
        if not isinstance(row.get(column), str):
            raise DataError(
                f"{name} has no text in the column {column}, expected one in every row (it has "
                f"{', '.join(map(str, row)) or 'no columns'}): check it"
            )
    return tuple(row[column] for column in columns)


def _labels(rows: Sequence[Mapping[str, Any]]) -> Tensor | None:
    """Class numbers in a column of a usual name, where every row has one."""
    for name in LABEL_KEYS:
        values = [row.get(name) for row in rows]
        if all(isinstance(of, int) and 0 <= of < 2**63 for of in values):
            return torch.tensor(values)
    return None
