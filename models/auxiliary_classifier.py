"""A small classifier that is trained beside a generative model and tells it what its labels should look like."""

from torch import Tensor, nn
from torch.nn import functional as F

GROUP_CHANNELS = 16  # of a group norm: an image never depends on its batch


class LabelClassifier(nn.Module):
    """Pictures (B, C, S, S), floats from -1 to 1, S >= 8 -> logits (B, K).

    Grey pictures (C = 1) get half the channels of coloured ones. Squares of `pooling` pixels are averaged first.
    """

    def __init__(self, channels: int, n_classes: int, pooling: int = 1):
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(pooling)] if pooling > 1 else []
        first = 32 if channels == 1 else 64
        for width in (first, 2 * first, 4 * first):  # at a half, a quarter and an eighth of the side
            for stride in (2, 1):
                conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
                layers += [conv, nn.GroupNorm(width // GROUP_CHANNELS, width), nn.SiLU()]
                channels = width
        self.features, self.head = nn.Sequential(*layers), nn.Linear(channels, n_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(pictures), 1).flatten(1))
