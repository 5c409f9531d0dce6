"""What several processes must do alike, so that none waits for one that has ended."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from torch import nn

from training.errors import UsageError

SAMPLED = 16  # numbers of each parameter that are compared


def raise_together(accelerator: Accelerator, problem: str | None) -> None:
    """Raise UsageError in every process where any of them has a problem. All processes call, and wait."""
    if accelerator.num_processes > 1:
        problem = next((found for found in gather_object([problem]) if found), None)
    if problem:
        raise UsageError(problem)


def on_main_process(accelerator: Accelerator, do: Callable[[], None]) -> None:
    """Call `do` on the main process, the others wait; a UsageError of it is raised in every process."""
    problem = None
    if accelerator.is_main_process:
        try:
            do()
        except UsageError as error:
            problem = str(error)
    raise_together(accelerator, problem)


@contextmanager
def local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """What is inside is done by the first process of a machine, then by its others, which find it in the cache.

    Accelerate's own leaves the others waiting for ever, or until the connection breaks, where the first raises an
    error. Here they go on, and find the same error.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
        yield
        return
    try:
        yield
    finally:
        accelerator.wait_for_everyone()


@torch.no_grad()
def raise_if_replicas_differ(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise RuntimeError where the processes' copies of `model` have run apart. All processes call.

    Nothing else would notice: each would train on, and the main process's weights would be saved. Some numbers of
    each parameter and buffer are compared, to a thousandth: machines of other kinds may round otherwise.
    """
    if accelerator.num_processes == 1:
        return
    tensors = itertools.chain(model.parameters(), model.buffers())
    flat = (tensor.detach().flatten() for tensor in tensors)
    sample = torch.cat([values[:: max(1, len(values) // SAMPLED)][:SAMPLED].float() for values in flat])
    copies = gather(sample).view(accelerator.num_processes, -1)  # (processes, numbers)
    apart = (copies.amax(0) - copies.amin(0)) > 1e-3 * copies.abs().amax(0) + 1e-5
    if bool(apart.any()):
        raise RuntimeError(
            "the processes train different weights: something in train_update is of each process and not of the "
            "update; draw after seed_micro_batch(config.seed, step, n_parts), sum by sum_over_processes(..)"
        )
