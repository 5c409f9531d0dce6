"""Output projection and cross-entropy in one: sums over tokens, which the caller divides by the update's count."""

import torch
from torch import Tensor

# Logits held at a time. On a CPU a chunk should stay in the cache; on a GPU it only has to fill the device.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}


class _LinearCrossEntropy(torch.autograd.Function):
    """Output projection and label-smoothed cross-entropy in one, a chunk of rows at a time.

    The gradient with respect to the logits is softmax - smoothed one-hot: it is at hand in the forward pass,
    so both input gradients are computed there and the (N, V) logits never exist as a whole, in any pass.
    Log-probabilities are fp32 within a chunk, whatever the precision of the states.
    """

    @staticmethod
    def forward(ctx, states, weight, labels, label_smoothing, spread, ignore_index, needs_gradient):
        working_weight = weight.to(states.dtype)
        gradients = (torch.zeros_like(states), torch.zeros_like(weight)) if needs_gradient else None
        smoothed = torch.zeros((), dtype=torch.float32, device=states.device)
        plain = torch.zeros_like(smoothed)
        rows = rows_of_a_chunk(weight)
        for start in range(0, states.shape[0], rows):
            chunk = slice(start, start + rows)
            counted = (labels[chunk] != ignore_index)[:, None]
            label = labels[chunk, None].clamp(min=0)
            log_probs = torch.log_softmax(states[chunk] @ working_weight.t(), 1, dtype=torch.float32)  # (rows, V)
            of_chunk = cross_entropy_sums(log_probs, label, counted, label_smoothing, spread)
            smoothed += of_chunk[0]
            plain += of_chunk[1]
            if gradients is not None:
                states_grad, weight_grad = gradients
                gradient = subtract_target_(log_probs.exp_(), label, label_smoothing, spread)
                gradient = gradient.mul_(counted).to(states.dtype)
                states_grad[chunk] = gradient @ working_weight
                weight_grad += product_in_fp32(gradient.t(), states[chunk])
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    def backward(ctx, gradient, _):
        states_grad, weight_grad = ctx.saved_tensors
        return states_grad * gradient.to(states_grad.dtype), weight_grad * gradient, None, None, None, None, None


def rows_of_a_chunk(weight: Tensor) -> int:
    """How many rows of logits are held at a time under the projection `weight` (V, D)."""
    return max(CHUNK_ELEMENTS.get(weight.device.type, 1 << 24) // weight.shape[0], 16)


def cross_entropy_sums(
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


def subtract_target_(probs: Tensor, label: Tensor, label_smoothing: float, spread: Tensor | None) -> Tensor:
    """Make of probs (rows, V) the gradient of the smoothed cross-entropy with respect to the logits, in place."""
    gradient = probs.sub_(label_smoothing / probs.shape[1] if spread is None else label_smoothing * spread)
    return gradient.scatter_add_(1, label, gradient.new_full(label.shape, label_smoothing - 1))


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
    states, labels = states.flatten(0, -2), labels.flatten()
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            states, weight, labels, label_smoothing, spread, ignore_index, torch.is_grad_enabled()
        )
