"""A trained network small enough to ship: a residual CNN for Fashion-MNIST.

The data are Zalando's Fashion-MNIST (MIT licence, see `LICENSE-fashion-mnist.txt`); the weights
come from `scripts/train_example.py`. Everything is read from the installed package.

    from secateur import example

    net, (images, labels) = example.trained(), example.test()
    accuracy = (net(images).argmax(1) == labels).float().mean()
"""

import io
import math
from collections import OrderedDict
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load
from torch import Tensor, nn

__all__ = ["calibration", "network", "normalise", "test", "trained"]

# Mean and standard deviation of the training pixels, scaled to [0, 1].
_MEAN, _STD = 0.2860, 0.3530


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, height / stride, width / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def network(seed: int = 0) -> nn.Module:
    """Build the network with random weights, in training mode.

    Maps (batch, 1, 28, 28) to logits (batch, 10). The weights depend on `seed` only; torch's global
    random state is neither read nor changed.

    Args:
        seed: Seed of the generator that draws the weights.

    Returns:
        The network, 187 thousand parameters, an `nn.Sequential` of named blocks.
    """
    with torch.device("meta"):
        net = _architecture()
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        _initialise(module, generator)
    return net


def trained() -> nn.Module:
    """Build the network with the shipped weights, in evaluation mode."""
    with torch.device("meta"):
        net = _architecture()
    net.load_state_dict(load(_read("weights.safetensors")), assign=True)
    return net.eval()


def calibration() -> Float[Tensor, "300 1 28 28"]:
    """Read 300 normalised images of the training split, (300, 1, 28, 28) float32."""
    return normalise(torch.from_numpy(_arrays()["calibration_images"]))


def test() -> tuple[Float[Tensor, "2500 1 28 28"], Int64[Tensor, "2500"]]:
    """Read the first 2,500 images of the test split.

    Returns:
        Normalised images (2500, 1, 28, 28) float32 and their classes (2500,) int64 in 0..9.
    """
    arrays = _arrays()
    labels = torch.from_numpy(arrays["test_labels"]).long()
    return normalise(torch.from_numpy(arrays["test_images"])), labels


def normalise(pixels: UInt8[Tensor, "batch 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
    """Turn pixels (batch, 28, 28) uint8 into network input (batch, 1, 28, 28) float32."""
    return ((pixels.float() / 255 - _MEAN) / _STD).unsqueeze(1)


def _architecture() -> nn.Sequential:
    blocks = {
        "stem": _chain(_conv(1, 16, 3, stride=2), final_relu=True),  # 28 x 28 -> 14 x 14
        "basic": Residual(_chain(_conv(16, 16, 3), _conv(16, 16, 3)), nn.Identity()),
        "strided": Residual(  # 14 x 14 -> 7 x 7
            _chain(_conv(16, 48, 3, stride=2), _conv(48, 48, 3)),
            _chain(_conv(16, 48, 1, stride=2)),
        ),
        "separable": Residual(
            _chain(_conv(48, 96, 1), _conv(96, 96, 3, groups=96), _conv(96, 48, 1)),
            nn.Identity(),
        ),
        "grouped": Residual(  # 7 x 7 -> 4 x 4
            _chain(_conv(48, 96, 1), _conv(96, 96, 3, stride=2, groups=4), _conv(96, 96, 1)),
            _chain(_conv(48, 96, 1, stride=2)),
        ),
        "bottleneck": Residual(
            _chain(_conv(96, 96, 1), _conv(96, 96, 3), _conv(96, 96, 1)), nn.Identity()
        ),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(96, 10),
    }
    return nn.Sequential(OrderedDict(blocks))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def _chain(*convs: nn.Conv2d, final_relu: bool = False) -> nn.Sequential:
    """Put a BatchNorm after each convolution and a ReLU between them."""
    layers: dict[str, nn.Module] = {}
    for i, conv in enumerate(convs, start=1):
        layers[f"conv{i}"] = conv
        layers[f"bn{i}"] = nn.BatchNorm2d(conv.out_channels)
        if i < len(convs) or final_relu:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(OrderedDict(layers))


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    match module:
        case nn.Conv2d():
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        case nn.Linear():
            std = 1 / math.sqrt(module.in_features)
            nn.init.normal_(module.weight, std=std, generator=generator)
            nn.init.zeros_(module.bias)
        case nn.BatchNorm2d():
            module.reset_parameters()


def _arrays() -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(_read("fashion_mnist.npz"))) as archive:
        return dict(archive)


def _read(name: str) -> bytes:
    return resources.files(__name__).joinpath(name).read_bytes()
