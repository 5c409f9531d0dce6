import pytest
import torch

from models.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_dropped_and_the_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.full((333, 301), 2.0, dtype=dtype)
    y = dropout(x, p)
    assert y.dtype == dtype and y.shape == x.shape
    n = x.numel()
    assert abs((y == 0).sum().item() - p * n) <= 5 * (n * p * (1 - p)) ** 0.5
    if p < 1:
        kept = y[y != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 2.0 / (1 - p)), rtol=1e-2, atol=0)


def test_every_place_in_a_word_of_random_bits_is_dropped_alike():
    """Four elements share 64 bits: none of the four may be favoured, nor may neighbours go together."""
    torch.manual_seed(0)
    zero = dropout(torch.ones(400_000), 0.25) == 0
    for place in range(4):
        assert zero[place::4].float().mean().item() == pytest.approx(0.25, abs=0.007)
    assert (zero[:-1] & zero[1:]).float().mean().item() == pytest.approx(0.0625, abs=0.003)


def test_the_gradient_goes_where_the_value_went():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 1 / 0.6))


def test_the_mask_follows_the_seed_and_evaluation_drops_nothing():
    x, layer = torch.ones(10, 10), Dropout(0.5)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="probability"):
        Dropout(1.5)
