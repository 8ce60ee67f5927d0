"""From texts to the inputs of a network: lines of a file, through a tokenizer.

The package tokenizers (extra `text`) turns texts into numbers. It reads the `tokenizer.json` that
comes with a network of Hugging Face, and a network of any other kind can have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from secateur.errors import DataError, OptionError
from secateur.network.samples import Samples
from secateur.support.extras import require
from secateur.support.model_files import steady
from secateur.support.settings import at_least, check_settings
from secateur.support.wording import counted

MAX_LENGTH = 128  # tokens
TOKENS = "input_ids"
TOKENIZER_FILE = "tokenizer.json"
_PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")  # what tokenizers call it

Texts = Sequence[tuple[str, ...]]  # of each sample: a text, or a pair of them


@dataclass(frozen=True, kw_only=True)
class Text:
    """Turns texts into a network's inputs: what `Preprocess` is for images.

    ::

        how = secateur.Text(tokenizer="tokenizer.json", max_length=128)
        secateur.prune(net, "sentences.txt", preprocess=how, sparsity=0.5)

    A sample has the inputs `input_ids`, `attention_mask` (1 for each token, 0 for padding) and
    `token_type_ids` (1 for the second text of a pair), int64 of shape (samples, tokens), as far as
    the network takes them.

    Attributes:
        tokenizer: path of a `tokenizer.json` or of the folder that holds it, a
            `tokenizers.Tokenizer`, or a tokenizer of Transformers that has one.
        max_length: tokens of a sample, the special ones included; what is longer is cut.
        columns: of JSON lines, those with the texts; two make pairs. None named = the only one
            that holds text.
        masked_head: a network that draws the words of `text:300` from what it expects beside each
            other: a module with a masked-language head, such as Transformers'
            `AutoModelForMaskedLM`; see `secateur.data.masked_head`. None = words by their rank in
            the vocabulary, in random order.
    """

    tokenizer: Any
    max_length: int = MAX_LENGTH
    columns: Sequence[str] = ()
    masked_head: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_settings(self, max_length=at_least(1))
        if len(self.columns) > 2:
            raise OptionError(
                f"columns is {', '.join(self.columns)}, expected one, or two for pairs of texts"
            )

    def __call__(self, texts: Texts) -> Samples:
        """Texts as inputs, padded to the longest of them.

        Raises:
            MissingExtraError: the package tokenizers is not installed.
            DataError: the tokenizer cannot be read.
            OptionError: `max_length` has no room for a token beside the special ones.
        """
        return self.encoded(texts)[0]

    def encoded(self, texts: Texts) -> tuple[Samples, list[str]]:
        """As a call; and a note where texts were cut."""
        self.room(max(map(len, texts)))
        codes = self._encoder.encode_batch([row[0] if len(row) == 1 else row for row in texts])
        fields = {
            TOKENS: [code.ids for code in codes],
            "attention_mask": [code.attention_mask for code in codes],
            "token_type_ids": [code.type_ids for code in codes],
        }
        cut = sum(bool(code.overflowing) for code in codes)
        said = f"{cut} of {counted(len(texts), 'text')} cut at {counted(self.max_length, 'token')}"
        samples = Samples({name: torch.tensor(rows) for name, rows in fields.items()})
        return samples, [said] * bool(cut)

    @cached_property
    def loaded(self) -> Any:
        """The `tokenizers.Tokenizer`, as it was given."""
        return _tokenizer(self.tokenizer)

    @cached_property
    def _encoder(self) -> Any:
        """A copy that cuts and pads as is asked for; the user's own stays as it is."""
        copy = type(self.loaded).from_str(self.loaded.to_str())
        given = copy.padding or {}
        found = ((of, copy.token_to_id(of)) for of in _PADDING)
        token, number = next(((of, at) for of, at in found if at is not None), ("[PAD]", 0))
        end = (copy.truncation or {}).get("direction", "right")
        copy.enable_truncation(self.max_length, direction=end)
        copy.enable_padding(
            direction=given.get("direction", "right"),
            pad_id=given.get("pad_id", number),
            pad_type_id=given.get("pad_type_id", 0),
            pad_token=given.get("pad_token", token),
        )
        return copy

    def room(self, texts: int) -> int:
        """Tokens that each of so many texts of a sample may have, beside the special ones.

        Raises:
            OptionError: none.
        """
        special = self.loaded.num_special_tokens_to_add(texts > 1)
        room = (self.max_length - special) // texts
        if room < 1:
            raise OptionError(
                f"max_length is {self.max_length}, expected more than the "
                f"{counted(special, 'special token')} of each sample: raise it"
            )
        return room


@dataclass(frozen=True, kw_only=True)
class ModelText(Text):
    """The tokenizer that comes with a network; data that are no texts skip it."""

    def __str__(self) -> str:
        return f"{self.tokenizer}, at most {counted(self.max_length, 'token')} of a text"


def _tokenizer(given: Any) -> Any:
    """The tokenizer that a file or an object holds."""
    if isinstance(given, str | Path):
        return _read_tokenizer(Path(given))
    given = getattr(given, "backend_tokenizer", given)  # of Transformers
    if not all(hasattr(given, of) for of in ("encode_batch", "enable_truncation", "to_str")):
        raise OptionError(
            f"tokenizer is a {type(given).__name__}, expected the path of a {TOKENIZER_FILE}, a "
            "tokenizers.Tokenizer or a fast tokenizer of Transformers: pass one of these"
        )
    return given


def _read_tokenizer(path: Path) -> Any:
    path = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        with steady(path, DataError):
            text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, type(error).__name__) from error
    (tokenizers,) = require("text", "text", "tokenizers")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # it raises nothing more special
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a readable tokenizer ({why}), expected a {TOKENIZER_FILE} of the package "
        "tokenizers: pass the one that comes with the network"
    )
