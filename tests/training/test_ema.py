import copy

import pytest
import torch

from training.ema import EMA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_follows_the_formula_and_stays_fp32(dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema, decay = EMA(model, 0.5), 0.5
    model.to(dtype)
    expected = model.weight.detach().float()
    for n in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(model)
        d = min(decay, (1 + n) / (10 + n)) if n else 0.0
        expected = d * expected + (1 - d) * model.weight.detach().float()
        torch.testing.assert_close(ema.module.weight, expected)
        if n == 0:
            assert torch.equal(ema.module.weight, model.weight.float())
    assert not ema.module.weight.requires_grad


def test_a_loaded_average_goes_on_as_the_saved_one():
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    for _ in range(3):
        ema.update(torch.nn.Linear(3, 2))
    other, state = EMA(model, 0.9), copy.deepcopy(ema.state_dict())
    other.load_state_dict(state)
    step = torch.nn.Linear(3, 2)
    ema.update(step)
    other.update(step)
    assert torch.equal(ema.module.weight, other.module.weight)


def test_a_window_within_the_updates_left_ends_at_the_last_weights():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema, wide = EMA(model, 0.75), EMA(model, 0.75)
    for left in reversed(range(40)):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(model, left)
        wide.update(model)
        # a window of 1 / (1 - 0.75) = 4 updates, this and the next three
        assert torch.equal(ema.module.weight, wide.module.weight) == (left >= 3)
    assert torch.equal(ema.module.weight, model.weight)


def test_running_statistics_are_averaged_and_counts_copied():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3)
    ema = EMA(norm, 0.5)
    expected = None
    for n in range(6):
        norm(torch.randn(4, 3, 2, 2) + n)
        ema.update(norm)
        d = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = norm.running_mean.clone() if n == 0 else d * expected + (1 - d) * norm.running_mean
        torch.testing.assert_close(ema.module.running_mean, expected)
    assert int(ema.module.num_batches_tracked) == 6
