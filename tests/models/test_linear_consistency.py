import pytest
import torch
import torch.nn.functional as F

from models import linear_cross_entropy as chunks
from models.linear_consistency import linear_consistency

B, T, D, V = 5, 7, 8, 23


def plain_loss(states, weight, labels, kind, strength, label_smoothing, spread):
    """The papers' formulas on whole logits: (loss, nll, divergence)."""
    log_p, log_q = (states @ weight.t()).log_softmax(-1).flatten(0, 1).chunk(2)
    labels = labels.flatten()
    counted = labels != 0

    def cross_entropy(log_probs, smoothing):
        nll = F.nll_loss(log_probs[counted], labels[counted], reduction="sum")
        return (1 - smoothing) * nll - smoothing * (log_probs[counted] @ spread).sum()

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(1)[counted].sum()

    if kind == "simcut":
        divergence = kl(log_p, log_q)
        return cross_entropy(log_p, label_smoothing) + strength * divergence, cross_entropy(log_p, 0), divergence
    both = (kl(log_p, log_q) + kl(log_q, log_p)) / 2
    loss, nll = ((cross_entropy(log_p, s) + cross_entropy(log_q, s)) / 2 for s in (label_smoothing, 0))
    return loss + strength * both / 2, nll, both


@pytest.mark.parametrize("kind", ["r-drop", "simcut"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "chunk_elements", [1, 4 * 20 * V, 1 << 22]
)  # many chunks, a partial last one, a single one
def test_values_and_gradients_equal_the_formulas(monkeypatch, kind, masked, chunk_elements):
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", chunk_elements)
    torch.manual_seed(0)
    labels = torch.randint(0, V, (B, T))
    ours = [torch.randn(2 * B, T, D, dtype=torch.double), torch.randn(V, D, dtype=torch.double)]
    theirs = [x.clone().requires_grad_() for x in ours]
    ours = [x.requires_grad_() for x in ours]
    spread = torch.full((V,), 1 / V)
    if masked:
        spread = (torch.arange(V) % 3 > 0).float() / (torch.arange(V) % 3 > 0).sum()
    found = linear_consistency(*ours, labels, kind, 2.5, 0.1, spread if masked else None)
    expected = plain_loss(*theirs, labels, kind, 2.5, 0.1, spread.double())
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-4)
    assert not found[1].requires_grad and not found[2].requires_grad
    (found[0] * 0.7).backward()
    (expected[0] * 0.7).backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["r-drop", "simcut"])
def test_equal_predictions_cost_what_one_costs(kind):
    torch.manual_seed(0)
    states, weight = torch.randn(B, T, D), torch.randn(V, D)
    labels = torch.randint(0, V, (B, T))
    loss, nll, divergence = linear_consistency(states.repeat(2, 1, 1), weight, labels, kind, 3.0)
    expected = F.cross_entropy(
        (states @ weight.t()).flatten(0, 1), labels.flatten(), ignore_index=0, reduction="sum"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert loss == nll and divergence == 0


def test_half_precision_states_keep_fp32_sums():
    torch.manual_seed(0)
    states, weight = torch.randn(2 * B, T, D), torch.randn(V, D)
    labels = torch.randint(0, V, (B, T))
    reference = linear_consistency(states, weight, labels, "simcut", 3.0)
    half = states.to(torch.bfloat16).requires_grad_()
    found = linear_consistency(half, weight, labels, "simcut", 3.0)
    for mine, expected in zip(found, reference, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=0.05, atol=0)
    found[0].backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["r-drop", "simcut"])
def test_logits_are_never_held_as_a_whole(monkeypatch, kind):
    """The largest tensor that is made has the rows of a quarter of a chunk."""
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 4 * 64 * V)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (made if isinstance(made, tuple) else [made]) if hasattr(t, "numel"))
            return made

    states, labels = torch.randn(2 * 64, 10, 4), torch.randint(1, V, (64, 10))
    with Sizes():
        linear_consistency(states.requires_grad_(), torch.randn(V, 4), labels, kind, 3.0)[0].backward()
    assert 64 * V <= max(sizes) <= max(64 * V, states.numel())
