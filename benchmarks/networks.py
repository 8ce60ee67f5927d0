"""Networks to prune in benchmarks, written to take published checkpoints by their parameter names.

`load_*` read a checkpoint from the shared data folder (see `shared_data`); the functions without
`load` give the architecture with fresh random weights. Every convolution and linear layer is a
plain `nn.Conv2d` or `nn.Linear`; padding that a convolution cannot express is a separate operation
before it, so a layer's input is always the tensor that meets its weights.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# He et al. 2015, https://arxiv.org/abs/1512.03385


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions; the shortcut has no parameters (option A of He et al., section 4.2).

    When the block widens, the shortcut takes every `stride`-th pixel and pads with zero channels,
    half of them on either side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height/stride, width/stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.missing == 0:
            return x
        before = self.missing // 2
        strided = x[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, before, self.missing - before))


class CifarResNet(nn.Module):
    """Residual network of 6 `blocks` + 2 layers for 32 x 32 images in ten classes."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 32, 32) to logits (batch, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))  # (batch, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (batch, 64, 8, 8)
        return self.linear(x.mean(dim=(2, 3)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions; the stride is in the 3 x 3 (known as ResNet v1.5)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height/stride, width/stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """Residual network of 50 layers for ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, 1000)

    @staticmethod
    def _stage(inputs: int, hidden: int, blocks: int, stride: int) -> nn.Sequential:
        outputs = 4 * hidden
        rest = [Bottleneck(outputs, hidden, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Bottleneck(inputs, hidden, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 224, 224) to logits (batch, 1000)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))  # (batch, 64, 56, 56)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (batch, 2048, 7, 7)
        return self.fc(x.mean(dim=(2, 3)))


# EfficientNet-Lite: Tan and Le 2019, https://arxiv.org/abs/1905.11946, without squeeze-and-excite
# and with ReLU6, both for the sake of fixed-point hardware.

# (expand, outputs, kernel, stride, repeats)
LITE0_STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)


class InvertedBlock(nn.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection; a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = expand * inputs
        if expand > 1:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _lite_norm(hidden)
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _lite_norm(hidden)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _lite_norm(outputs)
        self.expands = expand > 1
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height/stride, width/stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(pad_same(y, self._depthwise_conv))))
        y = self._bn2(self._project_conv(y))
        return y + x if self.has_shortcut else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for ImageNet, 4.65 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _lite_norm(32)
        self._blocks = nn.Sequential(*_lite0_blocks())
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = _lite_norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 224, 224) to logits (batch, 1000)."""
        x = F.relu6(self._bn0(self._conv_stem(pad_same(x, self._conv_stem))))
        x = self._blocks(x)  # (batch, 320, 7, 7)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean(dim=(2, 3)))


def pad_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad with zeros as TensorFlow's "SAME" does: the odd pixel goes to the right and the bottom.

    Args:
        x: Input of `conv`, (batch, chan, height, width).
        conv: Convolution without padding of its own.

    Returns:
        `x` padded so that `conv` gives ceil(height / stride) by ceil(width / stride) pixels.
    """
    top, bottom = _same(x.shape[2], conv.kernel_size[0], conv.stride[0])
    left, right = _same(x.shape[3], conv.kernel_size[1], conv.stride[1])
    return F.pad(x, (left, right, top, bottom))


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    outputs = math.ceil(size / stride)
    missing = max((outputs - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def _lite_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _lite0_blocks() -> list[InvertedBlock]:
    blocks, inputs = [], 32
    for expand, outputs, kernel, stride, repeats in LITE0_STAGES:
        for repeat in range(repeats):
            block_stride = stride if repeat == 0 else 1
            blocks.append(InvertedBlock(inputs, outputs, expand, kernel, block_stride))
            inputs = outputs
    return blocks


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10, (batch, 3, 32, 32) to (batch, 10); 0.27 million parameters."""
    return CifarResNet(blocks=3)


def resnet56() -> nn.Module:
    """ResNet-56 for CIFAR-10, (batch, 3, 32, 32) to (batch, 10); 0.85 million parameters."""
    return CifarResNet(blocks=9)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, (batch, 3, 224, 224) to (batch, 1000); 4.65 million parameters."""
    return EfficientNetLite0()


def resnet50(seed: int) -> nn.Module:
    """ResNet-50 with random weights for measuring time and memory, in evaluation mode.

    Weights are He-normal (fan out), biases zero and BatchNorm statistics those of a new layer; all
    depend on `seed` only. The last BatchNorm of each block is scaled by 0.2, so that activations
    keep their size through the 16 blocks.

    Args:
        seed: Seed of the generator that draws the weights.

    Returns:
        The network, (batch, 3, 224, 224) to (batch, 1000); 25.6 million parameters.
    """
    with torch.device("meta"):
        net = ResNet50()
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        _initialise(module, generator)
    for module in net.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.2)
    return net.eval()


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    match module:
        case nn.Conv2d():
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        case nn.Linear():
            std = 1 / math.sqrt(module.in_features)
            nn.init.normal_(module.weight, std=std, generator=generator)
            nn.init.zeros_(module.bias)
        case nn.BatchNorm2d():
            module.reset_parameters()


def load_resnet20(folder: Path) -> nn.Module:
    """Load ResNet-20 trained on CIFAR-10 (91.73 % of 10,000), in evaluation mode."""
    return _load_cifar(resnet20(), folder / "cifar10" / "resnet20-12fca82f.th")


def load_resnet56(folder: Path) -> nn.Module:
    """Load ResNet-56 trained on CIFAR-10 (93.39 % of 10,000), in evaluation mode."""
    return _load_cifar(resnet56(), folder / "cifar10" / "resnet56-4bfd9763.th")


def load_efficientnet_lite0(folder: Path) -> nn.Module:
    """Load EfficientNet-Lite0 trained on ImageNet-1k, in evaluation mode.

    Gives 82.6 % of the 650 images of `shared_data.imagenet_val`. On a CPU it runs several times
    faster after `.to(memory_format=torch.channels_last)`.
    """
    path = folder / "efficientnet_lite0" / "efficientnet-lite0-57934424.pth"
    net = efficientnet_lite0()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval()


def _load_cifar(net: nn.Module, path: Path) -> nn.Module:
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    # The checkpoints predate `num_batches_tracked`, which evaluation does not read.
    missing, unexpected = net.load_state_dict(
        {name.removeprefix("module."): value for name, value in state.items()}, strict=False
    )
    if unexpected or not all(name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")
    return net.eval()
