"""Ultimus: three convolutions, then attention-like blocks on the pooled features of the image.

Shape legend: B images, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.speednet import whitening_filters


class PooledConv2d(nn.Conv2d):
    """A convolution, 3x3 with padding 1, and the mean over its positions, in one: (B, C, H, W) -> (B, C').

    With nothing between the two, a weight meets every pixel but those that its shift moves out of the image; so
    the mean over positions is the weights times nine sums of the input. The same function with the same weights
    as convolution and pooling, without the H W products for each weight; sums and products are in fp32 whatever
    the precision, as the means of images differ by little.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.sum(3, dtype=torch.float32)  # (B, C, H)
            # The left weights see all columns but the last, the middle ones all, the right ones all but the first.
            rows = torch.stack([rows - x[..., -1], rows, rows - x[..., 0]], -1)  # (B, C, H, 3)
            whole = rows.sum(2)  # (B, C, 3)
            sums = torch.stack([whole - rows[:, :, -1], whole, whole - rows[:, :, 0]], 2)  # (B, C, 3, 3)
            means = sums.flatten(1) / (x.shape[2] * x.shape[3])
            return F.linear(means, self.weight.flatten(1), self.bias)


class UltimusBlock(nn.Module):
    """x + out(softmax(q * k / sqrt(8)) * v) with q, k, v = three linear maps to 8 features: (B, 48) -> (B, 48).

    The softmax runs over the 8 features of one image; nothing is exchanged between images or positions.
    """

    def __init__(self, width: int, inner_width: int):
        super().__init__()
        self.query = nn.Linear(width, inner_width)
        self.key = nn.Linear(width, inner_width)
        self.value = nn.Linear(width, inner_width)
        self.out = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        weights = F.softmax(q * k / math.sqrt(q.shape[-1]), dim=-1)
        return x + self.out(weights * v)


class Ultimus(nn.Module):
    """Images (B, 3, S, S) of any size -> logits (B, K). 25,882 parameters for ten classes.

    Each feature sees 7x7 pixels: that, more than its size, bounds what it can tell apart.
    """

    SMALLEST_SIDE = 8  # in pixels

    def __init__(self, n_classes: int = 10, in_channels: int = 3, n_blocks: int = 4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            PooledConv2d(32, 48),
        )
        self.blocks = nn.Sequential(*(UltimusBlock(48, 8) for _ in range(n_blocks)))
        self.classifier = nn.Linear(48, n_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # without norms, the scale must come from the start
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def init_whitening(self, images: Tensor) -> None:
        """Begin with the eight strongest whitening filters of images (N, C, S, S), and their negatives.

        The net has no norms, which would make up for inputs that go together.
        """
        filters = whitening_filters(images, kernel_size=3)
        positive, negative = filters.chunk(2)
        self.features.get_parameter("0.weight").copy_(torch.cat([positive[:8], negative[:8]]))

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)  # (B, 48)
        # What follows costs nothing: in fp32 whatever the precision.
        with torch.autocast(x.device.type, enabled=False):
            return self.classifier(self.blocks(x))
