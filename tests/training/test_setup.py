from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from two_processes import on_processes

from models.batch_norm import ProcessBatchNorm2d
from training.checkpoints import save_checkpoint
from training.errors import UsageError
from training.run import open_accelerator
from training.setup import is_sharded, prepare_training, weights_to_evaluate


@dataclass(frozen=True)
class Config:
    ema_decay: float = 0.0
    compile: bool = False
    optimizer: str = "adamw"
    resume_changes: bool = False
    model: str = "net"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def build_optimizer(model: nn.Module, config: Config, mixed_precision: str) -> torch.optim.Optimizer:
    assert mixed_precision == "no"
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def update(accelerator: Accelerator, model: nn.Module, optimizer, seed: int = 0) -> float:
    images = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    loss = model(images).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_a_new_run_begins_at_step_0_and_trains_what_is_evaluated(fresh_accelerate):
    accelerator, model = Accelerator(cpu=True), net()
    before = model[0].weight.clone()
    prepared, optimizer, ema, state = prepare_training(accelerator, model, build_optimizer, Config(), None)
    assert ema is None and state.items() >= {"step": 0, "epoch": 0, "updates_in_epoch": 0}.items()
    evaluated = weights_to_evaluate(accelerator, prepared, ema)
    update(accelerator, prepared, optimizer)
    assert not torch.equal(evaluated[0].weight, before)


def test_with_an_average_of_the_weights_that_is_evaluated(fresh_accelerate):
    accelerator = Accelerator(cpu=True)
    model, optimizer, ema, _ = prepare_training(accelerator, net(), build_optimizer, Config(ema_decay=0.9), None)
    evaluated = weights_to_evaluate(accelerator, model, ema)
    assert evaluated is ema.module and torch.equal(evaluated[0].weight, net()[0].weight)
    update(accelerator, model, optimizer)
    assert torch.equal(evaluated[0].weight, net()[0].weight)  # until it is updated
    assert not any(parameter.requires_grad for parameter in evaluated.parameters())


def test_a_checkpoint_gives_weights_average_optimizer_and_state(fresh_accelerate, tmp_path):
    config = Config(ema_decay=0.9)

    def opened(checkpoint):
        fresh_accelerate()
        accelerator = Accelerator(cpu=True)
        return accelerator, *prepare_training(accelerator, net(), build_optimizer, config, checkpoint)

    accelerator, model, optimizer, ema, _ = opened(None)
    for seed in range(3):
        update(accelerator, model, optimizer, seed)
        ema.update(model)
    checkpoint = save_checkpoint(accelerator, model, tmp_path, {"step": 3, "epoch": 1}, ema=ema)
    expected = [update(accelerator, model, optimizer, seed) for seed in (3, 4)]
    averaged = ema.module[0].weight.clone()
    accelerator, model, optimizer, ema, state = opened(checkpoint)
    assert (state["step"], state["epoch"]) == (3, 1) and ema.n_averaged == 3
    assert torch.equal(ema.module[0].weight, averaged)
    assert [update(accelerator, model, optimizer, seed) for seed in (3, 4)] == expected


def test_numbers_of_the_optimizer_are_those_of_the_command_that_resumes(fresh_accelerate, tmp_path):
    def prepared(checkpoint, weight_decay, **also):
        fresh_accelerate()

        def build(model, config, mixed_precision):
            groups = [{"params": list(model.parameters()), "weight_decay": weight_decay, **also}]
            return torch.optim.SGD(groups, lr=0.1, momentum=weight_decay / 2)

        accelerator = Accelerator(cpu=True)
        return accelerator, *prepare_training(accelerator, net(), build, Config(), checkpoint)

    accelerator, model, optimizer, *_ = prepared(None, 0.2, lr_factor=440, warmup=3)
    update(accelerator, model, optimizer)
    checkpoint = save_checkpoint(accelerator, model, tmp_path, {"step": 1})
    buffers = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    _, _, optimizer, *_ = prepared(checkpoint, 0.8, lr_factor=4, half=2)
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["momentum"], group["lr_factor"], group["half"]) == (0.8, 0.4, 4, 2)
    assert "warmup" not in group  # which the code that resumes no longer gives
    loaded = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    assert all(map(torch.equal, loaded, buffers)) and len(loaded) == len(buffers) > 0


def test_an_optimizer_that_orders_or_groups_its_parameters_otherwise_is_refused_or_begins_anew(
    fresh_accelerate, tmp_path
):
    def prepared(checkpoint, grouped, resume_changes=False):
        fresh_accelerate()

        def build(model, config, mixed_precision):
            return torch.optim.AdamW([{"params": group} for group in grouped(list(model.parameters()))], lr=0.1)

        accelerator, config = Accelerator(cpu=True), Config(resume_changes=resume_changes)
        return accelerator, *prepare_training(accelerator, net(), build, config, checkpoint)

    together, reversed_order, apart = (lambda p: [p], lambda p: [p[::-1]], lambda p: [p[:1], p[1:]])
    accelerator, model, optimizer, _, state = prepared(None, together)
    update(accelerator, model, optimizer)
    named = save_checkpoint(accelerator, model, tmp_path / "named", {**state, "step": 1})
    older = save_checkpoint(accelerator, model, tmp_path / "older", {"step": 1})  # which names no parameters
    for checkpoint, grouped in ((named, reversed_order), (named, apart), (older, apart)):
        with pytest.raises(UsageError, match="build_optimizer"):
            prepared(checkpoint, grouped)
    _, _, optimizer, _, state = prepared(named, reversed_order, resume_changes=True)
    assert not optimizer.state_dict()["state"] and state["step"] == 1
    _, _, optimizer, *_ = prepared(older, together)
    assert optimizer.state_dict()["state"]


def test_a_checkpoint_of_another_optimizer_or_model_is_refused(fresh_accelerate, tmp_path):
    accelerator = Accelerator(cpu=True)
    model, *_ = prepare_training(accelerator, net(), build_optimizer, Config(), None)
    state = {"step": 3, "config": {"optimizer": "muon"}}
    checkpoint = save_checkpoint(accelerator, model, tmp_path, state)
    for other, config, said in (
        (net(), Config(), "--optimizer muon"),
        (net()[:1], Config(optimizer="muon"), "another model"),
    ):
        fresh_accelerate()
        with pytest.raises(UsageError, match=said):
            prepare_training(Accelerator(cpu=True), other, build_optimizer, config, checkpoint)
    fresh_accelerate()
    insists = Config(resume_changes=True)
    *_, state = prepare_training(Accelerator(cpu=True), net(), build_optimizer, insists, checkpoint)
    assert state["step"] == 3


def test_compiling_is_asked_for_after_the_optimizer_has_its_parameters(fresh_accelerate, monkeypatch):
    done = []
    monkeypatch.setattr(
        "training.setup.compile_model", lambda model, device, dynamic: done.append(("compiled", dynamic))
    )

    def noted(model, config, mixed_precision):
        done.append("optimizer")
        return build_optimizer(model, config, mixed_precision)

    prepare_training(Accelerator(cpu=True), net(), noted, Config(compile=True), None, compile_dynamic=True)
    assert done == ["optimizer", ("compiled", True)]
    prepare_training(Accelerator(cpu=True), net(), noted, Config(), None)
    assert done[2:] == ["optimizer"]


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_only_the_transformer_with_its_average_is_sharded(fresh_accelerate, monkeypatch, kind):
    accelerator = Accelerator(cpu=True)
    assert not is_sharded(accelerator)
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: kind))
    assert is_sharded(accelerator)
    for config, said in (
        (Config(ema_decay=0.9), "only the Transformer can be sharded"),
        (Config(model="transformer"), "--ema_decay"),
        (Config(model="transformer", ema_decay=0.9, optimizer="muon"), "--optimizer adamw"),
    ):
        with pytest.raises(UsageError, match=said):
            prepare_training(accelerator, net(), build_optimizer, config, None)


def of_two(opened: Accelerator) -> tuple:
    """Batch norm of the average and of the trained model; what DDP copies; all that is held after three updates."""
    accelerator = open_accelerator()
    model, optimizer, ema, _ = prepare_training(accelerator, net(), build_optimizer, Config(ema_decay=0.9), None)
    for i in range(3):
        update(accelerator, model, optimizer, seed=2 * i + accelerator.process_index)
    bare = accelerator.unwrap_model(model)
    kinds = type(ema.module[1]).__name__, type(bare[1]).__name__
    return kinds, (model.broadcast_buffers, model.gradient_as_bucket_view), bare.state_dict()


def test_on_two_processes_batch_norm_is_of_both_and_keeps_weights_and_buffers_equal_without_copies(tmp_path):
    (kinds, copies, held), (_, _, others) = on_processes(2, of_two, tmp_path)
    assert kinds == ("BatchNorm2d", ProcessBatchNorm2d.__name__)  # the average is of the plain model
    assert copies == (False, True)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= held.keys()
    for name, value in held.items():
        assert torch.equal(value, others[name]), name
    assert not torch.equal(held["0.weight"], net()[0].weight) and held["1.num_batches_tracked"] == 3
