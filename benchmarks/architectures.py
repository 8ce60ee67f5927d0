"""Which networks can lose channels: 25 architectures, with random weights.

    pip install --no-deps timm && pip install huggingface_hub
    python benchmarks/architectures.py [--only NAME,NAME]

Of each group of channels that can leave as large a share goes as brings the network to 70 % of its
multiply-accumulates; where that cannot be met, as many as can leave. Which ones is drawn by lot:
the shrunk network has to give what the masked one gives, whichever they are. No layer is fitted.
Rewrites the rows of benchmarks/results/architectures.csv that it measures.
"""

import argparse
import collections
import enum
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from options import add_files, words
from results_table import MACHINE, append_row, machine, read_rows, write_rows
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.network.couplings import find_couplings, masked
from secateur.network.samples import Samples
from secateur.pruning.channels.allocation import most_removed
from secateur.pruning.channels.costs import macs_cost
from secateur.pruning.channels.space import ChannelSpace, find_space, removed_units
from secateur.pruning.layer_selection import layers_to_fit
from secateur.pruning.sampling import Sampling

TARGET = 0.7
COLUMNS = (
    "network",
    "source",
    "pixels",
    "macs",
    "share_free",  # of the multiply-accumulates, that can leave at most
    "groups_free",
    "groups_stuck",
    "reasons",
    "share_left",
    "largest_difference",  # over the largest output
    "kind",
    "seconds",
    "result",
    *MACHINE,
)
TIMM = {  # network: pixels
    "resnet50": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_large_100": 64,
    "efficientnet_b0": 64,
    "regnetx_008": 64,
    "regnety_008": 64,
    "densenet121": 64,
    "convnext_tiny": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "ghostnet_100": 64,
    "repvgg_a0": 64,
    "mobilevit_xs": 256,
    "levit_128s": 224,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "seresnet50": 64,
    "vgg11_bn": 64,
    "mnasnet_100": 64,
    "inception_v3": 128,
}


class Block(nn.Sequential):
    """A convolution, its BatchNorm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
        )


class UNet(nn.Module):
    """Three levels, with concatenations across."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.down = nn.ModuleList(
            nn.Sequential(Block(a, b), Block(b, b))
            for a, b in zip((3, 16, 32), widths, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in ((64, 32), (32, 16)))
        self.merge = nn.ModuleList(Block(2 * b, b) for b in (32, 16))
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        held = []
        for level in self.down:
            x = level(x)
            held.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = held.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), held.pop()], 1))
        return self.last(x)


class C2f(nn.Module):
    """Half of the channels pass through residual blocks; all stages are put together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.first = Block(width, width, 1)
        self.inner = nn.ModuleList(
            nn.Sequential(Block(half, half), Block(half, half)) for _ in "ab"
        )
        self.last = Block(4 * half, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for inner in self.inner:
            parts.append(parts[-1] + inner(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Like a YOLO: stages, a pyramid of features with upsampling, two heads at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 16, 3, 2), Block(16, 32, 3, 2), C2f(32))
        self.deep = nn.Sequential(Block(32, 64, 3, 2), C2f(64))
        self.neck = nn.Sequential(Block(96, 32), C2f(32))
        self.boxes = nn.ModuleList(
            nn.Sequential(Block(w, 32), nn.Conv2d(32, 4, 1)) for w in (32, 64)
        )
        self.classes = nn.ModuleList(
            nn.Sequential(Block(w, 32), nn.Conv2d(32, 10, 1)) for w in (32, 64)
        )

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        deep = self.deep(fine)
        fine = self.neck(torch.cat([fine, nn.functional.interpolate(deep, scale_factor=2.0)], 1))
        found = [
            torch.cat([box(of), kind(of)], 1).flatten(2)
            for of, box, kind in zip((fine, deep), self.boxes, self.classes, strict=True)
        ]
        return torch.cat(found, 2)


class Encoder(nn.Module):
    """PyTorch's own transformer layers on patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


HAND: dict[str, Callable[[], nn.Module]] = {
    "U-Net": UNet,
    "YOLO-like detector": Detector,
    "torch.nn.TransformerEncoder": Encoder,
}


def network(name: str) -> nn.Module:
    """In eval mode, with random BatchNorm statistics and scales."""
    torch.manual_seed(0)
    if name in HAND:
        model = HAND[name]()
    else:
        stand_ins()
        import timm

        model = timm.create_model(name, pretrained=False)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
            nn.init.normal_(part.running_mean, 0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    for held, tensor in model.named_parameters():
        if held.rpartition(".")[2] in ("gamma", "attention_biases"):
            nn.init.normal_(tensor, 1, 0.2)  # layer scales start at almost nothing
    return model.eval()


def stand_ins() -> None:
    """Empty modules for torchvision, which timm imports but does not need for its networks."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        return
    names = (
        "ops ops.misc models models.feature_extraction transforms transforms.functional datasets"
    )
    for name in ("torchvision", *(f"torchvision.{part}" for part in names.split())):
        module: Any = types.ModuleType(name)
        module.__path__ = []
        module.__getattr__ = _nothing
        sys.modules[name] = module
        if parent := name.rpartition(".")[0]:
            setattr(sys.modules[parent], name.rpartition(".")[2], module)


def _nothing(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "InterpolationMode":
        return enum.Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
    return type(name, (nn.Module,), {})


def measure(name: str, pixels: int) -> dict[str, Any]:
    """What came of one network."""
    start = time.perf_counter()
    model = TorchFrontend.of(network(name))
    images = Samples({"images": torch.randn(2, 3, pixels, pixels)})
    try:
        graph = model.trace(images)
        layers = graph.layers
        space = find_space(
            find_couplings(graph), layers_to_fit(layers), sampling=Sampling(max_columns=8192)
        )
        row = described(space) | {"macs": round(sum(layer.macs for layer in layers))}
        if not space.removable:
            return row | {"share_free": "0.000", "result": "no channel can leave"}
        cost = macs_cost(layers, space.removable)
        most = most_removed(space.removable)
        row["share_free"] = f"{1 - cost.at(most) / cost.dense:.3f}"
        counts = reaching(space, cost, most)
        row["share_left"] = f"{cost.at(counts) / cost.dense:.3f}"
        row |= compared(model, space, counts, images)
    except SecateurError as error:
        row = {**locals().get("row", {}), "result": " ".join(str(error).split())[:300]}
    return row | {"seconds": f"{time.perf_counter() - start:.0f}"}


def described(space: ChannelSpace) -> dict[str, Any]:
    """Groups of channels, and why some cannot leave."""
    why = collections.Counter(of.reason for of in space.stuck).most_common(3)
    return {
        "groups_free": len(space.removable),
        "groups_stuck": len(space.stuck),
        "reasons": "; ".join(f"{count}x {reason}" for reason, count in why),
    }


def reaching(space: ChannelSpace, cost: Any, most: np.ndarray) -> np.ndarray:
    """The same share of each group, as large as the target asks for."""
    steps = np.array([of.step for of in space.removable])
    shares = np.linspace(0, 1, 101)
    tried = [(share * most / steps).astype(int) * steps for share in shares]
    met = (counts for counts in tried if cost.at(counts) <= TARGET * cost.dense)
    return next(met, most)


def drawn(space: ChannelSpace, counts: Sequence[int]) -> list[list[int]]:
    """Units by lot, as many of each block."""
    rng = np.random.default_rng(0)
    found = []
    for of, count in zip(space.removable, counts, strict=True):
        blocks = of.coupling.blocks or (tuple(range(of.units)),)
        each = int(count) // len(blocks)
        found.append([int(at) for block in blocks for at in rng.permutation(block)[:each]])
    return found


def compared(
    model: TorchFrontend, space: ChannelSpace, counts: Sequence[int], images: Samples
) -> dict[str, Any]:
    """The shrunk network beside the masked one."""
    removed = removed_units(space, drawn(space, counts))
    shrunk = model.shrunk(removed, images)  # raises where it is not the same
    ignoring = model.edited(masked(model.tensors(), removed))
    with torch.no_grad():
        wanted, got = (of.model(images.only()) for of in (ignoring, shrunk))
    difference = (got - wanted).abs().max() / wanted.abs().max()
    return {
        "largest_difference": f"{float(difference):.1e}",
        "kind": "traced program" if shrunk.notes else "module",
        "result": "same",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Which networks can lose channels.")
    add_files(parser, "architectures.csv")
    parser.add_argument("--only", type=words, help="networks, separated by commas")
    options = parser.parse_args()
    every = {**TIMM, **dict.fromkeys(HAND, 64)}
    chosen = options.only or list(every)
    write_rows(
        options.out,
        COLUMNS,
        [row for row in read_rows(options.out) if row["network"] not in chosen],
    )
    for name in chosen:
        row = {"network": name, "source": "by hand" if name in HAND else "timm"}
        row |= {"pixels": every[name], **measure(name, every[name]), **machine()}
        append_row(options.out, COLUMNS, row)
        shown = {key: of for key, of in row.items() if key not in MACHINE}
        print(*shown.values(), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
