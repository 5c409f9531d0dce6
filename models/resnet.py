"""The nine-layer residual network that David Page designed for DAWNBench (https://myrtle.ai/learn/how-to-train-your-resnet/).

Shape legend: B images, C channels, S side of the image, K classes.
"""

from torch import Tensor, nn

LOGIT_SCALE = 0.125


class ConvBlock(nn.Sequential):
    """3x3 convolution without bias, optional 2x2 max-pooling, batch norm, ReLU: (B, C, S, S) -> (B, C', S', S')."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool = False):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.MaxPool2d(2) if pool else nn.Identity(),  # before the norm: a quarter of the work
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """Two convolution blocks and the way around them: (B, C, S, S) -> (B, C, S, S)."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ResNet9(nn.Module):
    """Images (B, 3, 32, 32) -> logits (B, K). 6,573,120 parameters for ten classes.

    The logits are scaled by an eighth, as in Page's net: the features are not normalised before the last layer,
    which at the rates that suit the other layers would overshoot.
    Sides of other sizes must be multiples of 8; what is left of them after the last pooling is pooled as well.
    """

    SMALLEST_SIDE = 16  # the poolings leave two positions: batch norm wants them

    def __init__(self, n_classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.prep = ConvBlock(in_channels, 64)
        self.layer1 = nn.Sequential(ConvBlock(64, 128, pool=True), Residual(128))
        self.layer2 = ConvBlock(128, 256, pool=True)
        self.layer3 = nn.Sequential(ConvBlock(256, 512, pool=True), Residual(512))
        self.pool = nn.AdaptiveMaxPool2d(1)  # of 4x4 for images of 32x32
        self.classifier = nn.Linear(512, n_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.prep(images)  # (B, 64, S, S)
        x = self.layer1(x)  # (B, 128, S/2, S/2)
        x = self.layer2(x)  # (B, 256, S/4, S/4)
        x = self.layer3(x)  # (B, 512, S/8, S/8)
        return LOGIT_SCALE * self.classifier(self.pool(x).flatten(1))
