"""Exponential moving average of the weights (Polyak & Juditsky 1992)."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A copy of a model, `module`, whose weights follow the model's: call `update(model)` after each update.

    The decay grows with the number n of updates as (1 + n) / (10 + n) up to `decay`, so that the average does
    not drag the initial weights along in a short run; the first update copies. Unlike torch's `AveragedModel`
    it counts on the host, so that no update waits for the device, and it stays fp32 where the model is kept in half
    precision. Make it before the model is prepared. Of a model that is sharded, each process averages its shards:
    `gather` makes `module` whole, before it is evaluated or saved.

    Where a rate falls to zero, an average with a long window lags behind the last weights. Given `updates_left`,
    the window of 1 / (1 - decay) updates is never longer than those, so that the average ends at these weights.
    """

    def __init__(self, model: M, decay: float):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.n_averaged = 0
        self._shards: list[Tensor] | None = None  # of the parameters of `module`, where the model is sharded
        self._is_whole = True

    @torch.no_grad()
    def update(self, model: nn.Module, updates_left: int | None = None) -> None:
        """Move towards the weights of `model`, the unwrapped one; `updates_left` are those after this."""
        n = self.n_averaged
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0  # a step of 1.0 copies exactly
        if updates_left is not None:
            weight = max(weight, 1 / (updates_left + 1))
        self._move(model, weight)

    @torch.no_grad()
    def look_ahead(self, model: nn.Module, decay: float) -> None:
        """Move towards the weights of `model`, which then go back to where the average stands.

        Lookahead (Zhang et al. 2019, arXiv 1907.08610): the weights run ahead for some updates, and the average
        says how much of that counts. Not for a model that is sharded.
        """
        self._move(model, 1 - decay)
        averages = [*self.module.parameters(), *self.module.buffers()]
        torch._foreach_copy_([*model.parameters(), *model.buffers()], averages)

    def _move(self, model: nn.Module, weight: float) -> None:
        """By the share `weight` of the way to the weights of `model`."""
        current = list(model.parameters())
        if self._shards is None and any(isinstance(p, DTensor) for p in current):
            self._shards = [_shard_like(own, p) for own, p in zip(self.module.parameters(), current, strict=True)]
        averages = self._shards or list(self.module.parameters())
        self._is_whole = self._shards is None
        torch._foreach_lerp_([_local(a) for a in averages], [_local(p).float() for p in current], weight)
        buffers = list(zip(self.module.buffers(), model.buffers(), strict=True))
        statistics = [pair for pair in buffers if pair[0].is_floating_point()]  # running ones of norms
        counts = [pair for pair in buffers if not pair[0].is_floating_point()]
        if statistics:
            torch._foreach_lerp_([a for a, _ in statistics], [b.to(a.dtype) for a, b in statistics], weight)
        if counts:
            torch._foreach_copy_([a for a, _ in counts], [b for _, b in counts])
        self.n_averaged += 1

    @torch.no_grad()
    def gather(self) -> None:
        """Make `module` whole from what the processes averaged. All call."""
        if self._shards is None or self._is_whole:
            return
        for own, shard in zip(self.module.parameters(), self._shards, strict=True):
            own.copy_(shard.full_tensor() if isinstance(shard, DTensor) else shard)
        self._is_whole = True

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.module.state_dict(), "n_averaged": torch.tensor(self.n_averaged)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        self.n_averaged = int(state.pop("n_averaged"))
        self.module.load_state_dict(state)
        self._shards = None
        self._is_whole = True


def _shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `whole`, of which this process holds what it holds of `parameter`."""
    if not isinstance(parameter, DTensor):
        return whole.clone()
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.detach().clone(), mesh, placements, src_data_rank=None)


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of it, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
