"""Texts that a network's own masked-language head writes."""

from __future__ import annotations

import pytest
import torch
from texts import SPECIAL, WORDS, Words
from torch import Tensor, nn

import secateur
from secateur import OptionError, Text
from secateur.data.sources import load_images
from secateur.network.samples import Signature

MASK = "[MASK]"
NAMES = ("input_ids", "attention_mask", "token_type_ids")
BERT = Signature(names=NAMES, required=("input_ids",))


class Masking(Words):
    """A tokenizer with a mask, its last token."""

    def __init__(self, words: object = (*WORDS, MASK)) -> None:
        super().__init__(words)  # type: ignore[arg-type]


SIZE = len(SPECIAL) + len(WORDS) + 1
HIDDEN = SIZE - 1


class Head(nn.Module):
    """Expects each hidden word to be the one after that on its left; has seen what is hidden."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.size = size
        self.shares: list[float] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        assert not self.training
        hidden = input_ids == HIDDEN
        self.shares.append(float(hidden.sum() / attention_mask.sum()))
        left = input_ids.roll(1, 1)
        following = torch.where(left >= HIDDEN - 1, len(SPECIAL), left + 1)
        following = following.clamp(min=len(SPECIAL))
        scores = torch.full((*input_ids.shape, self.size), -100.0)
        scores.scatter_(2, following[..., None], 0.0)
        scores[..., 3] = 50.0  # [SEP] above all, which is no word
        scores[..., SIZE:] = 60.0  # and what the tokenizer does not have
        return {"hidden": torch.zeros(*input_ids.shape, 4), "logits": scores}


def made(head: object, count: int = 5, seed: int = 0) -> secateur.data.sources.Images:
    how = Text(tokenizer=Masking(), max_length=12, masked_head=head)
    return load_images(f"text:{count}", preprocess=how, takes=BERT, seed=seed)


def test_words_are_drawn_from_the_head_and_nothing_else_changes() -> None:
    head = Head().train()
    found, plain = made(head, 40), made(None, 40)
    assert head.training
    ids, before = found.samples.tensors["input_ids"], plain.samples.tensors["input_ids"]
    words = before >= len(SPECIAL)
    assert torch.equal(ids[~words], before[~words])
    assert not (ids == HIDDEN).any()
    assert (ids[words] >= len(SPECIAL)).all()
    pairs = words[:, 1:] & words[:, :-1]
    follows = (ids[:, 1:] - ids[:, :-1])[pairs] == 1
    was = (before[:, 1:] - before[:, :-1])[pairs] == 1
    assert follows.double().mean() > 0.3 > 10 * was.double().mean()  # one of two is drawn later
    assert max(head.shares) < 0.35


def test_the_same_seed_gives_the_same_texts_whatever_their_number() -> None:
    one, other = made(Head(), 40), made(Head(), 33)
    length = other.samples.first.shape[1]
    for name in NAMES:
        whole = one.samples.tensors[name][:33]
        assert torch.equal(whole[:, :length], other.samples.tensors[name])
    assert not torch.equal(
        made(Head(), seed=1).samples.first[:, :4], made(Head(), seed=2).samples.first[:, :4]
    )


def test_reports_say_who_wrote_the_texts() -> None:
    assert made(Head()).synthetic == "5 texts drawn from the masked-language head Head, seed 0"


def test_real_texts_need_no_head() -> None:
    how = Text(tokenizer=Masking(), masked_head=Head())
    assert load_images(["ba be"], preprocess=how, takes=BERT).synthetic is None


def test_scores_of_more_tokens_than_the_tokenizer_has_are_fine() -> None:
    assert (made(Head(SIZE + 7)).samples.tensors["input_ids"] < SIZE).all()


class Other(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


@pytest.mark.parametrize(
    ("head", "tokenizer", "says"),
    [
        (Head(SIZE - 1), Masking(), "masked_head gives no output of shape .* or more"),
        (Head(), Words(), "the tokenizer has no mask"),
        ("bert", Masking(), "masked_head is a str, expected a module"),
        (Other(), Masking(), "masked_head does not take"),
    ],
    ids=["other scores", "no mask", "no module", "other inputs"],
)
def test_what_is_no_masked_head_is_a_sentence(head, tokenizer, says) -> None:
    how = Text(tokenizer=tokenizer, max_length=12, masked_head=head)
    with pytest.raises(OptionError, match=rf"^(?!.*\n).*{says}"):
        load_images("text:3", preprocess=how, takes=BERT)


def test_a_network_with_a_head_is_pruned_on_what_it_writes() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.BertConfig(vocab_size=SIZE, num_attention_heads=2, **sizes)
    net = transformers.BertForMaskedLM(config).eval()
    how = Text(tokenizer=Masking(), max_length=12, masked_head=net)
    result = secateur.prune(net, "text:40", preprocess=how, sparsity=0.5, progress=False)
    assert result.report.synthetic is not None
    assert "BertForMaskedLM" in result.report.synthetic
