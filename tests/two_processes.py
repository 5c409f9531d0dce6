"""Calls on two processes of one machine that know each other by gloo, for what only several processes show."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from forked_runs import ForkedProcesses


def on_processes(n: int, work: Callable[[Accelerator], Any], folder: Path) -> list:
    """What `work(accelerator)`, a function of a module, returns on each of `n` processes, in their order."""
    environments = [
        {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(n),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(n)
    ]
    processes = ForkedProcesses(_process, [(rank, n, work, folder) for rank in range(n)], environments)
    _, err = processes.communicate()
    assert processes.returncode == 0, err
    return [torch.load(folder / f"{n}-{rank}.pt", weights_only=False) for rank in range(n)]


def _process(rank: int, n: int, work: Callable[[Accelerator], Any], folder: Path) -> None:
    if n > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / f'store-{n}'}", rank=rank, world_size=n)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == n
    torch.save(work(accelerator), folder / f"{n}-{rank}.pt")
    if dist.is_initialized():  # not after a whole run
        dist.barrier()
        dist.destroy_process_group()
