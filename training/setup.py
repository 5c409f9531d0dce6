"""From a bare model to one that trains: average, batch norm, optimizer, Accelerate, checkpoint, in their order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer

from models.batch_norm import synchronize_batch_norm
from training.checkpoints import load_checkpoint
from training.compilation import compile_model
from training.cpu_memory import keep_freed_memory
from training.ema import EMA
from training.errors import UsageError

M = TypeVar("M", bound=nn.Module)


def prepare_training(
    accelerator: Accelerator,
    model: M,
    build_optimizer: Callable[[M, Any, str], Optimizer],
    config: Any,
    checkpoint: Path | None,
    *,
    compile_dynamic: bool | None = None,
) -> tuple[nn.Module, Optimizer, EMA[M] | None, dict]:
    """`model`, on its device, and its optimizer as Accelerate prepares them; the average of the weights; the state.

    `build_optimizer(model, config, mixed_precision)` is called once the parameters are final; the decays, momenta
    and rate factors that it gives hold on a resume too. The state is that of `checkpoint`, with its weights loaded,
    or that of a new run. `compile_dynamic` goes to `torch.compile`: True where shapes vary.

    Raises UsageError where the launch shards the model and this run cannot be sharded, and where the checkpoint is
    of another model.
    """
    _check_sharding(accelerator, config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # no sooner: what reading the data took has gone back to the system
    ema = EMA(model, config.ema_decay) if config.ema_decay > 0 else None  # while the model is whole
    if accelerator.num_processes > 1:
        synchronize_batch_norm(model)
    optimizer = build_optimizer(model, config, accelerator.mixed_precision)  # of the final parameters
    names = _names_in_groups(model, optimizer)  # before they are sharded
    if config.compile:
        compile_model(model, accelerator.device, dynamic=compile_dynamic)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0}
    if checkpoint:
        optimizer_name = getattr(config, "optimizer", None)
        groups = [dict(group) for group in optimizer.param_groups]
        state = load_checkpoint(accelerator, model, checkpoint, ema, optimizer_name, config.resume_changes, names)
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            for dropped in group.keys() - own.keys():  # by a later version of the script
                del group[dropped]
            group |= _settings_of_group(own)
    return model, optimizer, ema, {**state, "optimizer_groups": names}


def _names_in_groups(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters of each group. An optimizer keeps its state by their order alone."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def _settings_of_group(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group: decays, momenta, factors of the rate.

    Loading an optimizer puts those of the checkpoint in their place, but the flags of this command decide. What is
    no number (`fused`, `keeps_norm`) says how the optimizer's state is to be read and is the checkpoint's.
    """
    return {
        name: value
        for name, value in group.items()
        if name != "params" and isinstance(value, int | float | tuple) and not isinstance(value, bool)
    }


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds the whole model."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def _check_sharding(accelerator: Accelerator, config: Any) -> None:
    if not is_sharded(accelerator):
        return
    if getattr(config, "model", None) != "transformer":
        raise UsageError("only the Transformer can be sharded: launch with accelerate_configs/multi_gpu_bf16.yaml")
    if config.ema_decay == 0 or config.optimizer == "muon":
        raise UsageError(
            "a sharded model is decoded by its average, --ema_decay, and trained with --optimizer adamw"
        )


def weights_to_evaluate(accelerator: Accelerator, model: nn.Module, ema: EMA[M] | None) -> M:
    """The bare model that is evaluated: the average of the weights where there is one."""
    return ema.module if ema else accelerator.unwrap_model(model)
