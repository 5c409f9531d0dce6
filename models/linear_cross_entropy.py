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
    def forward(ctx, states, weight, labels, label_smoothing, ignore_index, needs_gradient):
        n_words = weight.shape[0]
        working_weight = weight.to(states.dtype)
        gradients = (torch.zeros_like(states), torch.zeros_like(weight)) if needs_gradient else None
        smoothed = torch.zeros((), dtype=torch.float32, device=states.device)
        plain = torch.zeros_like(smoothed)
        rows = max(CHUNK_ELEMENTS.get(states.device.type, 1 << 24) // n_words, 16)
        for start in range(0, states.shape[0], rows):
            chunk = slice(start, start + rows)
            counted = (labels[chunk] != ignore_index)[:, None]
            label = labels[chunk, None].clamp(min=0)
            log_probs = torch.log_softmax(states[chunk] @ working_weight.t(), 1, dtype=torch.float32)  # (rows, V)
            nll = -log_probs.gather(1, label) * counted
            uniform = -log_probs.mean(1, keepdim=True) * counted
            plain += nll.sum()
            smoothed += (1 - label_smoothing) * nll.sum() + label_smoothing * uniform.sum()
            if gradients is not None:
                states_grad, weight_grad = gradients
                gradient = log_probs.exp_().sub_(label_smoothing / n_words)
                gradient.scatter_add_(1, label, torch.full_like(nll, label_smoothing - 1))
                gradient = gradient.mul_(counted).to(states.dtype)
                states_grad[chunk] = gradient @ working_weight
                weight_grad += _product_in_fp32(gradient.t(), states[chunk])
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    def backward(ctx, gradient, _):
        states_grad, weight_grad = ctx.saved_tensors
        return states_grad * gradient.to(states_grad.dtype), weight_grad * gradient, None, None, None, None


def _product_in_fp32(a: Tensor, b: Tensor) -> Tensor:
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
    states: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float = 0.0, ignore_index: int = 0
) -> tuple[Tensor, Tensor]:
    """Sum of label-smoothed cross-entropy of `states @ weight.T`, and the plain sum without gradient (nats).

    states (..., D), weight (V, D), labels (...) int64; rows with label `ignore_index` count nothing. Equal to
    `F.cross_entropy(states @ weight.T, labels, reduction="sum", ...)`, with label smoothing as in Szegedy et
    al. 2016 (arXiv 1512.00567, section 7). Twice differentiable it is not.
    """
    states, labels = states.flatten(0, -2), labels.flatten()
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            states, weight, labels, label_smoothing, ignore_index, torch.is_grad_enabled()
        )
