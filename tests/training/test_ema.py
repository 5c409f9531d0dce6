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


def test_looking_ahead_takes_weights_and_statistics_back_to_the_average():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema = EMA(model, 0.9)
    before = model[0].weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        model(torch.randn(4, 3))
        ahead, mean = model[0].weight.detach().clone(), model[1].running_mean.clone()
        average_mean = ema.module[1].running_mean.clone()
        ema.look_ahead(model, 0.75)
        torch.testing.assert_close(model[0].weight.detach(), before + 0.25 * (ahead - before))
        torch.testing.assert_close(model[1].running_mean, average_mean + 0.25 * (mean - average_mean))
        assert int(model[1].num_batches_tracked) == step + 1
        for own, theirs in zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(own, theirs)
        before = model[0].weight.detach().clone()
