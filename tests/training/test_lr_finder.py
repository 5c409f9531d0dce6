import math
import os
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image
from torch import nn
from torch.nn import functional as F

from training.errors import UsageError
from training.lr_finder import (
    MIN_STEPS,
    LRRangeTest,
    _middle_of_longest_descent,
    lr_range_test,
    plot_lr_range_test,
    preserved_state,
)

REPOSITORY = Path(__file__).parents[2]


class Net(nn.Module):
    """Everything that has a state: dropout, running statistics, a non-persistent buffer, a tied weight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):  # (B, 6) -> (B, 6)
        self.calls += 1
        return self.last(self.drop(self.norm(self.first(x)).relu())) + 0.01 * self.calls


def seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class Run:
    """A training run whose data come from the three random generators."""

    def __init__(self, scaler: torch.amp.GradScaler | None = None):
        seed_all()
        self.accelerator = Accelerator(cpu=True)
        self.accelerator.scaler = scaler
        net = Net()
        groups = [{"params": [net.first.weight]}, {"params": [net.first.bias, *net.norm.parameters()]}]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        self.model, self.optimizer = self.accelerator.prepare(net, optimizer)

    def update(self, lr: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = torch.randn(8, 6) * random.random() + torch.from_numpy(np.random.rand(8, 6)).float()
        loss = F.mse_loss(self.model(x), x)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def train(self, n_updates: int) -> list[float]:
        return [self.update(0.02).item() for _ in range(n_updates)]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def range_test(self, **options) -> LRRangeTest:
        update = options.pop("update", self.update)
        state = {"accelerator": self.accelerator, "model": self.model, "optimizer": self.optimizer}
        return lr_range_test(update, **state, **{"n_steps": 30, **options})


def scaled_loss() -> torch.amp.GradScaler:
    """A scaler whose scale grows at every third update, so that a test of 30 updates changes it."""
    return torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)


@pytest.mark.parametrize("make_scaler", [lambda: None, scaled_loss])
@pytest.mark.parametrize("n_before", [0, 5])  # 0: the optimizer has no state yet
def test_training_goes_on_bit_for_bit_as_without_the_test(n_before, make_scaler):
    expected_run = Run(make_scaler())
    expected = expected_run.train(n_before + 10)
    run = Run(make_scaler())
    losses = run.train(n_before)
    result = run.range_test()
    assert len(result.losses) > 5
    losses += run.train(10)
    assert losses == expected  # bit for bit
    for name, value in run.tensors().items():
        assert torch.equal(value, expected_run.tensors()[name]), name


def test_the_range_test_does_disturb_an_unprotected_run():
    """The guard of the test above: without the restoration its trajectories differ."""
    expected = Run().train(10)
    run = Run()
    for lr in (1e-3, 1e-1):
        run.update(lr)
    assert run.train(10) != expected


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_state_is_restored_after_an_exception(error):
    run = Run(scaled_loss())
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
    run = Run()
    run.model(torch.ones(8, 6)).sum().backward()
    before = [parameter.grad.clone() for parameter in run.model.parameters()]
    run.range_test()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(run.model.parameters(), before, strict=True))


def test_deepspeed_is_refused(monkeypatch):
    run = Run()
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.DEEPSPEED))
    with pytest.raises(UsageError, match="DeepSpeed"):
        run.range_test()


def loss_curve(lr: float) -> float:
    """Flat up to 1e-4, straight down by 1.5 a decade to 1e-2, flat to 1e-1, then up without end."""
    decade = math.log10(lr)
    fall = 1.5 * min(max(decade + 4, 0), 2)
    return 6 - fall + 10 ** max(0.0, 3 * (decade + 1)) - 1


def test_suggestions_lie_on_the_descent():
    result = Run().range_test(update=loss_curve, n_steps=100, max_lr=10.0, smoothing=0.5)
    assert 1e-4 < result.valley <= result.steepest <= 1.5e-2
    assert "fell from 6 to" in result.reason and f"{result.steepest:.2e}" in result.reason
    assert f"{result.valley:.2e}" in result.reason


@pytest.mark.parametrize("seed", range(5))
def test_steepest_is_the_choice_of_torch_lr_finder_on_the_same_curve(seed):
    """Which drops the first 10 and the last 5 points and takes the rate at the argmin of np.gradient."""
    noise = iter(np.random.default_rng(seed).normal(0, 0.05, 100).tolist())
    result = Run().range_test(update=lambda lr: loss_curve(lr) + next(noise), n_steps=100, max_lr=0.3)
    assert len(result.lrs) == 100
    theirs = result.lrs[10:-5][int(np.gradient(np.array(result.smoothed[10:-5])).argmin())]
    assert result.steepest == theirs


def test_rates_grow_by_a_constant_factor():
    result = Run().range_test(update=lambda lr: 1.0, n_steps=21, min_lr=1e-5, max_lr=1e-1)
    assert (result.lrs[0], result.lrs[-1]) == (pytest.approx(1e-5), pytest.approx(1e-1))
    assert np.diff(np.log10(result.lrs)) == pytest.approx(np.full(20, 0.2))
    assert result.stopped == "reached the highest rate, 0.1"


def test_smoothing_is_a_bias_corrected_average():
    losses = iter(np.random.default_rng(0).normal(10, 1, 30).tolist())
    result = Run().range_test(update=lambda lr: next(losses), smoothing=0.8)
    weights = np.array([[0.8 ** (i - j) if j <= i else 0.0 for j in range(30)] for i in range(30)])
    expected = (weights @ result.losses) / weights.sum(axis=1)
    assert result.smoothed == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_test(bad):
    losses = iter([5.0 - 0.1 * i for i in range(25)] + [bad] * 5)
    result = Run().range_test(update=lambda lr: next(losses))
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) == 25
    assert f"the loss was {bad}" in result.stopped
    assert result.steepest is not None


def test_divergence_stops_the_test():
    """Four times the best loss, also where the loss is negative."""
    for offset in (0.0, -20.0):
        result = Run().range_test(update=lambda lr, offset=offset: offset + 2.0 + (lr > 1e-3) * 1000.0)
        assert "diverged at a rate of" in result.stopped
        assert sum(lr > 1e-3 for lr in result.lrs) == 1


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (lambda lr: 5.0, "maybe by noise"),
        (lambda lr: 5.0 + lr, "maybe by noise"),
        (lambda lr: 5.0 + random.gauss(0, 0.1), "maybe by noise"),
        (lambda lr: math.nan, "too few updates"),
        (lambda lr: 1.0 if lr < 1e-5 else 100.0, "too few updates"),
    ],
)
def test_no_suggestion_without_a_descent(update, reason):
    result = Run().range_test(update=update)
    assert (result.steepest, result.valley) == (None, None)
    assert reason in result.reason


def test_longest_descent_skips_bumps():
    losses = np.array([11.0, 12, 13, 10, 9, 9.5, 8, 7, 7.5, 6, 5, 4, 3, 2, 1, 5, 6, 4])
    # falling subsequence: 13 10 9 8 7 6 5 4 3 2 1, eleven long, ends at index 14, counted back to index 3
    assert _middle_of_longest_descent(losses) == (14 + 3) // 2


def test_bad_ranges_are_refused():
    for options in ({"min_lr": 0.0}, {"min_lr": 1.0, "max_lr": 0.1}, {"n_steps": MIN_STEPS - 1}):
        with pytest.raises(UsageError):
            Run().range_test(**options)


def test_result_is_frozen():
    result = Run().range_test(update=lambda lr: 1.0)
    with pytest.raises(FrozenInstanceError):
        result.valley = 1.0


@pytest.mark.parametrize("update", [loss_curve, lambda lr: 1.0, lambda lr: math.nan])
@pytest.mark.filterwarnings("error")
def test_plot(tmp_path: Path, update):
    path = tmp_path / "figures" / "lr_range_test.png"
    plot_lr_range_test(Run().range_test(update=update), path)
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 400


TWO_PROCESS_SCRIPT = """
import torch
from accelerate import Accelerator
from torch import nn
from training.lr_finder import lr_range_test

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2

def train(with_range_test):
    torch.manual_seed(accelerator.process_index)  # other data and dropout on each rank; DDP evens out the model
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
    assert type(model).__name__ == "DistributedDataParallel"
    def update(lr):
        for group in optimizer.param_groups:
            group["lr"] = lr
        x = torch.randn(8, 4)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        return accelerator.reduce(loss.detach(), "mean")
    losses = [update(0.01).item() for _ in range(3)]
    if with_range_test:
        result = lr_range_test(update, accelerator=accelerator, model=model, optimizer=optimizer, n_steps=30)
        lengths = accelerator.gather(torch.tensor([len(result.lrs)]))
        assert lengths[0] == lengths[1], lengths
    losses += [update(0.01).item() for _ in range(5)]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])

losses, parameters = train(False)
losses_after_test, parameters_after_test = train(True)
assert losses == losses_after_test, (losses, losses_after_test)
assert torch.equal(parameters, parameters_after_test)
accelerator.print("both ranks alike")
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_under_ddp(tmp_path: Path):
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESS_SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "--config_file", REPOSITORY / "accelerate_configs" / "cpu_2proc.yaml", script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "both ranks alike" in done.stdout
