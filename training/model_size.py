"""Building a model only where there is memory to train it."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from data.memory import total_memory
from training.errors import UsageError

COPIES = 4  # fp32 numbers for each weight while it is trained: itself, its gradient, the optimizer's two averages

M = TypeVar("M", bound=nn.Module)


def build_within_memory(build: Callable[[], M], device: torch.device, n_shards: int = 1) -> M:
    """The model of `build()`, after a trial that takes no memory has shown that it can be trained on `device`.

    `n_shards`: processes that hold a part of it each. Raises UsageError where weights, gradients and optimizer
    alone take more than all of the memory that there is.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                n_parameters = sum(p.numel() for p in build().parameters())
        except (OverflowError, RuntimeError) as error:
            if "overflow" not in str(error).lower():
                raise
            raise UsageError(f"the model is too large for any memory ({error}): lower its widths") from error
    on_gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_gpu else total_memory()
    needed = 4 * COPIES * n_parameters / n_shards
    if needed > total:
        raise UsageError(
            f"a model of {n_parameters:,} parameters takes {needed / 2**30:,.1f} GiB to train, of the "
            f"{total / 2**30:,.1f} that there are: lower its widths or its number of layers"
        )
    return build()
