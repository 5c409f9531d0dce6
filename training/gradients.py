"""The norm of an update's gradients, and clipping to a largest one."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.setup import is_sharded


def skips_update(accelerator: Accelerator, gradient_norm: Tensor, limit: float) -> bool:
    """Whether an update whose gradient has this norm () is to be left out: it is finite, and beyond `limit`.

    A limit of 0 leaves none out; any other waits for the device. The scaler of fp16 is told that the update is
    over, as the optimizer's step would tell it. The norm is that over all processes, so that all do the same.
    """
    if limit == 0 or not limit < float(gradient_norm) < math.inf:
        return False
    if accelerator.scaler is not None:
        accelerator.scaler.update()
    return True


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients of `model` down to the norm `max_norm` over all its parameters; 0: only measure.

    Returns the norm before, (): without the loss scale of fp16, and not yet known to the host. DeepSpeed clips by
    its own configuration.
    """
    if max_norm > 0 or is_sharded(accelerator):
        return accelerator.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    accelerator.unscale_gradients()
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
