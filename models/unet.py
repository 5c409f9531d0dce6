"""U-Net (Ronneberger, Fischer & Brox 2015, arXiv 1505.04597) for images of any size.

An encoder that halves the sides and doubles the channels `depth` times, a decoder that undoes it, and at each
level a skip connection between the two. Unlike in the paper, convolutions are padded, so that the logits have the
size of the image, and have norms. Shape legend: B images, C channels, H height, W width.
"""

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convolution import Conv2d

Downsampling = Literal["maxpool", "strided"]
Upsampling = Literal["transposed", "bilinear"]
Norm = Literal["batch", "group", "instance", "none"]
Encoder = Literal["plain", "residual"]

N_GROUPS = 8  # of group norm, whatever the number of channels


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """The norm with a trained scale and bias for each channel: (B, C, H, W) -> (B, C, H, W)."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(N_GROUPS, channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


class ConvBlock(nn.Sequential):
    """Convolution, norm, ReLU. 3x3 keeps the size; 2x2 steps by two: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, kernel_size: Literal[2, 3] = 3):
        stride, padding = (2, 0) if kernel_size == 2 else (1, 1)
        # A norm would take the bias away, and has its own.
        conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=norm == "none")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        super().__init__(conv, norm_layer(norm, out_channels), nn.ReLU(inplace=True))


class DoubleConv(nn.Sequential):
    """The two convolutions of a level: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm):
        super().__init__(ConvBlock(in_channels, out_channels, norm), ConvBlock(out_channels, out_channels, norm))


class ResidualBlock(nn.Module):
    """Two convolutions with norms and the way around them, ReLU after the sum: (B, C, H, W) -> (B, C', H, W).

    Where C' is not C the way around is a 1x1 convolution with a norm (He et al. 2016, arXiv 1512.03385).
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm):
        super().__init__()
        self.conv1 = ConvBlock(in_channels, out_channels, norm)
        self.conv2 = conv_with_norm(out_channels, out_channels, norm, kernel_size=3)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_with_norm(in_channels, out_channels, norm, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


def conv_with_norm(in_channels: int, out_channels: int, norm: Norm, kernel_size: Literal[1, 3]) -> nn.Sequential:
    """A convolution that keeps the size and its norm, without ReLU: (B, C, H, W) -> (B, C', H, W)."""
    conv = Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, norm_layer(norm, out_channels))


def encoder_level(encoder: Encoder, in_channels: int, out_channels: int, norm: Norm, n_blocks: int) -> nn.Module:
    """The blocks of a level of the encoder, of two convolutions each: (B, C, H, W) -> (B, C', H, W)."""
    block = ResidualBlock if encoder == "residual" else DoubleConv
    first = block(in_channels, out_channels, norm)
    if n_blocks == 1:
        return first
    return nn.Sequential(first, *(block(out_channels, out_channels, norm) for _ in range(n_blocks - 1)))


def logits_layer(channels: int, n_outputs: int) -> nn.Conv2d:
    """A 1x1 convolution whose logits begin small, so that no pixel begins with a strong opinion."""
    layer = nn.Conv2d(channels, n_outputs, 1)
    nn.init.normal_(layer.weight, std=1 / channels)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def downsample_layer(downsampling: Downsampling, channels: int, norm: Norm) -> nn.Module:
    """(B, C, H, W) -> (B, C, H / 2, W / 2).

    The strided convolution is 2x2: each pixel enters it once. With 3x3 at stride 2 a pixel enters one, two or four
    windows, depending on its position, and the gradient shows the same checkerboard (Odena et al. 2016,
    https://distill.pub/2016/deconv-checkerboard).
    """
    return nn.MaxPool2d(2) if downsampling == "maxpool" else ConvBlock(channels, channels, norm, kernel_size=2)


def upsample_layer(upsampling: Upsampling, in_channels: int, out_channels: int) -> nn.Module:
    """(B, C, H, W) -> (B, C', 2 H, 2 W), without norm or ReLU, like the up-convolution of the paper.

    The transposed convolution has a kernel as large as its stride, so that no two windows overlap: uneven overlap
    is what draws checkerboards. Bilinear upsampling with a 3x3 convolution is Odena's other remedy.
    """
    if upsampling == "transposed":
        conv: nn.ConvTranspose2d | nn.Conv2d = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        layer: nn.Module = conv
        fan_in = in_channels  # a pixel comes from one position; nn.init would take dimension 1 for the inputs
    else:
        conv = Conv2d(in_channels, out_channels, 3, padding=1)
        layer = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv)
        fan_in = 9 * in_channels
    nn.init.normal_(conv.weight, std=fan_in**-0.5)  # no ReLU follows: gain 1
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return layer


class UNet(nn.Module):
    """Images (B, in_channels, H, W) of any size -> logits (B, n_outputs, H, W).

    One output is the logit of foreground against background; more are exclusive classes. `width` is the number of
    channels at the full resolution, `depth` how often the sides are halved; at each halving the channels double, up
    to `max_width` where it is not 0. `dropout` zeroes that share of the channels at the coarsest level in training
    (in the paper, too, dropout stands at the end of the encoder). The encoder, with the coarsest level, has
    `encoder_blocks` blocks of two convolutions at each level, with a way around each where it is "residual" (as
    nnU-Net's, Isensee et al. 2024, arXiv 2404.09556). Defaults but for the width, 64: 31,037,633 parameters.

    With `deep_supervision` each coarser level of the decoder has a head of its own, and in training the net gives
    the logits of all L = `depth` levels, resized to the image: (L, B, n_outputs, H, W), the finest first.

    Weights begin as in section 3 of the paper (He et al. 2015, arXiv 1502.01852): with variance 2 / fan-in before
    a ReLU, six times that of torch's default, which lets a deep net without norms fade out. Biases begin at zero,
    and so, nearly, do the logits.

    Raises ValueError for arguments that make no net.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_outputs: int = 1,
        *,
        width: int = 32,
        depth: int = 4,
        max_width: int = 0,
        downsampling: Downsampling = "maxpool",
        upsampling: Upsampling = "transposed",
        norm: Norm = "batch",
        dropout: float = 0.0,
        encoder: Encoder = "plain",
        encoder_blocks: int = 1,
        deep_supervision: bool = False,
    ):
        super().__init__()
        numbers = {"in_channels": in_channels, "n_outputs": n_outputs, "width": width, "depth": depth}
        numbers["encoder_blocks"] = encoder_blocks
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} of {number}: give 1 or more")
        choices = [
            ("downsampling", downsampling, Downsampling),
            ("upsampling", upsampling, Upsampling),
            ("norm", norm, Norm),
            ("encoder", encoder, Encoder),
        ]
        for name, choice, kind in choices:
            if choice not in get_args(kind):
                raise ValueError(f"{name} {choice!r} is not one of {', '.join(get_args(kind))}")
        if norm == "group" and width % N_GROUPS:
            raise ValueError(f"width {width} is not a multiple of {N_GROUPS}, the groups of group norm")
        if norm == "none" and encoder == "residual":
            raise ValueError("a residual encoder needs norms: give another norm, or the plain encoder")
        if max_width and max_width < width:
            raise ValueError(
                f"max_width {max_width} is below width {width}: give {width} or more, or 0 for no limit"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout of {dropout}: give a probability below 1")

        self.depth, self.deep_supervision = depth, deep_supervision
        channels = [min(width * 2**level, max_width or width * 2**depth) for level in range(depth + 1)]
        finer = channels[:-1]
        self.encoder = nn.ModuleList(
            encoder_level(encoder, c_in, c, norm, encoder_blocks)
            for c_in, c in zip([in_channels, *finer[:-1]], finer, strict=True)
        )
        self.downsample = nn.ModuleList(downsample_layer(downsampling, c, norm) for c in finer)
        self.bottleneck = encoder_level(encoder, finer[-1], channels[-1], norm, encoder_blocks)
        self.dropout = nn.Dropout2d(dropout)
        self.upsample = nn.ModuleList(
            upsample_layer(upsampling, c_in, c) for c, c_in in reversed(list(pairwise(channels)))
        )
        self.decoder = nn.ModuleList(DoubleConv(2 * c, c, norm) for c in reversed(finer))
        self.head = logits_layer(width, n_outputs)
        coarser = finer[:0:-1] if deep_supervision else []
        self.level_heads = nn.ModuleList(logits_layer(c, n_outputs) for c in coarser)  # coarse to fine

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels to add at the (left, right, top, bottom) of an image, so that it can be halved `depth` times.

        At the coarsest level two positions are left at least: a norm over a single one returns a constant, which
        torch refuses.
        """
        multiple = 2**self.depth
        # Not by `%`: torch.compile of 2.13 fails on the remainder of a size that changes between calls.
        extra_height, extra_width = (-(-size // multiple) * multiple - size for size in (height, width))
        if height <= multiple and width <= multiple:
            extra_width += multiple
        left, top = extra_width // 2, extra_height // 2
        return left, extra_width - left, top, extra_height - top

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        left, right, top, bottom = self.padding(height, width)
        # Edges are repeated: reflection, the paper's choice, cannot add more pixels than there are.
        x = F.pad(images, (left, right, top, bottom), mode="replicate")
        return self.logits_of_padded(x)[..., top : top + height, left : left + width]

    def logits_of_padded(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) whose sides can be halved `depth` times -> logits (B, n_outputs, H, W).

        In training under deep supervision (L, B, n_outputs, H, W).
        """
        skips = []
        for block, downsample in zip(self.encoder, self.downsample, strict=True):
            x = block(x)  # (B, width * 2**level, H / 2**level, W / 2**level)
            skips.append(x)
            x = downsample(x)
        x = self.dropout(self.bottleneck(x))
        states = []  # of the decoder's levels, coarse to fine
        for upsample, block, skip in zip(self.upsample, self.decoder, reversed(skips), strict=True):
            x = block(torch.cat([skip, upsample(x)], dim=1))
            states.append(x)
        logits = self.head(x)
        if not (self.training and self.deep_supervision):
            return logits
        coarser = [head(state) for head, state in zip(self.level_heads, states[:-1], strict=True)]
        resized = [F.interpolate(level, logits.shape[2:], mode="bilinear") for level in reversed(coarser)]
        return torch.stack([logits, *resized])
