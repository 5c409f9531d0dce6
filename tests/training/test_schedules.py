import warnings

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

import train_cifar
import train_cvae
import train_translation
import train_unet
from training.errors import UsageError
from training.schedules import one_cycle, set_lr


def torch_one_cycle(total_steps: int, **options) -> list[float]:
    """Every rate of torch's own scheduler, driven as a training loop drives it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OneCycleLR(optimizer, total_steps=total_steps, cycle_momentum=False, **options)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer is never stepped here, on purpose
        for _ in range(total_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 10, 333, 1000])
@pytest.mark.parametrize("pct_start", [0.0, 0.05, 0.3, 0.9])
def test_equals_torch_at_every_step(total_steps, pct_start, anneal):
    options = {"max_lr": 0.37, "pct_start": pct_start, "div_factor": 7.0, "final_div_factor": 123.0}
    ours = [one_cycle(step, total_steps=total_steps, anneal=anneal, **options) for step in range(total_steps)]
    theirs = torch_one_cycle(total_steps, anneal_strategy=anneal, **options)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("total_steps", "pct_start"), [(3, 0.0), (10, 0.3), (10, 0.5), (333, 0.42), (1000, 0.05)])
def test_three_phases_equal_torch_at_every_step(total_steps, pct_start, anneal):
    options = {"max_lr": 0.37, "pct_start": pct_start, "three_phase": True, "div_factor": 7, "final_div_factor": 9}
    ours = [one_cycle(step, total_steps=total_steps, anneal=anneal, **options) for step in range(total_steps)]
    theirs = torch_one_cycle(total_steps, anneal_strategy=anneal, **options)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("three_phase", [False, True])
def test_a_rate_that_is_divided_by_one_is_constant(three_phase):
    options = {"pct_start": 0.2, "div_factor": 1.0, "final_div_factor": 1.0, "three_phase": three_phase}
    assert {one_cycle(step, total_steps=7, max_lr=1e-4, **options) for step in range(7)} == {1e-4}


@pytest.mark.parametrize("script", [train_cifar, train_cvae, train_translation, train_unet])
def test_each_script_gives_the_schedule_all_its_flags(script):
    flags = {"lr": 0.1, "pct_start": 0.3, "div_factor": 100.0, "final_div_factor": 10.0, "anneal": "linear"}
    config = script.Config(recipe="demo", **flags, three_phase=True)
    max_lr = flags.pop("lr")
    ours = [script.learning_rate(config, step, 20) for step in range(20)]
    assert ours == [one_cycle(s, total_steps=20, max_lr=max_lr, **flags, three_phase=True) for s in range(20)]


def test_defaults_are_torch_defaults():
    ours = [one_cycle(step, total_steps=50, max_lr=1e-3) for step in range(50)]
    assert ours == pytest.approx(torch_one_cycle(50, max_lr=1e-3), rel=1e-12)


def test_all_warm_up_ends_at_the_peak():
    assert one_cycle(9, total_steps=10, max_lr=0.5, pct_start=1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(("total_steps", "pct_start"), [(10, 0.1), (1, 1.0)])
def test_a_warm_up_of_no_length_starts_at_the_peak(total_steps, pct_start):
    with pytest.raises(ZeroDivisionError):  # the only arguments for which torch is no guide
        torch_one_cycle(total_steps, max_lr=0.5, pct_start=pct_start)
    assert one_cycle(0, total_steps=total_steps, max_lr=0.5, pct_start=pct_start) == pytest.approx(0.5)


def test_steps_past_the_end_keep_the_last_rate():
    last = one_cycle(9, total_steps=10, max_lr=1.0)
    assert last == pytest.approx(1.0 / 25 / 1e4)
    assert one_cycle(10, total_steps=10, max_lr=1.0) == last
    assert one_cycle(10_000, total_steps=10, max_lr=1.0) == last


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"step": -1}, ValueError),
        ({"anneal": "cosine"}, ValueError),
        ({"total_steps": 0}, UsageError),
        ({"pct_start": 1.5}, UsageError),
        ({"pct_start": -0.1}, UsageError),
        ({"pct_start": 0.6, "three_phase": True}, UsageError),
    ],
)
def test_bad_arguments_are_refused(arguments, error):
    with pytest.raises(error):
        one_cycle(**{"step": 0, "total_steps": 10, "max_lr": 1.0, **arguments})


def test_set_lr_keeps_the_factor_of_each_group():
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr_factor": 0.25}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    for lr in (0.4, 0.8):  # set, never multiplied onto what was there
        set_lr(optimizer, lr)
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr * 0.25]
