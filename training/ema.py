"""Exponential moving average of the weights (Polyak & Juditsky 1992), on torch's AveragedModel."""

import torch
from torch.optim.swa_utils import AveragedModel


def make_ema(model: torch.nn.Module, decay: float) -> AveragedModel:
    """A copy of the unwrapped `model` that follows it by `ema.update_parameters(model)` after each update.

    The decay grows from 0.18 at the first update to `decay` as (1 + n) / (10 + n), so that the average does
    not drag the initial weights along in a short run.
    """

    def average(averaged, current, n_averaged):
        n = float(n_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=average)
