import json
import math

import pytest
import torch
from accelerate import Accelerator

from training.errors import TrainingDiverged
from training.log_window import MAX_SKIPPED, LogWindow


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on by hand: clock(seconds)."""
    now = [100.0]
    monkeypatch.setattr("training.log_window.time.perf_counter", lambda: now[0])

    def move_on(seconds: float) -> None:
        now[0] += seconds

    return move_on


def make_window() -> LogWindow:
    return LogWindow(Accelerator(cpu=True))


def sums(loss: float, nll: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "nll": torch.tensor(nll)}


def saved(window: LogWindow) -> dict:
    """The window's state as a checkpoint gives it back."""
    return json.loads(json.dumps(window.state()))


def test_sums_are_divided_by_the_count_not_averaged_over_updates(fresh_accelerate, clock):
    window = make_window()
    window.start()
    window.add(sums(10.0, 5.0), 10)
    window.add(sums(90.0, 20.0), 30)
    clock(4.0)
    assert window.read() == ({"loss": 2.5, "nll": 0.625}, 10.0)
    assert window.is_empty
    window.add(sums(3.0, 3.0), 3)
    clock(1.0)
    assert window.read() == ({"loss": 1.0, "nll": 1.0}, 3.0)


def test_the_names_are_those_of_the_sums_one_more_is_one_more_average(fresh_accelerate, clock):
    window = make_window()
    for n_right in (3, 4):  # of integers, too
        window.add({"loss": torch.tensor(8.0), "accuracy": torch.tensor(n_right)}, 10)
    means, _ = window.read()
    assert means == {"loss": 0.8, "accuracy": 0.35}


def test_the_clock_stands_while_the_loop_does_something_else(fresh_accelerate, clock):
    window = make_window()
    clock(50.0)  # before the start
    window.start()
    clock(2.0)
    window.stop()
    clock(500.0)  # a validation
    window.start()
    clock(1.0)
    window.add(sums(3.0, 3.0), 30)
    _, rate = window.read()
    assert rate == 10.0
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
        whole.add(sums(*row.tolist()), 100 + i)
        if i < 4:
            first.add(sums(*row.tolist()), 100 + i)
        clock(1.0)
        if i == 3:
            first.stop()
            second.load(saved(first))
            second.start()
        if i > 3:
            second.add(sums(*row.tolist()), 100 + i)
    assert second.read() == whole.read()
    assert second.train_seconds == whole.train_seconds == 7.0


def test_a_checkpoint_whose_sums_have_other_names_begins_a_new_window_and_says_so(fresh_accelerate, clock, capsys):
    before = make_window()
    before.start()
    before.add(sums(100.0, 100.0), 10)
    clock(8.0)
    before.stop()
    window = make_window()
    window.load(saved(before))
    assert capsys.readouterr().err == ""
    window.start()
    for loss in (2.0, 4.0):
        window.add({"loss": torch.tensor(loss), "accuracy": torch.tensor(1.0)}, 2)
    clock(1.0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "loss, nll were logged before, loss, accuracy are now" in said
    assert window.read() == ({"loss": 1.5, "accuracy": 0.5}, 4.0)
    assert window.train_seconds == 9.0  # the time is the run's, whatever it logs


def test_of_several_processes_one_says_that_the_window_begins_anew(fresh_accelerate, monkeypatch, capsys):
    window = make_window()
    window.add(sums(1.0, 1.0), 1)
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    window.add({"loss": torch.tensor(3.0)}, 1)
    assert capsys.readouterr().err == "" and window.read()[0] == {"loss": 3.0}


def test_other_names_after_a_log_line_are_nothing_to_speak_of(fresh_accelerate, clock, capsys):
    window = make_window()
    window.add(sums(1.0, 1.0), 1)
    window.read()
    window.add({"loss": torch.tensor(1.0)}, 1)
    assert window.read()[0] == {"loss": 1.0} and capsys.readouterr().err == ""


def test_a_checkpoint_of_before_names_were_kept_gives_its_time(fresh_accelerate, clock):
    window = make_window()
    window.load({"rows": [[10.0, 5.0]], "count": 10, "seconds": 2.0, "train_seconds": 70.0})
    assert window.is_empty and window.train_seconds == 70.0
    window.start()
    window.add(sums(3.0, 6.0), 3)
    clock(1.0)
    assert window.read() == ({"loss": 1.0, "nll": 2.0}, 3.0)


def test_a_window_without_an_update_is_saved_and_goes_on(fresh_accelerate, clock):
    window = make_window()
    window.raise_if_diverged(0, 0.0, None)
    window.load(saved(make_window()))
    window.add(sums(1.0, 2.0), 1)
    assert window.read()[0] == {"loss": 1.0, "nll": 2.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step_and_the_last_good_checkpoint(fresh_accelerate, tmp_path, bad):
    window = make_window()
    for value in (1.0, 2.0, bad, 3.0, math.nan):
        window.add(sums(value, 1.0), 10)
    with pytest.raises(TrainingDiverged, match=r"at step 18; .*checkpoint-10.*--lr"):
        window.raise_if_diverged(20, 1.0, tmp_path / "checkpoint-10")
    with pytest.raises(TrainingDiverged, match="none was saved"):
        window.raise_if_diverged(20, 1.0, None)
    fine = make_window()
    fine.add(sums(1.0, 1.0), 10)
    fine.raise_if_diverged(1, torch.tensor(3.0), None)
    with pytest.raises(TrainingDiverged, match="at step 1;"):
        fine.raise_if_diverged(1, torch.tensor(bad), None)


def test_overflows_are_skipped_until_they_are_too_many_or_the_loss_is_not_finite(fresh_accelerate):
    window = make_window()
    for _ in range(3):
        for _ in range(MAX_SKIPPED - 1):
            window.skip(sums(1.0, 1.0), 7, None)
        window.add(sums(1.0, 1.0), 10)
    with pytest.raises(TrainingDiverged, match="at step 8;"):
        for _ in range(MAX_SKIPPED):
            window.skip(sums(1.0, 1.0), 7, None)
    with pytest.raises(TrainingDiverged):
        make_window().skip(sums(math.nan, 1.0), 7, None)


def test_a_log_line_sums_over_the_processes_once(fresh_accelerate, clock, monkeypatch):
    reduced = []
    monkeypatch.setattr(
        "training.log_window.sum_over_processes", lambda accelerator, rows: reduced.append(len(rows)) or rows
    )
    window = make_window()
    window.add(sums(2.0, 1.0), 2)
    window.raise_if_diverged(1, 0.5, None)
    assert window.read()[0] == {"loss": 1.0, "nll": 0.5} and reduced == [1]
    window.add(sums(4.0, 1.0), 2)
    assert saved(window)["rows"] == [[4.0, 1.0]]
    window.add(sums(6.0, 1.0), 2)
    assert window.read()[0] == {"loss": 2.5, "nll": 0.5} and reduced == [1, 1, 2]
