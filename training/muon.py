"""Muon for convolution filters, Nesterov SGD for everything else, in one optimizer."""

import torch
from torch import Tensor
from torch.optim import Optimizer


def orthogonalize(matrix: Tensor, n_steps: int = 3, eps: float = 1e-7) -> Tensor:
    """The matrix (n, m) with its singular values moved towards one, in its own dtype.

    Newton-Schulz iteration of the quintic 3.4445 x - 4.7750 x^3 + 2.0315 x^5, which takes small singular values
    up fastest and ends between about 0.7 and 1.2 (Jordan et al., Muon: https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + eps)
    for _ in range(n_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(Optimizer):
    """One optimizer, so that Accelerate has one gradient scaler and one state to keep, over two kinds of groups.

    Groups with `orthogonal=True` hold filters (C', C, k, k) or matrices: Nesterov momentum, the update
    orthogonalized as a (C', C k k) matrix, and the weights rescaled to the norm sqrt(C') before each update, so
    that `lr` is the share of a filter that one update turns. The others follow torch's Nesterov SGD with
    `weight_decay`. Source: Jordan et al. 2024 as above, with the renormalisation of airbench94_muon.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.6,
        weight_decay: float = 0.0,
        n_steps: int = 3,
        dtype: torch.dtype = torch.float32,
    ):
        """`dtype` is that of the orthogonalization's matrix products: bfloat16 is enough where it is faster."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "n_steps": n_steps,
            "orthogonal": False,
        }
        super().__init__(params, defaults)
        self.dtype = dtype
        for group in self.param_groups:
            if group["orthogonal"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("orthogonal groups hold filters and matrices, not vectors")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            buffers = [self._momentum_buffer(p) for p in params]
            grads = [p.grad for p in params]
            if not group["orthogonal"] and group["weight_decay"]:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            updates = torch._foreach_add(grads, buffers, alpha=group["momentum"])
            if group["orthogonal"]:
                for p, update in zip(params, updates, strict=True):
                    p.mul_(len(p) ** 0.5 / p.norm())
                    direction = orthogonalize(update.reshape(len(update), -1).to(self.dtype), group["n_steps"])
                    p.add_(direction.view(update.shape), alpha=-group["lr"])
            else:
                torch._foreach_add_(params, updates, alpha=-group["lr"])
        return loss

    def _momentum_buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]
