import math

import pytest
import torch
from accelerate import Accelerator

from training.errors import TrainingDiverged
from training.metrics import MetricWindow


def make_window() -> MetricWindow:
    return MetricWindow(Accelerator(cpu=True), ("loss", "nll"), rate="tokens_per_second")


def test_sums_are_divided_by_the_count_not_averaged_over_updates(fresh_accelerate):
    window = make_window()
    window.add(torch.tensor([10.0, 5.0]), 10, 1.0)
    window.add(torch.tensor([90.0, 20.0]), 30, 3.0)
    assert window.read() == {"loss": 2.5, "nll": 0.625, "tokens_per_second": 10.0}
    window.add(torch.tensor([3.0, 3.0]), 3, 1.0)
    assert window.read()["loss"] == 1.0  # the window was emptied


def test_state_goes_on_as_if_never_interrupted(fresh_accelerate):
    import json

    torch.manual_seed(0)
    rows = torch.randn(7, 2) * 1000
    whole, first, second = make_window(), make_window(), make_window()
    for i, row in enumerate(rows):
        whole.add(row, 100 + i, 1.0)
        if i < 4:
            first.add(row, 100 + i, 1.0)
    second.load(json.loads(json.dumps(first.state())))
    for i, row in enumerate(rows[4:], start=4):
        second.add(row, 100 + i, 1.0)
    assert second.read() == whole.read()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step_and_the_last_good_checkpoint(fresh_accelerate, tmp_path, bad):
    window = make_window()
    for value in (1.0, 2.0, bad, 3.0, math.nan):
        window.add(torch.tensor([value, 1.0]), 10, 1.0)
    with pytest.raises(TrainingDiverged, match=r"at step 18; .*checkpoint-10.*--lr"):
        window.raise_if_diverged(20, tmp_path / "checkpoint-10")
    with pytest.raises(TrainingDiverged, match="none was saved"):
        window.raise_if_diverged(20, None)
    fine = make_window()
    fine.add(torch.tensor([1.0, 1.0]), 10, 1.0)
    fine.raise_if_diverged(1, None)
