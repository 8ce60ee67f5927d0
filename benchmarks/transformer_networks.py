"""Small transformers with random weights, made from their configurations, and inputs for them.

Two or three layers, a width of 64, 100 tokens. Their matrices are scaled up: with those that the
packages start from attention is all but uniform, and a wrong one would not be noticed.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from architectures import timm
from torch import Tensor, nn

from secateur.network.samples import Samples

SAMPLES, TOKENS, WORDS = 24, 12, 100
_TEXT = {"vocab_size": WORDS, "max_position_embeddings": 64}
_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER = _BERT | {"intermediate_size": 128}
_DECODER = _TEXT | _ENCODER | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = _DECODER | {"num_key_value_heads": 2, "head_dim": 16}
_VISION = _ENCODER | {"image_size": 32, "patch_size": 8}
_CLIP_TEXT = _TEXT | _ENCODER | {"projection_dim": 32, "eos_token_id": 99}
_CLIP_VISION = _VISION | {"projection_dim": 32}
_T5 = {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_BART = {
    **{"vocab_size": WORDS, "max_position_embeddings": 64, "d_model": 64},
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
}
_CONFIGURATIONS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "BertModel": ("BertConfig", _TEXT | _ENCODER, "text"),
    "BertForMaskedLM": ("BertConfig", _TEXT | _ENCODER, "text"),
    "DistilBertModel": (
        "DistilBertConfig",
        _TEXT | {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        "text",
    ),
    "RobertaModel": ("RobertaConfig", _TEXT | _ENCODER, "text"),
    "AlbertModel": ("AlbertConfig", _TEXT | _ENCODER | {"embedding_size": 32}, "text"),
    "ElectraModel": ("ElectraConfig", _TEXT | _ENCODER | {"embedding_size": 32}, "text"),
    "MPNetModel": ("MPNetConfig", _TEXT | _ENCODER, "text"),
    "DebertaV2Model": (
        "DebertaV2Config",
        _TEXT
        | _ENCODER
        | {
            **{"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
            **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False},
        },
        "text",
    ),
    "ModernBertModel": ("ModernBertConfig", _DECODER, "text"),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {
            **{"vocab_size": WORDS, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
            **{"bos_token_id": 1, "eos_token_id": 2},
        },
        "text",
    ),
    "OPTForCausalLM": ("OPTConfig", _DECODER | {"ffn_dim": 128, "word_embed_proj_dim": 64}, "text"),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _DECODER, "text"),
    "LlamaForCausalLM": ("LlamaConfig", _GROUPED, "text"),
    "Qwen2ForCausalLM": ("Qwen2Config", _GROUPED, "text"),
    "Qwen3ForCausalLM": ("Qwen3Config", _GROUPED, "text"),
    "MistralForCausalLM": ("MistralConfig", _GROUPED | {"sliding_window": 8}, "text"),
    "GemmaForCausalLM": ("GemmaConfig", _GROUPED, "text"),
    "T5EncoderModel": ("T5Config", _T5, "text"),
    "T5ForConditionalGeneration": ("T5Config", _T5 | {"decoder_start_token_id": 0}, "both"),
    "BartForConditionalGeneration": ("BartConfig", _BART, "both"),
    "ViTForImageClassification": ("ViTConfig", _VISION, "image"),
    "DeiTModel": ("DeiTConfig", _VISION, "image"),
    "SwinModel": (
        "SwinConfig",
        {
            **{"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [2, 2]},
            **{"num_heads": [2, 4], "window_size": 4},
        },
        "image",
    ),
    "BeitModel": ("BeitConfig", _VISION | {"use_relative_position_bias": True}, "image"),
    "Dinov2Model": ("Dinov2Config", _VISION | {"mlp_ratio": 2}, "image"),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", _CLIP_TEXT, "text"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", _CLIP_VISION, "image"),
    "CLIPModel": (
        "CLIPConfig",
        {"text_config": _CLIP_TEXT, "vision_config": _CLIP_VISION, "projection_dim": 32},
        "image and text",
    ),
    "SiglipModel": (
        "SiglipConfig",
        {"text_config": _TEXT | _ENCODER, "vision_config": _VISION},
        "image and text",
    ),
    "WhisperEncoder": (
        "WhisperConfig",
        _BART | {"num_mel_bins": 16, "max_source_positions": 20},
        "spectrogram",
    ),
    "Wav2Vec2Model": (
        "Wav2Vec2Config",
        _ENCODER
        | {
            **{"conv_dim": [32] * 3, "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4]},
            **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        },
        "sound",
    ),
}
_ELSEWHERE = {"WhisperEncoder": "transformers.models.whisper.modeling_whisper"}


class Patches(nn.Module):
    """PyTorch's own transformer, with and without its fast path and nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(64, 10)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Class scores of sentences, whose padding is left out."""
        hidden = self.layers(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.last((hidden * attention_mask[..., None]).sum(1))


class Attending(nn.Module):
    """`nn.MultiheadAttention` alone, with a residual and a small network behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.rest = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    def forward(self, input_ids: Tensor) -> Tensor:
        """(samples, tokens, 64)."""
        hidden = self.words(input_ids)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return hidden + self.rest(hidden)


def _timm_vit() -> nn.Module:
    return timm().create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4},
    )


BY_HAND: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nn.TransformerEncoder, fast path": (Patches, "text"),
    "nn.MultiheadAttention": (Attending, "tokens"),
    "timm VisionTransformer": (_timm_vit, "picture"),
}
NAMES = (*_CONFIGURATIONS, *BY_HAND)


def transformer(name: str) -> nn.Module:
    """A network in eval mode, as its package makes it, with larger weights."""
    torch.manual_seed(0)
    if name in BY_HAND:
        model = BY_HAND[name][0]()
    else:
        transformers = importlib.import_module("transformers")
        config, options, _ = _CONFIGURATIONS[name]
        kind = getattr(importlib.import_module(_ELSEWHERE.get(name, "transformers")), name)
        model = kind(getattr(transformers, config)(**options))
    for held, tensor in model.named_parameters():
        _scale(held, tensor.data)
    return model.eval()


def _scale(name: str, tensor: Tensor) -> None:
    """Matrices to a gain of about 1.5, vectors away from 0 and 1."""
    if tensor.dim() > 1:
        tensor.normal_(0, 1.5 * tensor[0].numel() ** -0.5)
    elif tensor.dim() == 1:
        around = 0.0 if name.endswith("bias") else 1.0
        tensor.normal_(around, 0.2)


def inputs_of(name: str) -> Samples:
    """Samples by the names of the network's inputs."""
    kind = (BY_HAND[name] if name in BY_HAND else _CONFIGURATIONS[name])[-1]
    generator = torch.Generator().manual_seed(1)
    return Samples(_INPUTS[kind](generator))


def _text(generator: torch.Generator) -> dict[str, Tensor]:
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (SAMPLES, 1), generator=generator)
    lengths[0] = TOKENS
    mask = (torch.arange(TOKENS) < lengths).long()
    return {**_tokens(generator), "attention_mask": mask}


def _tokens(generator: torch.Generator) -> dict[str, Tensor]:
    words = torch.randint(3, WORDS - 1, (SAMPLES, TOKENS), generator=generator)
    words[:, -1] = WORDS - 1
    return {"input_ids": words}


def _both(generator: torch.Generator) -> dict[str, Tensor]:
    words = torch.randint(3, WORDS, (SAMPLES, TOKENS - 4), generator=generator)
    return {**_text(generator), "decoder_input_ids": words}


def _image(generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(SAMPLES, 3, 32, 32, generator=generator)}


_INPUTS: dict[str, Callable[[torch.Generator], dict[str, Tensor]]] = {
    "text": _text,
    "tokens": _tokens,
    "picture": lambda generator: {"x": _image(generator)["pixel_values"]},
    "both": _both,
    "image": _image,
    "image and text": lambda generator: {**_text(generator), **_image(generator)},
    "spectrogram": lambda generator: {
        "input_features": torch.randn(SAMPLES, 16, 40, generator=generator)
    },
    "sound": lambda generator: {"input_values": torch.randn(SAMPLES, 1600, generator=generator)},
}
