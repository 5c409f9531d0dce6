"""Dropout that is not the slowest part of a small model on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p) (Srivastava et al. 2014).

    On a CPU torch draws the mask on one thread, a Bernoulli variable an element: 9 % of a small Transformer's
    time already where one thread does all the rest. Here four elements share 64 random bits, so p is rounded
    to 1 / 65536. The random numbers come from torch's default generator in both cases.
    """
    if p <= 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over -32768 .. 32767
    # Compared as int16: at p = 1 the threshold is 32768, which no draw reaches.
    kept = draws.ge(round(p * 65536) - 32768)
    # Read as uint8, for a conversion from bool is slow on a CPU.
    scale = kept.view(torch.uint8).to(x.dtype).mul_(1 / (1 - p) if p < 1 else 0.0)
    return x * scale


class Dropout(nn.Module):
    """`dropout` in training, nothing in evaluation."""

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout of {p}: give a probability")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
