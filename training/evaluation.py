"""Evaluation by several processes: each example by one of them, the answer for all."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from training.run import sum_over_processes


def row_of_each_example(
    accelerator: Accelerator, n_examples: int, batch_size: int, compute: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `compute` gives of each of `n_examples`, on all processes, each example computed by one of them.

    `compute(ids)`: example numbers (B,) int64 on the device -> tensors with a row an example, (B, ...) each.
    Batches hold the same examples on any number of processes. Returns the tensors of all examples, (N, ...) each.

    Raises RuntimeError if an example was computed more than once, or never.
    """
    device = accelerator.device
    batches = torch.arange(n_examples, device=device).split(batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    times_computed = torch.zeros(n_examples, device=device)
    tables: list[Tensor] = []
    for ids in mine or batches[:1]:  # a process without a batch computes one for the shapes, and counts nothing
        rows = compute(ids)
        if not tables:
            tables = [torch.zeros(n_examples, *part.shape[1:], dtype=part.dtype, device=device) for part in rows]
        if not mine:
            break
        times_computed[ids] += 1
        for table, part in zip(tables, rows, strict=True):
            table[ids] = part
    # Each example has one row, filled by one process: the sums hold each once.
    whole = tuple(sum_over_processes(accelerator, table) for table in tables)
    if not bool((sum_over_processes(accelerator, times_computed) == 1).all()):
        raise RuntimeError("an example was evaluated more than once or never")
    return whole
