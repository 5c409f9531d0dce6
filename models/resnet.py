"""The nine-layer residual network that David Page designed for DAWNBench (https://myrtle.ai/learn/how-to-train-your-resnet/).

Shape legend: B images, C channels, S side of the image, K classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.convolution import Conv2d
from models.speednet import whitening_filters

LOGIT_SCALE = 0.125

Activation = Literal["relu", "gelu"]


class ConvBlock(nn.Sequential):
    """Convolution without bias, 2x2 max-pooling or not, norm, activation: (B, C, S, S) -> (B, C', S', S')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: Activation,
        pool: bool = False,
        kernel_size: Literal[1, 3] = 3,
    ):
        super().__init__(
            Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.MaxPool2d(2) if pool else nn.Identity(),  # before the norm: a quarter of the work
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True) if activation == "relu" else nn.GELU(),
        )


class Residual(nn.Module):
    """Two convolution blocks and the way around them: (B, C, S, S) -> (B, C, S, S)."""

    def __init__(self, channels: int, activation: Activation):
        super().__init__()
        self.branch = nn.Sequential(*(ConvBlock(channels, channels, activation) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ResNet9(nn.Module):
    """Images (B, 3, 32, 32) -> logits (B, K). 6,573,120 parameters for ten classes.

    The logits are scaled by an eighth, as in Page's net: the features are not normalised before the last layer,
    which at the rates that suit the other layers would overshoot.
    Sides may be other ones from 16 on; what is left of them after the last pooling is pooled as well.

    `whitened`: a fixed 3x3 convolution that whitens patches comes first, as in Page's last part, and a 1x1
    convolution in the place of the first 3x3. Call `init_whitening` with some normalised training images then.
    """

    SMALLEST_SIDE = 16  # the poolings leave two positions: batch norm wants them

    def __init__(
        self, n_classes: int = 10, in_channels: int = 3, *, whitened: bool = False, activation: Activation = "relu"
    ):
        super().__init__()
        self.whiten: nn.Conv2d | None = None
        n_filters = in_channels
        if whitened:
            n_filters = 2 * in_channels * 3**2
            self.whiten = nn.Conv2d(in_channels, n_filters, 3, padding=1, bias=False).requires_grad_(False)
        self.prep = ConvBlock(n_filters, 64, activation, kernel_size=1 if whitened else 3)
        self.layer1 = nn.Sequential(ConvBlock(64, 128, activation, pool=True), Residual(128, activation))
        self.layer2 = ConvBlock(128, 256, activation, pool=True)
        self.layer3 = nn.Sequential(ConvBlock(256, 512, activation, pool=True), Residual(512, activation))
        self.classifier = nn.Linear(512, n_classes, bias=False)

    @torch.no_grad()
    def init_whitening(self, images: Tensor) -> None:
        """Set the first layer, where it whitens, from normalised images (N, C, S, S)."""
        if self.whiten is not None:
            self.whiten.weight.copy_(whitening_filters(images, kernel_size=3))

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.whiten is None else self.whiten(images)
        x = self.prep(x)  # (B, 64, S, S)
        x = self.layer1(x)  # (B, 128, S/2, S/2)
        x = self.layer2(x)  # (B, 256, S/4, S/4)
        x = self.layer3(x)  # (B, 512, S/8, S/8)
        x = F.max_pool2d(x, x.shape[2:]).flatten(1)  # the adaptive one is not deterministic on CUDA
        return LOGIT_SCALE * self.classifier(x)
