"""Exponential moving average of the weights (Polyak & Juditsky 1992)."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A copy of a model, `module`, whose weights follow the model's: call `update(model)` after each update.

    The decay grows with the number n of updates as (1 + n) / (10 + n) up to `decay`, so that the average does
    not drag the initial weights along in a short run; the first update copies. Unlike torch's `AveragedModel`
    it counts on the host, so that no update waits for the device, and it stays whole and fp32 where the
    model is sharded or kept in half precision. Make it before the model is prepared.

    Where a rate falls to zero, an average with a long window lags behind the last weights. Given `updates_left`,
    the window of 1 / (1 - decay) updates is never longer than those, so that the average ends at these weights.
    """

    def __init__(self, model: M, decay: float):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.n_averaged = 0

    @torch.no_grad()
    def update(self, model: nn.Module, updates_left: int | None = None) -> None:
        """Move towards the weights of `model`, the unwrapped one; `updates_left` are those after this."""
        current = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        n = self.n_averaged
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0  # a step of 1.0 copies exactly
        if updates_left is not None:
            weight = max(weight, 1 / (updates_left + 1))
        torch._foreach_lerp_(list(self.module.parameters()), [p.float() for p in current], weight)
        for averaged, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            if averaged.is_floating_point():  # running statistics of norms
                averaged.lerp_(buffer.to(averaged.dtype), weight)
            else:
                averaged.copy_(buffer)
        self.n_averaged += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.module.state_dict(), "n_averaged": torch.tensor(self.n_averaged)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        self.n_averaged = int(state.pop("n_averaged"))
        self.module.load_state_dict(state)
