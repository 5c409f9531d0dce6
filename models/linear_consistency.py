"""Output projection and consistency training in one: two predictions of each token, and how far they lie apart.

R-Drop (Liang et al. 2021, arXiv 2106.14448) shows a sentence twice under different dropout; SimCut (Gao et al.
2022, arXiv 2206.02368) shows it whole, and once more with some of its embeddings cut off. Sums over tokens, which
the caller divides by the update's count.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.autocast import in_product_dtype
from models.linear_cross_entropy import product_in_fp32, rows_of_a_chunk, zeros_for_sums


class _Shares(NamedTuple):
    """What the loss is made of, of the first prediction p and the second one q."""

    nll_p: float
    nll_q: float
    kl_pq: float  # KL(p || q)
    kl_qp: float


# R-Drop is half of the paper's loss, so that it is a cross-entropy of one sentence as all others are.
SHARES = {"r-drop": _Shares(0.5, 0.5, 0.25, 0.25), "simcut": _Shares(1.0, 0.0, 1.0, 0.0)}


class _LinearConsistency(torch.autograd.Function):
    """The loss and, in the forward pass, its gradients, a chunk of rows at a time.

    No (N, V) tensor exists as a whole. Of a chunk there are four, log-probabilities and probabilities of both
    predictions in fp32, so that it has a quarter of the rows that a cross-entropy alone would take.
    """

    @staticmethod
    def forward(
        ctx, states, weight, labels, shares, strength, label_smoothing, spread, ignore_index, needs_gradient
    ):
        working_weight = weight.to(states.dtype)
        gradients = (torch.zeros_like(states), zeros_for_sums(weight)) if needs_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        plain, divergence = torch.zeros_like(loss), torch.zeros_like(loss)
        n = len(labels)
        rows = max(rows_of_a_chunk(weight) // 4, 16)
        for start in range(0, n, rows):
            chunk = slice(start, min(start + rows, n))
            chunk_of_q = slice(n + chunk.start, n + chunk.stop)
            counted = (labels[chunk] != ignore_index)[:, None]
            label = labels[chunk, None].clamp(min=0)
            log_p = torch.log_softmax(states[chunk] @ working_weight.t(), 1, dtype=torch.float32)  # (rows, V)
            log_q = torch.log_softmax(states[chunk_of_q] @ working_weight.t(), 1, dtype=torch.float32)
            for log_probs, share in ((log_p, shares.nll_p), (log_q, shares.nll_q)):
                if share:
                    smoothed, nll = _cross_entropy_sums(log_probs, label, counted, label_smoothing, spread)
                    loss += share * smoothed
                    plain += share * nll
            p, q = log_p.exp(), log_q.exp()
            apart = log_p.sub_(log_q)
            kl_pq = (p * apart).sum(1, keepdim=True)  # (rows, 1)
            kl_qp = -(q * apart).sum(1, keepdim=True) if shares.kl_qp else torch.zeros_like(kl_pq)
            divergence += ((shares.kl_pq * kl_pq + shares.kl_qp * kl_qp) * counted).sum()
            if gradients is not None:
                states_grad, weight_grad = gradients
                on_pq, on_qp = strength * shares.kl_pq, strength * shares.kl_qp
                # With respect to the logits of p, KL(p || q) has p (log p - log q - KL), KL(q || p) has p - q.
                towards = p - q
                gradient_p = (apart - kl_pq).mul_(p).mul_(on_pq)
                gradient_q = towards * -on_pq
                if on_qp:
                    gradient_p.add_(towards, alpha=on_qp)
                    gradient_q.sub_(apart.add_(kl_qp).mul_(q), alpha=on_qp)
                for rows_of, gradient, probs, share in (
                    (chunk, gradient_p, p, shares.nll_p),
                    (chunk_of_q, gradient_q, q, shares.nll_q),
                ):
                    if share:
                        gradient.add_(_subtract_target_(probs, label, label_smoothing, spread), alpha=share)
                    gradient = gradient.mul_(counted).to(states.dtype)
                    states_grad[rows_of] = gradient @ working_weight
                    weight_grad += product_in_fp32(gradient.t(), states[rows_of])
        if gradients is not None:
            states_grad, weight_grad = gradients
            ctx.save_for_backward(states_grad, weight_grad.to(weight.dtype))
        loss += strength * divergence
        divergence /= shares.kl_pq + shares.kl_qp
        ctx.mark_non_differentiable(plain, divergence)
        return loss, plain, divergence

    @staticmethod
    def backward(ctx, gradient, *_):
        states_grad, weight_grad = ctx.saved_tensors
        return (states_grad * gradient.to(states_grad.dtype), weight_grad * gradient, *[None] * 7)


def _cross_entropy_sums(
    log_probs: Tensor, label: Tensor, counted: Tensor, label_smoothing: float, spread: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums of the label-smoothed cross-entropy and of the plain one over the rows that are `counted`.

    log_probs (rows, V), label and counted (rows, 1); `spread` (V,) as `linear_cross_entropy` has it.
    """
    nll = -log_probs.gather(1, label) * counted
    if spread is None:
        elsewhere = -log_probs.mean(1, keepdim=True) * counted
    else:
        elsewhere = -(log_probs @ spread[:, None]) * counted
    return (1 - label_smoothing) * nll.sum() + label_smoothing * elsewhere.sum(), nll.sum()


def _subtract_target_(probs: Tensor, label: Tensor, label_smoothing: float, spread: Tensor | None) -> Tensor:
    """Make of probs (rows, V) the gradient of the smoothed cross-entropy with respect to the logits, in place."""
    gradient = probs.sub_(label_smoothing / probs.shape[1] if spread is None else label_smoothing * spread)
    return gradient.scatter_add_(1, label, gradient.new_full(label.shape, label_smoothing - 1))


@torch.compiler.disable  # as in linear_cross_entropy
def linear_consistency(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    kind: Literal["r-drop", "simcut"],
    strength: float,
    label_smoothing: float = 0.0,
    spread: Tensor | None = None,
    ignore_index: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the loss, and without gradient of the plain cross-entropy and the divergence (nats).

    states (2B, T, D): of B sentences shown once, p, and in the same order once more, q; weight (V, D); labels
    (B, T) int64, of which `ignore_index` counts nothing; the others as in `linear_cross_entropy`.

    - "r-drop": (CE(p) + CE(q)) / 2 + strength (KL(p || q) + KL(q || p)) / 4. The divergence is the mean of the two.
    - "simcut": CE(p) + strength KL(p || q), whose gradient goes into both predictions: the paper found this to be
      what matters. The cross-entropy and its plain sum are of p alone.

    The strength is the papers' alpha.
    """
    states, labels = in_product_dtype(states.flatten(0, -2)), labels.flatten()
    with torch.autocast(states.device.type, enabled=False):
        return _LinearConsistency.apply(
            states,
            weight,
            labels,
            SHARES[kind],
            strength,
            label_smoothing,
            spread,
            ignore_index,
            torch.is_grad_enabled(),
        )
