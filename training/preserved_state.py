"""Training on trial: everything that it changes is put back."""

import copy
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from training.errors import UsageError


@contextmanager
def preserved_state(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Put everything that training changes back as it was, also when the body raises.

    Kept, as copies in memory on the tensors' own devices: parameters, buffers and gradients of `model`, the
    state and the groups of `optimizer` (one that has not stepped yet is again one that has not), the loss
    scale, the accumulation counter, and the random states of Python, NumPy, torch and every CUDA device.
    `model` and `optimizer` may be bare or prepared by Accelerate. Values are copied back into the same
    tensors, so that DDP, compiled graphs and the optimizer keep hold of them. `requires_grad` and train mode
    are not touched.

    Raises `UsageError` under DeepSpeed, whose engine keeps weights of its own that are out of reach here.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UsageError("the LR range test does not work under DeepSpeed: use another accelerate config")

    values = {name: value.detach().clone() for name, value in _named_tensors(model)}
    gradients = {name: copy.deepcopy(parameter.grad) for name, parameter in model.named_parameters()}
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    scaler_state = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    accumulation = accelerator.step, accelerator.sync_gradients
    rng_python, rng_numpy, rng_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    rng_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in _named_tensors(model):
                value.copy_(values[name])
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        optimizer.load_state_dict(optimizer_state)
        if scaler_state is not None:
            accelerator.scaler.load_state_dict(scaler_state)
        accelerator.step, accelerator.sync_gradients = accumulation
        random.setstate(rng_python)
        np.random.set_state(rng_numpy)
        torch.set_rng_state(rng_torch)
        if rng_cuda:
            torch.cuda.set_rng_state_all(rng_cuda)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and all buffers, also the non-persistent ones, which `state_dict` leaves out; each once."""
    return itertools.chain(model.named_parameters(), model.named_buffers())
