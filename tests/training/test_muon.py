import copy

import pytest
import torch

from training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_singular_values_end_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, n_steps=5)
    inner = u.T @ result @ vh.T  # diagonal if the singular vectors are the same
    torch.testing.assert_close(inner - torch.diag(inner.diag()), torch.zeros_like(inner), atol=2e-2, rtol=0)
    assert inner.diag().min() > 0.6 and inner.diag().max() < 1.3
    assert s.max() / s.min() > 1.5  # they were not near one another before


def test_other_groups_follow_torchs_nesterov_sgd():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))]
    theirs = copy.deepcopy(ours)
    muon = Muon([{"params": ours[:1], "weight_decay": 0.1}, {"params": ours[1:]}], lr=0.1, momentum=0.8)
    sgd = torch.optim.SGD([{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:]}], lr=0.1,
                          momentum=0.8, nesterov=True)  # fmt: skip
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        sgd.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_filter_turns_by_its_orthogonalized_momentum_from_a_fixed_norm():
    torch.manual_seed(0)
    filters = torch.nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    optimizer = Muon([{"params": [filters], "orthogonal": True, "momentum": 0.6}], lr=0.2)
    buffer, expected = torch.zeros(8, 36), filters.detach().reshape(8, 36)
    for _ in range(3):
        gradient = torch.randn(8, 4, 3, 3)
        filters.grad = gradient.to(memory_format=torch.channels_last)
        optimizer.step()
        buffer = 0.6 * buffer + gradient.reshape(8, 36)
        expected = expected * (8**0.5 / expected.norm())
        expected = expected - 0.2 * orthogonalize(gradient.reshape(8, 36) + 0.6 * buffer)
        torch.testing.assert_close(filters.detach().reshape(8, 36), expected, atol=1e-5, rtol=1e-4)


def test_in_bf16_the_update_is_the_same_to_its_precision_and_weights_stay_fp32():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 36), torch.randn(8, 36)
    turned = []
    for dtype in (torch.float32, torch.bfloat16):
        filters = torch.nn.Parameter(start.clone())
        filters.grad = gradient.clone()
        Muon([{"params": [filters], "orthogonal": True}], lr=0.2, dtype=dtype).step()
        assert filters.dtype == torch.float32
        turned.append(filters.detach())
    difference = (turned[0] - turned[1]).norm() / (turned[0] - start * 8**0.5 / start.norm()).norm()
    assert 0 < difference < 0.02


def test_vectors_cannot_be_orthogonalized():
    with pytest.raises(ValueError, match="vectors"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))], "orthogonal": True}], lr=0.1)
