"""Small networks whose layers see the samples on different axes, or see none at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, WIDTH = 9, 8


class Attention(nn.Module):
    """A transformer's layer, in either of PyTorch's layouts."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, 4)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:  # (samples, tokens, 5)
        y = self.embed(x)
        y = y if self.batch_first else y.transpose(0, 1)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = self.head(y)
        return y if self.batch_first else y.transpose(0, 1)


class Recurrent(nn.Module):
    """A cell written out: each step's layer on (samples, channels), the head on (time, samples)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.step = nn.Linear(5, WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.embed(x.transpose(0, 1))  # (time, samples, channels)
        state, states = torch.zeros_like(steps[0]), []
        for time in range(3):
            state = torch.tanh(self.step(torch.cat([steps[time], state], 1)))
            states.append(state)
        return self.head(torch.stack(states)).transpose(0, 1)


class Windows(nn.Module):
    """Swin's: (samples * windows, places, channels), and the transposed order of the same."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inside = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).reshape(-1, 3, WIDTH)  # (samples * 3 windows, 3, channels)
        y = self.inside(y).relu().reshape(x.shape[0], 3, 3, WIDTH)
        y = y.transpose(0, 1).reshape(-1, 3, WIDTH)  # (3 windows * samples, 3, channels)
        return self.head(y).reshape(3, x.shape[0], 3, 4).transpose(0, 1)


class Frames(nn.Module):
    """A convolution on (time * samples, channels, places)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv1d(1, 6, 3), nn.Conv1d(6, 6, 2, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1).reshape(-1, 1, 5)
        y = self.second(self.conv(y).relu()).mean(2)
        return self.head(y).reshape(TOKENS, x.shape[0], 4).transpose(0, 1)


NETWORKS = {
    "attention": lambda: Attention(False),
    "attention, batch first": lambda: Attention(True),
    "recurrent": Recurrent,
    "windows": Windows,
    "frames": Frames,
}


class Constant(nn.Module):
    """Layers on a buffer, on a parameter, on both expanded by image, and on the images."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.table = nn.Linear(5, width), nn.Linear(2, 16)
        self.deep, self.query = nn.Linear(16, width), nn.Linear(4, width)
        self.key, self.head = nn.Linear(width, width), nn.Linear(width, 3)
        self.register_buffer("offsets", torch.randn(TOKENS, 2))
        self.queries = nn.Parameter(torch.randn(1, 7, 4))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.deep(F.relu(self.table(self.offsets)))
        y = self.key(self.stem(x) + bias)
        queries = self.query(self.queries.expand(x.shape[0], -1, -1))
        return self.head(torch.softmax(queries @ y.mT, -1) @ y)
