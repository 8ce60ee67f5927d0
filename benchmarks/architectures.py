"""Which networks can lose channels: architectures from timm and by hand, with random weights.

    pip install --no-deps --target FOLDER timm && pip install --target FOLDER huggingface_hub
    PYTHONPATH=FOLDER python benchmarks/architectures.py [--only "NAME;NAME"] [--forms module,onnx]

Of each group of channels that can leave as large a share goes as brings the network to 70 % of its
multiply-accumulates; where that cannot be met, as many as can leave. Which ones is drawn by lot:
the shrunk network has to give what the masked one gives, whichever they are. No layer is fitted.
Each as a module, those of ONNX also as the file that is exported from it. Rewrites the rows of
benchmarks/results/architectures.csv that it measures.
"""

import argparse
import collections
import enum
import functools
import importlib.util
import itertools
import re
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

from secateur import frontends
from secateur.errors import SecateurError
from secateur.frontends.protocol import Frontend
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
    "form",
    "pixels",
    "macs",
    "share_free",  # of the multiply-accumulates, that can leave at most
    "groups_free",
    "groups_stuck",
    "reasons",  # why channels other than the outputs stay
    "share_left",
    "largest_difference",  # over the largest output
    "kind",
    "seconds",
    "result",
    *MACHINE,
)
ONNX = (
    *("resnet18", "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "regnety_008"),
    *("ghostnet_100", "repvgg_a0", "vit_tiny_patch16_224", "U-Net", "YOLO-like detector"),
    *("ResNet-20, padded shortcuts", "ShuffleNet V2 units"),
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
    "convnextv2_atto": 64,
    "skresnet18": 64,
    "resnest14d": 64,
    "res2net50_26w_4s": 64,
    "hrnet_w18_small": 64,
    "cspresnet50": 64,
    "poolformer_s12": 64,
    "efficientformer_l1": 224,
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


class Padded(nn.Module):
    """A residual block of CIFAR's ResNets, whose shortcut has zeros for new channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.more = (2 if outputs > inputs else 1), outputs - inputs
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        x = x[:, :, :: self.stride, :: self.stride]
        return (nn.functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more // 2)) + y).relu()


class ResNet20(nn.Sequential):
    """Of CIFAR-10."""

    def __init__(self) -> None:
        widths = (16, *[16] * 3, *[32] * 3, *[64] * 3)
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(Padded(a, b) for a, b in itertools.pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class Shuffled(nn.Module):
    """A unit of ShuffleNet V2: one half passes, both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            Block(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            Block(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, other = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(other)], 1)
        batch, width, height, across = x.shape
        x = x.view(batch, 2, width // 2, height, across).transpose(1, 2)
        return x.reshape(batch, width, height, across)


class ShuffleNet(nn.Sequential):
    """Two stages of units, with convolutions between them."""

    def __init__(self) -> None:
        super().__init__(
            Block(3, 32, 3, 2),
            *(Shuffled(32) for _ in range(3)),
            Block(32, 64, 3, 2),
            *(Shuffled(64) for _ in range(3)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


HAND: dict[str, Callable[[], nn.Module]] = {
    "U-Net": UNet,
    "YOLO-like detector": Detector,
    "torch.nn.TransformerEncoder": Encoder,
    "ResNet-20, padded shortcuts": ResNet20,
    "ShuffleNet V2 units": ShuffleNet,
}


def network(name: str) -> nn.Module:
    """In eval mode, with random BatchNorm statistics and scales, and no layer of zeros."""
    torch.manual_seed(0)
    model = HAND[name]() if name in HAND else timm().create_model(name, pretrained=False)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
            nn.init.normal_(part.running_mean, 0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    for held, tensor in model.named_parameters():
        if held.rpartition(".")[2] in ("gamma", "attention_biases"):
            nn.init.normal_(tensor, 1, 0.2)  # layer scales start at almost nothing
        elif tensor.dim() > 1 and not tensor.any():
            nn.init.normal_(tensor, 0, 0.1)  # so do some last layers
    return model.eval()


@functools.cache
def timm() -> Any:
    """The package, with empty modules for torchvision while it is imported.

    Its networks do not need torchvision.
    """
    if importlib.util.find_spec("torchvision"):
        return importlib.import_module("timm")
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
    package = importlib.import_module("timm")
    for name in [of for of in sys.modules if of.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return package


def _nothing(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "InterpolationMode":
        return enum.Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
    return type(name, (nn.Module,), {})


def measure(name: str, pixels: int, form: str) -> dict[str, Any]:
    """What came of one network."""
    start = time.perf_counter()
    model: Frontend = TorchFrontend.of(network(name))
    images = Samples({"images": torch.randn(2, 3, pixels, pixels)})
    row: dict[str, Any] = {}
    try:
        if form == "onnx":
            model = frontends.open(model.to_onnx(images.only()))
            images = Samples({"input": images.only()})
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
        row["result"] = " ".join(str(error).split())[:300]
    return row | {"seconds": f"{time.perf_counter() - start:.0f}"}


def described(space: ChannelSpace) -> dict[str, Any]:
    """Groups of channels, and why some cannot leave."""
    reasons = (re.sub(r"the output of \S+,", "a value", of.reason) for of in space.stuck)
    why = collections.Counter(of for of in reasons if of != "the network's output")
    return {
        "groups_free": len(space.removable),
        "groups_stuck": len(space.stuck),
        "reasons": "; ".join(f"{count}x {reason}" for reason, count in why.most_common()),
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
        units = [int(at) for block in blocks for at in rng.permutation(block)[:each]]
        for share in of.coupling.shares:
            if share <= {*units}:  # one of each layer stays
                units.remove(min(share))
        found.append(units)
    return found


def compared(
    model: Frontend, space: ChannelSpace, counts: Sequence[int], images: Samples
) -> dict[str, Any]:
    """The shrunk network beside the masked one."""
    removed = removed_units(space, drawn(space, counts))
    shrunk = model.shrunk(removed, images)  # raises where it is not the same
    ignoring = model.edited(masked(model.tensors(), removed))
    wanted, got = (outputs(of, images.only()) for of in (ignoring, shrunk))
    difference = (got - wanted).abs().max() / wanted.abs().max()
    return {
        "largest_difference": f"{float(difference):.1e}",
        "kind": "traced program" if getattr(shrunk, "notes", ()) else "",
        "result": "same",
    }


def outputs(model: Frontend, images: Tensor) -> Tensor:
    """What a network gives."""
    with torch.no_grad(), model.running(images) as run:
        return run(images)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which networks can lose channels.")
    add_files(parser, "architectures.csv")
    parser.add_argument("--only", help="networks, separated by semicolons; NAME:PIXELS too")
    parser.add_argument("--forms", type=words, default=["module", "onnx"])
    options = parser.parse_args()
    every = {**TIMM, **dict.fromkeys(HAND, 64)}
    names = [name.partition(":") for name in (options.only.split(";") if options.only else every)]
    chosen = [
        (name, form, int(pixels or every.get(name, 64)))
        for name, _, pixels in names
        for form in options.forms
        if form == "module" or name in ONNX
    ]
    again = {(name, form) for name, form, _ in chosen}
    held = [row for row in read_rows(options.out) if (row["network"], row["form"]) not in again]
    write_rows(options.out, COLUMNS, held)
    for name, form, pixels in chosen:
        source = "by hand" if name in HAND else "timm"
        row = {"network": name, "source": source, "form": form, "pixels": pixels}
        row |= {**measure(name, pixels, form), **machine()}
        append_row(options.out, COLUMNS, row)
        shown = {key: of for key, of in row.items() if key not in MACHINE}
        print(*shown.values(), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
