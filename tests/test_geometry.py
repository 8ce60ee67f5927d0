"""A convolution's problem is a linear layer's on the unfolded input, for any geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from secateur.network.geometry import ConvolutionGeometry, LinearGeometry

GEOMETRIES = [
    ConvolutionGeometry(kernel=k, stride=s, padding=p, dilation=d, groups=g)
    for k, s, p, d, g in [
        ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        ((3, 2), (2, 1), ((0, 1), (1, 0)), (1, 1), 1),
        ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 2),
        ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 4),
        ((5, 3), (1, 2), ((2, 2), (0, 0)), (1, 3), 1),
    ]
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_times_the_matrix_are_the_convolution(geometry, layout) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 11, 9, generator=generator).contiguous(memory_format=layout)
    shape = (12, 8 // geometry.groups, *geometry.kernel)
    weight = torch.randn(shape, generator=generator)
    (top, bottom), (left, right) = geometry.padding
    y = F.conv2d(
        F.pad(x, (left, right, top, bottom)),
        weight,
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )
    every = torch.arange(geometry.count(y))
    patches = geometry.inputs(x, every, y.shape)
    product = patches @ geometry.matrix(weight).mT
    torch.testing.assert_close(product, geometry.outputs(y, every), rtol=1e-4, atol=1e-4)
    assert torch.equal(geometry.weight(geometry.matrix(weight), weight.shape), weight)


def test_patches_hold_what_unfold_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, generator=generator)
    geometry = ConvolutionGeometry(
        kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1
    )
    found = geometry.inputs(x, torch.arange(72), torch.Size((2, 5, 6, 6)))[0]
    slow = F.unfold(x, 3, padding=1).mT.reshape(72, 3, 9).mT.reshape(72, 27)
    assert torch.equal(found, slow)


def test_conv1d_and_linear_of_any_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 9, generator=generator)
    weight = torch.randn(6, 2, 3, generator=generator)
    geometry = ConvolutionGeometry(
        kernel=(3,), stride=(2,), padding=((1, 1),), dilation=(1,), groups=2
    )
    y = F.conv1d(x, weight, stride=2, padding=1, groups=2)
    every = torch.arange(geometry.count(y))
    product = geometry.inputs(x, every, y.shape) @ geometry.matrix(weight).mT
    torch.testing.assert_close(product, geometry.outputs(y, every))
    tokens, matrix = torch.randn(2, 5, 7, generator=generator), torch.randn(3, 7)
    out = F.linear(tokens, matrix)
    some = torch.tensor([0, 3, 9])
    product = LinearGeometry().inputs(tokens, some, out.shape) @ LinearGeometry().matrix(matrix).mT
    torch.testing.assert_close(product, LinearGeometry().outputs(out, some))


def test_three_spatial_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, 6, 7, generator=generator)
    weight = torch.randn(6, 2, 2, 3, 2, generator=generator)
    geometry = ConvolutionGeometry(
        kernel=(2, 3, 2),
        stride=(1, 2, 1),
        padding=((0, 1), (1, 0), (2, 1)),
        dilation=(1, 1, 2),
        groups=2,
    )
    padded = F.pad(x, (2, 1, 1, 0, 0, 1))
    y = F.conv3d(padded, weight, stride=(1, 2, 1), dilation=(1, 1, 2), groups=2)
    every = torch.arange(geometry.count(y))
    product = geometry.inputs(x, every, y.shape) @ geometry.matrix(weight).mT
    torch.testing.assert_close(product, geometry.outputs(y, every), rtol=1e-4, atol=1e-4)
    assert torch.equal(geometry.weight(geometry.matrix(weight), weight.shape), weight)
