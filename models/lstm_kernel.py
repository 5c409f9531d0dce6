"""Calls of torch.lstm for one layer, such that cuDNN's kernel takes weights and numbers as they are.

Two things of cuDNN's, both without consequence on a CPU. Under autocast it casts to float16, whatever dtype
autocast has: in bfloat16, where no scaler guards the gradients, they would be rounded to nothing. And it wants all
weights of a call in one chunk of memory, in an order of its own, else it copies them into one at each call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Weight of the inputs (4H, I) and of the hidden states (4H, H), and a bias (4H,) of each; once for each direction.
Weights = Sequence[Tensor]


def _is_cudnns(device: torch.device) -> bool:
    return device.type == "cuda"


def kernel_weights(weights: Weights) -> list[Tensor]:
    """The weights of a layer as `run_lstm` takes them; to be made once for all calls between two updates.

    For cuDNN they are views of one tensor in autocast's dtype, in its order: the matrices of all directions and
    then their biases. The CPU's kernel takes the weights themselves and casts them as autocast does.
    """
    device = weights[0].device
    if not _is_cudnns(device):
        return list(weights)
    order = [i for i in range(len(weights)) if i % 4 < 2] + [i for i in range(len(weights)) if i % 4 >= 2]
    flat = torch.cat([weights[i].flatten() for i in order]).to(_working_dtype(weights[0]))
    parts = flat.split([weights[i].numel() for i in order])
    views = {i: part.view_as(weights[i]) for i, part in zip(order, parts, strict=True)}
    return [views[i] for i in range(len(weights))]


@torch.compiler.disable  # else it is unrolled over its positions
def run_lstm(
    x: Tensor, state: tuple[Tensor, Tensor], weights: Weights, *, training: bool, bidirectional: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x (B, T, I), hidden and cell states (n_directions, B, H) -> outputs (B, T, n_directions H), the new states.

    cuDNN has gradients only of what it ran with `training`.
    """
    if not _is_cudnns(x.device):
        return _call(x, state, weights, training, bidirectional)
    dtype = weights[0].dtype
    with torch.autocast(x.device.type, enabled=False):
        return _call(x.to(dtype), (state[0].to(dtype), state[1].to(dtype)), weights, training, bidirectional)


def _working_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _call(
    x: Tensor, state: tuple[Tensor, Tensor], weights: Weights, training: bool, bidirectional: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    outputs, hidden, cell = torch.lstm(
        x,
        state,
        list(weights),
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=training,
        bidirectional=bidirectional,
        batch_first=True,
    )
    return outputs, (hidden, cell)
