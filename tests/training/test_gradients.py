import copy

import pytest
import torch
from accelerate import Accelerator

from training.gradients import clip_gradients


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
