"""Synthetic texts, for networks without real ones: words of the tokenizer's vocabulary.

A vocabulary is close to a list of words by how often they occur: tokenizers are made by joining
what occurs together most often, and most list their pieces in that order. How often the word of
rank r occurs follows from r alone, by Zipf's law. So the words are about the right ones, in no
order. No text is read and nothing is downloaded. Real texts like those in use are better, even a
few.

Sources: B. Mandelbrot, "An informational theory of the statistical structure of language", 1953,
for p proportional to 1 / (r + 2.7), which is flatter than Zipf's law for the most frequent words;
C. B. Williams, "A note on the statistical analysis of sentence-length as a criterion of literary
style", 1940, for log-normal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from secateur.errors import DataError

_OFFSET = 2.7  # added to ranks, from 1 on
_MEDIAN, _SPREAD, _LEAST = 12, 0.5, 3  # words of a text: exp of N(log 12, 0.5), at least 3
_GOING_ON = 0.1  # of the pieces go on with the word before
_FEW = 100  # words
_STOPS = (".", "。")
_CONTINUED = "##"  # before a piece that goes on with a word
_SPACES = ("Ġ", "▁")  # before a piece that begins a word


@dataclass(frozen=True)
class Vocabulary:
    """The words of a tokenizer, the most frequent first.

    Attributes:
        words: that come after a space.
        endings: pieces that go on with a word.
        stop: what a sentence ends with; empty where the tokenizer has no such piece.
    """

    words: Sequence[str]
    endings: Sequence[str]
    stop: str

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """The pieces of a `tokenizers.Tokenizer` that are letters and digits, in their order.

        Single letters are left out, for vocabularies begin with all of them, in the order of their
        codes; unless they are most of what there is, as in Chinese.

        Raises:
            DataError: it has fewer than 100 words.
        """
        special = tokenizer.get_added_tokens_decoder()
        numbered = tokenizer.get_vocab(with_added_tokens=False).items()
        pieces = [
            of for of, number in sorted(numbered, key=lambda at: at[1]) if number not in special
        ]
        words, endings = _split(pieces)
        words, endings = (_readable(of, tokenizer) for of in (words, endings))
        if len(words) < _FEW:
            raise DataError(
                f"the tokenizer has {len(words)} words, expected at least {_FEW} to make texts of: "
                "pass real texts"
            )
        stop = next((of for of in _STOPS if tokenizer.token_to_id(of) is not None), "")
        return cls(words, endings, stop)

    def text(self, rng: np.random.Generator, longest: int) -> str:
        """A text of at most so many words and endings."""
        length = round(np.exp(rng.normal(np.log(_MEDIAN), _SPREAD)))
        length = max(1, min(max(length, _LEAST), longest))
        numbers = _drawn(rng, len(self.words), length)
        parts = [self.words[number] for number in numbers]
        if self.endings:
            goes_on = rng.random(length) < _GOING_ON
            for place, number in enumerate(_drawn(rng, len(self.endings), length)):
                if place and goes_on[place]:
                    parts[place] = self.endings[number]
            parts = _joined(parts, goes_on.tolist())
        return " ".join(parts) + self.stop


def synthetic_texts(
    tokenizer: Any, count: int, *, longest: int, texts: int = 1, seed: int = 0
) -> list[tuple[str, ...]]:
    """Draws texts for calibration.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        count: number of samples, at least 1.
        longest: pieces of a text at most.
        texts: of each sample: 1, or 2 for pairs.
        seed: at least 0. Sample i depends on the tokenizer and (seed, i, longest, texts) only.

    Raises:
        DataError: the tokenizer has too few words.
    """
    vocabulary = Vocabulary.of(tokenizer)
    generators = (np.random.default_rng([seed, index]) for index in range(count))
    return [tuple(vocabulary.text(rng, longest) for _ in range(texts)) for rng in generators]


def _split(pieces: Sequence[str]) -> tuple[list[str], list[str]]:
    """Pieces that begin words, and those that go on with them, without their marks."""
    marked = {mark: sum(of.startswith(mark) for of in pieces) for mark in (_CONTINUED, *_SPACES)}
    mark = max(marked, key=lambda of: marked[of])
    if not marked[mark]:
        return list(pieces), []
    with_mark = [of for of in pieces if of.startswith(mark)]
    without = [of for of in pieces if not of.startswith(mark)]
    return (without, with_mark) if mark == _CONTINUED else (with_mark, without)


def _readable(pieces: Sequence[str], tokenizer: Any) -> list[str]:
    """The pieces that are letters and digits, as text."""
    texts = [_plain(of, tokenizer) for of in pieces]
    texts = list(dict.fromkeys(of for of in texts if of.isalnum()))
    longer = [of for of in texts if len(of) > 1]
    return longer if 2 * len(longer) >= len(texts) else texts


def _plain(piece: str, tokenizer: Any) -> str:
    """A piece as text: without its mark, and of bytes in place of letters what they spell."""
    if piece.startswith(_CONTINUED):
        return piece.removeprefix(_CONTINUED)
    if piece.startswith(_SPACES[1]):
        return piece.removeprefix(_SPACES[1])
    if tokenizer.decoder is not None and type(tokenizer.decoder).__name__ == "ByteLevel":
        return tokenizer.decoder.decode([piece]).strip()
    return piece


def _drawn(rng: np.random.Generator, ranks: int, count: int) -> Sequence[int]:
    """Ranks from 0 on, drawn by Mandelbrot's law."""
    chances = 1 / (np.arange(1, ranks + 1) + _OFFSET)
    edges: Float[np.ndarray, " ranks"] = np.cumsum(chances) / np.sum(chances)
    return np.searchsorted(edges[:-1], rng.random(count), "right").tolist()


def _joined(parts: Sequence[str], goes_on: Sequence[bool]) -> list[str]:
    """Words of a beginning and its endings."""
    words = list(parts[:1])
    for part, more in zip(parts[1:], goes_on[1:], strict=True):
        if more:
            words[-1] += part
        else:
            words.append(part)
    return words
