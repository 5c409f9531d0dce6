"""The order in which an epoch shows the examples of a data set that lies on the device."""

import math

import torch
from torch import Tensor

from data.seeding import Stream, seeded_generator


def plan_epoch(
    n_examples: int, batch_size: int, seed: int, epoch: int, device: torch.device, seen: int = 0
) -> tuple[Tensor, ...]:
    """The example numbers (B,) int64 of each update, in an order that depends on (seed, epoch) only.

    Batches hold `batch_size` examples at most, their sizes differ by one at most, and no example is left out, but
    for the first `seen`, which the epoch has shown in batches of another size.
    """
    # On the CPU, so that each device sees the same order.
    generator = seeded_generator(torch.device("cpu"), Stream.BATCH_ORDER, seed, epoch)
    order = torch.randperm(n_examples, generator=generator)
    return order[seen:].to(device).tensor_split(math.ceil((n_examples - seen) / batch_size))
