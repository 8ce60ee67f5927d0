"""Attentions as people write them, each in a small network: (batch, 3, 6, 6) to (batch, 5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH = 12, 3, 4


class Net(nn.Module):
    """Tokens of the positions, an attention beside a shortcut, and a head."""

    def __init__(self, attend: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.attend = attend
        self.embed, self.norm = nn.Linear(3, WIDTH), nn.LayerNorm(WIDTH)
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(WIDTH, 5)
        with torch.no_grad():  # far from uniform weights, so that mistakes show
            for parameter in self.parameters():
                scale = 1.2 / parameter.shape[1] ** 0.5 if parameter.dim() > 1 else 0.5
                parameter.normal_(0, scale, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        return self.head((x + self.attend(self, self.norm(x))).mean(1))


def split_heads(x: Tensor, heads: int = HEADS) -> Tensor:
    """(batch, tokens, width) to (batch, heads, tokens, width of a head)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def separate(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part(x)) for part in (net.q, net.k, net.v))
    return net.out(joined(F.scaled_dot_product_attention(q, k, v)))


def scaled(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part(x)) for part in (net.q, net.k, net.v))
    return net.out(joined(F.scaled_dot_product_attention(q, k, v, scale=0.7)))


def explicit(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part(x)) for part in (net.q, net.k, net.v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return net.out(joined(weights @ v))


def constant(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part(x)) for part in (net.q, net.k, net.v))
    weights = ((q * 0.5) @ k.transpose(-1, -2)).softmax(-1)
    return net.out(joined(weights @ v))


def stacked(net: Net, x: Tensor) -> Tensor:
    """As timm writes it."""
    batch, tokens, width = x.shape
    qkv = net.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    y = F.scaled_dot_product_attention(q, k, v)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, width))


def stacked_explicit(net: Net, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    qkv = net.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    weights = ((q * (width // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    return net.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def normalised(net: Net, x: Tensor) -> Tensor:
    """With normalised queries and keys."""
    batch, tokens, width = x.shape
    qkv = net.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    y = F.scaled_dot_product_attention(net.q_norm(q), net.k_norm(k), v)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, width))


def chunked(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part) for part in net.qkv(x).chunk(3, -1))
    return net.out(joined(F.scaled_dot_product_attention(q, k, v)))


def viewed(net: Net, x: Tensor) -> Tensor:
    """As Hugging Face writes it for GPT-2."""
    batch, tokens, width = x.shape
    parts = net.qkv(x).split(width, dim=2)
    q, k, v = (part.view(batch, tokens, -1, DEPTH).transpose(1, 2) for part in parts)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return net.out(y.transpose(1, 2).reshape(batch, tokens, -1).contiguous())


def grouped(net: Net, x: Tensor) -> Tensor:
    q, k, v = split_heads(net.q(x), 4), split_heads(net.k(x), 2), split_heads(net.v(x), 2)
    return net.out(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


def repeated(net: Net, x: Tensor) -> Tensor:
    q, k, v = split_heads(net.q(x), 4), split_heads(net.k(x), 2), split_heads(net.v(x), 2)
    k, v = (of.repeat_interleave(2, 1) for of in (k, v))
    return net.out(joined(F.scaled_dot_product_attention(q, k, v)))


def expanded(net: Net, x: Tensor) -> Tensor:
    """As Hugging Face repeats keys and values."""
    q, k, v = split_heads(net.q(x), 4), split_heads(net.k(x), 2), split_heads(net.v(x), 2)
    batch, heads, tokens, _ = k.shape
    k, v = (
        of[:, :, None].expand(batch, heads, 2, tokens, -1).reshape(batch, 2 * heads, tokens, -1)
        for of in (k, v)
    )
    return net.out(joined(F.scaled_dot_product_attention(q, k, v)))


def rotary(net: Net, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part(x)) for part in (net.q, net.k, net.v))
    angles = torch.outer(torch.arange(36.0), torch.tensor([1.0, 0.1])).repeat(1, 2)

    def turned(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * angles.cos() + half * angles.sin()

    return net.out(joined(F.scaled_dot_product_attention(turned(q), turned(k), v)))


def module(net: Net, x: Tensor) -> Tensor:
    return net.attention(x, x, x, need_weights=False)[0]


def weighing(net: Net, x: Tensor) -> Tensor:
    return net.attention(x, x, x)[0]


def encoder(net: Net, x: Tensor) -> Tensor:
    return net.layer(x)


def linears(*sizes: tuple[str, int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(into, out) for name, into, out in sizes}


def _separate() -> dict[str, nn.Module]:
    return linears(*((name, WIDTH, WIDTH) for name in ("q", "k", "v", "out")))


def _fused() -> dict[str, nn.Module]:
    return linears(("qkv", WIDTH, 3 * WIDTH), ("out", WIDTH, WIDTH))


def _groups() -> dict[str, nn.Module]:
    return linears(("q", WIDTH, 16), ("k", WIDTH, 8), ("v", WIDTH, 8), ("out", 16, WIDTH))


def networks() -> dict[str, Net]:
    """Every kind of attention, in a network of its own."""
    norms = {"q_norm": nn.LayerNorm(DEPTH), "k_norm": nn.LayerNorm(DEPTH)}
    multihead = nn.MultiheadAttention
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, norm_first=True)
    made = {
        **{of.__name__: Net(of, **_separate()) for of in (separate, scaled, explicit, constant)},
        "rotary": Net(rotary, **_separate()),
        **{of.__name__: Net(of, **_fused()) for of in (stacked, stacked_explicit, chunked, viewed)},
        "normalised": Net(normalised, **_fused(), **norms),
        **{of.__name__: Net(of, **_groups()) for of in (grouped, repeated, expanded)},
        "module": Net(module, attention=multihead(WIDTH, HEADS, batch_first=True)),
        "weighing": Net(weighing, attention=multihead(WIDTH, HEADS, batch_first=True)),
        "encoder": Net(encoder, layer=layer),
    }
    return {name: net.eval().requires_grad_(False) for name, net in made.items()}
