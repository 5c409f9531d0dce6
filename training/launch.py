"""What the launch asks of Accelerate: how it is told, and whether it was done."""

import functools
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, is_deepspeed_available
from torch.distributed import PrefixStore, Store, register_rendezvous_handler, rendezvous
from torch.distributed.fsdp import MixedPrecisionPolicy

# One process tokenises a corpus or trains a judge while the others wait; NCCL would end them after ten minutes.
LONGEST_WAIT = timedelta(hours=3)


def accelerator_handlers() -> list[Any]:
    """How processes wait for each other, and how DDP shares gradients.

    Buffers need no broadcast in each forward pass: batch norm calculates its own alike in all processes.
    """
    # Torch 2.13 deprecates the flag, and has nothing yet that leaves buffers alone from the start as well.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return [
        InitProcessGroupKwargs(timeout=LONGEST_WAIT, init_method=_where_to_meet()),
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
    ]


def _where_to_meet() -> str | None:
    """The `init_method` of the process group; None for torch's own, by the variables that a launcher sets.

    Where an elastic launcher (`--max_restarts`) starts the processes again, its store still holds the addresses of
    those that are gone: they may be taken for those of the others, and then all wait for hours. So each attempt
    keeps its own under a name.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return _way_to_meet(attempt) if attempt else None


@functools.cache
def _way_to_meet(attempt: int) -> str:
    def meet(url: str, timeout: timedelta = LONGEST_WAIT, **options: Any) -> Iterator[tuple[Store, int, int]]:
        for store, rank, n_processes in rendezvous("env://", timeout=timeout):
            yield PrefixStore(f"attempt_{attempt}", store), rank, n_processes

    register_rendezvous_handler(f"attempt{attempt}", meet)  # may be done once in a process
    return f"attempt{attempt}://"


def keep_losses_in_fp32(accelerator: Accelerator) -> None:
    """FSDP calculates in the launch's precision, but sums gradients in fp32 and leaves losses in it, as DDP does.

    Accelerate's own policy rounds both to bf16, of which a sum of losses has three digits.
    """
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.mixed_precision_policy = fsdp_precision(accelerator.mixed_precision)


def fsdp_precision(mixed_precision: str) -> MixedPrecisionPolicy:
    """The policy for "bf16" or "fp16".

    It holds for each layer: what one hands to the next stays in this precision, as the weights that take it do.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def missing_package() -> str | None:
    """What the launch needs and is not installed, if anything. To be asked before the Accelerator is opened."""
    if _is_true("ACCELERATE_USE_DEEPSPEED") and not is_deepspeed_available():
        return "the launch configuration asks for DeepSpeed, which is not installed: pip install deepspeed"
    return None


def not_as_asked(accelerator: Accelerator) -> str | None:
    """What the launch asked for in vain, and the mend; None where all is as asked.

    Accelerate says nothing where an FSDP or DeepSpeed configuration is used on a CPU, and processes that were not
    told of each other each take themselves for the only one.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        return (
            f"{launched} processes were launched but each believes to be alone and would overwrite the other: "
            "launch with --config_file accelerate_configs/cpu_2proc.yaml or another multi-process YAML"
        )
    for variable, kind, name in (
        ("ACCELERATE_USE_FSDP", DistributedType.FSDP, "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED, "DeepSpeed"),
    ):
        if _is_true(variable) and accelerator.distributed_type != kind:
            return (
                f"the launch configuration asks for {name}, but on {accelerator.device.type} nothing is sharded: "
                "launch with --config_file accelerate_configs/cpu_2proc.yaml, or on GPUs without use_cpu"
            )
    return None


def started_alone(accelerator: Accelerator) -> bool:
    """Whether `accelerate launch` was asked for several processes and started one, as it does for MULTI_CPU.

    Then it has set where the processes would meet, but not how many they are.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    meets = "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ
    return by_accelerate and meets and accelerator.num_processes == 1


def lacks_its_gpu(accelerator: Accelerator) -> bool:
    """Whether `accelerate launch` was asked for a GPU, to go by the precision, and the run is on a CPU.

    A launcher of several processes hands on only the precision, of which fp16 is a GPU's.
    """
    not_for_a_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "false"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return accelerator.device.type == "cpu" and (asked == "fp16" or (asked == "bf16" and not_for_a_cpu))


def restart_begins_anew(resume: str) -> bool:
    """Whether a launcher with `--max_restarts` would start a run again that is not told by `resume` to go on."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and resume != "latest"


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"
