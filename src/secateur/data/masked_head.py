"""Synthetic texts that a masked-language model writes, where a network has such a head.

It was trained to tell hidden words from those around them. So words are hidden and drawn anew, some
at a time, until all have been a few times: what comes out has the words, and the neighbours of
words, that the network expects.

Source: A. Wang and K. Cho, "BERT has a mouth, and it must speak: BERT as a Markov random field
language model", 2019. They draw one word at a time; here it is a share, as in training.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from secateur.errors import OptionError
from secateur.network.returned import named_leaves
from secateur.network.samples import Samples

SWEEPS = 3  # how often each word is drawn anew
PARTS = 6  # into which the words of a text are divided: about as many are hidden as in training
_BATCH = 32  # texts that the network is run on
_MASKS = ("[MASK]", "<mask>")  # what tokenizers call it


@dataclass(frozen=True)
class MaskedHead:
    """A network with a masked-language head, and the tokens that it knows.

    Attributes:
        network: a module, or a function of inputs by name, that gives scores of shape (samples,
            positions, vocabulary), alone or among other outputs.
        hidden: the token in the place of a hidden one.
        special: tokens that are no words, that one included.
        size: of the tokenizer's vocabulary.
    """

    network: Any
    hidden: int
    special: Sequence[int]
    size: int

    @classmethod
    def of(cls, network: Any, tokenizer: Any) -> MaskedHead:
        """A network with a `tokenizers.Tokenizer`.

        Raises:
            OptionError: the network cannot be called, or the tokenizer has no mask.
        """
        if not callable(network):
            raise OptionError(
                f"masked_head is a {type(network).__name__}, expected a module with a "
                "masked-language head: load it (AutoModelForMaskedLM.from_pretrained)"
            )
        numbers = map(tokenizer.token_to_id, _MASKS)
        hidden = next((number for number in numbers if number is not None), None)
        if hidden is None:
            raise OptionError(
                f"the tokenizer has no mask ({' or '.join(_MASKS)}), expected that of a network "
                "with a masked-language head: leave masked_head out"
            )
        special = {*tokenizer.get_added_tokens_decoder(), hidden}
        return cls(network, hidden, sorted(special), len(tokenizer.get_vocab()))

    def rewritten(self, samples: Samples, tokens: str, *, seed: int) -> Samples:
        """Samples whose words the network has drawn, beginning with those that they have.

        Args:
            samples: tokens (samples, positions), and the inputs that go with them.
            tokens: the input of that name.
            seed: at least 0. Sample i depends on its words, the network and (seed, i), up to
                rounding.

        Raises:
            OptionError: the network does not take the samples, or gives no scores of its tokens.

        Cost: 18 forward passes.
        """
        words = []
        for number, part in enumerate(samples.split(_BATCH)):
            seeds = [[seed, number * _BATCH + index, 1] for index in range(len(part))]
            words.append(self._batch(part, tokens, [*map(np.random.default_rng, seeds)]))
        return samples.with_each(lambda name, of: torch.cat(words) if name == tokens else of)

    def _batch(
        self, samples: Samples, tokens: str, rngs: Sequence[np.random.Generator]
    ) -> Int[Tensor, "samples positions"]:
        words = samples.tensors[tokens].clone()
        known = ~torch.isin(words, torch.tensor(self.special))
        known &= True if samples.mask is None else samples.mask
        for _ in range(SWEEPS):
            turns = torch.from_numpy(np.stack([of.permutation(known.shape[1]) for of in rngs]))
            for turn in range(PARTS):
                now = known & (turns % PARTS == turn)
                given = {**samples.tensors, tokens: words.masked_fill(now, self.hidden)}
                scores = self._scores(replace(samples, tensors=given))[now]
                words[now] = _drawn(scores, now, rngs)
        return words

    def _scores(self, samples: Samples) -> Float[Tensor, "samples positions vocabulary"]:
        """What the network says to each position; nothing of special tokens."""
        shape = samples.first.shape
        leaves = named_leaves(self._run(samples))
        found = [
            of.detach().float().cpu()
            for _, of in leaves
            if isinstance(of, Tensor) and of.shape[:2] == shape and of.dim() == 3
        ]
        scores = next((of for of in found if of.shape[2] >= self.size), None)
        if scores is None:
            raise OptionError(
                f"masked_head gives no output of shape ({shape[0]}, {shape[1]}, {self.size} or "
                f"more), expected scores of the tokenizer's {self.size} tokens at each position: "
                "pass a network with a masked-language head (AutoModelForMaskedLM)"
            )
        scores[..., self.size :] = -torch.inf
        scores[..., list(self.special)] = -torch.inf
        return scores

    def _run(self, samples: Samples) -> Any:
        is_module = isinstance(self.network, nn.Module)
        device = next((of.device for of in self.network.parameters()), None) if is_module else None
        taken = _taken(self.network.forward if is_module else self.network, samples)
        with _evaluating(self.network), torch.no_grad():
            try:
                return self.network(**{name: of.to(device) for name, of in taken.items()})
            except Exception as error:  # whatever a network raises
                raise OptionError(
                    f"masked_head does not take {', '.join(samples.tensors)} "
                    f"({type(error).__name__}: {str(error)[:200]}), expected a network that takes "
                    "what the tokenizer gives: check it"
                ) from error


def _taken(function: Any, samples: Samples) -> Mapping[str, Tensor]:
    """The inputs that a function has names for."""
    parameters = inspect.signature(function).parameters.values()
    if any(of.kind is of.VAR_KEYWORD for of in parameters):
        return samples.tensors
    names = {of.name for of in parameters}
    return {name: of for name, of in samples.tensors.items() if name in names}


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """A module in eval mode meanwhile."""
    training = [of for of in network.modules() if of.training] if hasattr(network, "eval") else []
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _drawn(
    scores: Float[Tensor, "drawn vocabulary"],
    now: Bool[Tensor, "samples positions"],
    rngs: Sequence[np.random.Generator],
) -> Int[Tensor, " drawn"]:
    """Tokens as likely as the network says; each sample has random numbers of its own."""
    edges = scores.double().softmax(1).cumsum(1)
    counts = zip(rngs, now.sum(1).tolist(), strict=True)
    numbers = torch.from_numpy(np.concatenate([rng.random(count) for rng, count in counts]))
    return torch.searchsorted(edges, numbers[:, None] * edges[:, -1:], right=True).squeeze(1)
