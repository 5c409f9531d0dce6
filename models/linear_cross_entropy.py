"""Output projection and cross-entropy in one: sums over tokens, which the caller divides by the update's count."""

import torch
from torch import Tensor

from models.autocast import in_product_dtype

# Logits held at a time. On a CPU a chunk should stay in the cache; on a GPU it only has to fill the device.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
SMALLEST = torch.finfo(torch.float32).tiny  # probability that counts: a label that has less costs 87 nats


class _LinearCrossEntropy(torch.autograd.Function):
    """Output projection and label-smoothed cross-entropy in one, a chunk of rows at a time.

    The gradient with respect to the logits is softmax - smoothed one-hot: it is at hand in the forward pass,
    so both input gradients are computed there and the (N, V) logits never exist as a whole, in any pass.

    Each pass over a chunk's logits costs as much as a product, so that there is one, the softmax. It is summed in
    fp32 and kept in the states' precision; the label's entry and what smoothing takes from all rows alike, which
    is a product of vectors, are computed apart, in fp32.
    """

    @staticmethod
    def forward(ctx, states, weight, labels, label_smoothing, spread, ignore_index, needs_gradient):
        working_weight = weight.to(states.dtype)
        if spread is None:
            spread = torch.full((weight.shape[0],), 1 / weight.shape[0], dtype=torch.float32, device=weight.device)
        spread_word = spread @ weight.float()  # (D,): a state times it is the mean of its logits
        # What is only evaluated is rounded nowhere, and fp16 has no room for what is unlikely; bf16 has fp32's.
        in_fp32 = not needs_gradient or states.dtype == torch.float16
        gradients = (torch.zeros_like(states), zeros_for_sums(weight)) if needs_gradient else None
        sum_of_states = torch.zeros_like(spread_word)
        smoothed = torch.zeros((), dtype=torch.float32, device=states.device)
        plain = torch.zeros_like(smoothed)
        rows = rows_of_a_chunk(weight)
        row = torch.arange(rows, device=states.device)
        for start in range(0, states.shape[0], rows):
            chunk = slice(start, start + rows)
            x = states[chunk]
            counted = labels[chunk] != ignore_index
            label = row[: len(x)], labels[chunk].clamp(min=0)
            logits = x @ working_weight.t()  # (rows, V)
            of_label = logits[label].float()
            probs = logits.softmax(1, dtype=torch.float32 if in_fp32 else None)
            prob = probs[label].float().clamp(min=SMALLEST)
            nll = -prob.log()
            elsewhere = of_label + nll - x.float() @ spread_word  # mean over the spread of -log p
            plain += (nll * counted).sum()
            smoothed += (((1 - label_smoothing) * nll + label_smoothing * elsewhere) * counted).sum()
            if gradients is not None:
                states_grad, weight_grad = gradients
                probs[label] = (prob - (1 - label_smoothing)).to(probs.dtype)
                gradient = probs.to(x.dtype)
                taken = (label_smoothing * spread_word).to(x.dtype)
                states_grad[chunk] = (gradient @ working_weight - taken) * counted[:, None]
                x = x * counted[:, None]
                weight_grad += product_in_fp32(gradient.t(), x)
                sum_of_states += x.sum(0, dtype=torch.float32)
        if gradients is not None:
            states_grad, weight_grad = gradients
            taken = torch.outer(spread, sum_of_states).to(weight_grad.dtype)
            weight_grad.sub_(taken, alpha=label_smoothing)
            ctx.save_for_backward(states_grad, weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    def backward(ctx, gradient, _):
        states_grad, weight_grad = ctx.saved_tensors
        return states_grad * gradient.to(states_grad.dtype), weight_grad * gradient, None, None, None, None, None


def rows_of_a_chunk(weight: Tensor) -> int:
    """How many rows of logits are held at a time under the projection `weight` (V, D)."""
    return max(CHUNK_ELEMENTS.get(weight.device.type, 1 << 24) // weight.shape[0], 16)


def zeros_for_sums(weight: Tensor) -> Tensor:
    """Where the gradient of `weight` is summed over chunks: in fp32 at least, though FSDP gives weights in bf16."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def product_in_fp32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, a sum over the tokens of a chunk, which for a frequent word may pass fp16's 65,504.

    A CPU sums bf16 in fp32 and rounds once; only CUDA can leave that out.
    """
    if a.device.type == "cuda" and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.dtype == torch.float16:
        return a.float() @ b.float()
    return a @ b


@torch.compiler.disable  # the chunk loop's trip count follows the batch: nothing for the compiler to fuse
def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    spread: Tensor | None = None,
    ignore_index: int = 0,
) -> tuple[Tensor, Tensor]:
    """Sum of label-smoothed cross-entropy of `states @ weight.T`, and the plain sum without gradient (nats).

    states (..., D), weight (V, D), labels (...) int64; rows with label `ignore_index` count nothing. Equal to
    `F.cross_entropy(states @ weight.T, labels, reduction="sum", ...)`, with label smoothing as in Szegedy et
    al. 2016 (arXiv 1512.00567, section 7). `spread` (V,), which sums to 1, says how the smoothed share is spread
    over the words; without it, evenly. Twice differentiable it is not.
    """
    states, labels = in_product_dtype(states.flatten(0, -2)), labels.flatten()
    with torch.autocast(states.device.type, enabled=False):
        return _LinearCrossEntropy.apply(
            states, weight, labels, label_smoothing, spread, ignore_index, torch.is_grad_enabled()
        )
