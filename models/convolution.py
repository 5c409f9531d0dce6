"""Convolutions whose weights learn fast on small maps.

For the gradient of the weights in bf16, oneDNN on a CPU with AMX takes 32 positions of a row at a time, and fills
up rows that are shorter: on maps of 4 columns, as deep in a net, seven eighths of the work is on zeros. Several
images laid side by side fill the rows; a column of zeros between them keeps each to itself.
Shapes: B images, C channels, H rows, W columns.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

POSITIONS = 32  # of a row, that AMX's tiles take at a time in bf16
HAS_AMX = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()  # torch has no public way to ask
LEAST_IMAGES = 3  # in a row; laying two side by side costs what it saves


class Conv2d(nn.Conv2d):
    """nn.Conv2d, whose weights' gradient is computed with images side by side where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad and self._pays(x)):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.bfloat16()
        return SideBySide.apply(x.bfloat16(), self.weight.bfloat16(), bias)

    def _pays(self, x: Tensor) -> bool:
        """Whether the weights' gradient on maps as narrow as x is faster with images side by side."""
        if not (x.device.type == "cpu" and HAS_AMX and _dtype_of_products(x) == torch.bfloat16):
            return False
        keeps_size = self.kernel_size == (3, 3) and self.padding == (1, 1) and self.padding_mode == "zeros"
        plain = self.stride == self.dilation == (1, 1) and self.groups == 1
        return keeps_size and plain and images_in_a_row(x.shape[3]) >= LEAST_IMAGES


class SideBySide(torch.autograd.Function):
    """3x3 convolution, padded by 1, of x (B, C, H, W) with weight (C', C, 3, 3) and bias (C',) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = conv2d_input(x.shape, weight, gradient, padding=1) if ctx.needs_input_grad[0] else None
        of_weight = conv2d_weight(side_by_side(x), weight.shape, side_by_side(gradient), padding=1)
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


def side_by_side(maps: Tensor) -> Tensor:
    """Images in rows of k, with a column of zeros after each: (B, C, H, W) -> (ceil(B / k), C, H, k (W + 1)).

    k is `images_in_a_row(W)`; what is left of the last row is zeros.
    """
    b, c, h, w = maps.shape
    k = images_in_a_row(w)
    n_whole, n_left = divmod(b, k)
    rows = maps.new_zeros(n_whole + (n_left > 0), h, k, w + 1, c)
    maps = maps.permute(0, 2, 3, 1)  # (B, H, W, C): as it lies in memory
    rows[:n_whole, :, :, :w] = maps[: n_whole * k].reshape(n_whole, k, h, w, c).transpose(1, 2)
    rows[n_whole:, :, :n_left, :w] = maps[n_whole * k :].transpose(0, 1)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


def images_in_a_row(width: int) -> int:
    """How many images of so many columns fit into a row, with a column between them."""
    return POSITIONS // (width + 1)


def _dtype_of_products(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
