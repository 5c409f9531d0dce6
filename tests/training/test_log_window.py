import json
import math

import pytest
import torch
from accelerate import Accelerator

from training.errors import TrainingDiverged
from training.metrics import MAX_SKIPPED, MetricWindow


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on by hand: clock(seconds)."""
    now = [100.0]
    monkeypatch.setattr("training.metrics.time.perf_counter", lambda: now[0])

    def move_on(seconds: float) -> None:
        now[0] += seconds

    return move_on


def make_window() -> MetricWindow:
    return MetricWindow(Accelerator(cpu=True), ("loss", "nll"), rate="tokens_per_second")


def test_sums_are_divided_by_the_count_not_averaged_over_updates(fresh_accelerate, clock):
    window = make_window()
    window.start()
    window.add(torch.tensor([10.0, 5.0]), 10)
    window.add(torch.tensor([90.0, 20.0]), 30)
    clock(4.0)
    assert window.read() == {"loss": 2.5, "nll": 0.625, "tokens_per_second": 10.0}
    window.add(torch.tensor([3.0, 3.0]), 3)
    clock(1.0)
    assert window.read() == {"loss": 1.0, "nll": 1.0, "tokens_per_second": 3.0}  # the window was emptied


def test_the_clock_stands_while_the_loop_does_something_else(fresh_accelerate, clock):
    window = make_window()
    clock(50.0)  # before the start
    window.start()
    clock(2.0)
    window.stop()
    clock(500.0)  # a validation
    window.start()
    clock(1.0)
    window.add(torch.tensor([3.0, 3.0]), 30)
    assert window.read()["tokens_per_second"] == 10.0
    clock(2.0)
    window.stop()
    window.stop()
    assert window.train_seconds == 5.0 and window.state()["seconds"] == 2.0


def test_state_goes_on_as_if_never_interrupted(fresh_accelerate, clock):
    torch.manual_seed(0)
    rows = torch.randn(7, 2) * 1000
    whole, first, second = make_window(), make_window(), make_window()
    for window in (whole, first):
        window.start()
    for i, row in enumerate(rows):
        whole.add(row, 100 + i)
        if i < 4:
            first.add(row, 100 + i)
        clock(1.0)
        if i == 3:
            first.stop()
            second.load(json.loads(json.dumps(first.state())))
            second.start()
        if i > 3:
            second.add(row, 100 + i)
    assert second.read() == whole.read()
    assert second.train_seconds == whole.train_seconds == 7.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step_and_the_last_good_checkpoint(fresh_accelerate, tmp_path, bad):
    window = make_window()
    for value in (1.0, 2.0, bad, 3.0, math.nan):
        window.add(torch.tensor([value, 1.0]), 10)
    with pytest.raises(TrainingDiverged, match=r"at step 18; .*checkpoint-10.*--lr"):
        window.raise_if_diverged(20, 1.0, tmp_path / "checkpoint-10")
    with pytest.raises(TrainingDiverged, match="none was saved"):
        window.raise_if_diverged(20, 1.0, None)
    fine = make_window()
    fine.add(torch.tensor([1.0, 1.0]), 10)
    fine.raise_if_diverged(1, torch.tensor(3.0), None)
    with pytest.raises(TrainingDiverged, match="at step 1;"):
        fine.raise_if_diverged(1, torch.tensor(bad), None)


def test_overflows_are_skipped_until_they_are_too_many_or_the_loss_is_not_finite(fresh_accelerate):
    window = make_window()
    for _ in range(3):
        for _ in range(MAX_SKIPPED - 1):
            window.skip(torch.tensor([1.0, 1.0]), 7, None)
        window.add(torch.tensor([1.0, 1.0]), 10)
    with pytest.raises(TrainingDiverged, match="at step 8;"):
        for _ in range(MAX_SKIPPED):
            window.skip(torch.tensor([1.0, 1.0]), 7, None)
    with pytest.raises(TrainingDiverged):
        make_window().skip(torch.tensor([math.nan, 1.0]), 7, None)
