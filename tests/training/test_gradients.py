import copy
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from training.gradients import clip_gradients, skips_update


def net_with_gradients() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))
    net[:2](torch.randn(5, 6)).square().sum().backward()  # the last layer gets none
    return net


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_accelerate_does(fresh_accelerate, max_norm):
    net = net_with_gradients()
    other, accelerator = copy.deepcopy(net), Accelerator(cpu=True)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    norm = clip_gradients(accelerator, net, max_norm)
    assert torch.equal(norm, accelerator.clip_grad_norm_(other.parameters(), max_norm))
    for mine, theirs in zip(net[:2].parameters(), other[:2].parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_without_a_largest_norm_nothing_is_written(fresh_accelerate):
    net, accelerator = net_with_gradients(), Accelerator(cpu=True)
    versions = [p.grad._version for p in net[:2].parameters()]
    norm = clip_gradients(accelerator, net, 0.0)
    assert [p.grad._version for p in net[:2].parameters()] == versions
    assert torch.equal(norm, accelerator.clip_grad_norm_(net.parameters(), float("inf")))


def test_in_fp16_the_norm_is_without_the_loss_scale(fresh_accelerate, monkeypatch):
    net = torch.nn.Linear(6, 3)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    accelerator = Accelerator(cpu=True)
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=1024.0), True
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    net(x).float().sum().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
    optimizer.optimizer.zero_grad()
    accelerator.scaler.scale(net(x).float().sum()).backward()
    assert net.bias.grad[0] > 1000
    torch.testing.assert_close(clip_gradients(accelerator, net, 0.0), expected)


def test_an_update_is_left_out_only_for_a_finite_norm_beyond_a_limit():
    accelerator = SimpleNamespace(scaler=None)
    for norm, limit, expected in ((5.0, 0, False), (5.0, 6, False), (5.0, 4, True), (math.inf, 4, False)):
        assert skips_update(accelerator, torch.tensor(norm), limit) == expected
    assert not skips_update(accelerator, torch.tensor(math.nan), 4)


def test_fp16_s_scaler_goes_on_after_an_update_that_was_left_out():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for left_out in (True, False):
        scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
        scaler.unscale_(optimizer)  # a second time raises, unless the scaler was told
        norm = torch.nn.utils.get_total_norm([weight.grad])
        assert skips_update(SimpleNamespace(scaler=scaler), norm, 4.0 if left_out else 6.0) == left_out
        if not left_out:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        assert torch.equal(weight.detach(), torch.tensor([1.0, 1.0] if left_out else [-2.0, -3.0]))
