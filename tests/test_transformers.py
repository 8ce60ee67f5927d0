"""Small networks of Hugging Face as they come; what they are made of has tests of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur import frontends
from secateur.network.couplings import find_couplings
from secateur.network.samples import Samples
from secateur.pruning.recipe import RECIPES

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 50, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
QUICK = replace(RECIPES["default"], reconstruction=None, schedule=(0.0,))


def data() -> dict[str, torch.Tensor]:
    words = torch.randint(50, (40, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(words)
    mask[::2, 4:] = 0
    return {"input_ids": words, "attention_mask": mask}


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 50, "n_positions": 8}
        config: Any = transformers.GPT2Config(bos_token_id=1, eos_token_id=2, **sizes)
        return transformers.GPT2LMHeadModel(config).eval()
    sizes = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 8}
    config = transformers.LlamaConfig(tie_word_embeddings=True, **SMALL, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_zeros_are_where_the_report_says_and_embeddings_stay_tied(
    kind: str, tmp_path: Path
) -> None:
    net = made(kind)
    result = secateur.prune(
        net, data(), sparsity=0.5, recipe=QUICK, allocation="uniform", progress=False
    )
    held = dict(result.model.named_parameters())
    for row in result.report.layers:
        assert int((held[f"{row.name}.weight"] == 0).sum()) == row.zeros == row.weights // 2
    (tied,) = [row for row in result.report.dense_layers if row.weights]
    assert tied.reason == "weight also used by embedding.default"
    twin = result.model
    assert twin.get_input_embeddings().weight is twin.get_output_embeddings().weight
    assert twin.config.use_cache
    result.save(tmp_path)
    again = secateur.load(net, tmp_path / "model.safetensors")
    few = {name: of[:2] for name, of in data().items()}
    assert torch.equal(again(**few).logits, twin(**few).logits)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_channels_leave(kind: str) -> None:
    net, few = frontends.open(made(kind)), Samples({name: of[:2] for name, of in data().items()})
    free = [of for of in find_couplings(net.trace(few)) if of.fixed is None]
    assert free
    removed = [(of, [block[0] for block in of.blocks or [range(of.units)]]) for of in free]
    net.shrunk(removed, few)  # raises where it is not what the masked one is
