import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.elbo import free_bits, importance_weighted_bound, kl_to_standard_normal


def test_kl_is_torchs_and_exact_near_the_prior():
    mean, log_variance = torch.randn(2, 50, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)
    tiny = torch.tensor([1e-3, -1e-3])
    torch.testing.assert_close(kl_to_standard_normal(torch.zeros(2), tiny), tiny.square() / 4, rtol=1e-2, atol=0)


def test_free_bits_hold_each_image_and_level_to_the_floor():
    kl = torch.tensor([[1.0, 5.0], [3.0, 0.5]], requires_grad=True)
    total = free_bits(kl, 2.0)
    assert total.tolist() == [7.0, 5.0]
    total.sum().backward()
    assert kl.grad.tolist() == [[0, 1], [1, 0]], "below the floor there is no pull"
    assert torch.equal(free_bits(kl, 0.0), kl.sum(1))
    assert torch.equal(free_bits(kl[1:], 2.0), total[1:]), "an image does not depend on its batch"


def test_importance_weighted_bound():
    log_weights = torch.tensor([[-800.0, 1.0], [-801.0, 1.0], [-803.0, 1.0]])
    expected = [-800 + math.log((1 + math.exp(-1) + math.exp(-3)) / 3), 1.0]
    assert importance_weighted_bound(log_weights).tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(importance_weighted_bound(log_weights[:1]), log_weights[0])
    assert (importance_weighted_bound(log_weights) >= log_weights.mean(0)).all()
