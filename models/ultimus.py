"""Ultimus: three convolutions, then attention-like blocks on the pooled features of the image.

Shape legend: B images, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.speednet import whitening_filters


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

    def __init__(self, n_classes: int = 10, in_channels: int = 3, n_blocks: int = 4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 48, 3, padding=1),
        )
        self.blocks = nn.Sequential(*(UltimusBlock(48, 8) for _ in range(n_blocks)))
        self.classifier = nn.Linear(48, n_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # without norms, the scale must come from the start
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def init_whitening(self, images: Tensor) -> None:
        """Begin with the eight strongest whitening filters of images (N, C, S, S), and their negatives.

        The net has no norms, which would make up for inputs that go together.
        """
        filters = whitening_filters(images, kernel_size=3)
        positive, negative = filters.chunk(2)
        self.features[0].weight.copy_(torch.cat([positive[:8], negative[:8]]))

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images).mean((2, 3), dtype=torch.float32)  # (B, 48)
        # The means of images differ by little, and the rest costs nothing: in fp32 whatever the precision.
        with torch.autocast(x.device.type, enabled=False):
            return self.classifier(self.blocks(x))
