import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny_training import TinyRun, scaled_loss, seed_all

from training.errors import UsageError
from training.preserved_state import preserved_state


@pytest.mark.parametrize("make_scaler", [lambda: None, scaled_loss])
@pytest.mark.parametrize("n_before", [0, 5])  # 0: the optimizer has no state yet
def test_training_goes_on_bit_for_bit_as_without_the_trial(n_before, make_scaler):
    expected_run = TinyRun(make_scaler())
    expected = expected_run.train(n_before + 10)
    run = TinyRun(make_scaler())
    losses = run.train(n_before)
    with preserved_state(run.accelerator, run.model, run.optimizer):
        for lr in (1e-3, 0.5, 1e-3, 0.2):
            run.update(lr)
    losses += run.train(10)
    assert losses == expected  # bit for bit
    for name, value in run.tensors().items():
        assert torch.equal(value, expected_run.tensors()[name]), name


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_state_is_restored_after_an_exception(error):
    run = TinyRun(scaled_loss())
    before = {name: value.clone() for name, value in run.tensors().items()}
    groups_before = run.optimizer.state_dict()["param_groups"]
    seed_all()
    random_before = random.random(), np.random.rand(), torch.rand(1)
    seed_all()
    run.model.eval()
    run.model.last.bias.requires_grad_(False)

    with pytest.raises(error), preserved_state(run.accelerator, run.model, run.optimizer):
        for _ in range(7):
            run.update(0.5)
        run.accelerator.step, run.accelerator.sync_gradients = 3, False  # in the middle of an accumulation
        raise error

    for name, value in run.tensors().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert len(run.optimizer.state) == 0
    assert run.optimizer.state_dict()["param_groups"] == groups_before
    assert run.accelerator.scaler.get_scale() == 4.0
    assert (run.accelerator.step, run.accelerator.sync_gradients) == (0, True)
    assert (random.random(), np.random.rand(), torch.rand(1)) == random_before
    assert not run.model.training and not run.model.last.bias.requires_grad


def test_pending_gradients_survive():
    run = TinyRun()
    run.model(torch.ones(8, 6)).sum().backward()
    before = [parameter.grad.clone() for parameter in run.model.parameters()]
    with preserved_state(run.accelerator, run.model, run.optimizer):
        run.train(3)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(run.model.parameters(), before, strict=True))


def test_deepspeed_is_refused_before_anything_is_tried(monkeypatch):
    run = TinyRun()
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.DEEPSPEED))
    with pytest.raises(UsageError, match="DeepSpeed"), preserved_state(run.accelerator, run.model, run.optimizer):
        raise AssertionError("was tried")
