import pytest
import torch
from torch import nn

from training import model_size
from training.errors import UsageError
from training.model_size import build_within_memory

CPU = torch.device("cpu")


def test_the_model_is_the_same_as_without_the_trial():
    torch.manual_seed(0)
    expected = nn.Linear(3, 2)
    torch.manual_seed(0)
    model = build_within_memory(lambda: nn.Linear(3, 2), CPU)
    assert model.weight.device == CPU
    torch.testing.assert_close(model.weight, expected.weight, rtol=0, atol=0)


def test_what_cannot_be_trained_is_refused_before_it_is_allocated(monkeypatch):
    with pytest.raises(UsageError, match=r"a model of 1,000,000,000,000 parameters takes .* lower its widths"):
        build_within_memory(lambda: nn.Linear(10**6, 10**6, bias=False), CPU)
    with pytest.raises(UsageError, match="too large for any memory"):
        build_within_memory(lambda: nn.Linear(10**12, 10**12), CPU)
    monkeypatch.setattr(model_size, "total_memory", lambda: 16 * 99)  # bytes: weight, gradient and two averages
    with pytest.raises(UsageError, match="100 parameters"):
        build_within_memory(lambda: nn.Linear(10, 10, bias=False), CPU)
    build_within_memory(lambda: nn.Linear(10, 10, bias=False), CPU, n_shards=2)


def test_other_errors_are_not_taken_for_want_of_memory():
    def broken():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        build_within_memory(broken, CPU)
