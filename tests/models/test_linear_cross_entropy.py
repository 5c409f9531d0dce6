import pytest
import torch
import torch.nn.functional as F

from models import linear_cross_entropy as module
from models.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_elements", [1, 40 * 23, 1 << 22])  # many chunks, a partial last one, a single one
def test_values_and_gradients_equal_torch(monkeypatch, label_smoothing, chunk_elements):
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk_elements)
    torch.manual_seed(0)
    labels = torch.randint(0, 23, (100,))
    ours = [torch.randn(100, 8, dtype=torch.double), torch.randn(23, 8, dtype=torch.double)]
    theirs = [x.clone().requires_grad_() for x in ours]
    ours = [x.requires_grad_() for x in ours]
    smoothed, plain = linear_cross_entropy(*ours, labels, label_smoothing, ignore_index=0)
    logits = theirs[0] @ theirs[1].t()
    expected = F.cross_entropy(logits, labels, ignore_index=0, reduction="sum", label_smoothing=label_smoothing)
    torch.testing.assert_close(smoothed.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        plain.double(), F.cross_entropy(logits, labels, ignore_index=0, reduction="sum"), rtol=1e-5, atol=0
    )
    (smoothed * 0.7).backward()
    (expected * 0.7).backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-5)


def test_smoothing_that_is_spread_over_some_words_equals_soft_targets(monkeypatch):
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", 40 * 23)
    torch.manual_seed(0)
    labels = torch.randint(1, 23, (100,))
    ours = [torch.randn(100, 8, dtype=torch.double), torch.randn(23, 8, dtype=torch.double)]
    theirs = [x.clone().requires_grad_() for x in ours]
    ours = [x.requires_grad_() for x in ours]
    spread = (torch.arange(23) % 2).float() / 11
    smoothed, plain = linear_cross_entropy(*ours, labels, 0.1, spread)
    soft = 0.9 * F.one_hot(labels, 23) + 0.1 * spread
    logits = theirs[0] @ theirs[1].t()
    expected = F.cross_entropy(logits, soft.double(), reduction="sum")
    torch.testing.assert_close(smoothed.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(plain.double(), F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-5, atol=0)
    smoothed.backward()
    expected.backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-5)
    even, _ = linear_cross_entropy(*ours, labels, 0.1, torch.full((23,), 1 / 23))
    torch.testing.assert_close(even, linear_cross_entropy(*ours, labels, 0.1)[0])


def test_rows_of_padding_count_nothing():
    torch.manual_seed(0)
    states, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    smoothed, plain = linear_cross_entropy(states, weight, torch.zeros(6, dtype=torch.long), 0.1)
    assert smoothed == plain == 0
    smoothed.backward()
    assert states.grad.abs().max() == weight.grad.abs().max() == 0


def test_the_plain_sum_carries_no_gradient_and_no_grad_keeps_none():
    states, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    labels = torch.randint(1, 11, (6,))
    assert not linear_cross_entropy(states, weight, labels)[1].requires_grad
    with torch.no_grad():
        assert not linear_cross_entropy(states, weight, labels)[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_unlikely_label_has_its_loss_and_gradient_in_any_precision(dtype):
    """40 nats lie below fp16's range of probabilities, 200 below fp32's: then 87 are counted."""
    for logit, expected in ((40.0, 40.0), (200.0, 87.3)):
        states = torch.tensor([[logit]], dtype=dtype, requires_grad=True)
        weight = torch.tensor([[0.0], [1.0], [0.0]], requires_grad=True)
        loss, plain = linear_cross_entropy(states, weight, torch.tensor([2]))
        assert plain.item() == pytest.approx(expected, rel=0.01)
        loss.backward()
        assert states.grad.item() == pytest.approx(1.0, abs=0.01)
        torch.testing.assert_close(weight.grad[:, 0], torch.tensor([0.0, logit, -logit]), rtol=0.01, atol=0.01)


def test_what_is_evaluated_in_half_precision_is_rounded_nowhere_but_in_the_logits():
    torch.manual_seed(0)
    states, weight = torch.randn(400, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    labels = torch.randint(1, 300, (400,))
    with torch.no_grad():
        smoothed, plain = linear_cross_entropy(states, weight, labels, 0.1)
    logits = (states @ weight.t()).float()
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-6, atol=0)
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(smoothed, expected, rtol=1e-4, atol=0)


def test_half_precision_states_keep_fp32_sums():
    """2,000 rows at 10 nats sum to more than fp16's 65,504 at a third of them."""
    torch.manual_seed(0)
    states, weight = torch.randn(8000, 16), torch.randn(500, 16) * 3
    labels = torch.randint(1, 500, (8000,))
    reference, _ = linear_cross_entropy(states, weight, labels)
    for dtype in (torch.float16, torch.bfloat16):
        half = states.to(dtype).requires_grad_()
        smoothed, _ = linear_cross_entropy(half, weight, labels)
        assert reference > 65_504 and smoothed.dtype == torch.float32
        torch.testing.assert_close(smoothed, reference, rtol=0.01, atol=0)
        smoothed.backward()
        assert half.grad.dtype == dtype and half.grad.isfinite().all()


def test_the_gradient_of_a_frequent_word_does_not_overflow_in_fp16():
    """70,000 tokens of which none is what is predicted: their states of 1 sum to more than 65,504."""
    states = torch.ones(70_000, 2, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [30.0, 30.0], [0.0, 0.0]], requires_grad=True)
    loss, _ = linear_cross_entropy(states, weight, torch.full((70_000,), 2))
    loss.backward()
    expected = torch.tensor([0.0, 70_000.0, -70_000.0])[:, None].expand(3, 2)
    torch.testing.assert_close(weight.grad, expected, atol=1.0, rtol=0)
    assert states.grad.isfinite().all()
