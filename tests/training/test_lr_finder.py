import math
import random
from dataclasses import FrozenInstanceError
from pathlib import Path

import forked_runs
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny_training import TinyRun, scaled_loss

from training.errors import UsageError
from training.lr_finder import MIN_STEPS, _middle_of_longest_descent, find_lr

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("make_scaler", [lambda: None, scaled_loss])
@pytest.mark.parametrize("n_before", [0, 5])  # 0: the optimizer has no state yet
def test_training_goes_on_bit_for_bit_as_without_the_test(n_before, make_scaler):
    expected_run = TinyRun(make_scaler())
    expected = expected_run.train(n_before + 10)
    run = TinyRun(make_scaler())
    losses = run.train(n_before)
    result = run.range_test()
    assert len(result.losses) > 5
    losses += run.train(10)
    assert losses == expected  # bit for bit
    for name, value in run.tensors().items():
        assert torch.equal(value, expected_run.tensors()[name]), name


def test_the_range_test_does_disturb_an_unprotected_run():
    """The guard of the test above: without the restoration its trajectories differ."""
    expected = TinyRun().train(10)
    run = TinyRun()
    for lr in (1e-3, 1e-1):
        run.update(lr)
    assert run.train(10) != expected


def test_deepspeed_is_refused(monkeypatch):
    run = TinyRun()
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.DEEPSPEED))
    with pytest.raises(UsageError, match="DeepSpeed"):
        run.range_test()


def loss_curve(lr: float) -> float:
    """Flat up to 1e-4, straight down by 1.5 a decade to 1e-2, flat to 1e-1, then up without end."""
    decade = math.log10(lr)
    fall = 1.5 * min(max(decade + 4, 0), 2)
    return 6 - fall + 10 ** max(0.0, 3 * (decade + 1)) - 1


def test_suggestions_lie_on_the_descent():
    result = TinyRun().range_test(update=loss_curve, n_steps=100, max_lr=10.0, smoothing=0.5)
    assert 1e-4 < result.valley <= result.steepest <= 1.5e-2
    assert "fell from 6 to" in result.reason and f"{result.steepest:.2e}" in result.reason
    assert f"{result.valley:.2e}" in result.reason


@pytest.mark.parametrize("seed", range(5))
def test_steepest_is_the_choice_of_torch_lr_finder_on_the_same_curve(seed):
    """Which drops the first 10 and the last 5 points and takes the rate at the argmin of np.gradient."""
    noise = iter(np.random.default_rng(seed).normal(0, 0.05, 100).tolist())
    result = TinyRun().range_test(update=lambda lr: loss_curve(lr) + next(noise), n_steps=100, max_lr=0.3)
    assert len(result.lrs) == 100
    theirs = result.lrs[10:-5][int(np.gradient(np.array(result.smoothed[10:-5])).argmin())]
    assert result.steepest == theirs


def test_rates_grow_by_a_constant_factor():
    result = TinyRun().range_test(update=lambda lr: 1.0, n_steps=21, min_lr=1e-5, max_lr=1e-1)
    assert (result.lrs[0], result.lrs[-1]) == (pytest.approx(1e-5), pytest.approx(1e-1))
    assert np.diff(np.log10(result.lrs)) == pytest.approx(np.full(20, 0.2))
    assert result.stopped == "reached the highest rate, 0.1"


def test_smoothing_is_a_bias_corrected_average():
    losses = iter(np.random.default_rng(0).normal(10, 1, 30).tolist())
    result = TinyRun().range_test(update=lambda lr: next(losses), smoothing=0.8)
    weights = np.array([[0.8 ** (i - j) if j <= i else 0.0 for j in range(30)] for i in range(30)])
    expected = (weights @ result.losses) / weights.sum(axis=1)
    assert result.smoothed == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_test(bad):
    losses = iter([5.0 - 0.1 * i for i in range(25)] + [bad] * 5)
    result = TinyRun().range_test(update=lambda lr: next(losses))
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) == 25
    assert f"the loss was {bad}" in result.stopped
    assert result.steepest is not None


def test_divergence_stops_the_test():
    """Four times the best loss, also where the loss is negative."""
    for offset in (0.0, -20.0):
        result = TinyRun().range_test(update=lambda lr, offset=offset: offset + 2.0 + (lr > 1e-3) * 1000.0)
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
    result = TinyRun().range_test(update=update)
    assert (result.steepest, result.valley) == (None, None)
    assert reason in result.reason


def test_longest_descent_skips_bumps():
    losses = np.array([11.0, 12, 13, 10, 9, 9.5, 8, 7, 7.5, 6, 5, 4, 3, 2, 1, 5, 6, 4])
    # falling subsequence: 13 10 9 8 7 6 5 4 3 2 1, eleven long, ends at index 14, counted back to index 3
    assert _middle_of_longest_descent(losses) == (14 + 3) // 2


def test_bad_ranges_are_refused():
    for options in ({"min_lr": 0.0}, {"min_lr": 1.0, "max_lr": 0.1}, {"n_steps": MIN_STEPS - 1}):
        with pytest.raises(UsageError):
            TinyRun().range_test(**options)


def test_result_is_frozen():
    result = TinyRun().range_test(update=lambda lr: 1.0)
    with pytest.raises(FrozenInstanceError):
        result.valley = 1.0


def test_the_finder_trains_on_the_runs_first_updates_again_and_again_and_counts_what_the_sums_are_over():
    run = TinyRun()
    seen = []

    def train(update: list[int], step: int, lr: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        seen.append((update, step, lr))
        loss = run.update(lr) * len(update)
        return {"loss": loss, "accuracy": loss}, torch.tensor(1.0)

    before = {name: value.clone() for name, value in run.tensors().items()}
    updates = ([1, 2], [3], [4, 5, 6])
    result = find_lr(run.accelerator, run.model, run.optimizer, updates, train, count=len, max_lr=0.5)
    assert [update for update, _, _ in seen[:5]] == [[1, 2], [3], [4, 5, 6], [1, 2], [3]]
    assert [step for _, step, _ in seen] == list(range(len(seen))) and len(seen) == 100
    assert [lr for _, _, lr in seen] == list(result.lrs) and result.lrs[-1] == pytest.approx(0.5)
    assert all(torch.equal(value, before[name]) for name, value in run.tensors().items())
    again = TinyRun()
    assert result.losses[:3] == pytest.approx([again.update(lr).item() for lr in result.lrs[:3]])


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
    done = forked_runs.run(script, config="cpu_2proc", environment={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    assert "both ranks alike" in done.stdout
