"""A stand-in of a tokenizer, for laws that hold with any: a word is a token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [f"{a}{b}" for a in "bcdfghjklmnpqrstvwxyz" for b in "aeiouy"]
ALL = (*WORDS, *(f"##{letter}{letter}" for letter in LETTERS), ".", *LETTERS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "mask")


class Words:
    """In the manner of `tokenizers.Tokenizer`, as far as Secateur asks."""

    padding: Any = None
    truncation: Any = None
    decoder: Any = None
    most: int | None = None

    def __init__(self, words: Sequence[str] = ALL) -> None:
        self.words = words

    def __str__(self) -> str:
        return f"Words(words={self.words!r})"

    def to_str(self) -> str:
        return json.dumps(list(self.words))

    @classmethod
    def from_str(cls, text: str) -> Words:
        return cls(json.loads(text))

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {piece: number for number, piece in enumerate((*SPECIAL, *self.words))}

    def get_added_tokens_decoder(self) -> dict[int, str]:
        return dict(enumerate(SPECIAL))

    def token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 3 if pair else 2

    def enable_truncation(self, most: int, direction: str) -> None:
        self.most = most

    def enable_padding(self, **settings: Any) -> None:
        self.padding = settings

    def encode_batch(self, rows: Sequence[Any]) -> list[SimpleNamespace]:
        codes = [self._encoded((row,) if isinstance(row, str) else row) for row in rows]
        longest = max(len(code.ids) for code in codes)
        for code in codes:
            room = longest - len(code.ids)
            code.ids += [0] * room
            code.attention_mask += [0] * room
            code.type_ids += [0] * room
        return codes

    def _encoded(self, texts: Sequence[str]) -> SimpleNamespace:
        number = self.get_vocab().get
        ids, kinds = [2], [0]
        for kind, text in enumerate(texts):
            words = [number(word, 1) for word in text.replace(".", " .").split()] + [3]
            ids, kinds = ids + words, kinds + [kind] * len(words)
        cut = self.most is not None and len(ids) > self.most
        ids, kinds = ids[: self.most], kinds[: self.most]
        return SimpleNamespace(
            ids=ids, attention_mask=[1] * len(ids), type_ids=kinds, overflowing=[1] * cut
        )
