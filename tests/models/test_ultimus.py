import math

import pytest
import torch
from torch import nn

from models.ultimus import PooledConv2d, Ultimus, UltimusBlock


def test_it_has_the_parameters_of_the_course():
    assert sum(p.numel() for p in Ultimus().parameters()) == 25_882


@pytest.mark.parametrize("size", [(32, 32), (5, 9), (1, 4), (1, 1)])
def test_the_last_convolution_is_pooled_as_if_it_were_made(size):
    torch.manual_seed(0)
    layer = PooledConv2d(6, 10)
    images = torch.randn(3, 6, *size, requires_grad=True)
    weighting = torch.randn(3, 10)
    inputs = [images, layer.weight, layer.bias]
    pooled = layer(images)
    gradients = torch.autograd.grad((pooled * weighting).sum(), inputs)

    plain = nn.functional.conv2d(*(t.double() for t in inputs), padding=1).mean((2, 3))
    torch.testing.assert_close(pooled, plain.float())
    of_plain = torch.autograd.grad((plain * weighting).sum(), inputs)
    torch.testing.assert_close(gradients, of_plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_of_half_precision_are_pooled_in_full():
    torch.manual_seed(0)
    layer = PooledConv2d(6, 10)
    images = (100 + torch.randn(3, 6, 32, 32)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = layer(images.bfloat16())
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, layer(images.bfloat16().float()))


@torch.no_grad()
def test_a_block_weighs_features_of_one_image_at_a_time():
    torch.manual_seed(0)
    block = UltimusBlock(48, 8)
    x = torch.randn(5, 48)
    expected = []
    for row in x:  # one image, one feature at a time
        q, k, v = block.query(row), block.key(row), block.value(row)
        scores = [math.exp(float(q[i] * k[i]) / math.sqrt(8)) for i in range(8)]
        weighted = torch.tensor([scores[i] / sum(scores) * float(v[i]) for i in range(8)])
        expected.append(row + block.out(weighted))
    torch.testing.assert_close(block(x), torch.stack(expected))


def test_the_image_is_pooled_whatever_its_size():
    model = Ultimus(n_classes=7).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model(torch.randn(2, 3, 17, 40)).shape == (2, 7)
